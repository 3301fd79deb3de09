"""What a report says first: is it faster, where is it not, by how much, and how sure that is.

Computed from the record alone, as all figures: see results.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import results, stats
from .problems import CELL_NAMES, MODES
from .results import Comparison

LABELS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN (tanh)"}


@dataclass(frozen=True)
class Group:
    """Some problems that are told together, worst first."""

    name: str
    comparisons: tuple[Comparison, ...]

    @property
    def mean(self) -> stats.Interval:
        """How many times as fast we are: the geometric mean."""
        return stats.geometric_mean([one.ratios for one in self.comparisons])

    @property
    def ahead(self) -> int:
        """On how many we are at least as fast."""
        return len(self.comparisons) - len(self.behind)

    @property
    def behind(self) -> list[Comparison]:
        """Those on which the peer is faster, worst first."""
        return [one for one in self.comparisons if one.ratio.value < 1]


def is_proven(ratio: stats.Interval) -> bool:
    """Whether the interval leaves no doubt who is faster."""
    return ratio.low > 1 or ratio.high < 1


def of_libraries(record: Mapping[str, Any]) -> Group:
    """Return the judged problems, each against its fastest library."""
    return Group("all problems", tuple(results.compare(results.judged(record))))


def of_modules(record: Mapping[str, Any]) -> Group:
    """Return the modules of torch, each against the stock one."""
    return Group("modules of torch, swapped", tuple(results.compare(results.modules(record), ("torch",))))


def groups(record: Mapping[str, Any]) -> list[Group]:
    """Return all problems, then by mode and by cell, then modules of torch; empty ones and repetitions left out."""
    everything = of_libraries(record)
    found = [everything]
    for mode in MODES:
        found.append(Group(mode, tuple(one for one in everything.comparisons if one.problem.mode == mode)))
    for cell in CELL_NAMES:
        found.append(Group(LABELS[cell], tuple(one for one in everything.comparisons if one.problem.cell == cell)))
    whole = len(everything.comparisons)
    parts = [group for group in found[1:] if 0 < len(group.comparisons) < whole]
    return [group for group in (everything, *parts, of_modules(record)) if group.comparisons]


@dataclass(frozen=True)
class Noise:
    """How far the rounds of a run are apart, and what that leaves open, all as shares.

    Attributes
    ----------
    scatter, worst_scatter : float
        Half the interquartile range of our rounds: the median over problems, and the largest.
    worst : str
        The problem of the largest.
    precision, worst_precision : float
        How far the interval of a ratio reaches: the same; infinite where a ratio has no interval, NaN without ratios.
    least_precise : str
    """

    scatter: float
    worst_scatter: float
    worst: str
    precision: float
    worst_precision: float
    least_precise: str


def noise(record: Mapping[str, Any]) -> Noise | None:
    """Return the noise of a record; None where nothing of ours was timed."""
    scatters = {
        results.problem_of(case).name: stats.scatter(us["rounds"])
        for case in record["cases"]
        if (us := results.ours(case)) is not None
    }
    if not scatters:
        return None
    spreads = {one.problem.name: one.ratio.spread for one in (*of_libraries(record).comparisons,
                                                             *of_modules(record).comparisons)}  # fmt: skip
    worst = max(scatters, key=lambda name: scatters[name])
    loosest = max(spreads, key=lambda name: spreads[name], default="")
    return Noise(
        float(np.median(list(scatters.values()))),
        scatters[worst],
        worst,
        float(np.median(list(spreads.values()))) if spreads else float("nan"),
        spreads.get(loosest, float("nan")),
        loosest,
    )


def scaling(case: results.Case) -> dict[str, stats.Interval]:
    """Return, by candidate, how many times as fast the most threads are as one; those with one count are left out."""
    most = max((one["threads"] for one in case["candidates"]), default=1)
    timed = {(one["name"], one["threads"]): one for one in results.timed(case)}
    return {
        name: stats.speedup(timed[name, most]["rounds"], one["rounds"])
        for (name, threads), one in timed.items()
        if threads == 1 and most > 1 and (name, most) in timed
    }


def more_time(ratio: float) -> str:
    """Write what a ratio under one means: 0.8 times as fast takes 25 % more time."""
    return f"{100 * (1 / ratio - 1):.3g} % more time"


def sentences(group: Group, of: str) -> Sequence[str]:
    """Say the verdict on a group in two sentences, the second being where we are not faster."""
    count = len(group.comparisons)
    behind = group.behind
    if count == 1:
        (one,) = group.comparisons
        doubt = "" if is_proven(one.ratio) else " (the interval leaves open who is faster)"
        return [f"{results.format_interval(one.ratio)} times as fast as {of} on the one problem measured{doubt}."]
    least, most = group.comparisons[0].ratio.value, group.comparisons[-1].ratio.value
    first = (
        f"Faster than {of} on {group.ahead} of {count} problems: {results.format_interval(group.mean)} times as fast "
        f"in the geometric mean, from {least:.2f} to {most:.2f}" + _doubts(group.comparisons[len(behind) :]) + "."
    )
    if not behind:
        return [first, f"Behind on none; the closest is {group.comparisons[0]}."]
    second = f"Behind on {len(behind)}, at worst {more_time(least)} ({group.comparisons[0].problem.name})"
    return [first, second + _doubts(behind) + "."]


def _doubts(comparisons: Sequence[Comparison]) -> str:
    count = sum(not is_proven(one.ratio) for one in comparisons)
    return f"; on {count} of them the interval leaves open who is faster" if count else ""
