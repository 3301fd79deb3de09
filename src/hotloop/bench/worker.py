"""The inside of a worker process: `python -m hotloop.bench.worker CANDIDATE THREADS`.

Requests come as lines of JSON on standard input, replies leave as lines of JSON on standard output:

    {"do": "reference", "problem": {...}, "path": ...}       write the specification's answer to a file
    {"do": "prepare", "problem": {...}, "reference": path}   get ready, and check the answer (path null: do not)
    {"do": "attention", "context": n, ...}                   the same for a step of attention, see attention.py
    {"do": "time", "samples": n}                             seconds a call, n times (long calls: once)
    {"do": "latency", "calls": n}                            seconds of n single calls
    {"do": "probe", "probes": [...], "seconds": s}           what the machine can do, see roof.py

A reply is {"ok": ...} or {"error": "..."}; the first line, unasked, says what versions are in use.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import numpy as np

from .. import info
from . import attention, roof
from .check import TOLERANCE, checked_grad_output, checked_steps, make_inputs, reference, relative_errors
from .peers import CANDIDATES, Candidate, Unsupported
from .problems import Problem

# A worker wakes with cold caches and with its pool's threads asleep. Refilling 32 MiB of cache takes about 1 ms, so
# 2 ms of calls go by untimed, unless one call is so long that this is under 1 % of it.
WARM_UP_SECONDS = 2e-3
LONG_CALL_SECONDS = 0.1


class Worker:
    """One candidate, and the problem it has been given last."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._run: Callable[[], object] | None = None
        self._calls = 1
        self._call_seconds = 0.0

    def hello(self) -> dict[str, Any]:
        """Say what is in use."""
        about = info()
        fields = {**vars(about), "isas": list(about.isas)}
        return {"versions": self._candidate.versions(), "info": fields}

    def reference(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write the specification's answer."""
        arrays: dict[str, Any] = reference(Problem.from_dict(request["problem"]))
        np.savez(request["path"], **arrays)
        return {}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Prepare a problem, check the answer if there is a reference, and find how many calls a sample is.

        `calls` in the request gives that number: then two processes that are compared do the same in a sample.
        """
        self._run = None
        gc.collect()
        problem = Problem.from_dict(request["problem"])
        inputs = make_inputs(problem)
        try:
            prepared = self._candidate.prepare(problem, inputs)
        except Unsupported as error:
            return {"status": "unsupported", "detail": str(error)}
        reply: dict[str, Any] = {}
        if request["reference"] is not None:
            with np.load(request["reference"]) as expected:
                errors = relative_errors(prepared.answer(checked_grad_output(problem, inputs)), expected)
            # JSON has no infinity; None stands for an answer that is missing, misshapen or not finite.
            shown = {name: error if math.isfinite(error) else None for name, error in errors.items()}
            reply |= {"errors": shown, "checked_steps": checked_steps(problem)}
            worst = max(errors, key=lambda name: errors[name])
            if not errors[worst] <= TOLERANCE[problem.dtype]:
                return {**reply, "status": "wrong", "detail": f"{worst}: relative error {errors[worst]:.1e}"}
        return {**reply, **self._get_ready(prepared.run, request)}

    def attention(self, request: dict[str, Any]) -> dict[str, Any]:
        """Prepare a step of attention, and check its answer."""
        self._run = None
        gc.collect()
        run, error = attention.prepare(request["width"], request["heads"], request["context"])
        if not attention.is_right(error):
            return {"status": "wrong", "detail": f"output: relative error {error:.1e}"}
        return self._get_ready(run, request)

    def _get_ready(self, run: Callable[[], object], request: dict[str, Any]) -> dict[str, Any]:
        self._run = run
        if "calls" in request:
            self._calls = request["calls"]
            self._call_seconds = _time(run, 1)
        else:
            self._calibrate(run, request["sample_seconds"])
        return {"status": "ok", "calls_per_sample": self._calls, "call_seconds": self._call_seconds}

    def _calibrate(self, run: Callable[[], object], sample_seconds: float) -> None:
        """How many calls a sample is, so that the clock's own 50 ns and its jitter do not count."""
        self._calls = 1
        while True:
            seconds = _time(run, self._calls)
            self._call_seconds = seconds / self._calls
            if seconds >= sample_seconds / 2:
                self._calls = max(1, math.ceil(sample_seconds / self._call_seconds))
                return
            self._calls *= 4

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take samples of the problem prepared last."""
        with self._warm() as run:
            # A long call is its own average: one sample of it a turn leaves time for more rounds.
            wanted = request["samples"] if self._call_seconds < LONG_CALL_SECONDS else 1
            return {"samples": [_time(run, self._calls) / self._calls for _ in range(wanted)]}

    def latency(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time single calls of the problem prepared last."""
        with self._warm() as run:
            return {"seconds": [_time(run, 1) for _ in range(request["calls"])]}

    @contextmanager
    def _warm(self) -> Iterator[Callable[[], object]]:
        """Give what is to be timed, warmed up; no garbage is collected inside the block."""
        if self._run is None:
            raise RuntimeError("no problem is prepared")
        gc.disable()
        try:
            if self._call_seconds < LONG_CALL_SECONDS:
                start = time.perf_counter()
                while time.perf_counter() - start < WARM_UP_SECONDS:
                    self._run()
            yield self._run
        finally:
            gc.enable()

    def probe(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the probes of a roof."""
        probes = [roof.Probe(**probe) for probe in request["probes"]]
        rates = [roof.run_probe(probe, request["seconds"]) for probe in probes]
        return {"rates": rates, "vector_bytes": roof.vector_bytes()}


def _time(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def serve(worker: Worker, requests: TextIO, replies: TextIO) -> None:
    """Answer requests until there are no more."""

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    handlers = {
        "reference": worker.reference,
        "prepare": worker.prepare,
        "attention": worker.attention,
        "time": worker.time,
        "latency": worker.latency,
        "probe": worker.probe,
    }
    reply({"ok": worker.hello()})
    for line in requests:
        request = json.loads(line)
        try:
            reply({"ok": handlers[request["do"]](request)})
        except Exception as error:  # whatever a library raises is an answer, not the end of the worker
            reply({"error": f"{type(error).__name__}: {error}"})


def use_processors(count: int) -> None:
    """Confine this process to that many processors, so that no library can run more threads than it was given.

    The last ones, since interrupts tend to be served by the first. Pools are sized by what the process may run on, so
    this comes before any library is imported.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def die_with_parent() -> None:
    """End when the parent ends, however it ends: a stopped orphan would never notice its closed pipe."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> None:
    """Serve one candidate over this process's standard streams."""
    name, threads = sys.argv[1], int(sys.argv[2])
    die_with_parent()
    use_processors(threads)
    # Libraries print to standard output; replies keep the real one to themselves.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(Worker(CANDIDATES[name](threads)), sys.stdin, replies)


if __name__ == "__main__":
    main()
