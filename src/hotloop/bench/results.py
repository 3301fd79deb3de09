"""The figures that are quoted, computed from the record alone, so that tables and reports cannot disagree.

A record is what `hotloop bench` writes as JSON: see `run.py` for its head and `rounds.py` for its cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import roof, stats
from .peers import OURS
from .problems import Problem

Case = Mapping[str, Any]
CandidateRecord = Mapping[str, Any]


def problem_of(case: Case) -> Problem:
    """Read the problem of a case."""
    return Problem.from_dict(case["problem"])


def seconds(candidate: CandidateRecord) -> float:
    """Return a candidate's time for one call: the median over rounds."""
    return float(np.median(stats.round_medians(candidate["rounds"])))


def timed(case: Case) -> list[CandidateRecord]:
    """List the candidates that gave the right answer and have a time."""
    return [c for c in case["candidates"] if c["status"] == "ok" and c["rounds"]]


def ours(case: Case, threads: int | None = None) -> CandidateRecord | None:
    """Find our own candidate at that number of threads, or the faster one."""
    found = [c for c in timed(case) if c["name"] == OURS and threads in (None, c["threads"])]
    return min(found, key=seconds, default=None)


def best_peer(case: Case, threads: int | None = None) -> CandidateRecord | None:
    """Find the fastest of the others at that number of threads, or at any. Our own Numba backend is none of them."""
    found = [c for c in timed(case) if c["name"] not in (OURS, "numba") and threads in (None, c["threads"])]
    return min(found, key=seconds, default=None)


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
                found.setdefault(f"{candidate['name']}, {text}", []).append(where)
    lines = [f"{peer}: not installed" for peer in record["environment"]["not_installed"]]
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
        steps = max(shortened.values())
        lines.append(
            f"answers checked on the first {steps} steps only, where the float64 specification would take too long: "
            + ", ".join(shortened)
        )
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


def format_interval(interval: stats.Interval | None) -> str:
    """Write the ratio, and its interval where there is one."""
    if interval is None:
        return "-"
    if not np.isfinite(interval.low):
        return f"{interval.value:.2f}"
    return f"{interval.value:.2f} ({interval.low:.2f}-{interval.high:.2f})"


def format_candidate(candidate: CandidateRecord | None) -> str:
    """Write name and threads."""
    return "-" if candidate is None else f"{candidate['name']} {candidate['threads']}t"


def cells(row: Row) -> tuple[str, ...]:
    """Write what every table of cases shows of a row after its problem: threads to fraction of the roof."""
    overall = "" if row.overall is None else format_interval(row.overall)
    if row.overall_peer is not None:
        overall += f" {format_candidate(row.overall_peer)}"
    return (
        str(row.threads),
        format_seconds(row.seconds),
        f"{row.gigaflops:.3g}",
        format_count(row.steps_per_second),
        format_candidate(row.peer),
        format_interval(row.speedup),
        overall,
        "-" if row.numba_seconds is None else format_seconds(row.numba_seconds),
        "-" if row.of_roof is None else f"{row.of_roof:.0%}",
    )
