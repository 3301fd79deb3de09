"""The specification: what every backend computes, readable first. It is also the backend of last resort.

One driver for all cells; what differs between them is in `cells`. It is itself checked by finite differences in
float64 and by torch. Where a faster backend disagrees with it, the faster backend is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._core.types import GRU, GRU_RESET_BEFORE, LSTM, RNN_RELU, Array, Backward, Forward, Weights
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
    w, cell = args.weights, args.cell
    of_h = cell.of_h * w.hidden_size  # rows of weight_hh that multiply h
    weight_hh, bias_hh = w.weight_hh[:of_h], None if w.bias_hh is None else w.bias_hh[:of_h]
    h0, c0, h_reset, c_reset = _states(args)
    h_n, c_n = h0.copy(), c0.copy()  # of every row after its last step so far
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
        h_share = h @ weight_hh.T + _bias(bias_hh)
        saved: tuple[Array, ...] = ()
        if cell is LSTM:
            a_i, a_f, a_g, a_o = np.split(x_share + h_share, 4, axis=1)
            i, f, g, o, c, h = cells.lstm_forward(a_i, a_f, a_g, a_o, c, np.tanh, sigmoid)
            saved = (i, f, g, o)
            c_n[rows] = c
            if args.c is not None:
                args.c[place] = c
        elif cell is GRU:
            x_r, x_z, x_n = np.split(x_share, 3, axis=1)
            h_r, h_z, q = np.split(h_share, 3, axis=1)
            r, z, n, h = cells.gru_forward(x_r + h_r, x_z + h_z, x_n, q, h, np.tanh, sigmoid)
            saved = (r, z, n, q)
        elif cell is GRU_RESET_BEFORE:
            x_r, x_z, x_n = np.split(x_share, 3, axis=1)
            h_r, h_z = np.split(h_share, 2, axis=1)
            r, z, reset_h = cells.gru_reset_before_gates(x_r + h_r, x_z + h_z, h, sigmoid)
            reset_share = reset_h @ w.weight_hh[of_h:].T + _bias(None if w.bias_hh is None else w.bias_hh[of_h:])
            n, h = cells.gru_reset_before_forward(x_n + reset_share, z, h, np.tanh)
            saved = (r, z, n)
        elif cell is RNN_RELU:
            h = cells.rnn_relu_forward(x_share + h_share, relu)
        else:
            h = cells.rnn_tanh_forward(x_share + h_share, np.tanh)
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
    of_h = cell.of_h * w.hidden_size
    wanted = (args.grad_x, args.grad_weight_ih, args.grad_weight_hh, args.grad_bias_ih, args.grad_bias_hh)
    for gradient in wanted:
        if gradient is not None:
            gradient[...] = 0
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
        dh_direct: Any = 0  # what reaches h_prev without passing weight_hh
        if cell is LSTM:
            assert fwd.gates is not None
            assert fwd.c is not None
            i, f, g, o = np.split(fwd.gates[place], 4, axis=1)
            c_prev = c0[rows] if before is None else fwd.c[before]
            if reset is not None:
                c_prev = np.where(reset, c_reset[rows], c_prev)
            *da, dc = cells.lstm_backward(i, f, g, o, c_prev, fwd.c[place], dh, dc, np.tanh)
            dx_share = dh_share = np.concatenate(da, axis=1)  # [B, G*H], of x_share and h_share
        elif cell is GRU:
            assert fwd.gates is not None
            r, z, n, q = np.split(fwd.gates[place], 4, axis=1)
            da_r, da_z, dx_n, dq, dh_direct = cells.gru_backward(r, z, n, q, h_prev, dh)
            dx_share = np.concatenate((da_r, da_z, dx_n), axis=1)
            dh_share = np.concatenate((da_r, da_z, dq), axis=1)
        elif cell is GRU_RESET_BEFORE:
            assert fwd.gates is not None
            r, z, n = np.split(fwd.gates[place], 3, axis=1)
            da_z, da_n, dh_direct = cells.gru_reset_before_backward(z, n, h_prev, dh)
            dreset_h = da_n @ w.weight_hh[of_h:]
            da_r, dh_direct = cells.gru_reset_before_backward_reset(r, h_prev, dreset_h, dh_direct)
            dx_share = np.concatenate((da_r, da_z, da_n), axis=1)
            dh_share = dx_share
            if args.grad_weight_hh is not None:
                args.grad_weight_hh[of_h:] += da_n.T @ (r * h_prev)
        elif cell is RNN_RELU:
            dx_share = dh_share = cells.rnn_relu_backward(h, dh)
        else:
            dx_share = dh_share = cells.rnn_tanh_backward(h, dh)
        dh = dh_share[:, :of_h] @ w.weight_hh[:of_h] + dh_direct
        if args.grad_x is not None:
            args.grad_x[place] = dx_share @ w.weight_ih
        if args.grad_weight_ih is not None:
            args.grad_weight_ih += dx_share.T @ fwd.x[place]
        if args.grad_weight_hh is not None:
            args.grad_weight_hh[:of_h] += dh_share[:, :of_h].T @ h_prev
        if args.grad_bias_ih is not None:
            args.grad_bias_ih += dx_share.sum(axis=0)
        if args.grad_bias_hh is not None:
            args.grad_bias_hh += dh_share.sum(axis=0)
        if reset is not None:
            if fwd.resets is not None and fwd.resets.initial:
                dh_reset[rows] += np.where(reset, dh, 0)
                dc_reset[rows] += np.where(reset, dc, 0)
            dh, dc = np.where(reset, 0, dh), np.where(reset, 0, dc)
        dh_all[rows], dc_all[rows] = dh, dc
    args.grad_h0[...] = dh_all + dh_reset
    if args.grad_c0 is not None:
        args.grad_c0[...] = dc_all + dc_reset
