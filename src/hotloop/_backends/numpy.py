"""The specification: what every backend computes, readable first. It is also the backend of last resort.

One driver for all cells; what differs between them is in `cells`. It is itself checked by finite differences in
float64 and by torch. Where a faster backend disagrees with it, the faster backend is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._core.types import Array, Backward, Forward, Weights
from . import cells

NAME = "numpy"


def isas() -> tuple[str, ...]:
    return ()


def prepare(*_: Any, **__: Any) -> None:
    """Nothing is decided before a call."""


def prepare_backward(*_: Any, **__: Any) -> None:
    """The same."""


def fingerprint(arrays: Sequence[Array]) -> None:
    """Nothing is packed that a hash would be cheaper than."""


def openmp_executor(parallel: int, max_threads: int) -> None:
    """No call takes an executor."""


def description() -> str:
    return f"numpy {np.__version__}"


def pack(weights: Weights) -> None:
    """Nothing is prepared: np.matmul reads the weights as they are."""


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), exact in relative terms in both tails, and without overflow."""
    e = np.exp(-np.abs(a))
    return np.asarray(np.where(a >= 0, 1, e) / (1 + e), a.dtype)


def relu(a: Array) -> Array:
    """max(a, 0); NaN stays NaN."""
    return np.maximum(a, 0)


FUNCTIONS = cells.Functions(np.tanh, sigmoid, relu)


def _stages(weights: Weights) -> list[tuple[str, str | None, slice, int]]:
    """Of each stage: its parameter, the bias, the rows of both, and how many gates they are."""
    stages: list[tuple[str, str | None, slice, int]] = []
    first = 0
    for _, parameter, gates in weights.cell.stages:
        if parameter != "weight_hh":
            stages.append((parameter, None, slice(None), gates))
            continue
        rows = slice(first * weights.hidden_size, (first + gates) * weights.hidden_size)
        stages.append((parameter, "bias_hh", rows, gates))
        first += gates
    return stages


def _active(forward: Forward, step: int) -> Any:
    """The rows of the batch that have a step of this number, in processing order."""
    return slice(None) if forward.ragged is None else np.flatnonzero(forward.ragged.lengths > step)


def _states(forward: Forward) -> tuple[Array, Array, Array, Array]:
    """Return h and c before the first step, and those after a reset."""
    rows, weights = len(forward.h_n), forward.weights
    h0, c0 = (
        np.zeros((rows, size), weights.dtype) if state is None else state
        for state, size in ((forward.h0, weights.output_size), (forward.c0, weights.hidden_size))
    )
    initial = forward.resets is not None and forward.resets.initial
    return h0, c0, h0 if initial else np.zeros_like(h0), c0 if initial else np.zeros_like(c0)


def _resets(forward: Forward, place: Any) -> Any:
    """Whether the state is reset before the step at `place`, [rows, 1]."""
    return None if forward.resets is None else forward.resets.at[place][:, np.newaxis]


def forward(recurrences: Sequence[Forward], threads: int, executor: Any = None) -> None:
    """One recurrence after the other; np.matmul has threads of its own."""
    for args in recurrences:
        _forward(args)


def _forward(args: Forward) -> None:
    w, cell_step, stages = args.weights.named, cells.STEPS[args.cell.name], _stages(args.weights)
    h0, c0, h_reset, c_reset = _states(args)
    h_n, c_n = h0.copy(), c0.copy()  # of every row after its last step so far

    def product(operand: Array, stage: int) -> list[Array]:
        name, bias, rows, gates = stages[stage]
        share = operand @ w[name][rows].T
        if bias in w:
            share = share + w[bias][rows]
        return np.split(share, gates, axis=1)

    for sequence in (args.output, args.c):
        if sequence is not None and args.ragged is not None:
            sequence[...] = 0  # the padding
    for step in range(args.steps):
        rows = _active(args, step)
        place = args.place(rows, step)  # in sequences: sequence[place] is [rows, *]
        h, c = h_n[rows], c_n[rows]
        if (reset := _resets(args, place)) is not None:
            h, c = np.where(reset, h_reset[rows], h), np.where(reset, c_reset[rows], c)
        x_share = args.x[place] @ w["weight_ih"].T + w.get("bias_ih", 0)  # [B, G*H]
        x_shares = np.split(x_share, args.cell.gates, axis=1)
        operand = h if args.recurrent_mask is None else h * args.recurrent_mask[rows]
        saved, h, c = cell_step.forward(x_shares, product, h, operand, c, FUNCTIONS)
        if c is not None:
            c_n[rows] = c
            if args.c is not None:
                args.c[place] = c
        h_n[rows] = h
        args.output[place] = h
        if args.gates is not None:
            args.gates[place] = np.concatenate(saved, axis=1)
    args.h_n[...] = h_n
    if args.c_n is not None:
        args.c_n[...] = c_n


