"""The figures that are quoted, computed from the record alone, so that tables and reports cannot disagree.

A record is what `hotloop bench` writes as JSON: see `run.py` for its head and `rounds.py` for its cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timezone
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np

from . import attention, memory, roof, stats
from .files import moment
from .peers import OURS, label
from .problems import Problem

Case = Mapping[str, Any]
CandidateRecord = Mapping[str, Any]


def problem_of(case: Case) -> Problem:
    """Read the problem of a case."""
    return Problem.from_dict(case["problem"])


def seconds(candidate: CandidateRecord) -> float:
    """Return a candidate's time for one call: the median over rounds."""
    return median(stats.round_medians(candidate["rounds"]))


def timed(case: Case) -> list[CandidateRecord]:
    """List the candidates that gave the right answer and have a time."""
    return [c for c in case["candidates"] if c["status"] == "ok" and c["rounds"]]


def ours(case: Case, threads: int | None = None) -> CandidateRecord | None:
    """Find our own candidate at that number of threads, or the faster one."""
    found = [c for c in timed(case) if c["name"] == OURS and threads in (None, c["threads"])]
    return min(found, key=seconds, default=None)


def best_peer(case: Case, threads: int | None = None, names: Sequence[str] | None = None) -> CandidateRecord | None:
    """Find the fastest of the others at that number of threads, or at any, and of these names where given.

    Our own Numba backend is none of them.
    """
    found = [c for c in timed(case) if c["name"] not in (OURS, "numba") and threads in (None, c["threads"])]
    if names is not None:
        found = [c for c in found if c["name"] in names]
    return min(found, key=seconds, default=None)


def time_interval(candidate: CandidateRecord) -> stats.Interval:
    """Return a candidate's time for one call with its confidence interval over rounds."""
    return stats.median_interval(stats.round_medians(candidate["rounds"]))


def speedup_over(case: Case, candidate: CandidateRecord) -> stats.Interval | None:
    """Return how many times faster we are than one candidate, at its number of threads."""
    us = ours(case, candidate["threads"])
    if us is None or us is candidate or candidate not in timed(case):
        return None
    return stats.speedup(us["rounds"], candidate["rounds"])


def gigaflops(case: Case, candidate: CandidateRecord) -> float:
    """Return 10^9 floating-point operations of the matrix products a second."""
    return problem_of(case).flops / seconds(candidate) / 1e9


def steps_per_second(case: Case, candidate: CandidateRecord) -> float:
    """Return time steps of the whole batch a second."""
    return problem_of(case).seq_len / seconds(candidate)


def best_rates(case: Case) -> dict[str, float] | None:
    """Return the best that each probe measured; None where there are no probes."""
    return {key: max(rates) for key, rates in case["probes"].items()} if case.get("probes") else None


def roof_parts(case: Case, threads: int) -> dict[str, float] | None:
    """Return the seconds of every phase of the roof, or None where there are no probes."""
    rates = best_rates(case)
    return None if rates is None else roof.parts(problem_of(case), rates, case["lanes"], threads)


@dataclass(frozen=True)
class Row:
    """One line of the table: ourselves at one number of threads."""

    problem: Problem
    threads: int
    seconds: float
    gigaflops: float
    steps_per_second: float
    peer: CandidateRecord | None  # the best at the same number of threads
    speedup: stats.Interval | None  # over it
    overall_peer: CandidateRecord | None  # the best at any number of threads; on the row of our own best only
    overall: stats.Interval | None
    numba_seconds: float | None  # of our Numba backend
    of_roof: float | None


