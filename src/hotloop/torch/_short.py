"""Short calls of one recurrence: what `Call` does, with nothing asked that is known already. Around the kernels of one
step they take a third of its time. None where a call turns out not to be short; then nothing has been done.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ._bridge import Call, to_tensor
from ._packed import Kept

Tensor = torch.Tensor

Sizes = tuple[int, int]  # steps and rows


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def infer(
    kept: Kept, packed: Any, sizes: Sizes, states: tuple[int, ...], x: Tensor, h0: Tensor | None, c0: Tensor | None
) -> tuple[Tensor, ...] | None:
    """output, h_n and c_n, if there is one. `states` is the shape of h_n."""
    weights = kept.weights[0][0]
    dtype = weights.dtype
    output, h_n = np.empty((*x.shape[:-1], weights.hidden_size), dtype), np.empty(states, dtype)
    c_n = np.empty(states, dtype) if weights.cell.has_c else None
    if not kept.short.infer(packed, *sizes, x.data_ptr(), _address(h0), _address(c0), output, h_n, c_n):
        return None
    if c_n is None:
        return to_tensor(output), to_tensor(h_n)
    return to_tensor(output), to_tensor(h_n), to_tensor(c_n)


def forward(
    call: Call, kept: Kept, sizes: Sizes, x: Tensor, h0: Tensor | None, c0: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor | None, None], list[Tensor]] | None:
    """As `Call.forward` in training."""
    weights, (seq_len, batch_size) = kept.weights[0][0], sizes
    cell, dtype, hidden_size = weights.cell, weights.dtype, weights.hidden_size
    states = (batch_size, hidden_size) if call.layout == "step" else (1, batch_size, hidden_size)
    output, h_n = to_tensor(np.empty((*x.shape[:-1], hidden_size), dtype)), np.empty(states, dtype)
    saved, gates, c, c_n = [], 0, 0, None
    if cell.saved:
        saved.append(to_tensor(np.empty((seq_len, batch_size, cell.saved * hidden_size), dtype)))
        gates = saved[0].data_ptr()
    if cell.has_c:
        saved.append(to_tensor(np.empty((seq_len, batch_size, hidden_size), dtype)))
        c, c_n = saved[1].data_ptr(), np.empty(states, dtype)
    if not kept.short.forward(
        seq_len, batch_size, x.data_ptr(), _address(h0), _address(c0), output.data_ptr(), h_n, c_n, gates, c
    ):  # fmt: skip
        return None
    return (output, to_tensor(h_n), None if c_n is None else to_tensor(c_n), None), saved


def backward(
    call: Call,
    kept: Kept,
    sizes: Sizes,
    upstream: Sequence[Tensor | None],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    output: Tensor,
    saved: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None] | None:
    """As `Call.backward`."""
    weights, (seq_len, batch_size) = kept.weights[0][0], sizes
    cell, dtype, hidden_size = weights.cell, weights.dtype, weights.hidden_size
    grads = [None if grad is None else grad.contiguous() for grad in upstream[:3]]
    states = (batch_size, hidden_size) if call.layout == "step" else (1, batch_size, hidden_size)
    grad_x = np.empty(x.shape, dtype) if wanted[0] else None
    grad_h0 = np.empty(states, dtype)
    grad_c0 = np.empty(states, dtype) if cell.has_c else None
    of_weights = [
        np.empty(array.shape, dtype) if flag and array is not None else None
        for array, flag in zip(weights[4:], wanted[3:] if call.bias else (*wanted[3:], False, False), strict=True)
    ]
    gates = saved[0].data_ptr() if cell.saved else 0
    c = saved[1].data_ptr() if cell.has_c else 0
    if not kept.short.backward(
        seq_len, batch_size, x.data_ptr(), _address(h0), _address(c0), output.data_ptr(), gates, c,
        (_address(grads[0]), _address(grads[1]), _address(grads[2])), grad_x, of_weights, grad_h0, grad_c0,
    ):  # fmt: skip
        return None
    results = [grad_x, grad_h0 if wanted[1] else None, grad_c0 if wanted[2] else None, *of_weights]
    return [None if array is None else to_tensor(array) for array in results[: len(wanted)]]
