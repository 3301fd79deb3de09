"""Timing one problem: all candidates in turn, round after round, until their ratio is known well enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from . import results, roof
from .peers import INFERENCE_ONLY, OURS, RUN_MODULES
from .problems import Problem
from .processes import WorkerDied, WorkerError, WorkerProcess

Key = tuple[str, int]  # candidate, threads

# After that many rounds, a candidate that many times slower than the best peer of its thread count has lost: its own
# time is known, and its turns would only take time from the ratio that counts.
TRIAL_ROUNDS = 3
FAR_BEHIND = 3.0

# The NumPy backend runs at some 5 GF/s: on larger problems a call takes it seconds, on the largest of the grid 20 s,
# and it has five calls before its trial is over.
NUMPY_FLOPS = 5e9

PROBE_SECONDS = 3e-3
PROBE_ROUNDS = 9


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes
    ----------
    sample_seconds : float
        Calls are repeated until a sample takes about that long.
    samples : int
        Samples in a turn, one where a call is long; the turn counts as their median.
    min_rounds : int
        Rounds that every case gets, if they do not take more than `most_seconds`.
    max_seconds : float
        After `min_rounds`, more rounds follow until this bound, while a ratio's interval is wider than `precision`.
    most_seconds : float
        After that long the trial's three rounds are enough: calls of seconds would take minutes for more.
    precision : float
        How far the confidence interval may reach from the ratio, as a share of it.
    """

    sample_seconds: float = 3e-3
    samples: int = 3
    min_rounds: int = 9
    max_seconds: float = 10.0
    most_seconds: float = 60.0
    precision: float = 0.02


# What `estimate` reckons with, an average over candidates on two processors: five problems of the grid took 39 s where
# it says 36 to 40.
PREPARE_SECONDS, GUESSED_FLOPS, GUESSED_CALL = 0.2, 4e10, 3e-4


def estimate(
    problems: Sequence[Problem], peers: Sequence[str], threads: Sequence[int], effort: Effort
) -> tuple[float, float]:
    """Guess the seconds a run takes: where every ratio is soon known, and where none ever is."""
    least = most = 0.0
    for problem in problems:
        names = [
            name
            for name in (OURS, *peers)
            if not (problem.mode == "training" and name in INFERENCE_ONLY)
            and not (name == "numpy" and problem.flops > NUMPY_FLOPS)
            and not (problem.module and name not in RUN_MODULES)
        ]
        call = GUESSED_CALL + problem.flops / GUESSED_FLOPS
        turn = call if call > 0.1 else effort.samples * max(effort.sample_seconds, call) + 2e-3
        one_round = len(names) * len(threads) * turn
        rounds = min(effort.min_rounds * one_round, max(TRIAL_ROUNDS * one_round, effort.most_seconds))
        ready = len(names) * len(threads) * (PREPARE_SECONDS + 3 * call)
        least += ready + rounds
        most += ready + max(rounds, effort.max_seconds + one_round)
    return least, most


def prepare(
    problem: Problem, workers: Mapping[Key, WorkerProcess | str], reference: Path, effort: Effort
) -> list[dict[str, Any]]:
    """Have every candidate prepare and check the problem. A worker that could not start comes as its error message."""
    candidates = []
    for (name, threads), worker in workers.items():
        record: dict[str, Any] = {"name": name, "threads": threads, "status": "failed", "detail": "", "rounds": []}
        if isinstance(worker, str):
            record["detail"] = worker
        elif name == "numpy" and problem.flops > NUMPY_FLOPS:
            record |= {"status": "unsupported", "detail": f"left out above {NUMPY_FLOPS / 1e9:g} GF a call"}
        elif problem.module and name not in RUN_MODULES:
            record |= {"status": "unsupported", "detail": "runs no modules of torch"}
        else:
            request = {
                "do": "prepare",
                "problem": problem.as_dict(),
                "reference": str(reference),
                "sample_seconds": effort.sample_seconds,
            }
            try:
                with worker.awake():
                    record |= worker.ask(request)
            except WorkerError as error:
                record["detail"] = str(error)
        candidates.append(record)
    return candidates


def run_rounds(
    case: dict[str, Any],
    workers: Mapping[Key, WorkerProcess | str],
    effort: Effort,
    after_round: Callable[[int], None] = lambda _: None,
) -> None:
    """Time the prepared candidates of a case; fills their `rounds` and the case's `probes`."""
    problem = Problem.from_dict(case["problem"])
    probing = [(key, workers[key]) for key in workers if key[0] == OURS and case["probes"] is not None][:1]
    start = monotonic()
    number = 0
    while True:
        running = [c for c in case["candidates"] if c["status"] == "ok" and not _far_behind(case, c)]
        if not any(c["name"] == OURS for c in running) and number >= TRIAL_ROUNDS:
            return
        if not running:
            return
        turn = number % len(running)
        for candidate in running[turn:] + running[:turn]:
            worker = workers[candidate["name"], candidate["threads"]]
            assert isinstance(worker, WorkerProcess)
            try:
                with worker.awake():
                    samples = worker.ask({"do": "time", "samples": effort.samples})["samples"]
                candidate["rounds"].append(samples)
            except WorkerError as error:
                candidate.update(status="failed", detail=str(error))
        if number < PROBE_ROUNDS:
            for _, worker in probing:
                if isinstance(worker, WorkerProcess) and worker.alive:
                    _probe(case, problem, worker)
        number += 1
        after_round(number)
        elapsed = monotonic() - start
        if number >= TRIAL_ROUNDS and elapsed > effort.most_seconds:
            return
        if number >= effort.min_rounds and (_precise(case, effort) or elapsed > effort.max_seconds):
            return


def _probe(case: dict[str, Any], problem: Problem, worker: WorkerProcess) -> None:
    wanted = roof.probes(problem)
    request = {"do": "probe", "probes": [vars(probe) for probe in wanted], "seconds": PROBE_SECONDS}
    try:
        with worker.awake():
            reply = worker.ask(request)
    except WorkerDied:
        return  # its next turn reports it
    case["lanes"] = reply["vector_bytes"] // problem.itemsize
    for probe, rate in zip(wanted, reply["rates"], strict=True):
        case["probes"].setdefault(probe.key, []).append(rate)


def _far_behind(case: Mapping[str, Any], candidate: Mapping[str, Any]) -> bool:
    if candidate["name"] == OURS or len(candidate["rounds"]) < TRIAL_ROUNDS:
        return False
    best = results.best_peer(case, candidate["threads"])
    return best is not None and results.seconds(candidate) > FAR_BEHIND * results.seconds(best)


def _precise(case: Mapping[str, Any], effort: Effort) -> bool:
    shown = [ratio for row in results.rows(case) for ratio in (row.speedup, row.overall) if ratio is not None]
    return all(ratio.spread <= effort.precision for ratio in shown)
