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


def _rows(weights: Weights, first: int, last: int) -> slice:
    """Those of gates first ... last-1 in weights and biases."""
    return slice(first * weights.hidden_size, last * weights.hidden_size)


def _active(forward: Forward, step: int) -> Any:
    """The rows of the batch that have a step of this number, in processing order."""
    return slice(None) if forward.ragged is None else np.flatnonzero(forward.ragged.lengths > step)


def _states(forward: Forward) -> tuple[Array, Array, Array, Array]:
    """Return h and c before the first step, and those after a reset."""
    zeros = np.zeros_like(forward.h_n)
    h0 = zeros if forward.h0 is None else forward.h0
    c0 = zeros if forward.c0 is None else forward.c0
    initial = forward.resets is not None and forward.resets.initial
    return h0, c0, h0 if initial else zeros, c0 if initial else zeros


def _resets(forward: Forward, place: Any) -> Any:
    """Whether the state is reset before the step at `place`, [rows, 1]."""
    return None if forward.resets is None else forward.resets.at[place][:, np.newaxis]


def _bias(bias: Array | None) -> Any:
    return 0 if bias is None else bias


def forward(recurrences: Sequence[Forward], threads: int, executor: Any = None) -> None:
    """One recurrence after the other; np.matmul has threads of its own."""
    for args in recurrences:
        _forward(args)


def _forward(args: Forward) -> None:
    w, cell_step = args.weights, cells.STEPS[args.cell.name]
    h0, c0, h_reset, c_reset = _states(args)
    h_n, c_n = h0.copy(), c0.copy()  # of every row after its last step so far

    def product(operand: Array, first: int, last: int) -> list[Array]:
        rows = _rows(w, first, last)
        share = operand @ w.weight_hh[rows].T + _bias(None if w.bias_hh is None else w.bias_hh[rows])
        return np.split(share, last - first, axis=1)

    for sequence in (args.output, args.c):
        if sequence is not None and args.ragged is not None:
            sequence[...] = 0  # the padding
    for step in range(args.steps):
        rows = _active(args, step)
        place = args.place(rows, step)  # in sequences: sequence[place] is [rows, *]
        h, c = h_n[rows], c_n[rows]
        if (reset := _resets(args, place)) is not None:
            h, c = np.where(reset, h_reset[rows], h), np.where(reset, c_reset[rows], c)
        x_share = args.x[place] @ w.weight_ih.T + _bias(w.bias_ih)  # [B, G*H]
        x_shares = np.split(x_share, args.cell.gates, axis=1)
        saved, h, c = cell_step.forward(x_shares, product, h, c, FUNCTIONS)
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
    fwd, w, cell = args.forward, args.forward.weights, args.forward.cell
    cell_step = cells.STEPS[cell.name]
    wanted = (args.grad_x, args.grad_weight_ih, args.grad_weight_hh, args.grad_bias_ih, args.grad_bias_hh)
    for gradient in wanted:
        if gradient is not None:
            gradient[...] = 0

    def product_back(da: Sequence[Array], first: int) -> Array:
        return np.asarray(np.concatenate(da, axis=1) @ w.weight_hh[_rows(w, first, first + len(da))])

    h0, c0, h_reset, c_reset = _states(fwd)
    # Of every row, the gradients of its state before the last step that is not done yet...
    dh_all = np.zeros_like(fwd.h_n) if args.grad_h_n is None else args.grad_h_n.copy()
    dc_all = np.zeros_like(fwd.h_n) if args.grad_c_n is None else args.grad_c_n.copy()
    # ...and, where resets put h0 and c0 in its place, what has come from the episodes after it.
    dh_reset, dc_reset = np.zeros_like(fwd.h_n), np.zeros_like(fwd.h_n)
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
        found = cell_step.backward(cells.Given(saved, h, h_prev, c, c_prev), dh, dc, product_back, FUNCTIONS)
        dh = product_back(found.operands[0][1], 0) + found.h_prev
        dc = dc if found.c_prev is None else found.c_prev
        _add_products(args, place, np.concatenate(found.x, axis=1), found.operands)
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
    size = fwd.cell.saved
    saved = [] if fwd.gates is None or size == 0 else np.split(fwd.gates[place], size, axis=1)
    if fwd.c is None or not fwd.cell.has_c:
        return saved, None, None
    return saved, fwd.c[place], c0 if before is None else fwd.c[before]


def _add_products(
    args: Backward, place: Any, dx_share: Array, operands: Sequence[tuple[Array, Sequence[Array]]]
) -> None:
    """The gradients of x at a step, and what the step adds to those of weights and biases."""
    w, x, first = args.forward.weights, args.forward.x, 0
    if args.grad_x is not None:
        args.grad_x[place] = dx_share @ w.weight_ih
    if args.grad_weight_ih is not None:
        args.grad_weight_ih += dx_share.T @ x[place]
    if args.grad_bias_ih is not None:
        args.grad_bias_ih += dx_share.sum(axis=0)
    for operand, da in operands:
        rows, share = _rows(w, first, first + len(da)), np.concatenate(da, axis=1)
        first += len(da)
        if args.grad_weight_hh is not None:
            args.grad_weight_hh[rows] += share.T @ operand
        if args.grad_bias_hh is not None:
            args.grad_bias_hh[rows] += share.sum(axis=0)
