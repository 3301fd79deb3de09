"""torch.ops.hotloop.infer, .forward and .backward: what torch.compile, torch.export and torch.jit.trace see of a call;
and the short way of eager calls, an autograd.Function on the same `Call`.

`infer` has no list of tensors among its results, which inductor's C++ wrapper cannot take; what is differentiated after
it runs `forward` again. Both ways differentiate with the backward op where the gradient is to be differentiated itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .._core.types import CELLS
from . import _double, _packed, _prepared, _private
from ._bridge import Call, Ran, to_array
from ._shapes import check_devices, check_extras, check_inputs, check_kind, check_saved, results, saved_shapes

Tensor = torch.Tensor


_CALL = (
    "Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, Tensor? resets, Tensor? batch_sizes, "
    "Tensor? unsorted, Tensor? seed, str cell, int layers, int directions, bool bias, str layout, SymInt batch_size, "
    "float dropout, bool return_states, int threads"
)
_TENSORS, _ARGUMENTS = 4, 18  # those that may have gradients, and all

_library = torch.library.Library("hotloop", "DEF")
_library.define(f"infer({_CALL}) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor c)")
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
    check_kind(cell, layers, directions, bias, layout, weights)
    if seed is not None and (seed.numel() != 1 or seed.dtype is not torch.int64):
        raise ValueError(f"seed: expected an int64 of one element, got {seed.dtype} of shape {tuple(seed.shape)}")
    of, output_size = CELLS[cell], weights[1].shape[1]
    hidden_size = weights[0].shape[0] // of.gates if of.projects else output_size
    return Call(
        of, layers, directions, hidden_size, bias, layout, given[11], given[12], given[13] or None,
        lengths, resets, batch_sizes, unsorted, None if seed is None else int(seed), batch_size,
        proj_size=output_size if of.projects else 0,
    )  # fmt: skip


def _checked(
    call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], given: Sequence[Any]
) -> Call:
    """The call, with nothing in it that does not fit."""
    check_devices(weights, given[:5])
    check_inputs(call, x, h0, c0, weights)
    check_extras(call)
    return call


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


def _infer(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], *given: Any) -> Any:
    call = _checked(_call(weights, given), x, h0, c0, weights, given)
    prepared = call.weights(weights)
    results, _ = call.forward(x, h0, c0, prepared, _packed.of_op(call, weights, prepared, x), False)
    return tuple([_or_empty(result, x) for result in results])


def _forward(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], *given: Any) -> Any:
    if not given[-1]:
        return *_infer(x, h0, c0, weights, *given), []
    call = _checked(_call(weights, given), x, h0, c0, weights, given)
    results, saved = call.forward(x, h0, c0, call.weights(weights), None, True)
    ragged = call.rows(to_array(x)).ragged
    if saved and ragged is not None and ragged.offsets is None:  # the results of an op are numbers throughout
        padding = np.arange(saved[0].shape[0])[:, np.newaxis] >= ragged.lengths
        for tensor in saved:
            to_array(tensor)[padding] = 0
    return *(_or_empty(result, x) for result in results), saved


def _backward(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], *given: Any) -> Any:
    call = _checked(_call(weights, given), x, h0, c0, weights, given)
    *upstream, output, c, saved, wanted = given[_ARGUMENTS - _TENSORS :]
    check_saved(call, x, weights, upstream, output, c, saved, wanted)
    output, c, *saved = (tensor.contiguous() for tensor in (output, c, *saved))
    grad_output, grad_h_n, grad_c_n, grad_c = upstream
    made = call.backward(
        grad_output, grad_h_n, grad_c_n, grad_c, x, h0, c0, call.weights(weights), output, c, saved, wanted
    )
    of_x, of_h0, of_c0, *of_weights = (_or_empty(result, x) for result in made)
    return of_x, of_h0, of_c0, of_weights


def _infer_fake(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], *given: Any) -> Any:
    call = _checked(_call_fake(weights, given), x, h0, c0, weights, given)
    shapes = results(call, x)
    return (
        x.new_empty(shapes.output),
        x.new_empty(shapes.h_n),
        x.new_empty(shapes.c_n if call.cell.has_c else 0),
        x.new_empty(shapes.c if call.return_states else 0),
    )


def _forward_fake(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], *given: Any) -> Any:
    made = _infer_fake(x, h0, c0, weights, *given)
    if not given[-1]:
        return *made, []
    return *made, [x.new_empty(shape) for shape in saved_shapes(_call_fake(weights, given), x)]


def _backward_fake(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], *given: Any) -> Any:
    call = _checked(_call_fake(weights, given), x, h0, c0, weights, given)
    *upstream, output, c, saved, wanted = given[_ARGUMENTS - _TENSORS :]
    check_saved(call, x, weights, upstream, output, c, saved, wanted)
    shapes = results(call, x)
    return (
        x.new_empty(x.shape if wanted[0] else 0),
        x.new_empty(shapes.h_n if wanted[1] else 0),
        x.new_empty(shapes.c_n if wanted[2] and call.cell.has_c else 0),
        [weight.new_empty(weight.shape if flag else 0) for weight, flag in zip(weights, wanted[3:], strict=True)],
    )


def _call_fake(weights: Sequence[Tensor], given: Sequence[Any]) -> Call:
    """A fake seed has no value."""
    return _call(weights, (*given[:4], None, *given[5:]))


def _needs(ctx: Any, h0: Any, c0: Any) -> list[bool]:
    """Which of x, h0, c0 and the weights need a gradient."""
    of_x, of_h0, of_c0, of_weights = ctx.needs_input_grad[:_TENSORS]
    return [of_x, h0 is not None and of_h0, c0 is not None and of_c0, *of_weights]


def _save_inputs(ctx: Any, inputs: Sequence[Any], training: bool, left: Sequence[Tensor]) -> None:
    x, h0, c0, weights, *given = inputs
    ctx.set_materialize_grads(False)
    ctx.training, ctx.given, ctx.count = training, given[5:], len(weights)
    ctx.save_for_backward(x, h0, c0, *given[:5], *weights, *left)


def _save_infer(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _save_inputs(ctx, inputs, False, ())


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *inputs_of_infer, training = inputs
    result, _, _, c, saved = output
    # Copies of the results, since callers may write to them, as to those of torch's layers.
    _save_inputs(ctx, inputs_of_infer, training, (result.clone(), c.clone(), *saved) if training else ())


def _loaded(ctx: Any) -> tuple[Any, ...]:
    """x, h0, c0, the weights, the other arguments of the call, and what else was saved."""
    x, h0, c0, *rest = ctx.saved_tensors
    tensors, weights, saved = rest[:5], rest[5 : 5 + ctx.count], rest[5 + ctx.count :]
    return x, h0, c0, weights, (*tensors, *ctx.given), saved


def _differentiate_forward(ctx: Any, *grads: Any) -> Any:
    x, h0, c0, weights, given, left = _loaded(ctx)
    wanted, call = _needs(ctx, h0, c0), _call_fake(weights, given)
    grad_output, grad_h_n, grad_c_n, grad_c = grads[:4]  # of a result that is not there it may be one of no elements
    grads = (
        grad_output, grad_h_n, grad_c_n if call.cell.has_c else None, grad_c if call.return_states else None
    )  # fmt: skip
    if ctx.training:
        output, c, *saved = left
    else:  # made for inference, as an exported program is
        with torch.no_grad():
            output, _, _, c, saved = torch.ops.hotloop.forward(x, h0, c0, weights, *given, True)
    of_x, of_h0, of_c0, of_weights = torch.ops.hotloop.backward(
        x, h0, c0, weights, *given, *grads, output, c, saved, wanted
    )
    return (
        of_x if wanted[0] else None, of_h0 if wanted[1] else None, of_c0 if wanted[2] else None,
        [grad if flag else None for grad, flag in zip(of_weights, wanted[3:], strict=True)],
        *[None] * (len(ctx.needs_input_grad) - _TENSORS),
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
    ("infer", _infer, _infer_fake, _save_infer, _differentiate_forward),
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
        """`sizes`, steps and rows, are given where the call can be prepared; a `Ran` where it is done."""
        ctx.set_materialize_grads(False)
        results: Any
        saved: Any
        if type(sizes) is Ran:
            (results, saved), sizes = sizes, None
        elif sizes is None:
            results, saved = call.forward(x, h0, c0, kept.weights, None, True)
        else:
            results, saved = _prepared.forward(call, kept, sizes, x, h0, c0)
        output, h_n, c_n, c = results
        hooked = _private.saved_tensors_hooks(False) is not None
        read: list[Any] = [*weights]
        unread = []  # and their versions, by which an error for them can be raised where they are needed after all
        for index in kept.unread(ctx.needs_input_grad[3]):
            unread.append((index, weights[index], _packed.version(weights[index])))
            read[index] = None
        mine = output, c
        if call.layout == "packed":  # the flat ones are among the saved
            mine = None, None
        elif hooked:  # a hook keeps the tensor itself, to which the caller may write
            mine = output.clone(), None if c is None else c.clone()
        ctx.save_for_backward(x, h0, c0, *read, *mine, *saved)
        # A hook may give back anything for anything; without one the caller can change what he has given.
        shapes = [x.shape, None if h0 is None else h0.shape, None if c0 is None else c0.shape]
        if hooked:
            shapes += [None if one is None else one.shape for one in (*mine, *saved)]
        ctx.left = call, kept, sizes, unread, hooked, shapes
        return (output, h_n) if c_n is None else (output, h_n, c_n) if c is None else (output, h_n, c_n, c)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        call, kept, sizes, unread, hooked, _ = ctx.left
        x, h0, c0, *rest = _saved(ctx)
        count = len(kept.tensors)
        weights, (output, c, *saved) = rest[:count], rest[count:]
        wanted, nodes = ctx.needs_input_grad[3:], ctx.next_functions
        if not (
            _runs(nodes[0]) and _runs(nodes[-1])
        ):  # torch.autograd.grad by some: nothing is computed for the others
            asked = iter(nodes)
            wanted = [
                tensor is not None and _runs(next(asked)) and flag
                for tensor, flag in zip((x, h0, c0, *kept.tensors), wanted, strict=True)
            ]
        grad_output, grad_h_n, *more = grads
        grad_c_n = more.pop(0) if call.cell.has_c else None
        upstream = grad_output, grad_h_n, grad_c_n, more[0] if more else None
        for grad in upstream:  # many at once, as in torch.func.vmap and with `is_grads_batched`
            if grad is not None and _private.is_many(grad):
                weights = _all_weights(unread, weights)
                return None, None, None, *_double.once(call, [x, h0, c0, *weights], upstream, wanted)
        if torch.is_grad_enabled():  # for a gradient of the gradient
            left = _as_they_were(ctx, weights), output, c, saved
            every = _all_weights(unread, weights)
            return None, None, None, *Gradient.apply(call, left, wanted, *upstream, x, h0, c0, *every)
        if sizes is not None and not hooked and kept.unmoved() and kept.prepares:
            # None: another backend has been chosen since
            results = _prepared.backward(call, kept, sizes, upstream, x, h0, c0, output, saved, wanted)
        else:
            results = call.backward(*upstream, x, h0, c0, _as_they_were(ctx, weights), output, c, saved, wanted)
        return None, None, None, *results


def _runs(node: tuple[Any, int]) -> bool:
    """Whether the pass under way goes on to what made an input, or gives its gradient."""
    try:
        return node[0] is None or _private.engine_executes(node[0])
    except RuntimeError:  # a leaf that is asked for, which torch does not say of leaves
        return True


# What Function.apply does besides takes 2.7 us, for what callers have seen is not there: transforms of torch.func, and
# tensors that outlived one.
apply: Any = super(torch.autograd.Function, Recurrence).apply


class Gradient(torch.autograd.Function):
    """The backward pass of a `Recurrence` that will be differentiated itself: 0.6 ms less than through the op."""

    @staticmethod
    def forward(ctx: Any, call: Call, left: Any, wanted: Sequence[bool], *tensors: Any) -> Any:
        """`left` is what forward left: the weights, output, c and the rest."""
        ctx.set_materialize_grads(False)
        ctx.call, ctx.wanted = call, wanted
        ctx.save_for_backward(*tensors)
        grad_output, grad_h_n, grad_c_n, grad_c, x, h0, c0, *_ = tensors
        weights, output, c, saved = left
        one = call.layers * call.directions == 1 and not call.return_states and call.layout not in ("packed", "step")
        ctx.left = (output, output._version, saved) if one else None
        return tuple(
            call.backward(grad_output, grad_h_n, grad_c_n, grad_c, x, h0, c0, weights, output, c, saved, wanted)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        upstream, inputs = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        left = None
        if ctx.left is not None and ctx.left[0]._version == ctx.left[1]:  # the caller has not written to the output
            left = ctx.left[0], ctx.left[2]
        of_upstream, of_inputs = _double.backward(ctx.call, inputs, upstream, ctx.wanted, grads, left)
        return None, None, None, *of_upstream, *of_inputs


def _all_weights(unread: Sequence[tuple[int, Tensor, int]], read: Sequence[Any]) -> list[Tensor]:
    """With the weights that backward does not read, which are still what they were: to compute forward again."""
    weights = [*read]
    for index, weight, before in unread:
        if (now := _packed.version(weight)) != before:
            raise RuntimeError(
                "a gradient of the gradient, or one after a result was written to in place, needs all weights as they "
                f"were: expected version {before} of a weight of shape {tuple(weight.shape)}, got version {now}: it "
                "has been modified by an inplace operation"
            )
        weights[index] = weight
    return weights


def _as_they_were(ctx: Any, given: Sequence[Tensor | None]) -> Any:
    """The weights for the backward kernels: what a hook gave back; else the memory that they had in forward, whatever
    the parameters have been given since, as by `.data = ` and `model.double()`.
    """
    call, kept, _, _, hooked, _ = ctx.left
    if hooked:
        pairs = zip(kept.tensors, given, strict=True)
        return call.weights([ours if theirs is None else theirs for ours, theirs in pairs])
    # Where memory has moved, as after share_memory_(), which frees what the storage had.
    return kept.weights if kept.unmoved() else call.weights(kept.tensors)


def _saved(ctx: Any) -> list[Any]:
    """What was saved. Where the caller has written to a result since, as `output += x` does, it is computed again."""
    call, kept, sizes, unread, hooked, shapes = ctx.left
    count = 3 + len(kept.tensors)
    try:
        tensors = list(ctx.saved_tensors)
    except RuntimeError:
        if hooked:  # what it keeps is no result that a caller has: the error is the hook's
            raise
        # One has changed; if it is an input, then that is the caller's mistake, and is said here.
        x, h0, c0, *read = [one if one is None else one.unpack() for one in ctx._raw_saved_tensors[:count]]
        assert x is not None
        weights = _all_weights(unread, read)
        check_inputs(call, x, h0, c0, weights)
        with torch.no_grad():
            results, saved = call.forward(x, h0, c0, call.weights(weights), None, True)
        return [x, h0, c0, *read, results[0], results[3], *saved]
    dtype, place = kept.dtype, 0
    for shape in shapes:
        if place == 3:
            place = count
        one = tensors[place]
        if one is not None and (
            one.shape != shape or one.dtype is not dtype or not one.is_cpu or one.is_neg() or not one.data_ptr()
            # The general way takes an x of any strides.
            or not (one.is_contiguous() or (sizes is None and not place))
        ):  # fmt: skip
            tensors[place] = _given_back(one, dtype, shape)
        place += 1
    if hooked:  # of weights that no hook keeps the memory counts that they had
        pairs = zip(tensors[3:count], kept.tensors, strict=True)
        tensors[3:count] = [one if one is None else _given_back(one, dtype, two.shape) for one, two in pairs]
    return tensors


def _given_back(tensor: Tensor, dtype: torch.dtype, shape: Any) -> Tensor:
    """A saved tensor that a hook or `.data = ` has changed: kernels read it as what it was."""
    if tensor.device.type != "cpu" or tensor.dtype is not dtype or tensor.shape != shape:
        raise RuntimeError(
            f"saved tensors: expected what forward saved, {dtype} of shape {tuple(shape)} on the CPU, got "
            f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; "
            "has a hook or an assignment to .data changed it?"
        )
    # By torch's operations, through which a gradient of the gradient passes.
    if tensor.layout is not torch.strided:
        return tensor.to_dense()
    if tensor._is_zerotensor():  # which has no memory
        return torch.zeros(tensor.shape, dtype=dtype) + tensor
    return tensor.resolve_neg().contiguous()
