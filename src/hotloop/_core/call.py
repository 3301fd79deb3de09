"""The one call under functions and layers: its arguments checked, its results allocated, its recurrences run.

What depends on sizes alone is decided when a call of these sizes is planned, and kept for the next one. A call then
checks what its own arrays could break. Arrays that are as backends take them, as `plain` says, are not looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from . import memory, settings
from .arrays import as_array, finish_output, make_output, plain, plain_out, with_unit_feature_stride
from .checks import (
    check_accumulated,
    check_grad_sequence,
    check_layout,
    check_output,
    check_ragged,
    check_resets,
    check_return_states,
    check_size,
    check_state,
    width_rule,
)
from .stack import Drop, Wanted, run_backward, run_forward
from .types import (
    LAYERS_STATE_RULE,
    STATE_RULE,
    ZEROS,
    Array,
    Backend,
    Forward,
    Layout,
    Ragged,
    Resets,
    Run,
    Weights,
)

# Of fewer elements an array is soonest had from malloc; to ask for memory used before takes 0.2 us. And to copy an x of
# fewer elements takes less than to pass its strides.
_FEW = 1 << 13


class Stack:
    """The recurrences of a call, by layer and direction, and what is kept for the next call of the same sizes."""

    __slots__ = (
        "_packed", "cell", "directions", "dtype", "layers", "plans", "reverse", "stacked", "weight_names", "weights",
    )  # fmt: skip

    def __init__(self, weights: list[list[Weights]], *, stacked: bool, reverse: bool = False) -> None:
        """`stacked`: states are [layers*directions, B, H] and weights are kept packed; or else they are those of one
        recurrence, [B, H], which runs once, from the last step where `reverse` says so.
        """
        first = weights[0][0]
        self.weights = weights
        self.cell, self.dtype = first.cell, first.dtype
        self.weight_names = frozenset(first.cell.weight_names)
        self.layers, self.directions = len(weights), len(weights[0])
        self.stacked, self.reverse = stacked, reverse
        self.plans: list[_Planned | None] = [None, None]  # the last one for inference, and for training
        self._packed: tuple[Backend | None, list[list[Any]]] = None, []

    @property
    def lead(self) -> tuple[int, ...]:
        """What the shape of states begins with."""
        return (self.layers * self.directions,) if self.stacked else ()

    def size(self, *, of_c: bool = False) -> int:
        """Features of h, or of c, in each direction."""
        first = self.weights[0][0]
        return first.hidden_size if of_c else first.output_size

    def size_rule(self, *, of_c: bool = False) -> str:
        """The same in words."""
        return "hidden_size" if of_c else width_rule(self.cell)

    def state_rule(self, *, of_c: bool = False) -> str:
        return (LAYERS_STATE_RULE if self.stacked else STATE_RULE).replace("hidden_size", self.size_rule(of_c=of_c))

    def features(self, *, of_c: bool = False) -> str:
        """The last size of the output, or of c of every step, in words."""
        return ("2*" if self.directions == 2 else "") + self.size_rule(of_c=of_c)

    def packed(self, backend: Backend) -> list[list[Any]]:
        """The weights as the backend's inference reads them, packed at the first call."""
        packed_by, packed = self._packed
        if packed_by is not backend:
            packed = [[backend.pack(weights) for weights in layer] for layer in self.weights]
            self._packed = backend, packed
        return packed


class _Planned(NamedTuple):
    """A call of these sizes, and what was decided for it."""

    settings: settings.Settings
    threads: Any
    batch_first: Any
    flat: bool
    x_shape: tuple[int, ...]  # as the caller has it, as all shapes here
    output: tuple[int, ...]
    states: tuple[int, ...]
    c_states: tuple[int, ...] | None  # the same of c, where the cell has one
    saved_shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]  # of gates and c in training
    run: Run | None  # a call of one recurrence without lengths, where the backend prepares such
    empty: Callable[..., Array]  # for what grows with seq_len
    sizes: _Sizes


