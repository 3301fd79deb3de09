"""The shapes of what a call of the ops takes and gives: what its arguments are held against, and what the results of a
fake call are made by.

A program that was traced or exported has left the checks of `_modules` behind, and anyone may call an op. So an op
reads no memory before `check_inputs`, its backward none before `check_saved`, has found that everything fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from .._core.checks import check_return_states
from .._core.types import CELLS
from ._bridge import LAYOUTS, Call

Tensor = torch.Tensor

_DTYPES = (torch.float32, torch.float64)
_INTEGERS = ("lengths", "resets", "batch_sizes", "unsorted", "seed")  # and flags: the op's arguments after the weights

# x as each layout has it; beside them how many dimensions.
_OF_X = {
    "time_major": ("(seq_len, batch_size, input_size)", 3),
    "batch_first": ("(batch_size, seq_len, input_size)", 3),
    "unbatched": ("(seq_len, input_size)", 2),
    "packed": ("(total, input_size)", 2),
    "step": ("(batch_size, input_size)", 2),
}


def check_kind(cell: str, layers: int, directions: int, bias: bool, layout: str, weights: Sequence[Tensor]) -> None:
    """What a call has to have before the sizes in it mean anything."""
    if cell not in CELLS:
        raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layers < 1:
        raise ValueError(f"layers: expected at least 1, got {layers}")
    if directions not in (1, 2):
        raise ValueError(f"directions: expected 1 or 2, got {directions}")
    if layout == "step" and layers * directions != 1:
        raise ValueError(f"layers, directions: expected 1 and 1 with layout 'step', got {layers} and {directions}")
    if len(weights) != (count := layers * directions * len(CELLS[cell].names if bias else CELLS[cell].weight_names)):
        raise ValueError(
            f"weights: expected {count} tensors (layers = {layers}, directions = {directions}, bias = {bias}), "
            f"got {len(weights)}"
        )
    if weights[1].dim() != 2:
        raise ValueError(f"weight_hh: expected 2 dimensions, got {weights[1].dim()}")


def check_devices(weights: Sequence[Tensor], integers: Sequence[Tensor | None]) -> None:
    """With one of them on "meta", torch runs the fake: its results are memory that nobody has written to."""
    device = weights[0].device
    for name, tensor in zip(_INTEGERS, integers, strict=True):
        if tensor is not None and tensor.device != device and device.type != "meta":
            raise ValueError(f"{name}: expected a tensor on {device}, where weight_ih is, got one on {tensor.device}")


def check_inputs(call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor]) -> None:
    """That the tensors that may have gradients are of one dtype, and of the shapes of the call."""
    rule, dimensions = _OF_X[call.layout]
    dtype, device = weights[0].dtype, weights[0].device
    if dtype not in _DTYPES:
        raise TypeError(f"weight_ih: expected float32 or float64, got {dtype}")
    if x.dim() != dimensions:
        raise ValueError(f"x: expected {rule} with layout {call.layout!r}, got {tuple(x.shape)}")
    if call.hidden_size < 1 or x.shape[-1] < 1:
        raise ValueError(
            f"x, weight_hh: expected input_size >= 1 and hidden_size >= 1, got {x.shape[-1]} and {call.hidden_size}"
        )
    if x.dtype is not dtype:
        raise TypeError(f"x: expected {dtype} (the dtype of weight_ih), got {x.dtype}")
    if x.device != device:
        raise ValueError(f"x: expected a tensor on {device}, where weight_ih is, got one on {x.device}")
    for tensor, (name, shape) in zip(weights, of_weights(call, x.shape[-1]), strict=True):
        if tensor.dtype is not dtype or tensor.shape != shape or tensor.device != device:
            check(name, tensor, dtype, shape, device)
    if h0 is None and c0 is None:
        return
    if c0 is not None and not call.cell.has_c:
        raise TypeError(f"c0: expected None (only an LSTM has c), got {tuple(c0.shape)}")
    batch_size = None if call.layout == "packed" else sizes(call, x)[1]
    for name, state, size in (("h0", h0, call.output_size), ("c0", c0, call.hidden_size)):
        if state is not None:
            check(name, state, dtype, states(call, batch_size, size), device)


def check_extras(call: Call) -> None:
    """What else is in a call: values, which fake tensors do not have."""
    if call.return_states:
        check_return_states(call.cell, True)
    if not 0 <= call.dropout <= 1:
        raise ValueError(f"dropout: expected a number from 0 to 1, got {call.dropout}")
    flat = call.layout == "packed"
    if flat and (call.lengths is not None or call.resets is not None):
        raise ValueError("lengths, resets: expected None with layout 'packed', got a tensor")
    if flat != (call.batch_sizes is not None):
        raise ValueError(
            f"batch_sizes: expected a tensor with layout 'packed' and None elsewhere, got {call.batch_sizes} with "
            f"layout {call.layout!r}"
        )
    for name, indices in (("batch_sizes", call.batch_sizes), ("unsorted", call.unsorted)):
        if indices is not None and indices.dtype is not torch.int64:
            raise TypeError(f"{name}: expected {torch.int64}, got {indices.dtype}")
    if call.unsorted is not None and not flat:
        raise ValueError(f"unsorted: expected None without layout 'packed', got a tensor with layout {call.layout!r}")


def check_saved(
    call: Call,
    x: Tensor,
    weights: Sequence[Tensor],
    upstream: Sequence[Tensor | None],
    output: Tensor,
    c: Tensor,
    saved: Sequence[Tensor],
    wanted: Sequence[bool],
) -> None:
    """That what forward left, and the gradients of its results, have the shapes that forward gives to them."""
    cell, dtype, device = call.cell, x.dtype, x.device
    flat, shapes = call.layout == "packed", results(call, x)
    if not flat:  # there the results are in the order of the caller, and what backward reads is among the saved
        check("output", output, dtype, shapes.output, device)
        if call.return_states:
            check("c", c, dtype, shapes.c, device)
    expected = saved_shapes(call, x)
    if len(saved) != len(expected):
        raise ValueError(f"saved: expected {len(expected)} tensors, as forward gives with training, got {len(saved)}")
    for index, (tensor, shape) in enumerate(zip(saved, expected, strict=True)):
        check(f"saved[{index}]", tensor, dtype, shape, device)
    if len(wanted) != 3 + len(weights):
        raise ValueError(f"wanted: expected {3 + len(weights)} flags (x, h0, c0 and the weights), got {len(wanted)}")
    batch_size = None if flat else sizes(call, x)[1]
    of_h_n, of_c_n = states(call, batch_size, call.output_size), states(call, batch_size, call.hidden_size)
    there = (True, True, cell.has_c, call.return_states)
    names = ("grad_output", "grad_h_n", "grad_c_n", "grad_c")
    for name, grad, shape, has in zip(names, upstream, (shapes.output, of_h_n, of_c_n, shapes.c), there, strict=True):
        if grad is not None:
            if not has:
                raise TypeError(f"{name}: expected None (the call has no such result), got {tuple(grad.shape)}")
            check(name, grad, dtype, shape, device)


def check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[Any, ...], device: torch.device) -> None:
    """`shape`: None where any size is right."""
    if tensor.dtype is not dtype:
        raise TypeError(f"{name}: expected {dtype} (the dtype of weight_ih), got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, where weight_ih is, got one on {tensor.device}")
    given = tensor.shape
    if len(given) != len(shape) or any(b is not None and a != b for a, b in zip(given, shape, strict=True)):
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(given)}".replace("None", "batch_size"))


def of_weights(call: Call, input_size: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The weights' names and shapes, in torch's order."""
    for layer in range(call.layers):
        columns = call.directions * call.output_size if layer else input_size
        for _ in range(call.directions):
            for parameter in call.cell.parameters:
                if parameter.name in call.names:
                    yield parameter.name, parameter.shape(call.cell, columns, call.hidden_size, call.output_size)


