"""The roof of a problem: the least time its phases can take on this machine, from probes run beside the timing.

A phase takes at least its flops at the peak of the FMA units, and at least the reading of its weights at the bandwidth
of a buffer of that size. The recurrence reads its weights once a time step, since a step needs all of the step before
(rows of several lengths, side by side, take the steps of the longest); flops and cells are those of the tokens. Every
other phase reads them once. Training adds the packing of the weights, which change every step. The cell functions' own
time, measured on data in L1, comes on top: the FMA units are busy with it too. The roof of several layers and
directions is the sum of theirs: an upper layer reads what all directions below it wrote, and two directions have
nothing in common but x.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from .._core.types import Array
from .problems import Problem

Kind = Literal["fma", "read", "copy", "cell_forward", "cell_backward"]

CELL_BYTES = 16 * 1024  # well inside an L1 of 32 KiB
FEWEST_BYTES = 4096  # a smaller buffer is read as fast, and a loop over it measures the loop


@dataclass(frozen=True)
class Probe:
    """What to measure: flops, bytes or vectors of units a second."""

    kind: Kind
    cell: str  # as in types.CELLS; only the cell probes read it
    dtype: str
    bytes: int

    @property
    def key(self) -> str:
        """Its name in the record."""
        if self.kind == "fma":
            return f"fma {self.dtype}"
        if self.kind in ("read", "copy"):
            return f"{self.kind} {self.bytes}"
        return f"{self.kind} {self.cell} {self.dtype}"


def weight_bytes(problem: Problem) -> list[tuple[int, int, int]]:
    """Return, for every layer, the features it reads and the bytes of weight_ih and weight_hh of one direction."""
    rows = problem.gates * problem.hidden_size * problem.itemsize
    return [(size, rows * size, rows * problem.hidden_size) for size in problem.input_sizes]


def probes(problem: Problem) -> list[Probe]:
    """List all that the roof of a problem needs."""
    cell, dtype = problem.cell_key, problem.dtype
    wanted = [Probe("fma", cell, dtype, FEWEST_BYTES), Probe("cell_forward", cell, dtype, CELL_BYTES)]
    for _, ih, hh in weight_bytes(problem):
        wanted += [
            Probe("read", cell, dtype, max(ih, FEWEST_BYTES)),
            Probe("read", cell, dtype, max(hh, FEWEST_BYTES)),
        ]
        if problem.mode == "training":
            # One half of the buffer is copied to the other.
            wanted.append(Probe("copy", cell, dtype, max(2 * (ih + hh), FEWEST_BYTES)))
    if problem.mode == "training":
        wanted.append(Probe("cell_backward", cell, dtype, CELL_BYTES))
    return list({probe.key: probe for probe in wanted}.values())


def parts(problem: Problem, rates: Mapping[str, float], lanes: int, threads: int = 1) -> dict[str, float]:
    """Compute the seconds of every phase, each summed over layers and directions; their sum is the roof.

    Parameters
    ----------
    problem : Problem
    rates : mapping
        What the probes measured on one thread, by `Probe.key`: flops, bytes or vectors a second.
    lanes : int
        Units in a vector of the instruction set in use.
    threads : int
        All rates count that many times.
    """
    rate = {(probe.kind, probe.bytes): rates[probe.key] * threads for probe in probes(problem)}
    steps, tokens, hidden = max(problem.row_lengths), problem.tokens, problem.hidden_size
    per_input = 2 * tokens * problem.gates * hidden
    vectors = tokens * math.ceil(hidden / lanes)
    peak = rate["fma", FEWEST_BYTES]

    def phase(features: int, size: int, reads: int) -> float:
        return max(per_input * features / peak, reads * size / rate["read", max(size, FEWEST_BYTES)])

    found: dict[str, float] = {}
    for features, ih, hh in weight_bytes(problem):
        projection, recurrence = phase(features, ih, 1), phase(hidden, hh, steps)
        phases = {
            "input projection": projection,
            "recurrence": recurrence,
            "cell, forward": vectors / rate["cell_forward", CELL_BYTES],
        }
        if problem.mode == "training":
            # Forward packs both weights and so does backward (transposed); each time all bytes are read and written.
            packing = 2 * 2 * (ih + hh)
            phases |= {
                "packing": packing / rate["copy", max(2 * (ih + hh), FEWEST_BYTES)],
                "gradient of x": projection,
                "gradient of h": recurrence,
                "gradient of weight_ih": projection,
                "gradient of weight_hh": phase(hidden, hh, 1),
                "cell, backward": vectors / rate["cell_backward", CELL_BYTES],
            }
        for name, seconds in phases.items():
            found[name] = found.get(name, 0.0) + problem.directions * seconds
    return found


def native_library() -> tuple[Any, Any] | None:
    """Return `ffi` and `lib` of cffi, or None where the native module is missing."""
    try:
        from hotloop._ffi import ffi, lib
    except ImportError:
        return None
    return ffi, lib


@lru_cache(maxsize=16)
def _buffer(size: int) -> Array:
    # Written, not zeros: pages never written to are all one page, which fits L1. Room for the start to be rounded up.
    return np.full(size // 8 + 16, 0.5)


def run_probe(probe: Probe, seconds: float) -> float:
    """Measure flops, bytes or vectors a second on this thread: the median of three samples, `seconds` together."""
    ffi, lib = _native()
    buffer = ffi.from_buffer(_buffer(probe.bytes))
    kind = getattr(lib, f"HOTLOOP_PROBE_{probe.kind.upper()}")
    cell, dtype = getattr(lib, f"HOTLOOP_{probe.cell.upper()}"), getattr(lib, f"HOTLOOP_{probe.dtype.upper()}")

    def sample(repeats: int) -> tuple[float, float]:
        start = time.perf_counter()
        work = lib.hotloop_probe(kind, cell, dtype, buffer, probe.bytes, repeats)
        return float(work), time.perf_counter() - start

    repeats, elapsed = 1, 0.0
    while elapsed < seconds / 30:
        repeats *= 4
        _, elapsed = sample(repeats)
    repeats = max(1, math.ceil(repeats * seconds / 3 / elapsed))
    return float(np.median([work / taken for work, taken in (sample(repeats) for _ in range(3))]))


def vector_bytes() -> int:
    """Return the width of a vector of the instruction set in use."""
    ffi, lib = _native()
    traits = ffi.new("hotloop_isa_traits *")
    if lib.hotloop_describe_isa(traits) != lib.HOTLOOP_OK:
        raise RuntimeError("no instruction set is in use")
    return int(traits.vector_bytes)


def _native() -> tuple[Any, Any]:
    native = native_library()
    if native is None:
        raise RuntimeError("the native module is missing")
    return native