class _Sizes(NamedTuple):
    """The same as backends see it."""

    layout: Layout
    seq_len: int
    batch_size: int
    width: int  # of the output: of both directions
    threads: int
    few: bool  # elements, of x and of the output: an x that is not contiguous is copied

    @property
    def sequence(self) -> tuple[int, int, int]:
        """The shape of the output, [T, B, *]."""
        return self.seq_len, self.batch_size, self.width


def _plan(stack: Stack, x: Any, batch_first: Any, flat: bool, threads: Any, training: bool) -> tuple[Array, _Planned]:
    """`x` as an array, in the caller's layout, and the plan of its sizes."""
    first, directions = stack.weights[0][0], stack.directions
    x = as_array("x", x, stack.dtype)
    layout, seq_len, batch_size = check_layout(x, first.input_size, batch_first=batch_first, flat=flat)
    check_size(first, seq_len, batch_size, training)
    count, now = settings.threads_of(threads), settings.current
    backend, rows = settings.active(), stack.lead if layout.unbatched else (*stack.lead, batch_size)
    run = None
    if stack.layers == directions == 1 and not flat and not stack.reverse:
        packed = stack.packed(backend)[0][0] if stack.stacked and not training else None
        run = backend.prepare(
            first, packed, seq_len=seq_len, batch_size=batch_size, batch_first=layout.batch_first, training=training,
            threads=count,
        )  # fmt: skip
    width = directions * first.output_size
    few = x.size < _FEW and seq_len * batch_size * width < _FEW
    planned = _Planned(
        now, threads, batch_first, flat, x.shape, layout.shape(seq_len, batch_size, width),
        (*rows, first.output_size), (*rows, first.hidden_size) if stack.cell.has_c else None,
        stack.cell.saved_shapes(seq_len, batch_size, hidden_size=first.hidden_size), run,
        np.empty if few else memory.empty, _Sizes(layout, seq_len, batch_size, width, count, few),
    )  # fmt: skip
    stack.plans[training] = planned
    return x, planned


class Saved(NamedTuple):
    """What backward needs of a call in training. Of a prepared call, `arrays`: x, h0, c0, output, gates, c and resets,
    in the caller's layout; of another there are `recurrences`.
    """

    stack: Stack
    planned: _Planned
    batch_size: int
    drop: Drop | None
    arrays: tuple[Array | None, ...] | None
    recurrences: list[list[Forward]] | None

    def as_recurrences(self) -> list[list[Forward]]:
        if self.recurrences is not None:
            return self.recurrences
        assert self.arrays is not None
        x, h0, c0, output, gates, c, marks = self.arrays
        assert x is not None
        assert output is not None
        weights, layout = self.stack.weights[0][0], self.planned.sizes.layout
        h_n = np.empty((self.batch_size, weights.output_size), weights.dtype)
        h0, c0 = (state if state is None else state.reshape(self.batch_size, -1) for state in (h0, c0))
        return [[
            Forward(
                weights, None, False, layout.time_major(x), h0, c0, layout.time_major(output), h_n, None, gates, c,
                None, None if marks is None else Resets(layout.time_major(marks), False),
            )
        ]]  # fmt: skip


# output, h_n, c_n and c, as the caller sees them, and in training what backward needs. A named tuple takes 0.2 us.
Results = tuple[Array, Array, Array | None, Array | None, Saved | None]


