"""Medians, ratios of medians and how sure they are; what is slower beyond doubt, and where a series changes.

Pure functions on numbers: no clock, no process, no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its confidence interval. One sample has no interval: its ends are NaN."""

    value: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """How far the interval reaches from the estimate, as a share of it; infinite where nothing is known."""
        if not (self.value > 0 and np.isfinite(self.low) and np.isfinite(self.high)):
            return float("inf")
        return max(self.high - self.value, self.value - self.low) / self.value


def median_interval(values: Sequence[float], *, level: float = 0.95, resamples: int = 2000) -> Interval:
    """Return the median with its percentile bootstrap interval. The same values always give the same interval."""
    samples = np.asarray(values, np.float64)
    value = float(np.median(samples)) if samples.size else float("nan")
    if samples.size < 2:
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(0)
    medians = np.median(samples[rng.integers(0, samples.size, (resamples, samples.size))], axis=1)
    low, high = np.quantile(medians, ((1 - level) / 2, (1 + level) / 2))
    return Interval(value, float(low), float(high))


def round_medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Return one number a round: the median of its samples. A single disturbed sample does not show.

    Not NumPy's median: of three samples it takes 30 us, and the report of a grid wants half a million of these.
    """
    return [median(samples) for samples in rounds]


def round_ratios(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> list[float]:
    """Return their time over ours in every round that both ran; rounds are paired, so the first ones count."""
    pairs = zip(round_medians(ours), round_medians(theirs), strict=False)
    return [their / our for our, their in pairs]


def speedup(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Interval:
    """Return how many times faster we are: the median over rounds of their time over our time in the same round.

    Rounds are paired, since what slows the machine down for seconds slows both candidates of a round. Where one of
    them ran fewer rounds, the first ones count.
    """
    return median_interval(round_ratios(ours, theirs))


def geometric_mean(groups: Sequence[Sequence[float]], *, level: float = 0.95, resamples: int = 2000) -> Interval:
    """Return the geometric mean of the groups' medians, with the interval that their samples leave.

    Every group is resampled by itself. So the interval is of the measurement: other groups would have another mean.
    Where no group has two samples, nothing is known of it.
    """
    value = float(np.exp(np.mean([np.log(np.median(group)) for group in groups])))
    if all(len(group) < 2 for group in groups):
        return Interval(value, float("nan"), float("nan"))
    total = np.zeros(resamples)
    for number, group in enumerate(groups):
        samples = np.asarray(group, np.float64)
        picked = np.random.default_rng(number).integers(0, samples.size, (resamples, samples.size))
        total += np.log(np.median(samples[picked], axis=1))
    low, high = np.exp(np.quantile(total / len(groups), ((1 - level) / 2, (1 + level) / 2)))
    return Interval(value, float(low), float(high))


def scatter(rounds: Sequence[Sequence[float]]) -> float:
    """Return half the interquartile range of the rounds' medians, as a share of their median."""
    low, middle, high = np.quantile(round_medians(rounds), (0.25, 0.5, 0.75))
    return float((high - low) / 2 / middle)


# The gate. `tools/replay_gate.py` decided its numbers on stored samples, and prints what they give; docs/gating.md has
# the table.

FLOOR = 0.02  # a change that is smaller is none
FAMILY = 0.3  # how often a round of equal sides may have a limit on the wrong side, over all its cases; two must
QUANTILE = 0.0  # of the samples of a process
RESAMPLES = 4000
AT_LEAST = 10  # pairs


def process_time(samples: Any) -> Array:
    """Return one time for every process: the least of its samples, which are the last axis.

    Other work only ever adds time, so low quantiles repeat better than means. QUANTILE was chosen on stored samples.
    """
    return np.asarray(np.quantile(np.asarray(samples, np.float64), QUANTILE, axis=-1))


def log_ratios(base: Any, twin: Any, head: Any) -> tuple[Array, Array]:
    """Return log(head / base) and log(twin / base), a number a pair, from samples [..., pairs, samples].

    The base of the first is the geometric mean of base and twin: that is free, and the ratio's variance falls by a
    quarter where processes differ independently.
    """
    first, second, third = (np.log(process_time(samples)) for samples in (base, twin, head))
    return third - (first + second) / 2, second - first


@cache
def _resamples(size: int, count: int) -> npt.NDArray[np.intp]:
    return np.random.default_rng(0).integers(0, size, (count, size))


