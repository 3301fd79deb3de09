"""The fallback that is fast enough to live with: time loops compiled by Numba, large products by NumPy.

The same plan as the C++ kernels': chunks of steps, the input projection of a chunk as one product, then the time loop;
in backward the time loop first, then the gradients of x, weights and biases as one product each. A chunk is short
enough for Ctrl-C to be heard between two of them. A call runs on one thread, and the large products on those of NumPy's
BLAS.

Where rows differ in length, or are reset, the same kernels run on steps put in a row: longest sequence first, and of
every step the sequences that have it. So many steps as have the same sequences, and no reset but before the first, are
to a kernel a dense batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

try:
    import numba
except ModuleNotFoundError as error:
    raise ImportError(f'{error}; pip install "hotloop[numba]"') from error
except Exception as error:  # e.g. a numpy too new for it
    raise ImportError(f"numba does not load: {error}") from error
if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

from .._core.types import Array, Backward, Cell, Forward, Weights
from . import numba_kernels as _kernels
from . import numpy as specification

NAME = "numba"

# A chunk's pre-activations stay in cache, its rows are enough for a product at full speed, and its work (multiply-adds)
# takes a few tens of milliseconds at most.
_CHUNK_ELEMENTS = 1 << 17
_CHUNK_ROWS = 64, 4096
_CHUNK_WORK = 1 << 29


def isas() -> tuple[str, ...]:
    return ()


def prepare(*_: Any, **__: Any) -> None:
    """Nothing is decided before a call."""


def prepare_backward(*_: Any, **__: Any) -> None:
    """The same."""


def fingerprint(arrays: Sequence[Array]) -> None:
    """Nothing is packed that a hash would be cheaper than."""


def openmp_executor(parallel: int, max_threads: int) -> None:
    """No call takes an executor."""


def description() -> str:
    return f"numba {numba.__version__}"


class Packed(NamedTuple):
    """Weights as forward reads them."""

    weight_ih: Array  # [I, G*H]
    weight_hh: Array  # [H, G*H]
    bias: Array  # [A*H], of the pre-activations


def pack(weights: Weights) -> Packed:
    """Copy the weights, transposed, and add up the biases."""
    named = weights.named
    zeros = np.zeros(len(named["weight_ih"]), weights.dtype)
    bias_ih, bias_hh = named.get("bias_ih", zeros), named.get("bias_hh", zeros)
    bias = bias_ih + bias_hh
    apart = _parts(weights.cell) - weights.cell.gates
    if apart:  # h's share of the last gate has a bias of its own
        last = len(zeros) - weights.hidden_size
        bias[last:] = bias_ih[last:]
        bias = np.concatenate((bias, bias_hh[last:]))
    return Packed(_copy(named["weight_ih"].T), _copy(named["weight_hh"].T), bias)


def _copy(array: Array) -> Array:
    return np.array(array, order="C")


def _parts(cell: Cell) -> int:
    """A, the numbers a unit in a row of pre-activations: those of the saved gates, where there are any."""
    return max(len(cell.saved), 1)


def _chunk_rows(args: Forward) -> int:
    """The most rows of a chunk, if it has more than one step."""
    gates, units = args.cell.gates, args.weights.hidden_size
    fewest, most = _CHUNK_ROWS
    rows = min(max(_CHUNK_ELEMENTS // (gates * units), fewest), most)
    return min(rows, _CHUNK_WORK // (gates * units * (args.weights.input_size + units)))


def _chunks(args: Forward) -> list[tuple[int, int]]:
    """First and last step, in processing order, of the chunks."""
    seq_len, batch_size, _ = args.x.shape
    steps = max(_chunk_rows(args) // batch_size, 1)
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


def _project(packed: Packed, x: Array, a: Array) -> None:
    """Fill rows of pre-activations but for the share of h."""
    projected = packed.weight_ih.shape[1]
    np.matmul(x, packed.weight_ih, out=a[:, :projected])
    a[:, :projected] += packed.bias[:projected]
    a[:, projected:] = packed.bias[projected:]


def _has_no_kernel(args: Forward) -> bool:
    """Projections and masks are rare where there is no compiler: the specification runs them."""
    return args.cell.projects or args.recurrent_mask is not None


def forward(recurrences: Sequence[Forward], threads: int, executor: Any = None) -> None:
    """One recurrence after the other."""
    for args in recurrences:
        if _has_no_kernel(args):
            specification.forward((args,), threads)
        elif args.ragged is not None or args.resets is not None:
            _forward_in_runs(args)
        elif args.x.shape[1]:
            _forward(args)


def _forward(args: Forward) -> None:
    cell, dtype = args.cell, args.weights.dtype
    packed: Packed = pack(args.weights) if args.packed is None else args.packed
    batch_size, units = args.h_n.shape
    parts = _parts(cell)
    run = _kernels.kernel(f"forward_{cell.name}", dtype)
    h, nothing = _state(args.h0, args.h_n), np.empty((0, 0), dtype)
    c = nothing if args.c_n is None else _state(args.c0, args.c_n)
    reset_h = np.empty_like(h) if len(cell.stages) == 2 else nothing
    chunks = _chunks(args)
    keep_c = args.c is not None
    scratch = np.empty((chunks[0][1] if args.gates is None else 0, batch_size, parts, units), dtype)
    two_c = np.empty((0 if keep_c else 2, *c.shape), dtype)
    for first, last in chunks:
        span, count = _span(args, first, last), last - first
        a = scratch[:count] if args.gates is None else args.gates[span].reshape(count, batch_size, parts, units)
        _project(packed, _rows(args.x[span]), a.reshape(-1, parts * units))
        output, saved_c = args.output[span], two_c if args.c is None else args.c[span]
        h_now = output if output.flags.c_contiguous else np.empty(output.shape, dtype)
        c_now = saved_c if saved_c.flags.c_contiguous else np.empty(saved_c.shape, dtype)
        flat = a.reshape(count, batch_size, -1)
        run(a, flat, packed.weight_hh, h, c, h_now, c_now, reset_h, args.reverse, keep_c)
        if h_now is not output:
            output[...] = h_now
        if c_now is not saved_c:
            saved_c[...] = c_now
        final = 0 if args.reverse else -1
        h = h_now[final]
        if cell.has_c:
            c = c_now[final] if keep_c else two_c[(count - 1) % 2].copy()
    args.h_n[...] = h
    if args.c_n is not None:
        args.c_n[...] = c


def backward(recurrences: Sequence[Backward], threads: int, executor: Any = None) -> None:
    """One recurrence after the other, as forward."""
    for args in recurrences:
        forward = args.forward
        if _has_no_kernel(forward):
            specification.backward((args,), threads)
        elif forward.ragged is not None or forward.resets is not None:
            _backward_in_runs(args)
        elif forward.x.shape[1]:
            _backward(args)
        else:
            _clear(args)


def _clear(args: Backward) -> None:
    """The gradients of weights and biases where there is no step."""
    for gradient in args.grad_parameters.values():
        if not args.accumulate:
            gradient[...] = 0


class _Sums:
    """The gradients of weights and biases; the first chunk sets them, the others add to them."""

    def __init__(self, args: Backward) -> None:
        self._args = args
        self._begun = args.accumulate

    def chunk(self, rows: Array, x: Array, h: Array, reset_h: Array) -> None:
        """Add the rows of a chunk: gradients of pre-activations, x, and h before each step."""
        args, cell, units = self._args, self._args.forward.cell, h.shape[1]
        dx_share, last_gate = rows[:, : cell.gates * units], (cell.gates - 1) * units
        before, grads = len(cell.stages) == 2, args.grad_parameters
        if "weight_ih" in grads:
            self.product(grads["weight_ih"], dx_share, x)
        if (grad := grads.get("weight_hh")) is not None:
            if before or _parts(cell) > cell.gates:  # the last gate has another left or right side
                self.product(grad[:last_gate], rows[:, :last_gate], h)
                self.product(grad[last_gate:], rows[:, -units:], _rows(reset_h) if before else h)
            else:
                self.product(grad, rows, h)
        if "bias_ih" in grads:
            self.total(grads["bias_ih"], dx_share)
        if (grad := grads.get("bias_hh")) is not None:
            self.total(grad[:last_gate], rows[:, :last_gate])
            self.total(grad[last_gate:], rows[:, -units:])
        self._begun = True

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


def _backward(args: Backward) -> None:
    fwd, w, cell, dtype = args.forward, args.forward.weights, args.forward.cell, args.forward.weights.dtype
    batch_size, units = fwd.h_n.shape
    parts = _parts(cell)
    before = len(cell.stages) == 2  # products a step
    projected = cell.gates * units
    run = _kernels.kernel(f"backward_{cell.name}", dtype)
    weight_ih, weight_hh = w.named["weight_ih"], _dense(w.named["weight_hh"])
    dh = _state(args.grad_h_n, fwd.h_n)
    none_2d, none_3d, none_4d = (np.empty((0,) * n, dtype) for n in (2, 3, 4))
    dc = none_2d if args.grad_c0 is None else _state(args.grad_c_n, fwd.h_n)
    chunks = _chunks(fwd)
    most = chunks[0][1], batch_size
    d_scratch = np.empty((*most, parts, units), dtype)
    reset_scratch = np.empty((*most, units), dtype) if before else none_3d
    dreset_h = np.empty_like(dh) if before else none_2d
    sums = _Sums(args)
    for first, last in reversed(chunks):
        span, count = _span(fwd, first, last), last - first
        shape = count, batch_size, parts, units
        d, reset_h = d_scratch[:count], reset_scratch[:count]
        flat = d.reshape(count, batch_size, -1)
        h_prev = _previous(fwd, fwd.output, fwd.h0, first, last)
        c_prev = none_3d if fwd.c is None else _previous(fwd, fwd.c, fwd.c0, first, last)
        run(
            none_4d if fwd.gates is None else fwd.gates[span].reshape(shape), d, flat, weight_hh, h_prev,
            _dense(fwd.output[span]), c_prev, none_3d if fwd.c is None else _dense(fwd.c[span]),
            none_3d if args.grad_output is None else _dense(args.grad_output[span]),
            none_3d if args.grad_c is None else _dense(args.grad_c[span]), dh, dc, reset_h, dreset_h, fwd.reverse,
        )  # fmt: skip
        rows = d.reshape(-1, parts * units)
        dx_share = rows[:, :projected]
        if args.grad_x is not None:
            grad_x = args.grad_x[span]
            if grad_x.flags.c_contiguous:
                np.matmul(dx_share, weight_ih, out=_rows(grad_x))
            else:
                grad_x[...] = (dx_share @ weight_ih).reshape(grad_x.shape)
        sums.chunk(rows, _rows(fwd.x[span]), _rows(h_prev), reset_h)
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


# Ragged batches and resets.


class _Run(NamedTuple):
    """Steps that have the same rows and are only reset before the first of them."""

    start: int  # its first row among those of the chunk
    steps: int
    active: int  # the first so many of the order


class _Chunk(NamedTuple):
    """Some runs, one after the other; of all their rows the following."""

    runs: list[_Run]
    row: Array  # in the batch
    step: Array  # in processing order
    place: tuple[Any, Any]  # in sequences
    resets: Array | None  # whether the state is reset before it

    def span(self, run: _Run) -> slice:
        return slice(run.start, run.start + run.steps * run.active)

    def reset(self, run: _Run) -> Array | None:
        """Which of the run's sequences are reset before it; None if none is."""
        if self.resets is None:
            return None
        reset = self.resets[run.start : run.start + run.active]
        return reset if reset.any() else None