def run(
    stack: Stack, x: Any, h0: Any, c0: Any, batch_first: Any, lengths: Any, offsets: Any, resets: Any, reset_state: Any,
    return_states: Any, threads: Any, out: Any, training: bool, drop: Drop | None, parameters: Sequence[Any],
    recurrent_mask: Any = None,
) -> Results:  # fmt: skip
    """Check the arguments of a call, run it and return its results. `parameters` are those that `out` must lie apart
    from, in the order of the cell's table, as the caller has them.
    """
    given, dtype, planned = x, stack.dtype, stack.plans[training]
    if planned is not None:
        before, of_threads, first, flat, x_shape, of_output, states, c_states, saved_shapes, prepared, empty, _ = (
            planned
        )
    if (
        planned is None or not plain(x, dtype, x_shape) or before is not settings.current
        or of_threads is not threads or first is not batch_first or flat is not (offsets is not None)
    ):  # fmt: skip
        x, planned = _plan(stack, x, batch_first, offsets is not None, threads, training)
        *_, of_output, states, c_states, saved_shapes, prepared, empty, sizes = planned
        if not x.flags.c_contiguous:
            if sizes.few:
                x = np.ascontiguousarray(x)
            else:
                prepared = None
    if (
        prepared is None or lengths is not None or return_states is not False or reset_state is not ZEROS
        or recurrent_mask is not None
    ):  # fmt: skip
        return _run(
            stack, planned, given, x, h0, c0, lengths, offsets, resets, reset_state, return_states, out, training, drop,
            parameters, recurrent_mask,
        )  # fmt: skip
    given_h0, given_c0 = h0, c0
    if h0 is not None and (training or not plain(h0, dtype, states)):
        h0 = _state(stack, planned, "h0", h0, planned.sizes.batch_size, copy=training)
    if c0 is not None and (training or c_states is None or not plain(c0, dtype, c_states)):
        c0 = _state(stack, planned, "c0", c0, planned.sizes.batch_size, copy=training)
    marks = None if resets is None else _dense_resets(planned, x, resets, copy=training)
    if out is None:
        output = empty(of_output, dtype)
    elif plain_out(out, dtype, of_output, (given, given_h0, given_c0, resets)) and not parameters:
        output = out
    else:
        output = _dense_out(stack, planned, out, given, given_h0, given_c0, resets, parameters)
    h_n = np.empty(states, dtype)
    c_n = None if c_states is None else np.empty(c_states, dtype)
    gates = c = saved = None
    if training:
        gates_shape, c_shape = saved_shapes
        gates = None if gates_shape is None else empty(gates_shape, dtype)
        c = None if c_shape is None else empty(c_shape, dtype)
        saved = Saved(stack, planned, planned.sizes.batch_size, None, (x, h0, c0, output, gates, c, marks), None)
    prepared(x, h0, c0, output, h_n, c_n, gates, c, marks)
    if out is not None and output is not out:
        out[...] = output
        output = out
    return output, h_n, c_n, None, saved


_BOOL = np.dtype(np.bool_)


def _dense_resets(planned: _Planned, x: Array, resets: Any, *, copy: bool) -> Array:
    """`resets`, to zeros, in the caller's layout."""
    if not copy and plain(resets, _BOOL, planned.x_shape[:-1]):
        return resets  # type: ignore[no-any-return]
    layout = planned.sizes.layout
    checked = check_resets(layout.time_major(x), layout, resets, ZEROS, copy=copy)
    assert checked is not None
    return np.ascontiguousarray(layout.outer(checked.at))


def _dense_out(
    stack: Stack, planned: _Planned, out: Any, x: Any, h0: Any, c0: Any, resets: Any,
    parameters: Sequence[Any],
) -> Array:  # fmt: skip
    """Where a prepared call writes its output: `out`, or an array to be copied there."""
    if plain_out(out, stack.dtype, planned.output, (x, h0, c0, resets, *parameters)):
        return out  # type: ignore[no-any-return]
    _check_out(stack, planned, out, x, h0, c0, resets, parameters)
    if out.flags.c_contiguous and out.flags.aligned:
        return out  # type: ignore[no-any-return]
    return planned.empty(planned.output, stack.dtype)


def _state(stack: Stack, planned: _Planned, name: str, state: Any, batch_size: int, *, copy: bool = False) -> Any:
    """A state, [*, B, H], checked and contiguous."""
    of_c = name in ("c0", "grad_c_n")
    shape, rule = (*stack.lead, batch_size, stack.size(of_c=of_c)), stack.state_rule(of_c=of_c)
    return check_state(name, state, rule, shape, stack.dtype, planned.sizes.layout.unbatched, copy)


def _check_out(
    stack: Stack, planned: _Planned, out: Any, x: Any, h0: Any, c0: Any, resets: Any, parameters: Sequence[Any]
) -> tuple[Array, Array]:
    """`out`, and where backends write, [T, B, *], which may be other memory; see `check_output`."""
    layout = planned.sizes.layout
    names = ("x", "h0", "c0", "resets", *stack.cell.names)
    inputs = dict(zip(names, (x, h0, c0, resets, *parameters), strict=False))
    shape = planned.sizes.sequence
    return check_output(out, layout, shape, stack.features(), stack.dtype, inputs)


