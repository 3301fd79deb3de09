"""The problems of `hotloop bench` for pytest-benchmark: ourselves beside torch and NumPy, every answer checked.

    pytest benchmarks --benchmark-enable --benchmark-group-by=group

Without `--benchmark-enable` sequences are cut short and every call is made once: a smoke test. All candidates share a
process here, so the figures are for following ourselves over time; to compare libraries use `hotloop bench`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from hotloop._backends import choice as _backend
from hotloop.bench.check import TOLERANCE, checked_grad_output, make_inputs, reference, relative_errors
from hotloop.bench.peers import BACKENDS, CANDIDATES, OURS, missing_modules
from hotloop.bench.problems import HEADLINE, QUICK, Mode, Problem

THREADS = 1
SMOKE_STEPS = 5


def candidates() -> list[Any]:
    """Ourselves and the baselines; those not installed are skipped by name."""
    return [
        pytest.param(
            name, marks=pytest.mark.skipif(bool(missing_modules(name)), reason=f"{name} is not installed"), id=name
        )
        for name in (OURS, "torch", *BACKENDS)
    ]


def problems(mode: Mode) -> list[Any]:
    """The headline problems and the short list of the command, in one mode."""
    found = {problem.name: problem for problem in (*HEADLINE, *QUICK) if problem.mode == mode}
    return [pytest.param(problem, id=name) for name, problem in found.items()]


@cache
def expected(problem: Problem) -> dict[str, np.ndarray]:
    """The specification's answer, for all candidates of a group."""
    with backend("numpy"):
        return reference(problem)


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Switch hotloop's backend inside the block; None leaves it."""
    restore = _backend.use(name) if name else None
    try:
        yield
    finally:
        if restore:
            restore()


@contextmanager
def torch_threads(name: str) -> Iterator[None]:
    """Give the process its own number of torch threads back."""
    if name != "torch":
        yield
        return
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_and_time(benchmark: Any, problem: Problem, name: str) -> None:
    """Check a candidate's answer to a problem, then time it."""
    if benchmark.disabled:
        problem = replace(problem, seq_len=min(problem.seq_len, SMOKE_STEPS))
    with backend(name if name in BACKENDS else None), torch_threads(name):
        candidate = CANDIDATES[name](THREADS)
        inputs = make_inputs(problem)
        prepared = candidate.prepare(problem, inputs)
        errors = relative_errors(prepared.answer(checked_grad_output(problem, inputs)), expected(problem))
        assert max(errors.values()) <= TOLERANCE[problem.dtype], errors
        benchmark.group = problem.name
        benchmark.extra_info.update(
            problem.as_dict(), flops=problem.flops, candidate=name, threads=THREADS, **candidate.versions()
        )
        benchmark(prepared.run)
