"""A whole run: workers, references, cases, and the record that comes out."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from . import attention, latency, memory
from .attention import Plan
from .history import describe_commit
from .latency import Calls
from .peers import OURS, PEERS, missing_modules
from .problems import Problem
from .processes import WorkerDied, WorkerError, WorkerProcess, start_candidate
from .rounds import Effort, Key, prepare, run_rounds

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """What to measure against, and how long.

    Attributes
    ----------
    peers : sequence of str
        Among `peers.PEERS`; those that are not installed are reported.
    threads : sequence of int
        Every candidate runs once with each.
    isa : str or None
        Our instruction set, in place of the best one.
    effort : Effort
    total_seconds : float or None
        What the whole run may take: cases get what is left of it, in equal shares.
    memory : bool
        Measure what a training step of dense problems holds, too: see memory.py.
    latency : sequence of Problem
        Time single calls of these, too: see latency.py.
    latency_calls : Calls
    attention : Plan or None
        Measure what a step of a cell costs against one of attention, too: see attention.py.
    """

    peers: Sequence[str] = PEERS
    threads: Sequence[int] = (1,)
    isa: str | None = None
    effort: Effort = field(default_factory=Effort)
    total_seconds: float | None = None
    memory: bool = False
    latency: Sequence[Problem] = ()
    latency_calls: Calls = field(default_factory=Calls)
    attention: Plan | None = None


class Pool:
    """The workers of a run. All are ended when the block is left, however it is left."""

    def __init__(self, keys: Sequence[Key], isa: str | None) -> None:
        self._isa = isa
        self._stack = ExitStack()
        self._keys = tuple(keys)
        self.specification: WorkerProcess | None = None
        self.workers: dict[Key, WorkerProcess | str] = {}

    def __enter__(self) -> Pool:
        # Importing a library takes seconds and is not timed: they all start at once.
        try:
            started = {key: self._start(key) for key in self._keys}
            self.specification = self._start(("numpy", 1))
            self.specification.greet()
            for key, worker in started.items():
                self.workers[key] = self._greet(worker)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def revive(self) -> None:
        """Start anew the workers that died, so that one bad case does not cost a candidate the others."""
        for key, worker in self.workers.items():
            if isinstance(worker, WorkerProcess) and not worker.alive:
                self.workers[key] = self._greet(self._start(key))

    def _start(self, key: Key) -> WorkerProcess:
        worker = start_candidate(*key, isa=self._isa)
        self._stack.callback(worker.close)
        return worker

    @staticmethod
    def _greet(worker: WorkerProcess) -> WorkerProcess | str:
        try:
            worker.greet()
        except WorkerError as error:
            return str(error)
        return worker


def run(
    problems: Sequence[Problem],
    settings: Settings,
    *,
    command: Sequence[str] = (),
    progress: Callable[[int, str], None] = lambda done, text: None,
) -> dict[str, Any]:
    """Time the problems against every installed peer.

    Parameters
    ----------
    problems : sequence of Problem
    settings : Settings
    command : sequence of str
        For the record.
    progress : callable
        Called with the number of finished cases and what is happening now.

    Returns
    -------
    dict
        The record, ready for JSON. After Ctrl-C it holds the cases that were complete, and `interrupted` is True.
    """
    begin = time.monotonic()
    not_installed = {peer: missing_modules(peer) for peer in settings.peers if missing_modules(peer)}
    names = [OURS, *(peer for peer in settings.peers if peer not in not_installed)]
    keys = [(name, threads) for name in names for threads in settings.threads]
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(command),
        "commit": describe_commit(),
        "settings": _describe(settings),
        "environment": {"not_installed": sorted(not_installed), **describe_machine()},
        "cases": [],
        "interrupted": False,
    }
    progress(0, "starting workers")
    try:
        with Pool(keys, settings.isa) as pool, tempfile.TemporaryDirectory() as folder:
            record["environment"] |= describe_candidates(pool)
            spent = 0.0  # on preparing
            for done, problem in enumerate(problems):
                pool.revive()
                started = time.monotonic()
                progress(done, f"{problem.name}: preparing")
                case = new_case(problem, pool)
                path = Path(folder, "reference.npz")
                write_reference(pool, problem, path)
                case["candidates"] = prepare(problem, pool.workers, path, settings.effort)
                spent += time.monotonic() - started
                effort = settings.effort
                if settings.total_seconds is not None:
                    left = settings.total_seconds - (time.monotonic() - begin)
                    waiting = len(problems) - done
                    share = (left - spent / (done + 1) * (waiting - 1)) / waiting
                    effort = replace(effort, max_seconds=max(0.0, min(effort.max_seconds, share)))
                run_rounds(
                    case,
                    pool.workers,
                    effort,
                    partial(_report_round, progress, done, problem.name),
                )
                if settings.memory and memory.is_measured(problem):
                    progress(done, f"{problem.name}: memory")
                    case["memory"] = _measure_memory(problem, settings, OURS)
                    if "torch" in names:
                        case["memory"]["torch"] = _measure_memory(problem, settings, "torch")
                record["cases"].append(case)
        say = partial(progress, len(problems))
        if settings.latency:
            record["latency"] = _measure_latency(names, settings, say)
        if settings.attention is not None:
            record["attention"] = _measure_attention(settings.attention, settings.isa, say)
        say("done")
    except KeyboardInterrupt:
        record["interrupted"] = True
    record["seconds"] = round(time.monotonic() - begin, 1)
    return record


def _measure_memory(problem: Problem, settings: Settings, name: str) -> dict[str, Any]:
    try:
        # The most threads have the most workspaces.
        return memory.measure(problem, max(settings.threads), settings.isa, name)
    except WorkerError as error:
        return {"error": str(error)}


def _measure_latency(names: Sequence[str], settings: Settings, say: Callable[[str], None]) -> list[dict[str, Any]]:
    say("starting workers")
    with Pool([(name, 1) for name in names], settings.isa) as pool, tempfile.TemporaryDirectory() as folder:
        write = partial(_write_named_reference, pool, Path(folder))
        return latency.measure(settings.latency, pool.workers, write, settings.effort, settings.latency_calls, say)


def _measure_attention(plan: Plan, isa: str | None, say: Callable[[str], None]) -> dict[str, Any]:
    say("starting workers")
    with Pool([], isa) as pool, tempfile.TemporaryDirectory() as folder:
        return attention.measure(plan, isa, partial(_write_named_reference, pool, Path(folder)), say)


def _write_named_reference(pool: Pool, folder: Path, problem: Problem) -> Path:
    path = folder / f"{problem.name}.npz"
    write_reference(pool, problem, path)
    return path


def _describe(settings: Settings) -> dict[str, Any]:
    """Write settings as they are kept in the record."""
    named = {"peers": list(settings.peers), "threads": list(settings.threads)}
    return {**asdict(settings), **named, "latency": [problem.name for problem in settings.latency]}


def _report_round(progress: Callable[[int, str], None], done: int, name: str, number: int) -> None:
    progress(done, f"{name}: round {number}")


def new_case(problem: Problem, pool: Pool) -> dict[str, Any]:
    """Make a case in which nothing is measured yet; `probes` is None where there can be no roof.

    There is none for modules of torch: part of their time is torch's.
    """
    backend = ""
    for (name, _), worker in pool.workers.items():
        if name == OURS and isinstance(worker, WorkerProcess):
            backend = worker.hello["versions"]["backend"]
    return {
        "problem": problem.as_dict(),
        "flops": problem.flops,
        "probes": {} if backend == "native" and not problem.module else None,
        "candidates": [],
    }


def write_reference(pool: Pool, problem: Problem, path: Path) -> None:
    """Have the specification's answer computed in its own worker."""
    specification = pool.specification
    assert specification is not None
    with specification.awake():
        specification.ask({"do": "reference", "problem": problem.as_dict(), "path": str(path)})


def describe_candidates(pool: Pool) -> dict[str, Any]:
    """Return hotloop.info() as our own worker sees it, and every candidate's versions."""
    about: dict[str, Any] = {"hotloop": {}, "versions": {}}
    for (name, _), worker in pool.workers.items():
        if isinstance(worker, WorkerProcess):
            about["versions"][name] = worker.hello["versions"]
            if name == OURS:
                about["hotloop"] = worker.hello["info"]
    if not about["hotloop"]:
        raise WorkerDied("hotloop itself could not start: " + str(next(iter(pool.workers.values()))))
    return about


def describe_machine() -> dict[str, Any]:
    """Return processor, caches, system and how busy the machine was before the run."""
    lscpu: dict[str, str] = {}
    try:
        text = subprocess.run(
            ["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
        ).stdout
        lscpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    except (OSError, subprocess.CalledProcessError):
        pass  # no lscpu on this system; info() names the processor
    return {
        "lscpu": lscpu,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count() or 1,
        "load": round(os.getloadavg()[0], 2),
    }
