"""How long single calls of one step take: not the median alone, but what one call in a thousand takes.

Every call is timed by itself, thousands of them, in turns with those of the other candidates. What is kept of them:
exact quantiles, and counts in bins of 2 %, in the record as `latency`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .problems import Problem
from .processes import WorkerError, WorkerProcess
from .rounds import Effort, Key, prepare

GROWTH = 1.02  # of a bin's end over the one before
BIN_START = 1e-9  # seconds
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


@dataclass(frozen=True)
class Calls:
    """How many calls: `turns` times `calls`, after as many untimed ones as a worker's warm-up has."""

    turns: int = 10
    calls: int = 1000


def measure(
    problems: Sequence[Problem],
    workers: Mapping[Key, WorkerProcess | str],
    write_reference: Callable[[Problem], Path],
    effort: Effort,
    calls: Calls,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Time single calls of these problems; a candidate that gives a wrong answer is not timed.

    Returns
    -------
    list of dict
        For every problem "problem" and "candidates": name, threads, status and detail as of a case, and where calls
        were timed "calls" (how many), "quantiles" (seconds, by `QUANTILES`) and "bins" and "counts" (see `bin_ends`).
    """
    found = []
    for problem in problems:
        progress(f"{problem.name}: single calls")
        records = prepare(problem, workers, write_reference(problem), effort)
        times: dict[Key, list[float]] = {(one["name"], one["threads"]): [] for one in records if one["status"] == "ok"}
        for turn in range(calls.turns):
            keys = list(times)
            start = turn % max(1, len(keys))
            for key in keys[start:] + keys[:start]:
                worker = workers[key]
                assert isinstance(worker, WorkerProcess)
                try:
                    with worker.awake():
                        times[key] += worker.ask({"do": "latency", "calls": calls.calls})["seconds"]
                except WorkerError as error:
                    del times[key]
                    for one in records:
                        if (one["name"], one["threads"]) == key:
                            one.update(status="failed", detail=str(error))
        kept = ("name", "threads", "status", "detail")
        candidates = [
            {key: one[key] for key in kept} | summarize(times.get((one["name"], one["threads"]), ())) for one in records
        ]
        found.append({"problem": problem.as_dict(), "candidates": candidates})
    return found


def summarize(seconds: Sequence[float]) -> dict[str, Any]:
    """Return what is kept of the times of single calls; nothing of none.

    A quantile is the time of a call that happened: the shortest that so large a share of the calls did not exceed.
    """
    if not seconds:
        return {}
    times = np.asarray(seconds, np.float64)
    quantiles = np.quantile(times, list(QUANTILES.values()), method="inverted_cdf")
    bins, counts = np.unique(
        np.floor(np.log(np.maximum(times, BIN_START) / BIN_START) / math.log(GROWTH)).astype(int), return_counts=True
    )
    return {
        "calls": len(times),
        "quantiles": dict(zip(QUANTILES, map(float, quantiles), strict=True)),
        "bins": bins.tolist(),
        "counts": counts.tolist(),
    }


def bin_ends(candidate: Mapping[str, Any]) -> list[float]:
    """Return the seconds at which the bins of a candidate end."""
    return [BIN_START * GROWTH ** (number + 1) for number in candidate["bins"]]


def slower(candidate: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return times, and the share of calls that took longer than each: a step where a bin ends."""
    counts = np.asarray(candidate["counts"])
    return bin_ends(candidate), (1 - np.cumsum(counts) / counts.sum()).tolist()


def timed(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the candidates of a problem whose calls were timed."""
    return [one for one in entry["candidates"] if one["status"] == "ok" and one.get("calls")]