def _run(
    stack: Stack, planned: _Planned, given: Any, x: Array, h0: Any, c0: Any, lengths: Any, offsets: Any, resets: Any,
    reset_state: Any, return_states: Any, out: Any, training: bool, drop: Drop | None, parameters: Sequence[Any],
    recurrent_mask: Any,
) -> Results:  # fmt: skip
    """A call of any number of recurrences, steps and options."""
    layout, dtype, cell = planned.sizes.layout, stack.dtype, stack.cell
    sequence = with_unit_feature_stride(layout.time_major(x))
    batch_size, given_states = planned.sizes.batch_size, (h0, c0)
    ragged = None
    if lengths is not None or offsets is not None:
        ragged = check_ragged(sequence, layout, lengths, offsets)
        if layout.flat and ragged is not None:
            batch_size = len(ragged.lengths)
    marks: list[Resets | None] = [None] * stack.directions
    if resets is not None or reset_state is not ZEROS:
        marks[0] = check_resets(sequence, layout, resets, reset_state, copy=training)
        if stack.directions == 2 and marks[0] is not None:
            marks[1] = marks[0].of_reverse(ragged)
    every_c = check_return_states(cell, return_states) if return_states is not False else False
    h0 = _state(stack, planned, "h0", h0, batch_size, copy=training)
    c0 = _state(stack, planned, "c0", c0, batch_size, copy=training)
    mask = _state(stack, planned, "recurrent_mask", recurrent_mask, batch_size, copy=training or out is not None)
    shape = planned.sizes.sequence
    if out is None:
        output, last = make_output(layout, shape, dtype)
    else:
        output, last = _check_out(stack, planned, out, given, *given_states, resets, parameters)
    of_c = *shape[:2], stack.directions * stack.size(of_c=True)
    c, last_c = make_output(layout, of_c, dtype) if every_c else (None, None)
    rows = stack.layers * stack.directions, batch_size
    h_n = np.empty((*rows, stack.size()), dtype)
    c_n = np.empty((*rows, stack.size(of_c=True)), dtype) if cell.has_c else None
    if not stack.stacked:
        h0, c0, mask = (state if state is None else state[np.newaxis] for state in (h0, c0, mask))
    backend = planned.settings.backend
    assert backend is not None
    recurrences = run_forward(
        backend, planned.sizes.threads, stack.weights, None if training or not stack.stacked else stack.packed(backend),
        sequence, h0, c0, last, last_c, h_n, c_n, ragged, marks, drop, training, stack.reverse,
        recurrent_mask=mask,
    )  # fmt: skip
    if out is not None:
        finish_output(output, last, layout)
    saved = Saved(stack, planned, batch_size, drop, None, recurrences) if training else None
    if not stack.stacked:
        h_n, c_n = h_n[0], None if c_n is None else c_n[0]
    return output, layout.state(h_n), None if c_n is None else layout.state(c_n), c, saved


class Upstream(NamedTuple):
    """Gradients of the results, as the caller has them; None counts as zero."""

    output: Any
    h_n: Any
    c_n: Any
    c: Any


class Downstream(NamedTuple):
    """Gradients of the arguments that are wanted, as the caller sees them; of parameters by layer and direction."""

    x: Array | None
    h0: Array | None
    c0: Array | None
    parameters: list[list[dict[str, Array]]]
    rows: Ragged | None  # how the rows of the call lay, where it was ragged


class Into(NamedTuple):
    """What gradients of parameters are added to, as the caller has it."""

    parameters: list[list[dict[str, Any]]]  # by layer and direction
    rows: Ragged | None  # of the call that they are of


