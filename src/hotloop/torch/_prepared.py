"""One recurrence over sequences that lie one step after the other, as a prepared call on addresses: what `Call` does,
with nothing asked that is known already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .._core import memory as _memory
from ._bridge import Call, to_tensor
from ._packed import MANY_ROWS, Kept

Tensor = torch.Tensor

Sizes = tuple[int, int]  # steps and rows


def _allocator(sizes: Sizes, hidden_size: int) -> Any:
    """np.empty for so little that asking `memory`, 0.5 us an array, is not worth it: in float32 it would keep none."""
    return np.empty if sizes[0] * sizes[1] * hidden_size < 1 << 13 else _memory.empty


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def infer(
    kept: Kept,
    tensors: Sequence[Tensor],
    sizes: Sizes,
    states: tuple[int, ...],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, ...]:
    """output, h_n and c_n, if there is one. `states` is the shape of h_n."""
    weights, (seq_len, batch_size) = kept.weights[0][0], sizes
    dtype, few = weights.dtype, seq_len * batch_size < MANY_ROWS
    packed = kept.packed(tensors)[0][0] if few else None
    empty = _allocator(sizes, weights.output_size)
    output, h_n = empty((*x.shape[:-1], weights.output_size), dtype), np.empty(states, dtype)
    c_n = np.empty((*states[:-1], weights.hidden_size), dtype) if weights.cell.has_c else None
    run = kept.run(seq_len, batch_size, packed, False)
    run(x.data_ptr(), _address(h0), _address(c0), output, h_n, c_n, None, None, _address(resets))
    if c_n is None:
        return to_tensor(output), to_tensor(h_n)
    return to_tensor(output), to_tensor(h_n), to_tensor(c_n)


def forward(
    call: Call, kept: Kept, sizes: Sizes, x: Tensor, h0: Tensor | None, c0: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor | None, None], list[Tensor]]:
    """As `Call.forward` in training."""
    weights, (seq_len, batch_size) = kept.weights[0][0], sizes
    cell, dtype, output_size, hidden_size = weights.cell, weights.dtype, weights.output_size, weights.hidden_size
    empty = _allocator(sizes, hidden_size)
    rows = (batch_size,) if call.layout == "step" else (1, batch_size)
    output, h_n = empty((*x.shape[:-1], output_size), dtype), np.empty((*rows, output_size), dtype)
    c_n = np.empty((*rows, hidden_size), dtype) if cell.has_c else None
    gates, c = (
        None if shape is None else empty(shape, dtype)
        for shape in cell.saved_shapes(seq_len, batch_size, hidden_size=hidden_size)
    )
    run = kept.run(seq_len, batch_size, None, True)
    run(x.data_ptr(), _address(h0), _address(c0), output, h_n, c_n, gates, c, None)
    saved = [] if gates is None else [to_tensor(gates)] if c is None else [to_tensor(gates), to_tensor(c)]
    return (to_tensor(output), to_tensor(h_n), None if c_n is None else to_tensor(c_n), None), saved


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
) -> list[Tensor | None]:
    """As `Call.backward`."""
    weights, (seq_len, batch_size) = kept.weights[0][0], sizes
    cell, dtype = weights.cell, weights.dtype
    grads = [
        grad if grad is None or (grad.is_contiguous() and not grad.is_neg()) else grad.resolve_neg().contiguous()
        for grad in upstream[:3]
    ]
    empty = _allocator(sizes, weights.hidden_size)
    rows = (batch_size,) if call.layout == "step" else (1, batch_size)
    grad_x = empty(tuple(x.shape), dtype) if wanted[0] else None
    grad_h0 = np.empty((*rows, weights.output_size), dtype)
    grad_c0 = np.empty((*rows, weights.hidden_size), dtype) if cell.has_c else None
    named = weights.named
    of_weights = {
        name: np.empty(named[name].shape, dtype) if flag else None
        for name, flag in zip(call.names, wanted[3:], strict=True)
    }
    run = kept.run_backward(
        seq_len, batch_size, wanted[0], any(of_weights[name] is not None for name in cell.weight_names)
    )
    run(
        x.data_ptr(), _address(h0), _address(c0), output.data_ptr(), saved[0].data_ptr() if cell.saved else None,
        saved[1].data_ptr() if cell.has_c else None, None, *map(_address, grads), *[None] * (3 - len(grads)), grad_x,
        grad_h0, grad_c0, *map(of_weights.get, cell.names),
    )  # fmt: skip
    results = [grad_x, grad_h0 if wanted[1] else None, grad_c0 if wanted[2] else None, *of_weights.values()]
    return [None if array is None else to_tensor(array) for array in results]
