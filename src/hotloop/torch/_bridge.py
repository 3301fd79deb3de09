"""A call of the backend on tensors: memory is shared, not copied.

Modules, ops and what they differentiate with all come down to the two methods of `Call`. Tensors that come here are
dense and on the CPU; `_modules` or `_shapes` has seen that their dtypes and shapes fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from .._core import memory as _memory
from .._core import settings
from .._core import stack as _stack
from .._core.checks import (
    check_grad_sequence,
    check_ragged,
    check_resets,
    check_sequence,
    check_state,
    check_threads,
    width_rule,
)
from .._core.dropout import drop
from .._core.types import (
    LAYERS_STATE_RULE,
    STATE_RULE,
    TIME_MAJOR,
    Array,
    Cell,
    Forward,
    Layout,
    Ragged,
    Resets,
    Weights,
)
from ._threads import executor

Tensor = torch.Tensor


class _Step(Layout):
    """What a cell is given: one step of every row, [B, *]."""

    def time_major(self, array: Array) -> Array:
        return array[np.newaxis]

    def outer(self, array: Array) -> Array:
        result: Array = array[0]
        return result

    def shape(self, seq_len: int, batch_size: int, *features: int) -> tuple[int, ...]:
        return batch_size, *features

    def state(self, array: Array) -> Array:
        result: Array = array[0]
        return result


# How the sequences of a call lie. A PackedSequence is turned into a flat one, and its result back.
LAYOUTS = {
    "time_major": TIME_MAJOR,
    "batch_first": Layout(batch_first=True, unbatched=False),
    "unbatched": Layout(batch_first=False, unbatched=True),
    "packed": Layout(batch_first=False, unbatched=False, flat=True),
    "step": _Step(batch_first=False, unbatched=False),
}


_TYPES = {
    torch.float32: ("<f4", 4), torch.float64: ("<f8", 8), torch.int64: ("<i8", 8), torch.bool: ("|b1", 1),
}  # fmt: skip


class _Memory:
    """A tensor's memory, as NumPy asks for it, kept as long as the array that is made of it."""

    __slots__ = ("__array_interface__", "storage")
    __array_interface__: dict[str, Any]
    storage: Any


def to_array(tensor: Tensor) -> Array:
    """The tensor's memory. `Tensor.numpy` would forbid the storage to change its size for ever, which FSDP does to free
    weights between their uses, and `resize_`: so the address is taken. Who keeps the array asks before each use whether
    the tensor is still there.
    """
    if tensor.is_neg():  # a view whose elements are to be negated
        tensor = tensor.resolve_neg()
    address = tensor.data_ptr()
    if not address and tensor.numel():
        if tensor._is_zerotensor():
            return np.zeros(tuple(tensor.shape), _TYPES[tensor.dtype][0])
        raise RuntimeError(f"expected a tensor with memory, got shape {tuple(tensor.shape)} over an empty storage")
    kind, size = _TYPES[tensor.dtype]
    memory = _Memory()
    memory.storage = tensor.untyped_storage()
    interface = {"version": 3, "data": (address, False), "shape": tuple(tensor.shape), "typestr": kind}
    if not tensor.is_contiguous():
        interface["strides"] = tuple([stride * size for stride in tensor.stride()])
    memory.__array_interface__ = interface
    return np.asarray(memory)


def _kept_array(tensor: Tensor) -> Array:
    """Of what forward left, which is over an array's memory already: 0.6 us less than `to_array`."""
    if tensor.requires_grad or tensor.is_neg() or not tensor.data_ptr():
        return to_array(tensor)
    array: Array = tensor.numpy()
    return array


to_tensor = torch.from_numpy


def threads_of(threads: Any) -> int:
    """As many as were asked for, or else as both torch and hotloop allow."""
    if threads is not None:
        return check_threads(threads)
    return min(torch.get_num_threads(), settings.get_num_threads())