def rows(case: Case) -> Iterator[Row]:
    """Compute the lines of a case, by threads."""
    fastest = ours(case)
    counts = sorted({c["threads"] for c in timed(case) if c["name"] == OURS})
    for threads in counts:
        us = ours(case, threads)
        assert us is not None
        peer = best_peer(case, threads)
        overall_peer = best_peer(case) if us is fastest else None
        parts = roof_parts(case, threads)
        numba = [seconds(c) for c in timed(case) if (c["name"], c["threads"]) == ("numba", threads)]
        yield Row(
            problem=problem_of(case),
            threads=threads,
            seconds=seconds(us),
            gigaflops=gigaflops(case, us),
            steps_per_second=steps_per_second(case, us),
            peer=peer,
            speedup=None if peer is None else stats.speedup(us["rounds"], peer["rounds"]),
            overall_peer=overall_peer,
            overall=None if overall_peer is None else stats.speedup(us["rounds"], overall_peer["rounds"]),
            numba_seconds=numba[0] if numba else None,
            of_roof=None if parts is None else sum(parts.values()) / seconds(us),
        )


@dataclass(frozen=True)
class Comparison:
    """Ourselves at our best number of threads against a peer at its best, on one problem."""

    problem: Problem
    us: CandidateRecord
    peer: CandidateRecord

    @cached_property
    def ratios(self) -> list[float]:
        """Their time over ours, round by round."""
        return stats.round_ratios(self.us["rounds"], self.peer["rounds"])

    @cached_property
    def ratio(self) -> stats.Interval:
        """How many times as fast we are."""
        return stats.speedup(self.us["rounds"], self.peer["rounds"])

    def __str__(self) -> str:
        """Name, ratio with its direction, and peer."""
        return f"{self.problem.name} {format_interval(self.ratio)} times as fast as {format_candidate(self.peer)}"


def judged(record: Mapping[str, Any]) -> list[Case]:
    """List the cases on which being slower counts; modules of torch have goals of their own, see `swaps`."""
    return [case for case in record["cases"] if (p := problem_of(case)).is_judged and not p.module]


def compare(cases: Sequence[Case], names: Sequence[str] | None = None) -> list[Comparison]:
    """Compare with the best of these peers (of all, by default), worst case first; cases without one are left out."""
    found = []
    for case in cases:
        us, peer = ours(case), best_peer(case, names=names)
        if us is not None and peer is not None:
            found.append(Comparison(problem_of(case), us, peer))
    return sorted(found, key=lambda one: one.ratio.value)


def behind(record: Mapping[str, Any]) -> list[Comparison]:
    """List the judged problems on which the best peer is faster, worst first."""
    return [one for one in compare(judged(record)) if one.ratio.value < 1]


@dataclass(frozen=True)
class Swap:
    """A module of torch, stock and swapped, each at its best number of threads."""

    problem: Problem
    stock: CandidateRecord
    swapped: CandidateRecord
    ratio: stats.Interval

    @property
    def below_goal(self) -> bool:
        """Whether the project wants more of it."""
        return self.ratio.value < self.problem.goal

    def __str__(self) -> str:
        """Name and ratio."""
        return f"{self.problem.name} {format_interval(self.ratio)}"


def modules(record: Mapping[str, Any]) -> list[Case]:
    """List the cases that are modules of torch."""
    return [case for case in record["cases"] if problem_of(case).module]


def swap(case: Case) -> Swap | None:
    """Compare the two modules of a case; None where one of them has no time."""
    us, torch = ours(case), best_peer(case, names=("torch",))
    if us is None or torch is None:
        return None
    return Swap(problem_of(case), torch, us, stats.speedup(us["rounds"], torch["rounds"]))


def swaps(record: Mapping[str, Any]) -> list[Swap]:
    """List the modules of torch that were timed both ways."""
    return [found for case in modules(record) if (found := swap(case)) is not None]


@dataclass(frozen=True)
class Share:
    """A figure of many problems that has a bar to reach: a goal that the project sets itself."""

    values: Mapping[str, float]  # by the problem's name
    bar: float | None


# A call shorter than this is over before a second thread is awake; a step shorter than that, before two threads have
# told each other that they are done.
LONG_ENOUGH, LONG_STEP = 200e-6, 2e-6
ROOF_SECONDS = 100e-6