def _check_into(saved: Saved, upstream: Upstream, wanted: Wanted, into: Into) -> list[list[dict[str, Array]]]:
    """The arrays that are added to, by layer and direction."""
    stack, dtype = saved.stack, saved.stack.dtype
    x = saved.arrays[0] if saved.arrays is not None else saved.as_recurrences()[0][0].x
    inputs = {"x": x, "grad_output": upstream.output, "grad_c": upstream.c}
    checked: list[list[dict[str, Array]]] = []
    others: list[Any] = [*inputs.values()]
    for of_layer, of_wanted, given in zip(stack.weights, wanted, into.parameters, strict=True):
        checked.append([])
        for weights, names, arrays in zip(of_layer, of_wanted, given, strict=True):
            named = weights.named
            others += named.values()
            checked[-1].append({name: arrays[name] for name in names if name in named})
    for of_layer, layer in zip(stack.weights, checked, strict=True):
        for weights, arrays in zip(of_layer, layer, strict=True):
            for name, array in arrays.items():
                shape = weights.named[name].shape
                if not plain_out(array, dtype, shape, tuple(others)):
                    check_accumulated(name, array, shape, dtype, others)
                others.append(array)
    return checked


def _in_order(recurrences: list[list[Forward]], after: Ragged) -> list[list[Forward]]:
    """With the rows of one length in the order of the call after, if that is of the same batch."""
    first = recurrences[0][0]
    if len(after.lengths) != len(first.h_n):
        return recurrences
    ragged = first.ragged
    if ragged is None:
        ragged = Ragged(np.full(len(first.h_n), first.steps, np.int64), None, first.steps)
    ragged = replace(ragged, ranks=after.canonical_ranks())
    return [[replace(args, ragged=ragged) for args in of_layer] for of_layer in recurrences]


def backward(
    saved: Saved, upstream: Upstream, x_wanted: bool, states_wanted: bool, wanted: Wanted, into: Into | None = None
) -> Downstream:
    """Check upstream gradients of a call and return the others, those of parameters added to `into`."""
    stack, planned = saved.stack, saved.planned
    arrays = None if into is None else _check_into(saved, upstream, wanted, into)
    if saved.arrays is not None and upstream.c is None and (into is None or into.rows is None):
        backend, weights = planned.settings.backend, stack.weights[0][0]
        assert backend is not None
        names = wanted[0][0]
        layout, seq_len, batch_size, _, threads, _ = planned.sizes
        prepared = backend.prepare_backward(
            weights, seq_len=seq_len, batch_size=batch_size, batch_first=layout.batch_first, x_wanted=x_wanted,
            weights_wanted=not stack.weight_names.isdisjoint(names), threads=threads, accumulate=into is not None,
        )  # fmt: skip
        if prepared is not None:
            grads = None if arrays is None else arrays[0][0]
            return _dense_backward(saved, prepared, upstream, x_wanted, states_wanted, names, grads)
    dtype, layout, shape = stack.dtype, planned.sizes.layout, planned.sizes.sequence
    grad_output = check_grad_sequence("grad_output", upstream.output, layout, shape, stack.features(), dtype)
    of_c = *shape[:2], stack.directions * stack.size(of_c=True)
    grad_c = check_grad_sequence("grad_c", upstream.c, layout, of_c, stack.features(of_c=True), dtype)
    grad_h_n = _state(stack, planned, "grad_h_n", upstream.h_n, saved.batch_size)
    grad_c_n = _state(stack, planned, "grad_c_n", upstream.c_n, saved.batch_size)
    if not stack.stacked:
        grad_h_n, grad_c_n = (state if state is None else state[np.newaxis] for state in (grad_h_n, grad_c_n))
    rows = stack.layers * stack.directions, saved.batch_size
    grad_h0 = np.empty((*rows, stack.size()), dtype)
    grad_c0 = np.empty((*rows, stack.size(of_c=True)), dtype) if stack.cell.has_c else None
    backend, recurrences = planned.settings.backend, saved.as_recurrences()
    assert backend is not None
    if into is not None and into.rows is not None:
        recurrences = _in_order(recurrences, into.rows)
    grad_x, parameters = run_backward(
        backend, planned.sizes.threads, recurrences, layout, saved.drop, grad_output, grad_h_n, grad_c_n,
        grad_c, grad_h0, grad_c0, x_wanted, states_wanted, wanted, None, arrays,
    )  # fmt: skip
    ragged = recurrences[0][0].ragged
    if not states_wanted:
        return Downstream(grad_x, None, None, parameters, ragged)
    if not stack.stacked:
        grad_h0, grad_c0 = grad_h0[0], None if grad_c0 is None else grad_c0[0]
    of_c0 = None if grad_c0 is None else layout.state(grad_c0)
    return Downstream(grad_x, layout.state(grad_h0), of_c0, parameters, ragged)


