"""The arrays of a problem, the answer to it, and how far a candidate's answer is from it.

A candidate whose answer is wrong is not timed: doing less is the easiest way to be fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import functional
from .._contract import PARAMETERS, Array
from ..layers import GRU, LSTM, RNN
from .problems import Problem

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
    grad_output: Array  # [T, B, D*H]

    @property
    def recurrences(self) -> list[tuple[Array, ...]]:
        """The four parameters of every layer and direction, in the order in which functions take them."""
        arrays, count = list(self.parameters.values()), len(PARAMETERS)
        return [tuple(arrays[start : start + count]) for start in range(0, len(arrays), count)]


def make_inputs(problem: Problem, seed: int = 0) -> Inputs:
    """Draw the arrays of a problem: weights uniform in +-1/sqrt(H), as torch initialises them, the others normal."""
    rng = np.random.default_rng(seed)
    rows, hidden = problem.gates * problem.hidden_size, problem.hidden_size
    bound = 1 / math.sqrt(hidden)

    def uniform(*shape: int) -> Array:
        return rng.uniform(-bound, bound, shape).astype(problem.dtype)

    parameters: dict[str, Array] = {}
    for layer, size in enumerate(problem.input_sizes):
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: problem.directions]:
            arrays = uniform(rows, size), uniform(rows, hidden), uniform(rows), uniform(rows)
            parameters |= {f"{name}{suffix}": array for name, array in zip(PARAMETERS, arrays, strict=True)}
    steps, batch = problem.seq_len, problem.batch_size
    x = rng.standard_normal((steps, batch, problem.input_size), np.float32).astype(problem.dtype)
    shape = steps, batch, problem.directions * hidden
    grad_output = rng.standard_normal(shape, np.float32).astype(problem.dtype)
    return Inputs(x, parameters, grad_output)


def checked_steps(problem: Problem) -> int:
    """Return how many of the first steps are compared: all, unless the specification would take too long.

    A reverse direction makes the first steps depend on all others, so there nothing is shortened.
    """
    if problem.bidirectional or problem.flops <= FULL_CHECK_FLOPS:
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


def run_ours(problem: Problem, inputs: Inputs, grad_output: Array | None, threads: int) -> dict[str, Array]:
    """Run the problem through hotloop: the output and, in training, all gradients by torch's names.

    One layer goes through the functional API, several layers or directions through a layer object.
    """
    gradient = inputs.grad_output if grad_output is None else grad_output
    if is_stack(problem):
        layer = make_layer(problem, inputs)
        if problem.mode == "inference":
            return {"output": layer(inputs.x, threads=threads)[0]}
        (output, _), layer_vjp = layer.vjp(inputs.x, threads=threads)
        found = layer_vjp(gradient)
        assert found.x is not None
        return {"output": output, "x": found.x, **found.parameters}
    (weights,) = inputs.recurrences
    if problem.mode == "inference":
        function = getattr(functional, problem.cell)
        return {"output": function(inputs.x, *weights, threads=threads)[0]}
    function = getattr(functional, f"{problem.cell}_vjp")
    (output, _), vjp = function(inputs.x, *weights, threads=threads)
    grads = vjp(gradient)
    return {"output": output, "x": grads.x, **{f"{name}_l0": getattr(grads, name) for name in PARAMETERS}}


def reference(problem: Problem) -> dict[str, Array]:
    """Compute the answer by whatever backend is active, in float64, over the steps that are compared.

    The numpy backend is the specification: the caller sees to it that it is the active one.
    """
    inputs, steps = make_inputs(problem), checked_steps(problem)
    wide = Inputs(
        x=inputs.x[:steps].astype(np.float64),
        parameters={name: array.astype(np.float64) for name, array in inputs.parameters.items()},
        grad_output=inputs.grad_output[:steps].astype(np.float64),
    )
    return run_ours(problem, wide, None, threads=1)


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