def second_thread(record: Mapping[str, Any]) -> dict[str, Share]:
    """Return our time on one thread over that on two, for calls over 200 us on one, by class."""
    found: dict[str, dict[str, float]] = {"B >= 8": {}, "B < 8, steps of 2 us or more": {}, "B < 8, shorter steps": {}}
    bars = dict(zip(found, (1.8, 1.6, None), strict=True))
    for case in judged(record):
        one, two, problem = ours(case, 1), ours(case, 2), problem_of(case)
        if one is None or two is None or seconds(one) <= LONG_ENOUGH:
            continue
        steps = problem.seq_len * problem.num_layers * problem.directions
        batch, few, none = found
        name = batch if problem.batch_size >= 8 else few if seconds(one) / steps >= LONG_STEP else none
        found[name][problem.name] = stats.speedup(two["rounds"], one["rounds"]).value
    return {name: Share(values, bars[name]) for name, values in found.items() if values}


def shares_of_roof(record: Mapping[str, Any]) -> dict[str, Share]:
    """Return the fractions of the roof on one thread, where the roof is at least 100 us, by class."""
    found: dict[str, dict[str, float]] = {"H >= 128": {}, "64 <= H < 128": {}, "H < 64": {}}
    bars = dict(zip(found, (0.9, 0.8, None), strict=True))
    for case in judged(record):
        us, parts, problem = ours(case, 1), roof_parts(case, 1), problem_of(case)
        if us is None or parts is None or sum(parts.values()) < ROOF_SECONDS:
            continue
        large, medium, small = found
        name = large if problem.hidden_size >= 128 else medium if problem.hidden_size >= 64 else small
        found[name][problem.name] = sum(parts.values()) / seconds(us)
    return {name: Share(values, bars[name]) for name, values in found.items() if values}


@dataclass(frozen=True)
class MemoryRow:
    """What one training step holds, in bytes."""

    problem: Problem  # at the length that was measured
    grows: Mapping[str, int]  # computed: see memory.grows
    forward: int | None  # measured: by how much the process has grown after forward
    peak: int | None  # and at most
    stock_peak: int | None = None  # of torch.nn's layer

    @property
    def kept(self) -> int:
        """What stays until backward."""
        return sum(self.grows[name] for name in memory.KEPT)

    @property
    def rest(self) -> int | None:
        """What the process holds at its peak beside what grows with T."""
        return None if self.peak is None else self.peak - sum(self.grows.values())


def memory_rows(case: Case) -> list[MemoryRow]:
    """Compute what a dense training case holds: at its own length, and where it was measured at the others too."""
    problem = problem_of(case)
    if problem.mode != "training" or not problem.is_dense or problem.module:
        return []
    measured = case.get("memory", {})
    runs, stock = (
        {run["seq_len"]: run for run in one.get("runs", [])} for one in (measured, measured.get("torch", {}))
    )
    rows = []
    for seq_len in sorted({problem.seq_len, *runs}):
        one, run = replace(problem, seq_len=seq_len), runs.get(seq_len, {})
        rows.append(MemoryRow(one, memory.grows(one), run.get("forward"), run.get("peak"),
                              stock.get(seq_len, {}).get("peak")))  # fmt: skip
    return rows


