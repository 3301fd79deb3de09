"""The gradient of a gradient, and many gradients at once, in torch's operations, which torch differentiates as often as
it is asked to. The equations are those of `cells`.

Nothing is done step by step that does not have to be. The kernels compute the states of all steps; from these, one
graph over all steps at once has the step's function and its derivatives. Only the recurrence of the gradients goes from
step to step: with y[t] the states and lambda[t] their gradients,

    lambda[t-1] = u[t-1] + J[t]' lambda[t]          J[t] = dy[t] / dy[t-1], u upstream

a linear recurrence whose own gradient is another, with J in the place of J', in the other direction of time. `_Scan` is
both of them, so it can be differentiated as often as torch's operations. The gradient that reaches the states goes back
through the kernels. The number of autograd nodes does not depend on the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .._backends import cells as _cells
from .._core.dropout import drop
from .._core.types import LSTM, Cell
from . import _private
from ._bridge import Call, Ran, Rows, to_array
from ._packed import Kept
from ._shapes import check_inputs

Tensor = torch.Tensor


def backward(
    call: Call,
    inputs: Sequence[Tensor | None],
    upstream: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
    left: tuple[Tensor, Sequence[Tensor]] | None = None,
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The backward pass of the backward pass: the gradients of its upstream gradients and of its inputs (x, h0, c0 and
    the weights), for `grads`, those of what it returned of the inputs that were wanted. `left`: the output of one layer
    in one direction and what forward saved, where they are still what they were.
    """
    again = torch.is_grad_enabled()  # a third time
    with torch.enable_grad():
        with _private.outside_transforms():
            inputs = [_variable(tensor, again) for tensor in inputs]
            upstream = [_variable(tensor, again) for tensor in upstream]
            chosen = [flag and grad is not None for grad, flag in zip(grads, wanted, strict=True)]
            first = _Stack(call, inputs, True, left).gradients(upstream, chosen)
        variables = [tensor for tensor in (*upstream, *inputs) if tensor is not None]
        found = _grad(_both(first, grads), variables, again)
    each = iter(found)
    of_upstream = [None if one is None else next(each) for one in upstream]
    return of_upstream, [None if one is None else next(each) for one in inputs]


