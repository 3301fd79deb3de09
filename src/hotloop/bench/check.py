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
from .._contract import Array
from .problems import Problem

# Relative L2. In float32 candidates measure 1e-7 to 3e-6 at T = 4096 (they sum in another order, and some approximate
# tanh); a swapped gate or a missing bias measures above 1e-2.
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}

# The specification runs step by step in float64, at some 5 GF/s: beyond this it would take longer than the timing.
FULL_CHECK_FLOPS = 2e9
SHORTENED_STEPS = 64

WEIGHT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass(frozen=True)
class Inputs:
    """What every candidate is given; the same bits in every process."""

    x: Array  # [T, B, I]
    weight_ih: Array  # [G*H, I]
    weight_hh: Array  # [G*H, H]
    bias_ih: Array  # [G*H]
    bias_hh: Array  # [G*H]
    grad_output: Array  # [T, B, H]

    @property
    def weights(self) -> tuple[Array, Array, Array, Array]:
        """In the order in which functions take them."""
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


def make_inputs(problem: Problem, seed: int = 0) -> Inputs:
    """Draw the arrays of a problem: weights uniform in +-1/sqrt(H), as torch initialises them, the others normal."""
    rng = np.random.default_rng(seed)
    rows, hidden = problem.gates * problem.hidden_size, problem.hidden_size
    bound = 1 / math.sqrt(hidden)

    def uniform(*shape: int) -> Array:
        return rng.uniform(-bound, bound, shape).astype(problem.dtype)

    weights = uniform(rows, problem.input_size), uniform(rows, hidden), uniform(rows), uniform(rows)
    steps, batch = problem.seq_len, problem.batch_size
    x = rng.standard_normal((steps, batch, problem.input_size), np.float32).astype(problem.dtype)
    grad_output = rng.standard_normal((steps, batch, hidden), np.float32).astype(problem.dtype)
    return Inputs(x, *weights, grad_output)


def checked_steps(problem: Problem) -> int:
    """Return how many of the first steps are compared: all, unless the specification would take too long."""
    return problem.seq_len if problem.flops <= FULL_CHECK_FLOPS else min(problem.seq_len, SHORTENED_STEPS)


def checked_grad_output(problem: Problem, inputs: Inputs) -> Array:
    """Return the upstream gradient of the check: zero after the steps that are compared.

    Then the gradients of the whole problem are those of its first steps, and a candidate is checked on the very
    shape that is timed while the specification runs on fewer steps.
    """
    gradient = inputs.grad_output.copy()
    gradient[checked_steps(problem) :] = 0
    return gradient


def run_functional(problem: Problem, inputs: Inputs, grad_output: Array | None, threads: int) -> dict[str, Array]:
    """Run the problem through hotloop's functional API: the output and, in training, all gradients."""
    if problem.mode == "inference":
        function = getattr(functional, problem.cell)
        return {"output": function(inputs.x, *inputs.weights, threads=threads)[0]}
    function = getattr(functional, f"{problem.cell}_vjp")
    (output, _), vjp = function(inputs.x, *inputs.weights, threads=threads)
    grads = vjp(inputs.grad_output if grad_output is None else grad_output)
    return {"output": output, "x": grads.x, **{name: getattr(grads, name) for name in WEIGHT_NAMES}}


def reference(problem: Problem) -> dict[str, Array]:
    """Compute the answer by whatever backend is active, in float64, over the steps that are compared.

    The numpy backend is the specification: the caller sees to it that it is the active one.
    """
    inputs, steps = make_inputs(problem), checked_steps(problem)
    wide = Inputs(
        x=inputs.x[:steps].astype(np.float64),
        **{name: getattr(inputs, name).astype(np.float64) for name in WEIGHT_NAMES},
        grad_output=inputs.grad_output[:steps].astype(np.float64),
    )
    return run_functional(problem, wide, None, threads=1)


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