def summary(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say in a few lines how the judged problems of a record went, as (what, figures); nothing where nothing is known.

    Ratios are of our best number of threads over each peer's best. No comparison is told twice.
    """
    cases, lines = judged(record), []
    everything, told = compare(cases), behind(record)
    if len(everything) == 1:
        told = everything
        lines.append(("against the best peer", str(told[0])))
    elif told:
        text = f"on {len(told)} of {_problems(len(everything))}, worst first:"
        lines.append(("behind the best peer", "\n".join((text, *map(str, told)))))
    elif everything:
        told = everything[:1]
        lines.append(("behind the best peer", f"on none of {_problems(len(everything))}; the closest is {told[0]}"))
    for what, wanted, names in MEANS:
        chosen = compare([case for case in cases if wanted(problem_of(case))], names)
        if len(chosen) > 1:
            mean = _geometric_mean([one.ratio.value for one in chosen])
            text = f"{mean:.2f} times as fast, geometric mean of {_problems(len(chosen))}"
            lines.append((what, text if chosen[0] in told else f"{text}; the worst is {chosen[0]}"))
        elif chosen and chosen[0] not in told:
            lines.append((what, str(chosen[0])))
        told = told + chosen[:1]
    for name, share in second_thread(record).items():
        mean = _geometric_mean(list(share.values.values()))
        text = _figures(share, lambda value: f"{value:.2f}", mean, " times as fast", "geometric mean")
        lines.append((f"two threads over one, {name}", text))
    for name, share in shares_of_roof(record).items():
        median = float(np.median(list(share.values.values())))
        text = _figures(share, lambda value: f"{value:.0%}", median, "", "median")
        if max(share.values.values()) > 1:
            text += "; one is over 100 %: its probe was too slow"
        lines.append((f"of the roof, {name}", text))
    if compared := swaps(record):
        lines.append(("hotloop.torch over torch.nn", _swap_figures(compared)))
    measured = [rows for rows in map(memory_rows, record["cases"]) if len(rows) > 1]
    if measured:
        text = max((_rise(rows) for rows in measured), key=lambda rise: rise[0])[1]
        lines.append(("memory, beside what grows with T", f"{len(measured)} training problems, T to 2 T: {text}"))
    return lines


SUMMARY_TITLE = "summary, each at its best number of threads (without training on a single step)"

# What is averaged: its name, which problems, over the best of which peers.
MEANS: tuple[tuple[str, Callable[[Problem], bool], Sequence[str] | None], ...] = (
    ("inference, hotloop over the best peer", lambda problem: problem.mode == "inference", None),
    ("training, hotloop over the best of torch and jax", lambda problem: problem.mode == "training", ("torch", "jax")),
    ("GRU training, hotloop over torch", lambda p: (p.cell, p.mode) == ("gru", "training"), ("torch",)),
    ("RNN training, hotloop over torch", lambda p: (p.cell, p.mode) == ("rnn", "training"), ("torch",)),
)


def _geometric_mean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _problems(count: int) -> str:
    return f"{count} problem{'' if count == 1 else 's'}"


def _figures(share: Share, write: Callable[[float], str], middle: float, unit: str, kind: str) -> str:
    """Write the middle and the least, which are one where there is one problem, and how many miss the goal."""
    count = len(share.values)
    name = min(share.values, key=lambda name: share.values[name])
    text = f"{write(middle)}{unit}, {kind} of {_problems(count)}; least {write(share.values[name])} ({name})"
    if count == 1:
        text = f"{write(middle)}{unit} ({name})"
    if share.bar is not None:
        below = sum(value < share.bar for value in share.values.values())
        text += f"; {below} of {count} below the project's own goal of {write(share.bar)}"
    return text


def _swap_figures(found: Sequence[Swap]) -> str:
    """Write the mean, and the goals that are missed, worst first; without any of these the worst."""
    worst = sorted(found, key=lambda one: one.ratio.value / (one.problem.goal or 1))
    missed = [one for one in worst if one.below_goal]
    text = f"{_geometric_mean([one.ratio.value for one in found]):.2f} times as fast, "
    text += f"geometric mean of {_problems(len(found))}" if len(found) > 1 else str(found[0].problem.name)
    goals = sum(one.problem.goal > 0 for one in found)
    if not goals:
        return f"{text}; the worst is {worst[0]}" if len(found) > 1 else text
    text += f"; {len(missed)} of {goals} below the project's own goal{':' if missed else ''}"
    return "\n".join((text, *(f"{one}, goal {one.problem.goal:g}" for one in missed)))


def _rise(rows: Sequence[MemoryRow]) -> tuple[float, str]:
    """By how much the rest grows from the first length to the last, as a share of what is kept more, and in words.

    A process grows by pages, and the system counts some hundred KiB late: where less than 1 MiB more is kept, that
    would be the whole share.
    """
    first, last = rows[0], rows[-1]
    assert first.rest is not None
    assert last.rest is not None
    more, rise = last.kept - first.kept, last.rest - first.rest
    text = f"largest rise {format_bytes(rise)} where {format_bytes(more)} more are kept ({first.problem.name})"
    return rise / max(more, 1 << 20), text


BUSY = 0.5  # load average of the last minute, a processor, above which figures are not for quoting


def processors(record: Mapping[str, Any]) -> int:
    """Return the processors of the machine; records of before have those that our last worker might run on."""
    environment = record["environment"]
    return int(environment.get("processors", environment["hotloop"]["processors"]))


def busy(record: Mapping[str, Any]) -> str | None:
    """Say that the machine was not quiet when the measurement started; None where it was."""
    load, count = record["environment"]["load"], processors(record)
    if load <= BUSY * count:
        return None
    return (
        f"When the measurement started, other work was running or had just ended, as an installation has (load "
        f"average of the last minute: {load:g}, on {count} processor{'' if count == 1 else 's'}). For figures to "
        "quote, run it again when the machine is quiet."
    )


def remarks(record: Mapping[str, Any]) -> list[str]:
    """List what a reader must know beside the figures: who was missing, refused, failed or was wrong, and where."""
    found: dict[str, list[str]] = {}
    for case in record["cases"]:
        for candidate in case["candidates"]:
            if candidate["status"] != "ok":
                detail = candidate["detail"].strip().splitlines()
                text = f"{candidate['status']}: {detail[-1]}" if detail else candidate["status"]
                mode = problem_of(case).mode
                # What a library cannot do at all is said once, what went wrong is said with its problem.
                where = mode if candidate["status"] == "unsupported" else case["problem"]["name"]
                found.setdefault(f"{label(candidate['name'])}, {text}", []).append(where)
    lines = [f"{label(peer)}: not installed" for peer in record["environment"]["not_installed"]]
    for text, places in found.items():
        names = list(dict.fromkeys(places))
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"{text} ({shown})")
    shortened = {
        case["problem"]["name"]: candidate["checked_steps"]
        for case in record["cases"]
        for candidate in case["candidates"]
        if candidate.get("checked_steps", case["problem"]["seq_len"]) < case["problem"]["seq_len"]
    }
    if shortened:
        fewest, most = min(shortened.values()), max(shortened.values())
        steps = f"{most}" if fewest == most else f"{fewest} to {most}"
        lines.append(
            f"answers checked on the first {steps} steps only, where the float64 specification would take too long: "
            + ", ".join(shortened)
        )
    for whose, key in (("", None), ("torch's ", "torch")):
        held = [case.get("memory", {}) if key is None else case.get("memory", {}).get(key, {})
                for case in record["cases"]]  # fmt: skip
        unmeasured = dict.fromkeys(one["error"] for one in held if "error" in one)
        lines += [f"{whose}memory was not measured: {error}" for error in unmeasured]
    if attention.failed(record):
        lines.append(f"the cost of a step of attention was not measured: {attention.failed(record)}")
    if record.get("interrupted"):
        lines.append("interrupted: only the cases that were complete are here")
    return lines


def format_seconds(value: float) -> str:
    """Write three figures and a unit."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if value * factor < 999.5:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s"


def format_count(value: float) -> str:
    """Write three figures, thousands as k, millions as M."""
    for factor, unit in ((1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def format_bytes(value: float | None) -> str:
    """Write three figures and a binary unit; a dash for what was not measured."""
    if value is None:
        return "-"
    for factor, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(value) >= 999.5 / 1024 * factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def memory_cells(row: MemoryRow) -> tuple[str, ...]:
    """Write what every table of memory shows of a row after its problem."""
    computed = [format_bytes(row.grows[name]) for name in row.grows]
    return (*computed, format_bytes(row.kept), *map(format_bytes, (row.forward, row.peak, row.rest, row.stock_peak)))


def format_date(text: str) -> str:
    """Write the date of a record for people, in UTC."""
    when = moment(text).astimezone(timezone.utc)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


MEMORY_HEADS = (*memory.NAMES, "kept, computed", "after forward, measured", "peak, measured", "rest",
                "torch's peak, measured")  # fmt: skip


def format_interval(interval: stats.Interval | None) -> str:
    """Write the ratio, and its interval where there is one."""
    if interval is None:
        return "-"
    if not np.isfinite(interval.low):
        return f"{interval.value:.2f}"
    return f"{interval.value:.2f} ({interval.low:.2f}-{interval.high:.2f})"


def format_candidate(candidate: CandidateRecord | None) -> str:
    """Write name and threads."""
    return "-" if candidate is None else f"{label(candidate['name'])} {candidate['threads']}t"


COLUMNS = (
    "problem", "threads", "time", "best peer", "speed-up", "best over best", "GF/s", "steps/s", "hotloop (numba)",
    "of roof",
)  # fmt: skip

# What names and columns mean, for the terminal and the report.
MEANINGS = {
    "problem": "T is the sequence length, B the batch, I the input size, H the hidden size; L2: two layers, bi: both "
    "directions, float64: in place of float32; training is forward and backward with all gradients; torch: a layer of "
    "torch.nn, trained by whole steps, cell: a cell of torch.nn",
    "best peer": "the fastest of the other libraries at the same number of threads; 1t: on one thread, 2t: on two",
    "speed-up": "how many times as fast as the best peer hotloop is: the median of the ratios of interleaved rounds "
    "(95 % bootstrap interval)",
    "best over best": "the same with both at their best number of threads, once a problem",
    "GF/s": "10^9 floating-point operations a second, those of the matrix products only",
    "steps/s": "time steps of the whole batch a second",
    "hotloop (numba)": "hotloop's own numba backend, for where there is no compiler; hotloop (numpy) is its "
    "specification in NumPy",
    "of roof": "the least time that the machine's limits allow (its roof: peak and bandwidths, measured in the same "
    "run), on that many threads, over ours",
}


SWAP_COLUMNS = ("problem", "torch.nn", "swapped", "times as fast", "goal")
SWAP_TITLE = "torch.nn, stock and swapped by hotloop.torch.replace_modules"
SWAP_MEANING = (
    "Each at its best number of threads; 1t: one thread, 2t: two. Training is a whole step: forward, backward to the "
    "parameters from a given gradient of the output, and the update by plain SGD; x is data. Packed: sequences of 1 to "
    "T steps, packed before the layer and padded after it inside the timed step. Cell: one step from a given state, "
    "under torch.no_grad. The ratio is the median of the ratios of interleaved rounds (95 % bootstrap interval)."
)


def swap_cells(case: Case) -> tuple[str, ...]:
    """Write what every table of modules shows of a case after its problem: the rest of `SWAP_COLUMNS`."""
    found, goal = swap(case), problem_of(case).goal
    times = ["-" if one is None else f"{format_seconds(seconds(one))} {one['threads']}t"
             for one in (best_peer(case, names=("torch",)), ours(case))]  # fmt: skip
    wanted = f"{goal:g}" if goal else "-"
    if found is None:
        return (*times, "-", wanted)
    return (*times, format_interval(found.ratio), f"{wanted}, missed" if found.below_goal else wanted)


def cells(row: Row) -> tuple[str, ...]:
    """Write what every table of cases shows of a row after its problem: the rest of `COLUMNS`."""
    overall = "" if row.overall is None else format_interval(row.overall)
    if row.overall_peer is not None:
        overall += f" {format_candidate(row.overall_peer)}"
    return (
        str(row.threads),
        format_seconds(row.seconds),
        format_candidate(row.peer),
        format_interval(row.speedup),
        overall,
        f"{row.gigaflops:.3g}",
        format_count(row.steps_per_second),
        "-" if row.numba_seconds is None else format_seconds(row.numba_seconds),
        "-" if row.of_roof is None else f"{row.of_roof:.0%}",
    )
