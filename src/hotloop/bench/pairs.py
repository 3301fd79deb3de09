"""Timing two sides of a comparison: pairs of fresh processes, and the base twice in each for the noise.

A machine changes: for seconds it is a third slower, and each process has its own luck with where its memory lies. What
lasts seconds is met by interleaving: the processes of a pair are stopped but for one, and take turns of some 5 ms in an
order that is mirrored (A T B, B T A), so a drift cancels. What a process keeps for life is met by many fresh pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from .files import check_times
from .problems import Problem
from .processes import WorkerError, WorkerProcess, start_candidate
from .sides import Side

ROLES = ("base", "twin", "head")
_ORDERS = tuple(permutations(ROLES))


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes
    ----------
    pairs : int
        Fresh processes of each role.
    turns : int
        Times that every process of a pair is woken for a case.
    samples : int
        In a turn.
    sample_seconds : float
        Calls are repeated until a sample takes about that long.
    """

    pairs: int = 24
    turns: int = 6
    samples: int = 5
    sample_seconds: float = 1e-3


def new_case(problem: Problem, threads: int) -> dict[str, Any]:
    """Make a case in which nothing is measured yet."""
    return {"problem": problem.as_dict(), "threads": threads, "status": "ok", "detail": "", "calls": None,
            "samples": {role: [] for role in ROLES}}  # fmt: skip


def name_of(case: dict[str, Any]) -> str:
    """Name a case as tables do: the problem, and the threads where there are several."""
    name: str = case["name"] if "name" in case else case["problem"]["name"]
    return name if case.get("threads", 1) == 1 else f"{name} ({case['threads']} threads)"


def order(pair: int, turn: int) -> tuple[str, ...]:
    """Return who is woken after whom: every second turn is the one before, mirrored."""
    found = _ORDERS[(pair + turn // 2) % len(_ORDERS)]
    return found if turn % 2 == 0 else found[::-1]


def measure(
    cases: Sequence[dict[str, Any]],
    base: Side,
    head: Side,
    plan: Plan,
    isa: str | None = None,
    progress: Callable[[int, str], None] = lambda done, text: None,
) -> dict[str, Any]:
    """Fill the samples of the cases, a row a pair: [pairs][turns * samples] seconds a call for every role.

    Returns the plan and what each side says of itself. A case that a side cannot do gets a status: "base" (a base that
    is too old is no fault of the head), "head" (the head is wrong or broken, which is worse than slow).
    """
    sides = {"base": base, "twin": base, "head": head}
    about: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        references = _references(cases, Path(folder))
        for pair in range(plan.pairs):
            progress(pair, f"pair {pair + 1} of {plan.pairs}")
            with ExitStack() as stack:
                workers = {}
                counts = sorted({case["threads"] for case in cases if case["status"] == "ok"})
                for threads in counts:
                    for role in order(pair, 0):
                        worker = workers[role, threads] = sides[role].start(threads, isa)
                        stack.callback(worker.close)
                for (role, _), worker in workers.items():
                    about[role] = worker.greet()
                for case, reference in zip(cases, references, strict=True):
                    if case["status"] == "ok":
                        mine = {role: workers[role, case["threads"]] for role in ROLES}
                        _measure_case(case, mine, pair, plan, reference if pair == 0 else None)
    return {"plan": asdict(plan), "base": about.get("base"), "head": about.get("head")}


def _references(cases: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Have the specification answer every problem once."""
    paths: dict[str, Path] = {}
    worker = start_candidate("numpy", 1)
    try:
        worker.greet()
        for case in cases:
            name = case["problem"]["name"]
            if name not in paths:
                paths[name] = folder / f"{len(paths)}.npz"
                with worker.awake():
                    worker.ask({"do": "reference", "problem": case["problem"], "path": str(paths[name])})
    finally:
        worker.close()
    return [paths[case["problem"]["name"]] for case in cases]


def _measure_case(
    case: dict[str, Any], workers: dict[str, WorkerProcess], pair: int, plan: Plan, reference: Path | None
) -> None:
    """One pair of one case. The base goes first where something is found out that all have to go by."""
    rows: dict[str, list[float]] = {role: [] for role in ROLES}
    role = "base"
    try:
        for role in ROLES:
            request = {"do": "prepare", "problem": case["problem"], "sample_seconds": plan.sample_seconds,
                       "reference": None if reference is None else str(reference)}  # fmt: skip
            if case["calls"] is not None:
                request["calls"] = case["calls"]
            with workers[role].awake():
                reply = workers[role].ask(request)
            if reply["status"] != "ok":
                raise WorkerError(f"{reply['status']}: {reply['detail']}")
            case["calls"] = reply["calls_per_sample"]
        for turn in range(plan.turns):
            for role in order(pair, turn):
                with workers[role].awake():
                    samples = workers[role].ask({"do": "time", "samples": plan.samples})["samples"]
                check_times(samples, "samples")
                rows[role] += samples
    except (WorkerError, ValueError) as error:
        case.update(status="head" if role == "head" else "base", detail=str(error))
        return
    for role in ROLES:
        case["samples"][role].append(rows[role])