def sizes(call: Call, x: Tensor) -> tuple[Any, Any]:
    """Steps and rows, as of [T, B, *]; with a flat sequence its rows and those of the batch."""
    if call.layout == "packed":
        return x.shape[0], call.batch_size
    if call.layout == "batch_first":
        return x.shape[1], x.shape[0]
    if call.layout == "time_major":
        return x.shape[0], x.shape[1]
    return (x.shape[0], 1) if call.layout == "unbatched" else (1, x.shape[0])


def states(call: Call, batch_size: Any, size: Any) -> tuple[Any, ...]:
    """Of states of so many features, as the caller has them."""
    if call.layout == "step":
        return batch_size, size
    count = call.layers * call.directions
    return (count, size) if call.layout == "unbatched" else (count, batch_size, size)


class Results(NamedTuple):
    """The shapes of a call's results; of c of every step, and of c_n, also where there is none."""

    output: tuple[Any, ...]
    h_n: tuple[Any, ...]
    c_n: tuple[Any, ...]
    c: tuple[Any, ...]


def results(call: Call, x: Tensor) -> Results:
    lead, rows = x.shape[:-1], sizes(call, x)[1]
    of_h, of_c = call.output_size, call.hidden_size
    return Results(
        (*lead, call.directions * of_h), states(call, rows, of_h), states(call, rows, of_c),
        (*lead, call.directions * of_c),
    )  # fmt: skip


def saved_shapes(call: Call, x: Tensor) -> list[tuple[Any, ...]]:
    """Of what forward saves for backward, in its order."""
    seq_len, batch_size = sizes(call, x)
    flat, outer = LAYOUTS[call.layout].flat, results(call, x)
    rows = (seq_len, 1) if flat else (seq_len, batch_size)
    gates, c = call.cell.saved_shapes(*rows, hidden_size=call.hidden_size)
    shapes: list[tuple[Any, ...]] = []
    for layer in range(call.layers):
        last = layer == call.layers - 1
        for _ in range(call.directions):
            if gates is not None:
                shapes.append(gates)
            if c is not None and not (last and call.return_states):
                shapes.append(c)
        if not last:
            shapes.append((*rows, outer.output[-1]))
    return [*shapes, outer.output, *([outer.c] * call.return_states)] if flat else shapes