def backward(recurrences: Sequence[Backward], threads: int, executor: Any = None) -> None:
    """One recurrence after the other, as forward."""
    for args in recurrences:
        _backward(args)


def _backward(args: Backward) -> None:
    fwd, w, stages = args.forward, args.forward.weights.named, _stages(args.forward.weights)
    cell_step = cells.STEPS[fwd.cell.name]
    if not args.accumulate:
        for gradient in args.grad_parameters.values():
            gradient[...] = 0
    if args.grad_x is not None:
        args.grad_x[...] = 0  # the padding

    def product_back(da: Sequence[Array], stage: int) -> Array:
        name, _, rows, _ = stages[stage]
        return np.asarray(np.concatenate(da, axis=1) @ w[name][rows])

    h0, c0, h_reset, c_reset = _states(fwd)
    # Of every row, the gradients of its state before the last step that is not done yet...
    dh_all = np.zeros_like(fwd.h_n) if args.grad_h_n is None else args.grad_h_n.copy()
    dc_all = np.zeros_like(c0) if args.grad_c_n is None else args.grad_c_n.copy()
    # ...and, where resets put h0 and c0 in its place, what has come from the episodes after it.
    dh_reset, dc_reset = np.zeros_like(h0), np.zeros_like(c0)
    for step in range(fwd.steps - 1, -1, -1):
        rows = _active(fwd, step)
        place = fwd.place(rows, step)
        before = fwd.place(rows, step - 1) if step else None
        h, h_prev = fwd.output[place], h0[rows] if before is None else fwd.output[before]
        if (reset := _resets(fwd, place)) is not None:
            h_prev = np.where(reset, h_reset[rows], h_prev)
        dh, dc = dh_all[rows], dc_all[rows]
        if args.grad_output is not None:
            dh = dh + args.grad_output[place]
        if args.grad_c is not None:
            dc = dc + args.grad_c[place]
        saved, c, c_prev = _saved(fwd, place, before, c0[rows])
        if reset is not None and c_prev is not None:
            c_prev = np.where(reset, c_reset[rows], c_prev)
        mask = None if fwd.recurrent_mask is None else fwd.recurrent_mask[rows]
        operand = h_prev if mask is None else h_prev * mask
        found = cell_step.backward(cells.Given(saved, h, h_prev, operand, c, c_prev), dh, dc, product_back, FUNCTIONS)
        dh = product_back(found.stages[0][1], 0) + found.operand
        dh = (dh if mask is None else dh * mask) + found.h_prev
        dc = dc if found.c_prev is None else found.c_prev
        _add_products(args, place, np.concatenate(found.x, axis=1), found.stages)
        if reset is not None:
            if fwd.resets is not None and fwd.resets.initial:
                dh_reset[rows] += np.where(reset, dh, 0)
                dc_reset[rows] += np.where(reset, dc, 0)
            dh, dc = np.where(reset, 0, dh), np.where(reset, 0, dc)
        dh_all[rows], dc_all[rows] = dh, dc
    args.grad_h0[...] = dh_all + dh_reset
    if args.grad_c0 is not None:
        args.grad_c0[...] = dc_all + dc_reset


def _saved(fwd: Forward, place: Any, before: Any, c0: Array) -> tuple[list[Array], Array | None, Array | None]:
    """What forward saved of a step by name: the arrays of `gates`, c, and c of the step before."""
    size = len(fwd.cell.saved)
    saved = [] if fwd.gates is None or size == 0 else np.split(fwd.gates[place], size, axis=1)
    if fwd.c is None or not fwd.cell.has_c:
        return saved, None, None
    return saved, fwd.c[place], c0 if before is None else fwd.c[before]


def _add_products(
    args: Backward, place: Any, dx_share: Array, products: Sequence[tuple[Array, Sequence[Array]]]
) -> None:
    """The gradients of x at a step, and what the step adds to those of weights and biases."""
    weights, x, grads = args.forward.weights, args.forward.x, args.grad_parameters
    if args.grad_x is not None:
        args.grad_x[place] = dx_share @ weights.named["weight_ih"]
    if "weight_ih" in grads:
        grads["weight_ih"] += dx_share.T @ x[place]
    if "bias_ih" in grads:
        grads["bias_ih"] += dx_share.sum(axis=0)
    for (name, bias, rows, _), (operand, da) in zip(_stages(weights), products, strict=True):
        share = np.concatenate(da, axis=1)
        if name in grads:
            grads[name][rows] += share.T @ operand
        if bias in grads:
            grads[bias][rows] += share.sum(axis=0)