def _optional(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else to_array(tensor)


@dataclass(slots=True)
class Rows:
    """Which rows have how many steps, and where the state is reset."""

    ragged: Ragged | None
    marks: list[Resets | None]
    gather: Array | None = None  # packed: where each row of the flat sequence lies in data
    scatter: Array | None = None  # and the other way round


class Ran(NamedTuple):
    """What `Call.forward` returns in training."""

    results: list[Tensor | None]  # output, h_n, c_n and c, those that there are
    saved: Sequence[Tensor]  # what backward needs besides


def _check_batch_sizes(sizes: Array, unsorted: Array | None, total: int) -> None:
    """That they are those of a PackedSequence of `total` rows: its constructor takes anything."""
    rule = f"int64 of 1 dimension, at least 1, none larger than the one before, {total} (rows of the data) in sum"
    if sizes.dtype != np.int64 or sizes.ndim != 1:
        raise ValueError(f"batch_sizes: expected {rule}, got {sizes.dtype} of shape {sizes.shape}")
    # The first before the sum: no sum of sizes that are no larger can leave int64.
    if not sizes.size or sizes[-1] < 1 or sizes[0] > total or (sizes[1:] > sizes[:-1]).any() or sizes.sum() != total:
        raise ValueError(f"batch_sizes: expected {rule}, got {sizes}")
    if unsorted is None:
        return
    rule = f"a permutation of 0 to {sizes[0] - 1} (the first of batch_sizes, less 1)"
    if unsorted.dtype != np.int64 or unsorted.shape != (sizes[0],):
        raise ValueError(f"unsorted_indices: expected {rule}, got {unsorted.dtype} of shape {unsorted.shape}")
    seen = np.zeros(len(unsorted), bool)
    seen[unsorted[(unsorted >= 0) & (unsorted < len(seen))]] = True
    if not seen.all():
        raise ValueError(f"unsorted_indices: expected {rule}, got {unsorted}")


def _unpacked(batch_sizes: Array, unsorted: Array | None, total: int, directions: int) -> Rows:
    """The rows of a PackedSequence in the order of the batch, so states need not be permuted."""
    _check_batch_sizes(batch_sizes, unsorted, total)
    steps, count = len(batch_sizes), int(batch_sizes[0])
    lengths = np.searchsorted(-batch_sizes, -np.arange(count), side="left").astype(np.int64)  # of the sorted rows
    rows = np.arange(count) if unsorted is None else unsorted
    lengths = lengths[rows]
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    starts = np.cumsum(batch_sizes) - batch_sizes
    gather = (starts + rows[:, np.newaxis])[np.arange(steps) < lengths[:, np.newaxis]]
    scatter = np.empty_like(gather)
    scatter[gather] = np.arange(len(gather))
    return Rows(Ragged(lengths, offsets, steps), [None] * directions, gather, scatter)


@dataclass(slots=True)
class Call:
    """All that a call is beside the tensors that may have gradients."""

    cell: Cell
    layers: int
    directions: int
    hidden_size: int
    bias: bool
    layout: str
    dropout: float = 0.0
    return_states: bool = False
    threads: int | None = None
    lengths: Any = None
    resets: Any = None
    batch_sizes: Tensor | None = None
    unsorted: Tensor | None = None
    seed: Any = None  # of dropout, an integer, in an op's arguments a tensor; None: nothing is dropped
    batch_size: Any = None  # packed, where it has to be known without the sizes
    proj_size: int = 0  # of h; 0: hidden_size
    _rows: Rows | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters of one layer and direction, in the order of their tensors."""
        return self.cell.names if self.bias else self.cell.weight_names

    @property
    def output_size(self) -> int:
        """Features of h."""
        return self.proj_size or self.hidden_size

    def states(self, batch_size: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """The shapes of h and of c, [layers*directions, B, *]."""
        rows = self.layers * self.directions, batch_size
        return (*rows, self.output_size), (*rows, self.hidden_size)

    def rows(self, x: Array) -> Rows:
        """`x` as the caller has it."""
        if self._rows is None:
            layout = LAYOUTS[self.layout]
            if self.batch_sizes is not None:
                self._rows = _unpacked(
                    to_array(self.batch_sizes), None if self.unsorted is None else to_array(self.unsorted), len(x),
                    self.directions,
                )  # fmt: skip
            else:
                sequence = layout.time_major(x)
                ragged = None if self.lengths is None else check_ragged(sequence, layout, self.lengths, None)
                marks: list[Resets | None] = [None] * self.directions
                if self.resets is not None:
                    first = marks[0] = check_resets(sequence, layout, self.resets, "zeros", copy=True)
                    if self.directions == 2 and first is not None:
                        marks[1] = first.of_reverse(ragged)
                self._rows = Rows(ragged, marks)
        return self._rows

    def _sequence(self, array: Array, rows: Rows) -> Array:
        """[T, B, *], as backends can use it."""
        layout = LAYOUTS[self.layout]
        if rows.gather is not None:
            return layout.time_major(_gathered(array, rows.gather))
        if self.layout == "step":
            return np.ascontiguousarray(array)[np.newaxis]
        return check_sequence(
            array, array.shape[-1], array.dtype, batch_first=layout.batch_first, flat=False
        )[0]  # fmt: skip

    def _state(self, name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array | None:
        """[layers*directions, B, H], contiguous."""
        if tensor is None:
            return None
        array, layout = to_array(tensor), LAYOUTS[self.layout]
        if self.layout == "step":
            array = array[np.newaxis]
        rule = STATE_RULE if self.layout == "step" else LAYERS_STATE_RULE
        if "c" not in name:
            rule = rule.replace("hidden_size", width_rule(self.cell))
        return check_state(name, array, rule, shape, dtype, layout.unbatched)

    def _drop(self) -> _stack.Drop | None:
        return None if self.seed is None else partial(drop, self.dropout, self.seed)

    def weights(self, tensors: Sequence[Tensor]) -> list[list[Weights]]:
        """By layer and direction, of tensors in torch's order."""
        arrays = [np.ascontiguousarray(to_array(tensor)) for tensor in tensors]
        absent: dict[str, Array | None] = dict.fromkeys(self.cell.names)
        made = []
        for first in range(0, len(arrays), len(self.names)):
            named = absent | dict(zip(self.names, arrays[first:], strict=False))
            input_size = arrays[first].shape[1]
            sizes = arrays[0].dtype, input_size, self.hidden_size, self.output_size
            made.append(Weights(self.cell, *sizes, tuple(named.values())))
        return [made[first : first + self.directions] for first in range(0, len(made), self.directions)]

    def forward(
        self,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Sequence[Weights]],
        packed: Sequence[Sequence[Any]] | None,
        training: bool,
    ) -> tuple[list[Tensor | None], list[Tensor]]:
        """output, h_n, c_n and c, those that there are; and in training what backward needs besides."""
        given = to_array(x)
        layout, dtype, directions = LAYOUTS[self.layout], given.dtype, self.directions
        rows = self.rows(given)
        sequence = self._sequence(given, rows)
        batch_size = sequence.shape[1]
        if rows.gather is not None:
            assert rows.ragged is not None
            batch_size = len(rows.ragged.lengths)
        steps_rows = sequence.shape[:2]
        of_h, of_c = self.states(batch_size)
        output = _memory.empty(layout.shape(*steps_rows, directions * self.output_size), dtype)
        of_every_c = layout.shape(*steps_rows, directions * self.hidden_size)
        c = _memory.empty(of_every_c, dtype) if self.return_states else None
        h_n = np.empty(of_h, dtype)
        c_n = np.empty(of_c, dtype) if self.cell.has_c else None
        recurrences = _stack.run_forward(
            settings.active(), threads_of(self.threads), weights, packed, sequence,
            self._state("h0", h0, of_h, dtype), self._state("c0", c0, of_c, dtype), layout.time_major(output),
            None if c is None else layout.time_major(c), h_n, c_n, rows.ragged, rows.marks, self._drop(), training,
            executor=executor(),
        )  # fmt: skip
        saved: list[Array | None] = []
        for layer, of_layer in enumerate(recurrences):
            last = layer == self.layers - 1
            for args in of_layer:
                saved += [args.gates, None if last and self.return_states else args.c]
            if not last:
                saved.append(recurrences[layer + 1][0].x)
        results: list[Array | None] = [output, layout.state(h_n), None if c_n is None else layout.state(c_n), c]
        if rows.scatter is not None:
            saved += [output, c] if training else []
            results[0], results[3] = _taken(output, rows.scatter), _taken(c, rows.scatter)
        return (
            [None if array is None else to_tensor(array) for array in results],
            [to_tensor(array) for array in saved if array is not None],
        )

    def backward(
        self,
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        grad_c_n: Tensor | None,
        grad_c: Tensor | None,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Sequence[Weights]],
        output: Tensor | None,
        c: Tensor | None,
        saved: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """The gradients of x, h0, c0 and of the weights, those that are wanted. Of the results backward needs output
        and c, where that is one.
        """
        given = to_array(x)
        rows, layout = self.rows(given), LAYOUTS[self.layout]
        sequence = self._sequence(given, rows)
        dtype, directions = sequence.dtype, self.directions
        batch_size = sequence.shape[1] if rows.gather is None or rows.ragged is None else len(rows.ragged.lengths)
        of_h, of_c = self.states(batch_size)
        grad_h0 = np.empty(of_h, dtype)
        grad_c0 = np.empty(of_c, dtype) if self.cell.has_c else None
        recurrences = self._saved(
            sequence, self._state("h0", h0, of_h, dtype), self._state("c0", c0, of_c, dtype), weights,
            output, c, [_kept_array(tensor) for tensor in saved], rows, grad_h0, grad_c0,
        )  # fmt: skip
        grads = [
            check_grad_sequence(
                name,
                _taken(_optional(grad), rows.gather),
                layout,
                (*sequence.shape[:2], directions * size),
                f"num_directions*{rule}",
                dtype,
            )
            for name, grad, size, rule in (
                ("grad_output", grad_output, self.output_size, width_rule(self.cell)),
                ("grad_c", grad_c, self.hidden_size, "hidden_size"),
            )
        ]
        flags = wanted[3:]
        names = [
            [name for name, flag in zip(self.names, flags[first:], strict=False) if flag]
            for first in range(0, len(flags), len(self.names))
        ]
        grad_x, parameters = _stack.run_backward(
            settings.active(), threads_of(self.threads), recurrences, layout, self._drop(), grads[0],
            self._state("grad_h_n", grad_h_n, of_h, dtype), self._state("grad_c_n", grad_c_n, of_c, dtype),
            grads[1], grad_h0, grad_c0, wanted[0], wanted[1] or wanted[2],
            [names[first : first + directions] for first in range(0, len(names), directions)], executor(),
        )  # fmt: skip
        results: list[Array | None] = [
            _taken(grad_x, rows.scatter),
            layout.state(grad_h0) if wanted[1] else None,
            layout.state(grad_c0) if wanted[2] and grad_c0 is not None else None,
        ]
        for of_layer in parameters:
            for of_direction in of_layer:
                results += [of_direction.get(name) for name in self.names]
        return [None if array is None else to_tensor(array) for array in results]

    def _saved(
        self, x: Array, h0: Array | None, c0: Array | None, weights: Sequence[Sequence[Weights]],
        output: Tensor | None, c: Tensor | None, saved: list[Array], rows: Rows, like_h: Array, like_c: Array | None,
    ) -> list[list[Forward]]:  # fmt: skip
        """What forward saved, in its order. Of h_n and c_n backward sees the shape only: that of `like_h`."""
        layout, cell = LAYOUTS[self.layout], self.cell
        if rows.gather is not None:
            last_c = layout.time_major(saved.pop()) if self.return_states else None
            last = layout.time_major(saved.pop())
        else:
            assert output is not None
            last = layout.time_major(to_array(output))
            last_c = layout.time_major(to_array(c)) if self.return_states and c is not None else None
        pieces = iter(saved)
        made: list[list[Forward]] = []
        for layer, of_layer in enumerate(weights):
            top = layer == self.layers - 1
            halves_c = _stack.halves(self.directions, self.hidden_size, last_c if top else None)
            kept = []
            for half_c in halves_c:
                gates = next(pieces) if cell.saved else None
                kept.append((gates, next(pieces) if cell.has_c and half_c is None else half_c))
            sequence = last if top else next(pieces)
            halves = _stack.halves(self.directions, self.output_size, sequence)
            calls = []
            for direction, (half, (gates, every_c)) in enumerate(zip(halves, kept, strict=True)):
                index = layer * self.directions + direction
                calls.append(
                    Forward(
                        of_layer[direction], None, direction == 1, x, None if h0 is None else h0[index],
                        None if c0 is None else c0[index], half, like_h[index],
                        None if like_c is None else like_c[index], gates, every_c, rows.ragged, rows.marks[direction],
                    )
                )  # fmt: skip
            made.append(calls)
            x = sequence
        return made


def _gathered(array: Array, index: Array) -> Array:
    """The rows of a sequence in the order of `index`."""
    taken = _memory.empty(array.shape, array.dtype)
    return np.take(array, index, axis=0, out=taken, mode="clip")  # "raise" goes through a buffer


def _taken(array: Array | None, index: Array | None) -> Array | None:
    return array if array is None or index is None else _gathered(array, index)
