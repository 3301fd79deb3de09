"""The fallback that is fast enough to live with: time loops compiled by Numba, large products by NumPy.

The same plan as the C++ kernels': chunks of steps, the input projection of a chunk as one product, then the time loop;
in backward the time loop first, then the gradients of x, weights and biases as one product each. A chunk is short
enough for Ctrl-C to be heard between two of them. A call runs on one thread, and the large products on those of NumPy's
BLAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

try:
    import numba
except ModuleNotFoundError as error:
    raise ImportError(f'{error}; pip install "hotloop[numba]"') from error
except Exception as error:  # e.g. a numpy too new for it
    raise ImportError(f"numba does not load: {error}") from error
if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

from . import _numba_kernels as _kernels
from ._contract import Array, Backward, Cell, Forward, Weights

NAME = "numba"

# A chunk's pre-activations stay in cache, its rows are enough for a product at full speed, and its work (multiply-adds)
# takes a few tens of milliseconds at most.
_CHUNK_ELEMENTS = 1 << 17
_CHUNK_ROWS = 64, 4096
_CHUNK_WORK = 1 << 29


def description() -> str:
    return f"numba {numba.__version__}"


class Packed(NamedTuple):
    """Weights as forward reads them."""

    weight_ih: Array  # [I, G*H]
    weight_hh: Array  # [H, G*H]
    bias: Array  # [A*H], of the pre-activations


def pack(weights: Weights) -> Packed:
    """Copy the weights, transposed, and add up the biases."""
    zeros = np.zeros(len(weights.weight_ih), weights.dtype)
    bias_ih = zeros if weights.bias_ih is None else weights.bias_ih
    bias_hh = zeros if weights.bias_hh is None else weights.bias_hh
    bias = bias_ih + bias_hh
    apart = _parts(weights.cell) - weights.cell.gates
    if apart:  # h's share of the last gate has a bias of its own
        last = len(zeros) - weights.hidden_size
        bias[last:] = bias_ih[last:]
        bias = np.concatenate((bias, bias_hh[last:]))
    return Packed(_copy(weights.weight_ih.T), _copy(weights.weight_hh.T), bias)


def _copy(array: Array) -> Array:
    return np.array(array, order="C")


def _parts(cell: Cell) -> int:
    """A, the numbers a unit in a row of pre-activations: those of the saved gates, where there are any."""
    return max(cell.saved, 1)


def _chunks(args: Forward) -> list[tuple[int, int]]:
    """First and last step, in processing order, of the chunks."""
    seq_len, batch_size, input_size = args.x.shape
    gates, units = args.cell.gates, args.weights.hidden_size
    fewest, most = _CHUNK_ROWS
    rows = min(max(_CHUNK_ELEMENTS // (gates * units), fewest), most)
    rows = min(rows, _CHUNK_WORK // (gates * units * (input_size + units)))
    steps = max(rows // batch_size, 1)
    return [(first, min(first + steps, seq_len)) for first in range(0, seq_len, steps)]


def _span(args: Forward, first: int, last: int) -> slice:
    """The places in memory of steps first..last in processing order."""
    seq_len = len(args.x)
    return slice(seq_len - last, seq_len - first) if args.reverse else slice(first, last)


def _dense(array: Array) -> Array:
    """As the kernels take it: contiguous and writeable (they do not write what is only read)."""
    return array if array.flags.c_contiguous and array.flags.writeable else _copy(array)


def _rows(sequence: Array) -> Array:
    """[T, B, *] as [T*B, *]."""
    return sequence.reshape(-1, sequence.shape[2])


def _state(state: Array | None, like: Array) -> Array:
    """A copy of a state, or zeros."""
    return np.zeros_like(like) if state is None else _copy(state)


def forward(recurrences: Sequence[Forward], threads: int) -> None:
    """One recurrence after the other."""
    for args in recurrences:
        if args.x.shape[1]:
            _forward(args)


def _forward(args: Forward) -> None:
    cell, dtype = args.cell, args.weights.dtype
    packed: Packed = pack(args.weights) if args.packed is None else args.packed
    batch_size, units = args.h_n.shape
    parts, projected = _parts(cell), cell.gates * units
    run = _kernels.kernel(f"forward_{cell.name}", dtype)
    h, nothing = _state(args.h0, args.h_n), np.empty((0, 0), dtype)
    c = nothing if args.c_n is None else _state(args.c0, args.c_n)
    reset_h = np.empty_like(h) if cell.of_h < cell.gates else nothing
    chunks = _chunks(args)
    keep_c = args.c is not None
    scratch = np.empty((chunks[0][1] if args.gates is None else 0, batch_size, parts, units), dtype)
    two_c = np.empty((0 if keep_c else 2, *c.shape), dtype)
    for first, last in chunks:
        span, count = _span(args, first, last), last - first
        a = scratch[:count] if args.gates is None else args.gates[span].reshape(count, batch_size, parts, units)
        rows = a.reshape(-1, parts * units)
        np.matmul(_rows(args.x[span]), packed.weight_ih, out=rows[:, :projected])
        rows[:, :projected] += packed.bias[:projected]
        rows[:, projected:] = packed.bias[projected:]
        output = args.output[span]
        h_now = output if output.flags.c_contiguous else np.empty(output.shape, dtype)
        c_now = two_c if args.c is None else args.c[span]
        flat = a.reshape(count, batch_size, -1)
        run(a, flat, packed.weight_hh, h, c, h_now, c_now, reset_h, args.reverse, keep_c)
        if h_now is not output:
            output[...] = h_now
        final = 0 if args.reverse else -1
        h = h_now[final]
        if cell.has_c:
            c = c_now[final] if keep_c else two_c[(count - 1) % 2].copy()
    args.h_n[...] = h
    if args.c_n is not None:
        args.c_n[...] = c


def backward(recurrences: Sequence[Backward], threads: int) -> None:
    """One recurrence after the other, as forward."""
    for args in recurrences:
        if args.forward.x.shape[1]:
            _backward(args)
        else:
            for gradient in (args.grad_weight_ih, args.grad_weight_hh, args.grad_bias_ih, args.grad_bias_hh):
                if gradient is not None:
                    gradient[...] = 0


class _Sums:
    """The gradients of weights and biases; the first chunk sets them, the others add to them."""

    def __init__(self) -> None:
        self._begun = False

    def product(self, target: Array, d: Array, rows: Array) -> None:
        """The product d' rows, over the rows of the chunk."""
        if self._begun:
            target += d.T @ rows
        else:
            np.matmul(d.T, rows, out=target)

    def total(self, target: Array, d: Array) -> None:
        """The sum of the rows of d."""
        if self._begun:
            target += d.sum(axis=0)
        else:
            np.sum(d, axis=0, out=target)

    def end_chunk(self) -> None:
        self._begun = True


