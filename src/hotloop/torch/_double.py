"""The gradient of a gradient: the forward pass once more, in torch's operations, which torch differentiates as often as
it is asked to. The equations are those of `_cells`.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import _cells
from .._contract import Cell
from .._dropout import drop
from ._bridge import Call, Rows, to_array

Tensor = torch.Tensor


def backward(
    call: Call,
    inputs: Sequence[Tensor | None],
    upstream: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The backward pass of the backward pass: the gradients of its upstream gradients and of its inputs (x, h0, c0 and
    the weights), for `grads`, those of what it returned of the inputs that were wanted.
    """  # fmt: skip
    again = torch.is_grad_enabled()  # a third time
    with torch.enable_grad():
        with _outside_transforms():
            inputs = [_variable(tensor, again) for tensor in inputs]
            upstream = [_variable(tensor, again) for tensor in upstream]
            pairs = _both(forward(call, inputs), upstream)
            chosen = _both(inputs, [grad if flag else None for grad, flag in zip(grads, wanted, strict=True)])
            first = _grad(pairs, [one for one, _ in chosen], True)
        variables = [tensor for tensor in (*upstream, *inputs) if tensor is not None]
        found = _grad(_both(first, [grad for _, grad in chosen]), variables, again)
    left = iter(found)
    of_upstream = [None if one is None else next(left) for one in upstream]
    return of_upstream, [None if one is None else next(left) for one in inputs]