def _runs(args: Forward) -> tuple[Array, list[_Chunk]]:
    """The rows of the batch, longest first, and the chunks in which they are processed."""
    batch_size, ragged = len(args.h_n), args.ragged
    lengths = np.full(batch_size, len(args.x)) if ragged is None else ragged.lengths
    order = np.argsort(-lengths, kind="stable")
    step, column = np.nonzero(np.arange(lengths.max(initial=0))[:, np.newaxis] < lengths[order])
    row = order[column]
    active = np.bincount(step)
    starts = np.concatenate(([0], np.cumsum(active)))
    begins = np.concatenate(([True], active[1:] != active[:-1])) if len(active) else np.zeros(0, bool)
    resets = None
    if args.resets is not None:
        resets = args.resets.at[args.place(row, step)]
        begins[step[resets]] = True
    bounds = [*np.flatnonzero(begins).tolist(), len(active)]
    chunks: list[_Chunk] = []
    runs: list[_Run] = []
    most, begin = _chunk_rows(args), 0

    def end_chunk(end: int) -> None:
        rows = slice(begin, end)
        chunks.append(_Chunk(runs, row[rows], step[rows], args.place(row[rows], step[rows]),
                             None if resets is None else resets[rows]))  # fmt: skip

    for first, last in pairwise(bounds):
        count = int(active[first])
        longest = max(most // count, 1)
        for at in range(first, last, longest):
            steps = min(longest, last - at)
            start = int(starts[at])
            if runs and start + steps * count - begin > most:
                end_chunk(start)
                begin, runs = start, []
            runs.append(_Run(start - begin, steps, count))
    if runs:
        end_chunk(len(row))
    return order, chunks


def _initial(state: Array | None, like: Array, order: Array) -> Array:
    """A copy of a state in that order, or zeros."""
    return np.zeros_like(like) if state is None else state[order]


def _forward_in_runs(args: Forward) -> None:
    cell, dtype = args.cell, args.weights.dtype
    packed: Packed = pack(args.weights) if args.packed is None else args.packed
    units, parts = args.weights.hidden_size, _parts(cell)
    kernel = _kernels.kernel(f"forward_{cell.name}", dtype)
    order, chunks = _runs(args)
    zeros = np.zeros_like(args.h_n)
    h, c = _initial(args.h0, zeros, order), _initial(args.c0, zeros, order)
    initial = args.resets is not None and args.resets.initial
    h_reset, c_reset = (h.copy(), c.copy()) if initial else (zeros, zeros)
    reset_h = np.empty_like(h)
    if args.ragged is not None:
        args.output[...] = 0  # the padding
        if args.c is not None:
            args.c[...] = 0
    for chunk in chunks:
        count = len(chunk.row)
        a = np.empty((count, parts * units), dtype)
        h_now, c_now = np.empty((count, units), dtype), np.empty((count if cell.has_c else 0, units), dtype)
        _project(packed, args.x[chunk.place], a)
        for run in chunk.runs:
            active, span = run.active, chunk.span(run)
            if (reset := chunk.reset(run)) is not None:
                for state, start in ((h, h_reset), (c, c_reset)):
                    state[:active][reset] = start[:active][reset]
            shape = run.steps, active, units
            h_run = h_now[span].reshape(shape)
            c_run = c_now[span].reshape(shape) if cell.has_c else np.empty((2, 0, 0), dtype)
            flat = a[span].reshape(run.steps, active, -1)
            kernel(
                flat.reshape(run.steps, active, parts, units), flat, packed.weight_hh, h[:active], c[:active], h_run,
                c_run, reset_h[:active], 0, cell.has_c,
            )  # fmt: skip
            h[:active] = h_run[-1]
            if cell.has_c:
                c[:active] = c_run[-1]
        args.output[chunk.place] = h_now
        if args.gates is not None:
            args.gates[chunk.place] = a
        if args.c is not None:
            args.c[chunk.place] = c_now
    args.h_n[order] = h
    if args.c_n is not None:
        args.c_n[order] = c


def _before(args: Forward, chunk: _Chunk, sequence: Array, state: Array | None) -> Array:
    """The states before the steps of a chunk: those of the step before, or what `state`, h0 or c0, and resets say."""
    begins = chunk.step == 0
    inner = ~begins if chunk.resets is None else ~(begins | chunk.resets)
    previous = np.zeros((len(chunk.row), sequence.shape[2]), sequence.dtype)
    previous[inner] = sequence[args.place(chunk.row[inner], chunk.step[inner] - 1)]
    if state is not None:
        takes = begins
        if args.resets is not None:
            takes = ~inner if args.resets.initial else begins & ~args.resets.at[chunk.place]
        previous[takes] = state[chunk.row[takes]]
    return previous


def _backward_in_runs(args: Backward) -> None:
    fwd, w, cell, dtype = args.forward, args.forward.weights, args.forward.cell, args.forward.weights.dtype
    units, parts = w.hidden_size, _parts(cell)
    projected = cell.gates * units
    kernel = _kernels.kernel(f"backward_{cell.name}", dtype)
    weight_ih, weight_hh = w.named["weight_ih"], _dense(w.named["weight_hh"])
    order, chunks = _runs(fwd)
    zeros = np.zeros_like(fwd.h_n)
    dh, dc = _initial(args.grad_h_n, zeros, order), _initial(args.grad_c_n, zeros, order)
    dh_reset, dc_reset = zeros, np.zeros_like(zeros)  # what has come to h0 and c0 from the episodes after
    dreset_h = np.empty_like(dh)
    nothing = np.empty((0, units), dtype)
    before = len(cell.stages) == 2
    sums = _Sums(args)
    if not chunks:
        _clear(args)
    if args.grad_x is not None and fwd.ragged is not None:
        args.grad_x[...] = 0  # the padding
    for chunk in reversed(chunks):
        count, place = len(chunk.row), chunk.place
        d = np.empty((count, parts * units), dtype)
        reset_h = np.empty((count, units), dtype) if before else nothing
        h_prev = _before(fwd, chunk, fwd.output, fwd.h0)
        c_prev = nothing if fwd.c is None else _before(fwd, chunk, fwd.c, fwd.c0)
        h, c, gates, grad_output, grad_c = (
            nothing if sequence is None else sequence[place]
            for sequence in (fwd.output, fwd.c, fwd.gates, args.grad_output, args.grad_c)
        )
        for run in reversed(chunk.runs):
            active, span = run.active, chunk.span(run)

            def cut(rows: Array, run: _Run = run, span: slice = span, *, features: tuple[int, ...] = (units,)) -> Array:
                """What belongs to the run, by step."""
                return rows[span].reshape(run.steps if len(rows) else 0, run.active, *features)

            kernel(
                cut(gates, features=(parts, units)), cut(d, features=(parts, units)), cut(d, features=(parts * units,)),
                weight_hh, cut(h_prev), cut(h), cut(c_prev), cut(c), cut(grad_output), cut(grad_c), dh[:active],
                dc[:active], cut(reset_h), dreset_h[:active], 0,
            )  # fmt: skip
            if (reset := chunk.reset(run)) is not None:
                for gradient, of_reset in ((dh, dh_reset), (dc, dc_reset)):
                    if fwd.resets is not None and fwd.resets.initial:
                        of_reset[:active][reset] += gradient[:active][reset]
                    gradient[:active][reset] = 0
        if args.grad_x is not None:
            args.grad_x[place] = d[:, :projected] @ weight_ih
        sums.chunk(d, fwd.x[place], h_prev, reset_h[:, np.newaxis])
    args.grad_h0[order] = dh + dh_reset
    if args.grad_c0 is not None:
        args.grad_c0[order] = dc + dc_reset