def _backward(args: Backward) -> None:
    fwd, w, cell, dtype = args.forward, args.forward.weights, args.forward.cell, args.forward.weights.dtype
    batch_size, units = fwd.h_n.shape
    parts = _parts(cell)
    before = cell.of_h < cell.gates  # two products a step
    apart = parts > cell.gates  # h's share of the last gate is kept apart
    projected, last_gate = cell.gates * units, (cell.gates - 1) * units
    run = _kernels.kernel(f"backward_{cell.name}", dtype)
    weight_hh = _dense(w.weight_hh)
    dh = _state(args.grad_h_n, fwd.h_n)
    none_2d, none_3d, none_4d = (np.empty((0,) * n, dtype) for n in (2, 3, 4))
    dc = none_2d if args.grad_c0 is None else _state(args.grad_c_n, fwd.h_n)
    chunks = _chunks(fwd)
    most = chunks[0][1], batch_size
    d_scratch = np.empty((*most, parts, units), dtype)
    reset_scratch = np.empty((*most, units), dtype) if before else none_3d
    dreset_h = np.empty_like(dh) if before else none_2d
    sums = _Sums()
    for first, last in reversed(chunks):
        span, count = _span(fwd, first, last), last - first
        shape = count, batch_size, parts, units
        d, reset_h = d_scratch[:count], reset_scratch[:count]
        flat = d.reshape(count, batch_size, -1)
        h_prev = _previous(fwd, fwd.output, fwd.h0, first, last)
        c_prev = none_3d if fwd.c is None else _previous(fwd, fwd.c, fwd.c0, first, last)
        run(
            none_4d if fwd.gates is None else fwd.gates[span].reshape(shape), d, flat, weight_hh, h_prev,
            _dense(fwd.output[span]), c_prev, none_3d if fwd.c is None else fwd.c[span],
            none_3d if args.grad_output is None else _dense(args.grad_output[span]),
            dh, dc, reset_h, dreset_h, fwd.reverse,
        )  # fmt: skip
        rows = d.reshape(-1, parts * units)
        dx_share, x, h = rows[:, :projected], _rows(fwd.x[span]), _rows(h_prev)
        if args.grad_x is not None:
            grad_x = args.grad_x[span]
            if grad_x.flags.c_contiguous:
                np.matmul(dx_share, w.weight_ih, out=_rows(grad_x))
            else:
                grad_x[...] = (dx_share @ w.weight_ih).reshape(grad_x.shape)
        if args.grad_weight_ih is not None:
            sums.product(args.grad_weight_ih, dx_share, x)
        if (grad := args.grad_weight_hh) is not None:
            if before or apart:  # the last gate has another left or right side
                sums.product(grad[:last_gate], rows[:, :last_gate], h)
                sums.product(grad[last_gate:], rows[:, -units:], _rows(reset_h) if before else h)
            else:
                sums.product(grad, rows, h)
        if args.grad_bias_ih is not None:
            sums.total(args.grad_bias_ih, dx_share)
        if (grad := args.grad_bias_hh) is not None:
            sums.total(grad[:last_gate], rows[:, :last_gate])
            sums.total(grad[last_gate:], rows[:, -units:])
        sums.end_chunk()
    args.grad_h0[...] = dh
    if args.grad_c0 is not None:
        args.grad_c0[...] = dc


def _previous(fwd: Forward, sequence: Array, start: Array | None, first: int, last: int) -> Array:
    """The states before steps first..last: `sequence` a step earlier, `start` before step 0."""
    if first > 0:
        return _dense(sequence[_span(fwd, first - 1, last - 1)])
    previous = np.empty((last, *sequence.shape[1:]), sequence.dtype)
    inner = sequence[_span(fwd, 0, last - 1)]
    edge, rest = (last - 1, slice(0, last - 1)) if fwd.reverse else (0, slice(1, last))
    previous[edge] = 0 if start is None else start
    previous[rest] = inner
    return previous