def _dense_backward(
    saved: Saved, prepared: Run, upstream: Upstream, x_wanted: bool, states_wanted: bool, names: Sequence[str],
    grads: dict[str, Array] | None,
) -> Downstream:  # fmt: skip
    """Backward of a prepared call, in the caller's layout: arrays lie as results do. `grads` are added to, if given."""
    stack, planned = saved.stack, saved.planned
    dtype, states, c_states = stack.dtype, planned.states, planned.c_states
    grad_output, grad_h_n, grad_c_n = upstream.output, upstream.h_n, upstream.c_n
    if grad_output is not None and not plain(grad_output, dtype, planned.output):
        shape = planned.sizes.sequence
        layout = planned.sizes.layout
        checked = check_grad_sequence("grad_output", grad_output, layout, shape, stack.features(), dtype)
        assert checked is not None
        grad_output = np.ascontiguousarray(layout.outer(checked))
    if grad_h_n is not None and not plain(grad_h_n, dtype, states):
        grad_h_n = _state(stack, planned, "grad_h_n", grad_h_n, planned.sizes.batch_size)
    if grad_c_n is not None and (c_states is None or not plain(grad_c_n, dtype, c_states)):
        grad_c_n = _state(stack, planned, "grad_c_n", grad_c_n, planned.sizes.batch_size)
    assert saved.arrays is not None
    weights = stack.weights[0][0]
    if grads is None:
        pairs = zip(stack.cell.names, weights.arrays, strict=True)
        grads = {
            name: np.empty(array.shape, dtype) for name, array in pairs if array is not None and name in names
        }  # fmt: skip
    grad_x = planned.empty(planned.x_shape, dtype) if x_wanted else None
    grad_h0 = np.empty(states, dtype)
    grad_c0 = None if c_states is None else np.empty(c_states, dtype)
    prepared(
        *saved.arrays, grad_output, grad_h_n, grad_c_n, grad_x, grad_h0, grad_c0,
        *map(grads.get, stack.cell.names),
    )  # fmt: skip
    if not states_wanted:
        return Downstream(grad_x, None, None, [[grads]], None)
    return Downstream(grad_x, grad_h0, grad_c0, [[grads]], None)


def make_vjp(
    run: Callable[[Upstream, Iterable[str] | None, Any], Any], has_c: bool, every_c: bool
) -> Callable[..., Any]:
    """The function that users call, with the arguments that a cell has; `grad_c` where c of every step was returned."""
    vjp = (_vjp_of_states if every_c else _vjp_of_lstm if has_c else _vjp_without_c)(run)
    vjp.__qualname__ = "vjp"
    return vjp


def _vjp_of_states(run: Callable[..., Any]) -> Callable[..., Any]:
    def vjp(
        grad_output: Any = None, grad_h_n: Any = None, grad_c_n: Any = None, grad_c: Any = None, *,
        wrt: Iterable[str] | None = None, accumulate_into: Any = None,
    ) -> Any:  # fmt: skip
        return run(Upstream(grad_output, grad_h_n, grad_c_n, grad_c), wrt, accumulate_into)

    return vjp


def _vjp_of_lstm(run: Callable[..., Any]) -> Callable[..., Any]:
    def vjp(
        grad_output: Any = None, grad_h_n: Any = None, grad_c_n: Any = None, *, wrt: Iterable[str] | None = None,
        accumulate_into: Any = None,
    ) -> Any:  # fmt: skip
        return run(Upstream(grad_output, grad_h_n, grad_c_n, None), wrt, accumulate_into)

    return vjp


def _vjp_without_c(run: Callable[..., Any]) -> Callable[..., Any]:
    def vjp(
        grad_output: Any = None, grad_h_n: Any = None, *, wrt: Iterable[str] | None = None, accumulate_into: Any = None
    ) -> Any:
        return run(Upstream(grad_output, grad_h_n, None, None), wrt, accumulate_into)

    return vjp
