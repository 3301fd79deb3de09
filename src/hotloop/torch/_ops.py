"""torch.ops.hotloop.forward and .backward: what torch.compile, torch.export and torch.jit.trace see of a call; and the
short way of eager calls, an autograd.Function on the same `Call`.

Both differentiate with the backward op where the gradient is to be differentiated itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .._contract import CELLS
from . import _double, _packed, _single
from ._bridge import LAYOUTS, Call, to_array

Tensor = torch.Tensor

_is_batched, _is_legacy_batched = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor

_CALL = (
    "Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, Tensor? resets, Tensor? batch_sizes, "
    "Tensor? unsorted, Tensor? seed, str cell, int layers, int directions, bool bias, str layout, SymInt batch_size, "
    "float dropout, bool return_states, int threads"
)
_TENSORS, _ARGUMENTS = 4, 18  # those that may have gradients, and all

_library = torch.library.Library("hotloop", "DEF")
_library.define(f"forward({_CALL}, bool training) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor c, Tensor[] saved)")
_library.define(
    f"backward({_CALL}, Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_c, Tensor output, "
    "Tensor c, Tensor[] saved, bool[] wanted) -> (Tensor x, Tensor h0, Tensor c0, Tensor[] weights)"
)


def arguments(call: Call) -> tuple[Any, ...]:
    """Those of the ops that are in a call; tensors with gradients come before."""
    seed = call.seed
    return (
        call.lengths, call.resets, call.batch_sizes, call.unsorted,
        seed if seed is None or isinstance(seed, Tensor) else torch.tensor(seed), call.cell.name, call.layers,
        call.directions, call.bias, call.layout, 0 if call.batch_size is None else call.batch_size, call.dropout,
        call.return_states, call.threads or 0,
    )  # fmt: skip


def _call(weights: Sequence[Tensor], given: Sequence[Any]) -> Call:
    """The call whose `arguments` these are."""
    lengths, resets, batch_sizes, unsorted, seed, cell, layers, directions, bias, layout, batch_size = given[:11]
    return Call(
        CELLS[cell], layers, directions, weights[1].shape[1], bias, layout, given[11], given[12], given[13] or None,
        lengths, resets, batch_sizes, unsorted, None if seed is None else int(seed), batch_size,
    )  # fmt: skip


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


def _forward(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], *given: Any) -> Any:
    call, training = _call(weights, given), given[-1]
    prepared = call.weights(weights)
    packed = None if training else _packed.of_op(call, weights, prepared, x)
    results, saved = call.forward(x, h0, c0, prepared, packed, training)
    ragged = call.rows(to_array(x)).ragged
    if saved and ragged is not None and ragged.offsets is None:  # the results of an op are numbers throughout
        padding = np.arange(saved[0].shape[0])[:, np.newaxis] >= ragged.lengths
        for tensor in saved:
            to_array(tensor)[padding] = 0
    return *(_or_empty(result, x) for result in results), saved


def _backward(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], *given: Any) -> Any:
    call = _call(weights, given)
    grad_output, grad_h_n, grad_c_n, grad_c, output, c, saved, wanted = given[_ARGUMENTS - _TENSORS :]
    results = call.backward(
        grad_output, grad_h_n, grad_c_n, grad_c, x, h0, c0, call.weights(weights), output, c, saved, wanted
    )
    of_x, of_h0, of_c0, *of_weights = (_or_empty(result, x) for result in results)
    return of_x, of_h0, of_c0, of_weights


def _forward_fake(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], *given: Any) -> Any:
    call, training = _call_fake(weights, given), given[-1]
    layout, cell, width = LAYOUTS[call.layout], call.cell, call.directions * call.hidden_size
    steps, batch_size = _sizes(call, x)
    states = _states(call, batch_size)
    outer = (*x.shape[:-1], width)
    results = [
        x.new_empty(outer),
        x.new_empty(states),
        x.new_empty(states if cell.has_c else 0),
        x.new_empty(outer if call.return_states else 0),
    ]
    saved = []
    if training:
        rows = (steps, 1) if layout.flat else (steps, batch_size)
        for layer in range(call.layers):
            last = layer == call.layers - 1
            for _ in range(call.directions):
                if cell.saved:
                    saved.append(x.new_empty((*rows, cell.saved * call.hidden_size)))
                if cell.has_c and not (last and call.return_states):
                    saved.append(x.new_empty((*rows, call.hidden_size)))
            if not last:
                saved.append(x.new_empty((*rows, width)))
        if layout.flat:
            saved += [x.new_empty(outer) for _ in range(1 + call.return_states)]
    return *results, saved


def _backward_fake(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], *given: Any) -> Any:
    call, wanted = _call_fake(weights, given), given[-1]
    states = _states(call, _sizes(call, x)[1])
    return (
        x.new_empty(x.shape if wanted[0] else 0),
        x.new_empty(states if wanted[1] else 0),
        x.new_empty(states if wanted[2] and call.cell.has_c else 0),
        [weight.new_empty(weight.shape if flag else 0) for weight, flag in zip(weights, wanted[3:], strict=True)],
    )


def _call_fake(weights: Sequence[Tensor], given: Sequence[Any]) -> Call:
    """A fake seed has no value."""
    return _call(weights, (*given[:4], None, *given[5:]))


def _sizes(call: Call, x: Tensor) -> tuple[Any, Any]:
    """Steps and rows, as of [T, B, *]; with a flat sequence its rows and those of the batch."""
    if call.layout == "packed":
        return x.shape[0], call.batch_size
    if call.layout == "batch_first":
        return x.shape[1], x.shape[0]
    if call.layout == "time_major":
        return x.shape[0], x.shape[1]
    return (x.shape[0], 1) if call.layout == "unbatched" else (1, x.shape[0])


def _states(call: Call, batch_size: Any) -> tuple[Any, ...]:
    """The shape of states as the caller has them."""
    if call.layout == "step":
        return batch_size, call.hidden_size
    count = call.layers * call.directions
    return (count, call.hidden_size) if call.layout == "unbatched" else (count, batch_size, call.hidden_size)


def _needs(ctx: Any, h0: Any, c0: Any) -> list[bool]:
    """Which of x, h0, c0 and the weights need a gradient."""
    of_x, of_h0, of_c0, of_weights = ctx.needs_input_grad[:_TENSORS]
    return [of_x, h0 is not None and of_h0, c0 is not None and of_c0, *of_weights]


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, h0, c0, weights, *given, training = inputs
    ctx.set_materialize_grads(False)
    ctx.training = training
    ctx.given = given[5:]
    ctx.count = len(weights)
    result, _, _, c, saved = output
    ctx.save_for_backward(x, h0, c0, *given[:5], *weights, result, c, *saved)


def _loaded(ctx: Any) -> tuple[Any, ...]:
    """x, h0, c0, the weights, the other arguments of the call, and what else was saved."""
    x, h0, c0, *rest = ctx.saved_tensors
    tensors, weights, saved = rest[:5], rest[5 : 5 + ctx.count], rest[5 + ctx.count :]
    return x, h0, c0, weights, (*tensors, *ctx.given), saved


def _differentiate_forward(ctx: Any, *grads: Any) -> Any:
    x, h0, c0, weights, given, (output, c, *saved) = _loaded(ctx)
    wanted, call = _needs(ctx, h0, c0), _call_fake(weights, given)
    grad_output, grad_h_n, grad_c_n, grad_c = grads[:4]  # of a result that is not there it may be one of no elements
    grads = (
        grad_output, grad_h_n, grad_c_n if call.cell.has_c else None, grad_c if call.return_states else None
    )  # fmt: skip
    if not ctx.training:  # made for inference, as an exported program is
        with torch.no_grad():
            output, _, _, c, saved = torch.ops.hotloop.forward(x, h0, c0, weights, *given, True)
    of_x, of_h0, of_c0, of_weights = torch.ops.hotloop.backward(
        x, h0, c0, weights, *given, *grads, output, c, saved, wanted
    )
    return (
        of_x if wanted[0] else None, of_h0 if wanted[1] else None, of_c0 if wanted[2] else None,
        [grad if flag else None for grad, flag in zip(of_weights, wanted[3:], strict=True)],
        *[None] * (_ARGUMENTS - _TENSORS + 1),
    )  # fmt: skip


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, h0, c0, weights, *given = inputs
    ctx.set_materialize_grads(False)
    *rest, ctx.wanted = given
    ctx.given = rest[5 : _ARGUMENTS - _TENSORS]
    ctx.count, ctx.count_saved = len(weights), len(rest[-1])
    ctx.save_for_backward(x, h0, c0, *rest[:5], *weights, *rest[_ARGUMENTS - _TENSORS :][:4])


def _differentiate_backward(ctx: Any, *grads: Any) -> Any:
    x, h0, c0, weights, given, upstream = _loaded(ctx)
    call = _call(weights, given)
    inputs = [x, h0, c0, *weights]
    of_results = [*grads[:3], *grads[3]]
    of_upstream, of_inputs = _double.backward(call, inputs, upstream, ctx.wanted, of_results)
    return (
        *of_inputs[:3], of_inputs[3:], *[None] * (_ARGUMENTS - _TENSORS), *of_upstream,
        None, None, [None] * ctx.count_saved, None,
    )  # fmt: skip


for _name, _kernel, _fake, _save, _differentiate in (
    ("forward", _forward, _forward_fake, _save_forward, _differentiate_forward),
    ("backward", _backward, _backward_fake, _save_backward, _differentiate_backward),
):
    _library.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"hotloop::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"hotloop::{_name}", _differentiate, setup_context=_save, lib=_library)


class Recurrence(torch.autograd.Function):
    """An eager call that will be differentiated: 30 us less than through the op."""

    @staticmethod
    def forward(ctx: Any, call: Call, kept: Any, sizes: Any, x: Tensor, h0: Any, c0: Any, *weights: Tensor) -> Any:
        """`sizes`, steps and rows, are given where `_single` can do it."""
        ctx.set_materialize_grads(False)
        results: Any
        if sizes is None:
            results, saved = call.forward(x, h0, c0, kept.weights, None, True)
        else:
            results, saved = _single.forward(call, kept, sizes, x, h0, c0)
        output, h_n, c_n, c = results
        ctx.call, ctx.kept, ctx.sizes, ctx.count = call, kept, sizes, len(weights)
        ctx.hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        if call.layout == "packed":  # the flat ones are among the saved
            ctx.save_for_backward(x, h0, c0, *weights, None, None, *saved)
        else:
            ctx.save_for_backward(x, h0, c0, *weights, output, c, *saved)
        return (output, h_n) if c_n is None else (output, h_n, c_n) if c is None else (output, h_n, c_n, c)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        call = ctx.call
        x, h0, c0, *rest = _saved(ctx)
        weights, (output, c, *saved) = rest[: ctx.count], rest[ctx.count :]
        wanted = ctx.needs_input_grad[3:]
        grad_output, grad_h_n, *more = grads
        grad_c_n = more.pop(0) if call.cell.has_c else None
        upstream = grad_output, grad_h_n, grad_c_n, more[0] if more else None
        for grad in upstream:  # many at once, as in torch.func.vmap and with `is_grads_batched`
            if grad is not None and (_is_batched(grad) or _is_legacy_batched(grad)):
                return None, None, None, *_double.once(call, [x, h0, c0, *weights], upstream, wanted)
        if torch.is_grad_enabled():  # for a gradient of the gradient
            of_x, of_h0, of_c0, of_weights = torch.ops.hotloop.backward(
                x, h0, c0, weights, *arguments(call), *upstream, _or_empty(output, x), _or_empty(c, x), saved, wanted
            )
            every = of_x, of_h0, of_c0, *of_weights
            return None, None, None, *(grad if flag else None for grad, flag in zip(every, wanted, strict=True))
        if not ctx.kept.unmoved(weights):  # as after share_memory_(), which frees the memory they had
            results = call.backward(*upstream, x, h0, c0, call.weights(weights), output, c, saved, wanted)
        elif ctx.sizes is not None and ctx.kept.direct is not None:  # None: another backend has been chosen since
            results = _single.backward(call, ctx.kept, ctx.sizes, upstream, x, h0, c0, output, saved, wanted)
        else:
            results = call.backward(*upstream, x, h0, c0, ctx.kept.weights, output, c, saved, wanted)
        return None, None, None, *results


def _saved(ctx: Any) -> list[Any]:
    """What was saved. Where the caller has written to a result since, as `output += x` does, it is computed again."""
    try:
        if not ctx.hooked:
            return list(ctx.saved_tensors)
        return [None if tensor is None else _given_back(tensor, ctx.kept.dtype) for tensor in ctx.saved_tensors]
    except RuntimeError:  # one has changed; if it is an input, then that is the caller's mistake, and is said here
        inputs = [one.unpack() for one in ctx._raw_saved_tensors[: 3 + ctx.count]]
    with torch.no_grad():
        results, saved = ctx.call.forward(*inputs[:3], ctx.call.weights(inputs[3:]), None, True)
    return [*inputs, results[0], results[3], *saved]


def _given_back(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What a hook made of a saved tensor: kernels read it as what it was."""
    if tensor.device.type != "cpu" or tensor.dtype is not dtype:
        raise TypeError(
            f"saved tensors: expected hooks that give back what they are given, {dtype} on the CPU, "
            f"got {tensor.dtype} on {tensor.device}"
        )
    return tensor.contiguous() if tensor.layout is torch.strided else tensor.to_dense()
