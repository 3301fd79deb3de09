"""Layers one on the output of the other, each with one direction or two: the loops of forward and of backward.

What a call is given is checked and allocated before, what it gives back is put in order after; `layers` and `torch` do
that each in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import memory
from .types import (
    Array,
    Backend,
    Backward,
    Forward,
    Layout,
    Ragged,
    Resets,
    Weights,
)

Drop = Callable[[int, Array, Array], Array]  # (layer, its output, out): what the next layer is given of it, in out
Wanted = Sequence[Sequence[Sequence[str]]]  # by layer and direction: names of parameters


def _like(sequence: Array) -> Array:
    return memory.empty(sequence.shape, sequence.dtype)


def halves(directions: int, size: int, sequence: Array | None) -> list[Any]:
    """The columns of each direction."""
    if sequence is None or directions == 1:
        return [sequence] * directions
    return [sequence[:, :, :size], sequence[:, :, size:]]


def make_forward(
    weights: Weights,
    packed: Any,
    reverse: bool,
    x: Array,
    h0: Array | None,
    c0: Array | None,
    output: Array,
    h_n: Array,
    c_n: Array | None,
    training: bool,
    ragged: Ragged | None = None,
    resets: Resets | None = None,
    c: Array | None = None,
    recurrent_mask: Array | None = None,
) -> Forward:
    """A backend's arguments out of checked ones; allocates what backward will need. `c`, like `output`, where the
    caller wants it.
    """
    if not training:
        return Forward(weights, packed, reverse, x, h0, c0, output, h_n, c_n, None, c, ragged, resets, recurrent_mask)
    gates_shape, c_shape = weights.cell.saved_shapes(*output.shape[:2], hidden_size=weights.hidden_size)
    gates = None if gates_shape is None else memory.empty(gates_shape, weights.dtype)
    if c is None and c_shape is not None:
        c = memory.empty(c_shape, weights.dtype)
    return Forward(weights, packed, reverse, x, h0, c0, output, h_n, c_n, gates, c, ragged, resets, recurrent_mask)


def make_backward(
    forward: Forward,
    grad_output: Array | None,
    grad_h_n: Array | None,
    grad_c_n: Array | None,
    grad_x: Array | None,
    grad_h0: Array,
    grad_c0: Array | None,
    wanted: Container[str],
    grad_c: Array | None = None,
    into: Mapping[str, Array] | None = None,
) -> Backward:
    """A backend's arguments out of checked ones; allocates the gradients of those parameters that are wanted, but where
    they are added to those in `into`.
    """
    named = forward.weights.named if into is None else into
    parameters = {
        name: np.empty_like(array) if into is None else array for name, array in named.items() if name in wanted
    }
    return Backward(
        forward,
        grad_output,
        grad_h_n,
        grad_c_n,
        grad_x,
        parameters,
        grad_h0,
        grad_c0,
        grad_c,
        into is not None,
    )


def run_forward(
    backend: Backend,
    threads: int,
    weights: Sequence[Sequence[Weights]],
    packed: Sequence[Sequence[Any]] | None,
    x: Array,
    h0: Array | None,
    c0: Array | None,
    output: Array,
    c: Array | None,
    h_n: Array,
    c_n: Array | None,
    ragged: Ragged | None,
    marks: Sequence[Resets | None],
    drop: Drop | None,
    training: bool,
    reverse: bool = False,
    executor: Any = None,
    recurrent_mask: Array | None = None,
) -> list[list[Forward]]:
    """Fill output, h_n and, where they are there, c_n and c, both of the last layer.

    Weights, and what was packed of them, are by layer and direction; `marks` by direction; states and `recurrent_mask`
    [layers*directions, B, *]; the first direction runs from the last step where `reverse` says so. In training, returns
    what backward needs, by layer and direction. With dropout, x of the upper layers is there what `drop` is given: it
    can be made again, and is as large as the output it is made of.
    """
    recurrences: list[list[Forward]] = []
    below = x
    for layer, of_layer in enumerate(weights):
        top, directions = layer == len(weights) - 1, len(of_layer)
        output_size, seq_len, batch_size = of_layer[0].output_size, *x.shape[:2]
        sequence = output if top else memory.empty((seq_len, batch_size, directions * output_size), output.dtype)
        of_output = halves(directions, output_size, sequence)
        of_c = halves(directions, of_layer[0].hidden_size, c if top else None)
        calls = []
        for direction, half in enumerate(of_layer):
            index = layer * directions + direction
            calls.append(
                make_forward(
                    half, None if packed is None else packed[layer][direction], reverse or direction == 1, x,
                    None if h0 is None else h0[index], None if c0 is None else c0[index],
                    of_output[direction], h_n[index], None if c_n is None else c_n[index], training, ragged,
                    marks[direction], of_c[direction], None if recurrent_mask is None else recurrent_mask[index],
                )
            )  # fmt: skip
        backend.forward(calls, threads, executor)
        if training:
            if layer and drop is not None:
                calls = [replace(args, x=below) for args in calls]
            recurrences.append(calls)
        below = x = sequence
        if drop is not None and not top:
            x = drop(layer, sequence, _like(sequence))
    return recurrences


def run_backward(
    backend: Backend,
    threads: int,
    recurrences: Sequence[Sequence[Forward]],
    layout: Layout,
    drop: Drop | None,
    grad: Array | None,
    grad_h_n: Array | None,
    grad_c_n: Array | None,
    grad_c: Array | None,
    grad_h0: Array,
    grad_c0: Array | None,
    x_wanted: bool,
    states_wanted: bool,
    wanted: Wanted,
    executor: Any = None,
    into: Sequence[Sequence[Mapping[str, Array]]] | None = None,
) -> tuple[Array | None, list[list[dict[str, Array]]]]:
    """Fill grad_h0 and grad_c0, where states are wanted, and return the gradients of x, in the caller's layout, and of
    the parameters that are wanted, by layer and direction: those in `into`, to which they are added, or new ones.
    """
    layers, directions = len(recurrences), len(recurrences[0])
    sizes, dtype = recurrences[0][0].weights, grad_h0.dtype
    # Below the lowest layer of which something is wanted there is nothing to do.
    lowest = 0
    if not (x_wanted or states_wanted):
        lowest = next((layer for layer in range(layers) if any(wanted[layer])), layers)
    parameters: list[list[dict[str, Array]]] = [[{} for _ in range(directions)] for _ in range(layers)]
    grad_x = None
    for layer in range(layers - 1, lowest - 1, -1):
        x = recurrences[layer][0].x
        if layer and drop is not None:
            x = drop(layer - 1, x, _like(x))
        of_grad = halves(directions, sizes.output_size, grad)
        of_grad_c = halves(directions, sizes.hidden_size, grad_c)
        calls, grads_x = [], []
        for direction, forward in enumerate(recurrences[layer]):
            index = layer * directions + direction
            if layer > lowest:
                grads_x.append(_like(x))
            elif x_wanted:
                grads_x.append(memory.empty(layout.shape(*x.shape), dtype))
            calls.append(
                make_backward(
                    forward if x is forward.x else replace(forward, x=x),
                    of_grad[direction],
                    None if grad_h_n is None else grad_h_n[index],
                    None if grad_c_n is None else grad_c_n[index],
                    None if not grads_x else grads_x[-1] if layer > lowest else layout.time_major(grads_x[-1]),
                    grad_h0[index],
                    None if grad_c0 is None else grad_c0[index],
                    wanted[layer][direction],
                    of_grad_c[direction],
                    None if into is None else into[layer][direction],
                )
            )
        backend.backward(calls, threads, executor)
        grad_c = None  # it is the last layer's
        for direction, call in enumerate(calls):
            parameters[layer][direction] = call.grad_parameters
        if len(grads_x) == 2:  # computed apart and added, as the contract has it
            np.add(grads_x[0], grads_x[1], out=grads_x[0])
        grad = grad_x = grads_x[0] if grads_x else None
        if layer > lowest and drop is not None and grad is not None:
            drop(layer - 1, grad, grad)
    return (grad_x if x_wanted else None), parameters