def once(
    call: Call, inputs: Sequence[Tensor | None], upstream: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of the inputs that are wanted, where one upstream stands for many at once."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        with _private.outside_transforms():
            stack = _Stack(call, [_variable(tensor, again) for tensor in inputs], again)
        with torch.set_grad_enabled(again):
            return stack.gradients(upstream, wanted)


def _both(ones: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    """The pairs of which both are there."""
    return [(one, other) for one, other in zip(ones, others, strict=True) if one is not None and other is not None]


def _grad(
    pairs: Sequence[tuple[Tensor, Tensor]], of: Sequence[Tensor], connected: bool, retain: bool | None = None
) -> Sequence[Tensor | None]:
    """The gradients of the variables `of`, from pairs of a result and its upstream gradient."""
    if not pairs or not of:
        return [None] * len(of)
    ones, upstream = zip(*pairs, strict=True)
    return torch.autograd.grad(ones, of, upstream, retain, connected, allow_unused=True)


def _variable(tensor: Tensor | None, connected: bool = True) -> Any:
    """The tensor as something to differentiate by."""
    if tensor is None:
        return None
    return tensor.view_as(tensor) if connected and tensor.requires_grad else tensor.detach().requires_grad_()


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one if other is None else other if one is None else one + other


class _Jacobian(NamedTuple):
    """J of the steps that read the states of the step before; elementwise but for the product with weight_hh."""

    weight: Tensor  # weight_hh, [G*H, H]
    rows_h: Tensor  # dh / d(the share of h in pre-activations), [T-1, B, G*H]
    h_h: Tensor | None  # dh / dh of the step before where it does not pass weight_hh, [T-1, B, H]
    rows_c: Tensor | None  # the same of an LSTM's c
    h_c: Tensor | None  # dh / dc of the step before
    c_c: Tensor | None  # dc / dc of the step before


def _of_gates(rows: Tensor, size: int) -> Tensor:
    """[..., G*H] as [..., G, H], of one gate as it is."""
    return rows if rows.shape[-1] == size else rows.reshape(*rows.shape[:-1], rows.shape[-1] // size, size)


def _of_each(state: Tensor, rows: Tensor) -> Tensor:
    """A state as every gate of `rows` sees it."""
    return state if state.dim() == rows.dim() else state.unsqueeze(-2)


def _sum(rows: Tensor, state: Tensor) -> Tensor:
    """Over the gates."""
    return rows if rows.dim() == state.dim() else rows.sum(-2)


class _Plain:
    """a + b * c and a + b @ c, of many gradients at once, for which torch's own have no rule."""

    @staticmethod
    def addcmul(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return a + b * c

    @staticmethod
    def addmm(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return a + b.mm(c)


def _back(
    ops: Any, weight: Tensor, rows_h: Any, h_h: Any, rows_c: Any, h_c: Any, c_c: Any, h: Tensor, c: Any, to_h: Tensor,
    to_c: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """J' of one step by the gradients of its states, added to those of the states before it."""
    gates = rows_h * _of_each(h, rows_h)
    if c is not None:
        gates = ops.addcmul(gates, rows_c, _of_each(c, rows_c))
        to_c = ops.addcmul(ops.addcmul(to_c, h_c, h), c_c, c)
    to_h = ops.addmm(to_h, gates if gates.dim() == h.dim() else gates.reshape(-1, weight.shape[0]), weight)
    return to_h if h_h is None else ops.addcmul(to_h, h_h, h), to_c


def _forth(
    ops: Any, weight: Tensor, rows_h: Any, h_h: Any, rows_c: Any, h_c: Any, c_c: Any, h: Tensor, c: Any, to_h: Tensor,
    to_c: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """J of one step by a change of the states before it, added to that of its states. `weight` is transposed."""
    gates = _of_gates(h.mm(weight), h.shape[-1])
    to_h = ops.addcmul(to_h, rows_h, gates) if gates.dim() == h.dim() else to_h + (rows_h * gates).sum(-2)
    if h_h is not None:
        to_h = ops.addcmul(to_h, h_h, h)
    if c is None:
        return to_h, None
    return ops.addcmul(to_h, h_c, c), ops.addcmul(to_c + _sum(rows_c * gates, c), c_c, c)


def _loop(
    ops: Any, transposed: bool, reverse: bool, jacobian: _Jacobian, h: Tensor, c: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The recurrence from step to step. `reverse`: time runs backwards in the layer."""
    size, count = h.shape[-1], len(h) - 1
    weight, *rest = jacobian
    rows = [None if one is None else _of_gates(one, size) for one in rest]
    steps = list(zip(*([None] * count if one is None else one.unbind() for one in rows), strict=True))
    step: Any = _back if transposed else _forth
    ascending = transposed == reverse
    weight = weight if transposed else weight.t()
    every_h: list[Any] = list(h.unbind())
    every_c: list[Any] = [None] * (count + 1) if c is None else list(c.unbind())
    for number in range(count) if ascending else reversed(range(count)):
        source, goal = (number, number + 1) if ascending else (number + 1, number)
        every_h[goal], every_c[goal] = step(
            ops, weight, *steps[number], every_h[source], every_c[source], every_h[goal], every_c[goal]
        )
    return torch.stack(every_h), None if c is None else torch.stack(every_c)


class _Scan(torch.autograd.Function):
    """`_loop` as one node."""

    @staticmethod
    def forward(ctx: Any, transposed: bool, reverse: bool, h: Tensor, c: Any, *jacobian: Any) -> Any:
        results = _loop(torch, transposed, reverse, _Jacobian(*jacobian), h, c)
        ctx.transposed, ctx.reverse = transposed, reverse
        ctx.save_for_backward(*results, *jacobian)
        return results[0] if c is None else results

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        mine_h, mine_c, *rest = ctx.saved_tensors
        jacobian = _Jacobian(*rest)
        other_h, other_c = _scan(not ctx.transposed, ctx.reverse, jacobian, *(*grads, None)[:2])
        states = (mine_h, mine_c, other_h, other_c) if ctx.transposed else (other_h, other_c, mine_h, mine_c)
        later, earlier = (slice(None, -1), slice(1, None)) if ctx.reverse else (slice(1, None), slice(None, -1))
        of_h, of_c = (None if one is None else one[later] for one in states[:2])
        h, c = (None if one is None else one[earlier] for one in states[2:])
        return None, None, other_h, other_c, *_of_jacobian(jacobian, of_h, of_c, h, c, ctx.needs_input_grad[4:])


def _of_jacobian(
    jacobian: _Jacobian, of_h: Any, of_c: Any, h: Any, c: Any, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of of_h' J h (and c) by J, all steps at once."""
    size, weight = h.shape[-1], jacobian.weight
    gates = _of_gates(h @ weight.t(), size)
    of_weight = None
    if wanted[0]:
        rows = _of_gates(jacobian.rows_h, size)
        rows = rows * _of_each(of_h, rows)
        if c is not None:
            assert jacobian.rows_c is not None
            rows = rows + _of_gates(jacobian.rows_c, size) * of_c.unsqueeze(-2)
        of_weight = rows.reshape(-1, weight.shape[0]).t() @ h.reshape(-1, size)
    return [
        of_weight,
        (gates * _of_each(of_h, gates)).reshape(jacobian.rows_h.shape) if wanted[1] else None,
        of_h * h if wanted[2] else None,
        (gates * _of_each(of_c, gates)).reshape(jacobian.rows_h.shape) if wanted[3] else None,
        of_h * c if wanted[4] else None,
        of_c * c if wanted[5] else None,
    ]


def _scan(
    transposed: bool, reverse: bool, jacobian: _Jacobian, h: Tensor, c: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`_loop`, as one node where it can be. Of many gradients at once torch takes no function of ours."""
    many = any(one is not None and _private.is_many(one) for one in (*jacobian, h, c))
    if many or _private.transforms_are_active():
        return _loop(_Plain, transposed, reverse, jacobian, h, c)
    results = _Scan.apply(transposed, reverse, h, c, *jacobian)
    return (results, None) if c is None else results


class _Masks:
    """Where the steps of one direction are not those of a dense batch, [T, B, 1]; None where all are."""

    def __init__(self, rows: Rows, direction: int, active: Tensor | None) -> None:
        self.first = self.last = self.empty = self.reset = self.apart = None
        marks = rows.marks[direction]
        if marks is not None:
            self.reset = torch.from_numpy(np.ascontiguousarray(marks.at)).unsqueeze(-1)
            self.apart = self.reset
        if active is None or rows.ragged is None:
            return
        lengths = torch.from_numpy(rows.ragged.lengths).unsqueeze(-1)
        time = torch.arange(len(active)).reshape(-1, 1, 1)
        begin, end = time == 0, time == lengths - 1
        self.first, self.last = (end, begin & active) if direction else (None, end)
        self.empty = lengths == 0
        self.apart = ~active
        for one in (self.reset, self.first):
            self.apart = self.apart if one is None else self.apart | one


@dataclass(slots=True)
class _Recurrence:
    """One layer in one direction: the function of a step, of all steps at once."""

    reverse: bool
    masks: _Masks
    variables: list[Tensor | None]  # x, h0, c0 and the weights
    h: Tensor
    c: Tensor | None
    jacobian: _Jacobian | None  # None: of one step
    before: Tensor | None = None  # of an RNN: the states before every step
    weights: tuple[Tensor, Tensor] | None = None  # weight_hh and weight_hr, where h is projected


class _Stack:
    """All layers: their sequences and functions, then gradients from the last to the first."""

    def __init__(
        self, call: Call, inputs: Sequence[Any], connected: bool, left: tuple[Tensor, Sequence[Tensor]] | None = None
    ) -> None:
        x, h0, c0, *weights = inputs
        self.call, self.connected, self.inputs, self.left = call, connected, inputs, left
        self.rows = call.rows(to_array(x.detach()))
        with torch.set_grad_enabled(connected):
            sequence, self.active, self.index = _padded(call, self.rows, x)
        self.states = call.states(sequence.shape[1])
        self.masks = [_Masks(self.rows, direction, self.active) for direction in range(call.directions)]
        h0, c0 = (None if one is None else one.reshape(shape) for one, shape in zip((h0, c0), self.states, strict=True))
        self.each = len(call.names) * call.directions
        self.layers: list[list[_Recurrence]] = []
        self.dropped: list[Any] = []
        for layer in range(call.layers):
            part = slice(layer * call.directions, (layer + 1) * call.directions)
            states = [None if one is None else one[part] for one in (h0, c0)]
            of_layer = weights[layer * self.each :][: self.each]
            last = layer == call.layers - 1
            output: Any = None
            c: Any = None
            if not last or len(sequence) > 1 or call.cell.name in _OF_OUTPUT:
                output, c = self._run(sequence, states[0], states[1], of_layer)
            self.layers.append(self._recurrences(sequence, output, c, states, of_layer))
            self.dropped.append(None)
            if not last:
                with torch.set_grad_enabled(connected):
                    sequence = output
                    if call.seed is not None:
                        self.dropped[-1] = _mask(call, layer, sequence, self.index)
                        sequence = sequence * self.dropped[-1]

    def _half(self, sequence: Tensor | None, direction: int) -> Tensor | None:
        """The features of a direction."""
        if sequence is None or self.call.directions == 1:
            return sequence
        return sequence.chunk(2, -1)[direction]

    def _run(self, x: Tensor, h0: Any, c0: Any, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Output and c of every step of a layer, by the kernels."""
        from ._ops import Recurrence  # which imports this module

        call, rows = self.call, self.rows
        lengths, first = None if rows.ragged is None else rows.ragged.lengths, rows.marks[0]
        of_layer = Call(
            call.cell, 1, call.directions, call.hidden_size, call.bias, "time_major", 0.0, call.cell.has_c,
            call.threads, None if lengths is None else torch.from_numpy(lengths),
            None if first is None else torch.from_numpy(np.ascontiguousarray(first.at)), proj_size=call.proj_size,
        )  # fmt: skip
        check_inputs(of_layer, x, h0, c0, weights)  # `.data` of them may have been assigned to since
        with torch.set_grad_enabled(self.connected):
            kept = Kept(of_layer, [weight.detach() for weight in weights])
            output, _, *more = Recurrence.apply(of_layer, kept, self._ran(), x, h0, c0, *weights)
        return output, more[1] if more else None

    def _ran(self) -> Ran | None:
        """What forward gave and saved, as `_run` has it."""
        if self.left is None:
            return None
        output, saved = self.left
        output, nothing = (
            _time_major(self.call, output.detach()),
            output.new_empty(0),
        )  # no one asks for the last states
        if not self.call.cell.has_c:
            return Ran([output, nothing, None, None], saved)
        gates, c = saved
        return Ran([output, nothing, nothing.clone(), c], [gates])

    def _recurrences(
        self, x: Tensor, output: Any, every_c: Any, states: Sequence[Any], weights: Sequence[Tensor]
    ) -> list[_Recurrence]:
        call, made = self.call, []
        each = self.each // call.directions
        for direction in range(call.directions):
            masks, reverse = self.masks[direction], direction == 1
            if call.cell.name in _OF_OUTPUT:
                h0 = None if states[0] is None else states[0][direction]
                made.append(
                    self._of_output(
                        x, self._half(output, direction), h0, weights[direction * each :][:each], masks, reverse
                    )
                )
                continue
            variables = [
                _variable(x), *(None if one is None else _variable(one[direction]) for one in states),
                *(_variable(weight) for weight in weights[direction * each :][:each]),
            ]  # fmt: skip
            sequence, h0, c0 = variables[:3]
            named = dict(zip(call.names, variables[3:], strict=True))
            h = _before(self._half(output, direction), h0, masks, reverse, sequence, call.output_size)
            h_share = torch.nn.functional.linear(h, named["weight_hh"], named.get("bias_hh"))
            x_share = torch.nn.functional.linear(sequence, named["weight_ih"], named.get("bias_ih"))
            h, c = _variable(h), None
            if call.cell.has_c:
                c = _before(self._half(every_c, direction), c0, masks, reverse, sequence, call.hidden_size)
                c = _variable(c)
            weight = named["weight_hh"]
            new_h, new_c = _step(call.cell, x_share, h_share, h, c)
            one = _Recurrence(reverse, masks, variables, new_h, new_c, None)
            if call.cell.projects:  # h of all steps; as a recurrence m is the state, and both weights are one
                one.weights = weight, named["weight_hr"]
                one.h, weight = torch.nn.functional.linear(new_h, one.weights[1]), weight @ one.weights[1]
            if len(sequence) > 1:
                one.jacobian = self._jacobian(one, new_h, weight, h_share, h, c)
            made.append(one)
        return made

    def _of_output(
        self, x: Tensor, output: Any, h0: Any, weights: Sequence[Tensor], masks: _Masks, reverse: bool
    ) -> _Recurrence:
        """Of an RNN, whose output says all that its gradients depend on: no step is computed again."""
        h0 = _variable(h0)
        before = _before(output, h0, masks, reverse, x, output.shape[-1])
        one = _Recurrence(reverse, masks, [x, h0, None, *weights], output, None, None, before)
        with torch.set_grad_enabled(self.connected):
            if len(output) > 1:
                steps = slice(None, -1) if reverse else slice(1, None)
                rows = _OF_OUTPUT[self.call.cell.name](output[steps], torch.ones_like(output[steps]))
                if masks.apart is not None:
                    rows = torch.where(masks.apart[steps], 0.0, rows)
                one.jacobian = _Jacobian(weights[1], rows, None, None, None, None)
        return one

    def _jacobian(
        self, one: _Recurrence, new_h: Tensor, weight: Tensor, h_share: Tensor, h: Tensor, c: Tensor | None
    ) -> _Jacobian:
        steps = slice(None, -1) if one.reverse else slice(1, None)
        apart = one.masks.apart

        def derivatives(result: Tensor) -> list[Tensor | None]:
            of = [h_share, h] if c is None else [h_share, h, c]
            found = [
                None if each is None else each[steps]
                for each in _grad([(result, torch.ones_like(result))], of, self.connected, True)
            ]
            if apart is not None:
                found = [None if each is None else torch.where(apart[steps], 0.0, each) for each in found]
            return [*found, None][:3]

        rows_h, h_h, h_c = derivatives(new_h)
        rows_c, _, c_c = (None, None, None) if one.c is None else derivatives(one.c)
        assert rows_h is not None
        return _Jacobian(weight, rows_h, h_h, rows_c, h_c, c_c)

    def gradients(self, upstream: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
        """Of the inputs that are wanted."""
        call = self.call
        of_output, of_c = (
            None if one is None else _padded_gradient(call, self.rows, one, self.active, self.index)
            for one in (upstream[0], upstream[3])
        )
        last = [
            None if one is None else one.reshape(shape) for one, shape in zip(upstream[1:3], self.states, strict=True)
        ]
        of_states: list[list[Tensor | None]] = [[], []]  # from the last to the first
        of_weights: list[Tensor | None] = []
        for layer in reversed(range(call.layers)):
            of_x: Tensor | None = None
            flags = list(wanted[3 + layer * self.each :][: self.each])
            below = wanted[0] or (layer > 0 and (wanted[1] or wanted[2] or any(wanted[3 : 3 + layer * self.each])))
            of_layer: list[Tensor | None] = []
            for direction, one in enumerate(self.layers[layer]):
                number = layer * call.directions + direction
                each = self.each // call.directions
                found = self._gradients_of(
                    one, [self._half(grad, direction) for grad in (of_output, of_c)],
                    [None if grad is None else grad[number] for grad in last],
                    [below, *wanted[1:3], *flags[direction * each :][:each]],
                )  # fmt: skip
                of_x = _added(of_x, found[0])
                of_states[0].insert(direction, found[1])
                of_states[1].insert(direction, found[2])
                of_layer += found[3:]
            of_weights = of_layer + of_weights
            of_output, of_c = of_x, None
            if layer and of_output is not None and self.dropped[layer - 1] is not None:
                of_output = of_output * self.dropped[layer - 1]
        found_x = None if of_output is None or not wanted[0] else _unpadded(call, self.rows, of_output)
        states = (
            self._of_state(grads, shape, self.inputs[i])
            for i, (grads, shape) in enumerate(zip(of_states, self.states, strict=True), 1)
        )
        return [found_x, *states, *of_weights]

    def _of_state(
        self, grads: Sequence[Tensor | None], shape: tuple[int, int, int], like: Tensor | None
    ) -> Tensor | None:
        """The gradient of h0 or c0."""
        there = [grad for grad in grads if grad is not None]
        if like is None or not there:
            return None
        zeros = torch.zeros(shape[1:], dtype=like.dtype)
        return torch.stack([zeros if grad is None else grad for grad in grads]).reshape(like.shape)

    def _gradients_of(
        self, one: _Recurrence, grads: list[Tensor | None], last: list[Tensor | None], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Of x, h0, c0 and the weights, from the gradients of what a recurrence gives at every step and at the end."""
        masks, steps = one.masks, len(one.h)
        h, c = (_with_last(grad, end, masks, one.reverse, steps) for grad, end in zip(grads, last, strict=True))
        if h is None and c is None:
            return [None] * len(wanted)
        if one.jacobian is not None:
            h = torch.zeros_like(one.h) if h is None else h
            if one.c is not None:
                c = torch.zeros_like(one.c) if c is None else c
            h, c = self._scan(one, one.jacobian, h, c)
        if one.before is not None and h is not None:
            results = self._products(one, h, wanted)
        else:
            chosen = [v for v, flag in zip(one.variables, wanted, strict=True) if flag and v is not None]
            found = iter(_grad(_both([one.h, one.c], [h, c]), chosen, self.connected))
            results = [
                next(found) if flag and v is not None else None for v, flag in zip(one.variables, wanted, strict=True)
            ]
        if masks.empty is not None:  # rows without a step end as they began
            for i, end in enumerate(last, 1):
                if end is not None and wanted[i] and one.variables[i] is not None:
                    results[i] = _added(results[i], torch.where(masks.empty, end, 0.0))
        return results

    def _scan(self, one: _Recurrence, jacobian: _Jacobian, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The gradients of the states of every step, with what comes to them from the steps after."""
        if one.weights is None:
            return _scan(True, one.reverse, jacobian, h, c)
        weight_hh, weight_hr = one.weights
        m, c = _scan(True, one.reverse, jacobian, h @ weight_hr, c)
        assert c is not None and jacobian.rows_c is not None  # noqa: PT018
        after = slice(None, -1) if one.reverse else slice(1, None)
        size = m.shape[-1]
        gates = _of_gates(jacobian.rows_h, size) * m[after].unsqueeze(-2)
        gates = gates + _of_gates(jacobian.rows_c, size) * c[after].unsqueeze(-2)
        passed = gates.reshape(*gates.shape[:-2], -1) @ weight_hh
        nothing = torch.zeros_like(h[:1])
        return h + torch.cat((nothing, passed) if one.reverse else (passed, nothing)), c

    def _products(self, one: _Recurrence, grad_h: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of an RNN's x, h0 and weights, from those of its states."""
        x, h0, _, weight_ih, weight_hh, *biases = one.variables
        assert x is not None and one.before is not None and weight_ih is not None and weight_hh is not None  # noqa: PT018
        grad_a = _OF_OUTPUT[self.call.cell.name](one.h, grad_h)
        rows = grad_a.reshape(-1, grad_a.shape[-1])
        of_h0 = None
        if wanted[1] and h0 is not None:
            (of_h0,) = _grad([(one.before, grad_a @ weight_hh)], [h0], self.connected, True)
        return [
            grad_a @ weight_ih if wanted[0] else None,
            of_h0,
            None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if wanted[3] else None,
            rows.t() @ one.before.reshape(-1, rows.shape[-1]) if wanted[4] else None,
            *(rows.sum(0) if flag else None for flag, _ in zip(wanted[5:], biases, strict=True)),
        ]


# The cells of which the output is all that the gradients of a step depend on.
_OF_OUTPUT = {"rnn_tanh": _cells.rnn_tanh_backward, "rnn_relu": _cells.rnn_relu_backward}


def _before(
    sequence: Tensor | None, first: Tensor | None, masks: _Masks, reverse: bool, like: Tensor, size: int
) -> Tensor:
    """The states before every step, of those after every step."""
    first = like.new_zeros(like.shape[1], size) if first is None else first
    states = first.unsqueeze(0)
    if sequence is not None and len(sequence) > 1:
        states = torch.cat((sequence[1:], states) if reverse else (states, sequence[:-1]))
    if masks.first is not None:
        states = torch.where(masks.first, first, states)
    return states if masks.reset is None else torch.where(masks.reset, 0.0, states)


def _with_last(grad: Tensor | None, last: Tensor | None, masks: _Masks, reverse: bool, steps: int) -> Tensor | None:
    """The gradient of every step's state, with that of the state at the end."""
    if last is None:
        return grad
    if masks.last is not None:
        return _added(grad, torch.where(masks.last, last, 0.0))
    last = last.unsqueeze(0)
    if steps > 1:
        zeros = torch.zeros(steps - 1, *last.shape[1:], dtype=last.dtype)
        last = torch.cat((last, zeros) if reverse else (zeros, last))
    return _added(grad, last)


_FUNCTIONS = _cells.Functions(torch.tanh, torch.sigmoid, torch.relu)


def _step(cell: Cell, of_x: Tensor, of_h: Tensor, h: Any, c: Any) -> tuple[Tensor, Tensor | None]:
    """The first stage of a cell, whose product `of_h` is."""
    name = LSTM.name if cell.projects else cell.name
    state = _cells.STEPS[name].forward(
        of_x.chunk(cell.gates, -1), lambda *_: of_h.chunk(cell.gates, -1), h, h, c, _FUNCTIONS
    )
    return state.h, state.c


def _time_major(call: Call, tensor: Tensor) -> Tensor:
    if call.layout == "batch_first":
        return tensor.transpose(0, 1)
    return tensor.unsqueeze(1 if call.layout == "unbatched" else 0) if call.layout in ("unbatched", "step") else tensor


def _padded(call: Call, rows: Rows, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """X as [T, B, I], which of its steps are there, [T, B, 1], and for a PackedSequence where in the flat one."""
    if rows.ragged is None:
        return _time_major(call, x), None, None
    lengths, index = torch.from_numpy(rows.ragged.lengths), None
    active = torch.arange(_steps(call, rows, x)).unsqueeze(1) < lengths
    if rows.ragged.offsets is not None:
        starts, times = torch.from_numpy(rows.ragged.offsets[:-1]), torch.arange(len(active)).unsqueeze(1)
        index = torch.where(active, starts + times, 0)
    active = active.unsqueeze(-1)
    return _padded_gradient(call, rows, x, active, index), active, index


def _steps(call: Call, rows: Rows, x: Tensor) -> int:
    assert rows.ragged is not None
    return rows.ragged.steps if rows.gather is not None else x.shape[1 if call.layout == "batch_first" else 0]


def _padded_gradient(call: Call, rows: Rows, tensor: Tensor, active: Tensor | None, index: Tensor | None) -> Tensor:
    """A sequence as the caller has it as [T, B, *], zero in the padding."""
    if active is None:
        return _time_major(call, tensor)
    if index is None or rows.gather is None:
        return torch.where(active, _time_major(call, tensor), 0.0)
    flat = torch.from_numpy(rows.gather)[index].reshape(-1)
    return torch.where(active, tensor.index_select(0, flat).reshape(*index.shape, tensor.shape[-1]), 0.0)


def _unpadded(call: Call, rows: Rows, sequence: Tensor) -> Tensor:
    if call.layout == "batch_first":
        return sequence.transpose(0, 1)
    if call.layout in ("unbatched", "step"):
        return sequence.squeeze(1 if call.layout == "unbatched" else 0)
    if rows.scatter is None or rows.ragged is None or rows.ragged.offsets is None:
        return sequence
    lengths, offsets = rows.ragged.lengths, rows.ragged.offsets
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = (np.arange(len(row)) - offsets[row]) * len(lengths) + row
    flat = sequence.reshape(-1, sequence.shape[-1])
    return flat.index_select(0, torch.from_numpy(place[rows.scatter]))


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