def once(
    call: Call, inputs: Sequence[Tensor | None], upstream: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of the inputs that are wanted, where one upstream stands for many at once."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        with _outside_transforms():
            inputs = [_variable(tensor, again) for tensor in inputs]
            results = forward(call, inputs)
        chosen = [tensor for tensor, flag in zip(inputs, wanted, strict=True) if flag and tensor is not None]
        found = iter(_grad(_both(results, upstream), chosen, again))
    return [next(found) if flag and one is not None else None for one, flag in zip(inputs, wanted, strict=True)]


def _outside_transforms() -> Any:
    """Out of those of torch.func: of what is computed here only the gradients given may stand for many at once."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def _both(ones: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    """The pairs of which both are there."""
    return [(one, other) for one, other in zip(ones, others, strict=True) if one is not None and other is not None]


def _grad(pairs: Sequence[tuple[Tensor, Tensor]], of: Sequence[Tensor], connected: bool) -> Sequence[Tensor | None]:
    """The gradients of the variables `of`, from pairs of a result and its upstream gradient."""
    if not pairs or not of:
        return [None] * len(of)
    ones, upstream = zip(*pairs, strict=True)
    return torch.autograd.grad(ones, of, upstream, create_graph=connected, allow_unused=True)


def _variable(tensor: Tensor | None, connected: bool) -> Tensor | None:
    """The tensor as something to differentiate by."""
    if tensor is None:
        return None
    return tensor.view_as(tensor) if connected and tensor.requires_grad else tensor.detach().requires_grad_()


def forward(call: Call, inputs: Sequence[Any]) -> list[Tensor | None]:
    """output, h_n, c_n and c, as the op returns them."""
    x, h0, c0, *weights = inputs
    rows, each = call.rows(to_array(x.detach())), 4 if call.bias else 2
    sequence, active, index = _padded(call, rows, x)
    batch_size = sequence.shape[1]
    states = (call.layers * call.directions, batch_size, call.hidden_size)
    h0 = sequence.new_zeros(states) if h0 is None else h0.reshape(states)
    c0 = sequence.new_zeros(states) if c0 is None else c0.reshape(states)
    last: list[tuple[Tensor, Tensor]] = []
    every_c: list[Tensor] = []
    for layer in range(call.layers):
        outputs, every_c = [], []
        for direction in range(call.directions):
            number = layer * call.directions + direction
            marks = rows.marks[direction]
            resets = None if marks is None else torch.from_numpy(np.ascontiguousarray(marks.at)).unsqueeze(-1)
            if resets is not None and active is not None:  # those in the padding mean nothing
                resets = resets & active
            output, c, state = _recurrence(
                call.cell, direction == 1, sequence, h0[number], c0[number], weights[number * each :][:each], active,
                resets,
            )  # fmt: skip
            outputs.append(output)
            every_c.append(c)
            last.append(state)
        sequence = torch.cat(outputs, -1)
        if call.seed is not None and layer < call.layers - 1:
            sequence = sequence * _mask(call, layer, sequence, index)
    output, c = (_unpadded(call, rows, tensor) for tensor in (sequence, torch.cat(every_c, -1)))
    h_n, c_n = (torch.stack(tensors).reshape(_shape(call, states)) for tensors in zip(*last, strict=True))
    return [output, h_n, c_n if call.cell.has_c else None, c if call.return_states else None]


def _shape(call: Call, states: tuple[int, int, int]) -> tuple[int, ...]:
    return {"unbatched": (states[0], states[2]), "step": states[1:]}.get(call.layout, states)


def _recurrence(
    cell: Cell,
    reverse: bool,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    active: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Output and c of every step, and the last state. Rows that have ended, or in reverse not begun, keep theirs."""
    weight_ih, weight_hh, *biases = weights
    bias_ih, bias_hh = biases or (None, None)
    projected = torch.nn.functional.linear(x, weight_ih, bias_ih)
    outputs, every_c = [h] * len(x), [c] * len(x)
    for step in reversed(range(len(x))) if reverse else range(len(x)):
        if resets is not None:
            h, c = torch.where(resets[step], 0.0, h), torch.where(resets[step], 0.0, c)
        new_h, new_c = _step(cell, projected[step], torch.nn.functional.linear(h, weight_hh, bias_hh), h, c)
        if active is None:
            h, c = new_h, new_c
            outputs[step], every_c[step] = h, c
        else:
            now = active[step]
            h, c = torch.where(now, new_h, h), torch.where(now, new_c, c)
            outputs[step], every_c[step] = torch.where(now, h, 0.0), torch.where(now, c, 0.0)
    return torch.stack(outputs), torch.stack(every_c), (h, c)


def _step(cell: Cell, of_x: Tensor, of_h: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    if cell.name == "lstm":
        a_i, a_f, a_g, a_o = (of_x + of_h).chunk(4, -1)
        *_, c, h = _cells.lstm_forward(a_i, a_f, a_g, a_o, c, torch.tanh, torch.sigmoid)
        return h, c
    if cell.name == "gru":
        x_r, x_z, x_n = of_x.chunk(3, -1)
        h_r, h_z, q = of_h.chunk(3, -1)
        return _cells.gru_forward(x_r + h_r, x_z + h_z, x_n, q, h, torch.tanh, torch.sigmoid)[-1], c
    if cell.name == "rnn_relu":
        return _cells.rnn_relu_forward(of_x + of_h, torch.relu), c
    return _cells.rnn_tanh_forward(of_x + of_h, torch.tanh), c


def _padded(call: Call, rows: Rows, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """X as [T, B, I], which of its steps are there, [T, B, 1], and for a PackedSequence where in the flat one."""
    if rows.ragged is None:
        axis = {"batch_first": None, "unbatched": 1, "step": 0}.get(call.layout, -1)
        return (x.transpose(0, 1) if axis is None else x if axis < 0 else x.unsqueeze(axis)), None, None
    lengths = torch.from_numpy(rows.ragged.lengths)
    if rows.gather is None or rows.ragged.offsets is None:
        x = x.transpose(0, 1) if call.layout == "batch_first" else x
        active, flat = torch.arange(len(x)).unsqueeze(1) < lengths, None
    else:
        times = torch.arange(rows.ragged.steps).unsqueeze(1)
        active = times < lengths
        flat = torch.where(active, torch.from_numpy(rows.ragged.offsets[:-1]) + times, 0)
        x = x[torch.from_numpy(rows.gather)[flat]]
    active = active.unsqueeze(-1)
    return torch.where(active, x, 0.0), active, flat


def _unpadded(call: Call, rows: Rows, sequence: Tensor) -> Tensor:
    if call.layout == "batch_first":
        return sequence.transpose(0, 1)
    if call.layout in ("unbatched", "step"):
        return sequence.squeeze(1 if call.layout == "unbatched" else 0)
    if rows.scatter is None or rows.ragged is None or rows.ragged.offsets is None:
        return sequence
    lengths, offsets = rows.ragged.lengths, rows.ragged.offsets
    row = np.repeat(np.arange(len(lengths)), lengths)
    time = np.arange(len(row)) - offsets[row]
    return sequence[torch.from_numpy(time[rows.scatter]), torch.from_numpy(row[rows.scatter])]


def _mask(call: Call, layer: int, like: Tensor, flat: Tensor | None) -> Tensor:
    """What dropout multiplied this layer's output by, [T, B, F]."""
    assert call.seed is not None
    steps, batch_size, features = like.shape
    shape = (steps, batch_size, features)
    if flat is not None:
        shape = (int(flat.max()) + 1, 1, features)
    ones = np.ones(shape, to_array(like.detach()).dtype)
    mask = torch.from_numpy(drop(call.dropout, call.seed, layer, ones, ones))
    return mask if flat is None else mask[flat, 0]
