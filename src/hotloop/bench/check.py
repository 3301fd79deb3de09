"""The arrays of a problem, the answer to it, and how far a candidate's answer is from it.

A candidate whose answer is wrong is not timed: doing less is the easiest way to be fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import functional
from .._core.types import CELLS, Array
from ..layers import GRU, LSTM, RNN
from .problems import Problem

STATES = ("h_n", "c_n")

# Relative L2. In float32 candidates measure 1e-7 to 3e-6 at T = 4096 (they sum in another order, and some approximate
# tanh); a swapped gate or a missing bias measures above 1e-2.
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}

# The specification runs step by step in float64, at some 5 GF/s: beyond this it would take longer than the timing.
FULL_CHECK_FLOPS = 2e9
SHORTENED_STEPS = 64
# Of large matrices even 64 steps take 10 s: then fewer, down to 16.
SHORTENED_FLOPS, FEWEST_STEPS = 1e10, 16

_LAYERS: dict[str, type[LSTM | GRU | RNN]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


@dataclass(frozen=True)
class Inputs:
    """What every candidate is given; the same bits in every process."""

    x: Array  # [T, B, I]
    parameters: dict[str, Array]  # by torch's names, in torch's order: weight_ih_l0, weight_hh_l0, bias_ih_l0, ...
    grad_output: Array  # [T, B, D*H], zero in padding
    lengths: Array | None = None  # [B]
    resets: Array | None = None  # [T, B] of bool

    @property
    def rows(self) -> dict[str, Array]:
        """What is said of the rows, by the names of our arguments; nothing where they are dense."""
        return {name: array for name in ("lengths", "resets") if (array := getattr(self, name)) is not None}

    def without_padding(self, sequence: Array) -> Array:
        """Return a sequence [T, B, ...] with zeros in its padding."""
        if self.lengths is None:
            return sequence
        inside = np.arange(len(sequence))[:, None] < self.lengths
        return np.where(inside[..., None], sequence, np.zeros((), sequence.dtype))

    @property
    def recurrences(self) -> list[tuple[Array, ...]]:
        """The parameters of every layer and direction, in the order in which functions take them."""
        arrays, count = list(self.parameters.values()), len({name.partition("_l")[0] for name in self.parameters})
        return [tuple(arrays[start : start + count]) for start in range(0, len(arrays), count)]


def make_inputs(problem: Problem, seed: int = 0) -> Inputs:
    """Draw the arrays of a problem: weights uniform in +-1/sqrt(H), as torch initialises them, the others normal."""
    rng = np.random.default_rng(seed)
    cell, hidden = CELLS[problem.cell_key], problem.hidden_size
    bound = 1 / math.sqrt(hidden)

    def uniform(*shape: int) -> Array:
        return rng.uniform(-bound, bound, shape).astype(problem.dtype)

    parameters: dict[str, Array] = {}
    for layer, size in enumerate(problem.input_sizes):
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: problem.directions]:
            for one in cell.parameters:
                parameters[f"{one.name}{suffix}"] = uniform(*one.shape(cell, size, hidden, problem.output_size))
    steps, batch = problem.seq_len, problem.batch_size
    x = rng.standard_normal((steps, batch, problem.input_size), np.float32).astype(problem.dtype)
    shape = steps, batch, problem.directions * problem.output_size
    grad_output = rng.standard_normal(shape, np.float32).astype(problem.dtype)
    # Episodes begin at the same steps whatever the cell and dtype.
    begins = np.random.default_rng((seed, steps, batch)).random((steps, batch)) < problem.resets
    inputs = Inputs(
        x,
        parameters,
        grad_output,
        np.array(problem.row_lengths) if problem.lengths else None,
        begins if problem.resets else None,
    )
    return replace(inputs, grad_output=inputs.without_padding(grad_output))


def checked_steps(problem: Problem) -> int:
    """Return how many of the first steps are compared: all, unless the specification would take too long.

    A reverse direction makes the first steps depend on all others, so there nothing is shortened; nor where rows end
    or begin anew in the middle, for that is what could be wrong.
    """
    if problem.bidirectional or not problem.is_dense or problem.flops <= FULL_CHECK_FLOPS:
        return problem.seq_len
    affordable = int(SHORTENED_FLOPS * problem.seq_len / problem.flops)
    return min(problem.seq_len, SHORTENED_STEPS, max(FEWEST_STEPS, affordable))


def checked_grad_output(problem: Problem, inputs: Inputs) -> Array:
    """Return the upstream gradient of the check: zero after the steps that are compared.

    Then the gradients of the whole problem are those of its first steps, and a candidate is checked on the very
    shape that is timed while the specification runs on fewer steps.
    """
    gradient = inputs.grad_output.copy()
    gradient[checked_steps(problem) :] = 0
    return gradient


def is_stack(problem: Problem) -> bool:
    """Return whether only a layer object runs it: the functions take one layer and one direction."""
    return problem.num_layers > 1 or problem.bidirectional


def make_layer(problem: Problem, inputs: Inputs) -> LSTM | GRU | RNN:
    """Make the layer object of a problem."""
    return _LAYERS[problem.cell].from_state_dict(inputs.parameters)


def name_states(problem: Problem, state: Any) -> dict[str, Array]:
    """Name the states after the last step, h_n or (h_n, c_n) of one layer and direction or of all: [L*D, B, H] each."""
    arrays = state if problem.cell == "lstm" else (state,)
    sizes = problem.output_size, problem.hidden_size
    return {
        name: np.asarray(array).reshape(-1, problem.batch_size, size)
        for name, array, size in zip(STATES, arrays, sizes, strict=False)
    }


def run_ours(problem: Problem, inputs: Inputs, grad_output: Array | None, threads: int) -> dict[str, Array]:
    """Run the problem through hotloop: output, states and, in training, all gradients by torch's names.

    One layer goes through the functional API, several layers or directions through a layer object.
    """
    gradient = inputs.grad_output if grad_output is None else grad_output
    options: dict[str, Any] = {"threads": threads, **inputs.rows}
    if is_stack(problem):
        layer = make_layer(problem, inputs)
        if problem.mode == "inference":
            output, state = layer(inputs.x, **options)
            return {"output": output, **name_states(problem, state)}
        (output, state), layer_vjp = layer.vjp(inputs.x, **options)
        found = layer_vjp(gradient)
        assert found.x is not None
        return {"output": output, **name_states(problem, state), "x": found.x, **found.parameters}
    (weights,) = inputs.recurrences
    if problem.proj_size:
        options["weight_hr"] = weights[-1]
        weights = weights[:-1]
    if problem.mode == "inference":
        output, state = getattr(functional, problem.cell)(inputs.x, *weights, **options)
        return {"output": output, **name_states(problem, state)}
    (output, state), vjp = getattr(functional, f"{problem.cell}_vjp")(inputs.x, *weights, **options)
    grads = vjp(gradient)
    named = {f"{name}_l0": getattr(grads, name) for name in CELLS[problem.cell_key].names}
    return {"output": output, **name_states(problem, state), "x": grads.x, **named}


def reference(problem: Problem) -> dict[str, Array]:
    """Compute the answer by whatever backend is active, in float64, over the steps that are compared.

    States are those after the last step, so they are compared only where all steps are. The numpy backend is the
    specification: the caller sees to it that it is the active one.
    """
    inputs, steps = make_inputs(problem), checked_steps(problem)
    wide = Inputs(
        x=inputs.x[:steps].astype(np.float64),
        parameters={name: array.astype(np.float64) for name, array in inputs.parameters.items()},
        grad_output=inputs.grad_output[:steps].astype(np.float64),
        **inputs.rows,
    )
    answer = run_ours(problem, wide, None, threads=1)
    # To a module of torch, x is data: no gradient of it is asked for.
    left_out = {"x"} if problem.module else set()
    left_out |= set(STATES) if steps < problem.seq_len else set()
    return {name: array for name, array in answer.items() if name not in left_out}


def relative_errors(answer: Mapping[str, Array], expected: Mapping[str, Any]) -> dict[str, float]:
    """Measure the relative L2 distance of every expected array; infinite for one missing, misshapen or not finite.

    Sequences may be longer than expected: then the rest of a gradient of x counts as an error (it should be zero),
    and the rest of an output need only be finite.
    """
    errors = {}
    for name, right in expected.items():
        got = answer.get(name)
        if got is None or got.shape[1:] != right.shape[1:] or len(got) < len(right) or not np.isfinite(got).all():
            errors[name] = math.inf
            continue
        steps = len(right)
        distance = float(np.linalg.norm(got[:steps].astype(np.float64) - right))
        if name != "output":
            distance = math.hypot(distance, float(np.linalg.norm(got[steps:])))
        norm = float(np.linalg.norm(right))
        errors[name] = distance / norm if norm else distance
    return errors