def bootstrap_medians(values: Array, resamples: int = RESAMPLES) -> Array:
    """Return sorted medians [..., resamples] of resampled values [..., size], the same every time.

    The percentile bootstrap (Efron 1979). The median, since ratios of processes come in clusters (where pages lie, who
    shares the core): a fifth of the pairs 10 % off moves a mean by 2 % and the median by next to nothing.
    """
    picked = np.sort(values[..., _resamples(values.shape[-1], resamples)], axis=-1)
    size = values.shape[-1]
    return np.sort((picked[..., (size - 1) // 2] + picked[..., size // 2]) / 2, axis=-1)


def noise(ratios: Array) -> Array:
    """Return how far equal sides may be apart for all this run knows, from log ratios [..., pairs] of equal sides.

    That is the end of the median's 95 % interval that is farther from none. It has the mean of the noise (one place is
    luckier than the other) and its scatter.
    """
    medians = bootstrap_medians(ratios)
    ends = np.quantile(medians, (0.025, 0.975), axis=-1)
    return np.asarray(np.abs(ends).max(axis=0))


@dataclass(frozen=True)
class Judgement:
    """What is known of one case. All but the verdict are relative: 0.05 is 5 % slower.

    Attributes
    ----------
    change : float
        The median over pairs.
    low, high : float
        Its interval; those of all cases hold together with 1 - 2 FAMILY.
    noise : float
        Of equal sides in the same run.
    threshold : float
        The larger of the floor and the noise.
    verdict : {"slower", "faster", "same"}
        Slower: even `low` is beyond the threshold. "same" is only the lack of proof.
    """

    change: float
    low: float
    high: float
    noise: float
    threshold: float
    verdict: str


def judge(
    effects: Sequence[Array], noises: Sequence[Array], *, floor: float = FLOOR, family: float = FAMILY
) -> list[Judgement]:
    """Judge every case from log ratios of the sides and of equal sides, a number a pair.

    Each end of an interval is taken at `family` over the number of cases (Bonferroni), so with equal sides all lower
    ends are right at once but for one round in 1 / `family`; that a change has to be beyond a threshold, and in a
    second round too, comes on top.
    """
    found = []
    for effect, equal in zip(effects, noises, strict=True):
        # NaN is neither slower nor faster, and must not pass for "same".
        if not (np.isfinite(effect).all() and np.isfinite(equal).all()):
            raise ValueError("ratios of times have to be finite")
        medians = bootstrap_medians(np.asarray(effect))
        share = family / len(effects)
        low, high = np.quantile(medians, (share, 1 - share))
        level = float(np.expm1(noise(np.asarray(equal))))
        threshold = max(floor, level)
        slower, faster = np.expm1(low) > threshold, np.expm1(-high) > threshold
        verdict = "slower" if slower else "faster" if faster else "same"
        change, low, high = (float(np.expm1(value)) for value in (np.median(effect), low, high))
        found.append(Judgement(change, low, high, level, threshold, verdict))
    return found


# History.


@dataclass(frozen=True)
class Change:
    """A series has another level from `index` on: `factor` times the one before."""

    index: int
    factor: float


SHORTEST = 3  # points of a level
# Penalty of a change, in variances times log n. Of 300 series of pure noise 1 has a change at 60 points, 5 at 30 and 16
# at 12; a step of 5 % in noise of 2 % is found in 273 of 300, at its place or next to it. At 3 it is 3, 10 and 25, and
# 278.
STEEPNESS = 4.0


def changes(values: Sequence[float], *, floor: float = FLOOR) -> list[Change]:
    """Find where the level of a series of times changes, and by how much.

    PELT (Killick, Fearnhead and Eckley 2012, from ruptures) on logarithms, with the squared distance as cost. The
    variance is that of neighbours' differences by their median, which changes of level hardly touch.
    """
    import ruptures

    logs = np.log(np.asarray(values, np.float64))
    if len(logs) < 2 * SHORTEST:
        return []
    scatter = 1.4826 * float(np.median(np.abs(np.diff(logs)))) / np.sqrt(2)
    scatter = max(scatter, floor / 10)
    model = ruptures.Pelt(model="l2", min_size=SHORTEST, jump=1).fit((logs / scatter)[:, None])
    ends = model.predict(pen=STEEPNESS * np.log(len(logs)))
    starts = [0, *ends]
    levels = [float(np.median(logs[a:b])) for a, b in zip(starts, ends, strict=False)]
    return [
        Change(start, float(np.exp(after - before)))
        for start, before, after in zip(starts[1:], levels, levels[1:], strict=False)
        if abs(after - before) > np.log1p(floor)
    ]
