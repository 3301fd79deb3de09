"""What training keeps until backward, as computed, and by how much a process grows, as measured.

`python -m hotloop.bench.memory PROBLEM THREADS CANDIDATE` measures one training step, ours or torch's, in a process of
its own and says, in bytes, by how much the process has grown after the forward pass and at its peak. What is computed
grows with T; the rest (packed weights, their gradients, workspaces) must not, which two lengths show. Only dense
problems are measured: ragged ones and those with resets are left out.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import functional
from .._core.types import CELLS
from .check import Inputs, is_stack, make_inputs, make_layer
from .peers import CANDIDATES, OURS, torch_module
from .problems import Problem
from .processes import WorkerProcess, candidate_environment

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_DISABLE_HUGE_PAGES = 41  # of prctl: a page of 2 MiB counts whole, wherever one byte of it was touched


def is_measured(problem: Problem) -> bool:
    """Return whether the memory of this problem is of interest: dense training of our own layers."""
    return problem.mode == "training" and problem.is_judged and problem.is_dense and not problem.module


def grows(problem: Problem) -> dict[str, int]:
    """Compute the bytes of all that a training step holds and that grows with T.

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    dict
        "gates", "c" and "output", which every layer and direction keeps until backward, the output of all layers but
        the last being "between layers"; and, of backward, "gradients of sequences": those of x, which every direction
        computes apart, and of the sequence between two layers, where there are several.
    """
    cell = CELLS[problem.cell_key]
    step = problem.batch_size * problem.itemsize * problem.seq_len
    unit = step * problem.directions * problem.hidden_size
    below = problem.num_layers - 1
    gradients = step * problem.directions * problem.input_size
    if below:
        # While the lowest layer runs, what the layer above passed down is held beside its own; higher up there are
        # no gradients of x yet, but two of sequences between layers where there are three layers.
        between = unit * problem.directions
        gradients = max(gradients + between, 2 * between if below > 1 else between)
    return {
        "gates": len(cell.saved) * unit * problem.num_layers,
        "c": unit * problem.num_layers if cell.has_c else 0,
        "output": unit,
        "between layers": unit * below,
        "gradients of sequences": gradients,
    }


NAMES = ("gates", "c", "output", "between layers", "gradients of sequences")  # of `grows`
KEPT = ("gates", "c", "output", "between layers")  # of these: until backward


def lengths(problem: Problem) -> tuple[Problem, Problem]:
    """Return the problem, and the same at twice its length."""
    return problem, replace(problem, seq_len=2 * problem.seq_len)


def measure(problem: Problem, threads: int, isa: str | None = None, name: str = OURS) -> dict[str, Any]:
    """Measure a training problem at both `lengths`, each in a fresh process, of ourselves or of torch.

    Returns
    -------
    dict
        "threads", and "runs": for each length "seq_len", "forward" (by how much the process has grown when forward is
        done) and "peak" (by how much at most).

    Raises
    ------
    processes.WorkerError
        There is no way to measure on this system, or the process died.
    """
    runs = []
    for one in lengths(problem):
        arguments = ["hotloop.bench.memory", json.dumps(one.as_dict()), str(threads), name]
        worker = WorkerProcess(arguments, candidate_environment(name, threads, isa))
        try:
            runs.append({"seq_len": one.seq_len, **worker.greet()})
        finally:
            worker.close()
    return {"threads": threads, "runs": runs}


def _status(key: str) -> int:
    """Read a line of /proc/self/status, in bytes."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"{_STATUS} has no {key}")


def _torch_forward(problem: Problem, inputs: Inputs) -> tuple[Any, Callable[..., Any]]:
    import torch

    x = torch.from_numpy(inputs.x).requires_grad_()
    output, state = torch_module(torch, problem, inputs)(x)
    return state, lambda gradient: output.backward(torch.from_numpy(gradient))


def _forward(problem: Problem, inputs: Inputs, threads: int, name: str) -> tuple[Any, Callable[..., Any]]:
    if name == "torch":
        return _torch_forward(problem, inputs)
    if is_stack(problem):
        return make_layer(problem, inputs).vjp(inputs.x, threads=threads)
    (weights,) = inputs.recurrences
    found: tuple[Any, Callable[..., Any]] = getattr(functional, f"{problem.cell}_vjp")(
        inputs.x, *weights, threads=threads
    )
    return found


def growth(problem: Problem, threads: int, name: str = OURS) -> dict[str, int]:
    """Run a training step in this process; return the growth after forward, and at the peak.

    A step of the same sizes and T = 1 goes before it, so that code, threads and the interpreter's own memory are there.
    """
    if name == "torch":
        CANDIDATES[name](threads)  # sets torch's number of threads
    libc = ctypes.CDLL(None)
    libc.prctl(_DISABLE_HUGE_PAGES, 1, 0, 0, 0)
    inputs, short = make_inputs(problem), replace(problem, seq_len=1)
    small = make_inputs(short)
    for _ in range(2):
        _, vjp = _forward(short, small, threads, name)
        vjp(small.grad_output)
    del vjp
    gc.collect()
    with suppress(AttributeError):  # another libc
        libc.malloc_trim(0)  # memory that was free before would be used without the process growing
    _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    before = _status("VmRSS")
    _results, vjp = _forward(problem, inputs, threads, name)
    forward = _status("VmRSS") - before
    _gradients = vjp(inputs.grad_output)
    return {"forward": forward, "peak": _status("VmHWM") - before}


def main() -> None:
    """Measure what the command line names; the answer is a line as a worker writes it."""
    problem, threads, name = Problem.from_dict(json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    print(json.dumps({"ok": growth(problem, threads, name)}), flush=True)


if __name__ == "__main__":
    main()
