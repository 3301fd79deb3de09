"""What the numba backend compiles: the time loops, the product of a step, sigmoid and tanh.

Every function here is compiled for this processor and one dtype at its first use; nothing is when the module is
imported. The cell equations are those of `cells`. Arrays are C-contiguous and writeable, so that one signature a dtype
is all there is to compile. LLVM vectorises the loops over j (units), whose pointers it compares once a loop.

t is a step's place in memory, which `reverse` turns around. A row of pre-activations [A, H] holds the gates of the cell
in the contract's order; GRU has q in the fourth place.
"""

from __future__ import annotations

import inspect
import threading
import zlib
from typing import Any

import numpy as np
from numba import from_dtype, njit, types
from numba.extending import intrinsic, overload

from . import cells

# Nothing is assumed of NaN, infinities and the order of sums.
OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
_IN_LOOP = OPTIONS | {"forceinline": True}
_OUTER = OPTIONS | {"nogil": True, "no_cfunc_wrapper": True}


def _inner(function: Any, options: dict[str, Any] = OPTIONS) -> Any:
    """Let the functions here call this one, and pass it to each other as an argument.

    What numba compiles could not be kept on disk if it passed a function that is decorated with njit.
    """
    overload(function, strict=False, jit_options=options)(lambda *_: function)
    return function


def _in_loop(function: Any) -> Any:
    """The same for what is called in a loop. If LLVM left a call in a loop over units, that would not be vectorised."""
    return _inner(function, _IN_LOOP)


rnn_tanh_forward = _in_loop(cells.rnn_tanh_forward)
rnn_tanh_backward = _in_loop(cells.rnn_tanh_backward)
rnn_relu_forward = _in_loop(cells.rnn_relu_forward)
rnn_relu_backward = _in_loop(cells.rnn_relu_backward)
lstm_forward = _in_loop(cells.lstm_forward)
lstm_backward = _in_loop(cells.lstm_backward)
gru_forward = _in_loop(cells.gru_forward)
gru_backward = _in_loop(cells.gru_backward)
gru_reset_before_gates = _in_loop(cells.gru_reset_before_gates)
gru_reset_before_forward = _in_loop(cells.gru_reset_before_forward)
gru_reset_before_backward = _in_loop(cells.gru_reset_before_backward)
gru_reset_before_backward_reset = _in_loop(cells.gru_reset_before_backward_reset)


# sigmoid and tanh, as in csrc/kernels/math.h: both from one expm1 on the negative axis. Calls into libm would keep LLVM
# from vectorising. The constants are printed by tools/exp_coefficients.py.


@intrinsic  # type: ignore[untyped-decorator]
def _power_of_two(context: Any, shifted: Any) -> Any:
    """2^n of n + 1.5 * 2^mantissa, whose low bits are n."""
    bits, mantissa, one = (32, 23, 127 << 23) if shifted == types.float32 else (64, 52, 1023 << 52)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from llvmlite import ir

        integer = ir.IntType(bits)
        n = builder.shl(builder.bitcast(arguments[0], integer), ir.Constant(integer, mantissa))
        return builder.bitcast(builder.add(n, ir.Constant(integer, one)), arguments[0].type)

    return shifted(shifted), generate


def _exp_parts(z: Any) -> Any:
    """Return p and scale with exp(z) = scale * (1 + p), for z <= 0."""
    raise NotImplementedError


@overload(_exp_parts, jit_options=_IN_LOOP)  # type: ignore[untyped-decorator]
def _exp_parts_of(z: Any) -> Any:
    real: Any = np.float32 if z == types.float32 else np.float64
    if z == types.float32:
        log2e, ln2_high, ln2_low = real(1.44269504), real(float.fromhex("0x1.62e4p-1")), real(1.42860682e-6)
        to_round, lowest = real(12582912.0), real(-88.0)
        q0, q1, q2, q3, q4 = map(real, (0.5, 0.16666577, 0.0416665547, 0.00836317307, 0.00139261761))

        def q(r: Any) -> Any:
            return q0 + r * (q1 + r * (q2 + r * (q3 + r * q4)))

    else:
        log2e, ln2_high, ln2_low = 1.4426950408889634, float.fromhex("0x1.62e42fefa38p-1"), 5.4979230187083712e-14
        to_round, lowest = 6755399441055744.0, -709.0
        q0, q1, q2, q3, q4 = (
            0.5000000000000001, 0.16666666666666667, 0.041666666666624162, 0.0083333333333300644,
            0.0013888888917196719,
        )  # fmt: skip
        q5, q6, q7, q8, q9 = (
            0.00019841269863040545, 2.4801521322368693e-5, 2.7557268480310026e-6, 2.7620075879983367e-7,
            2.5100375832561234e-8,
        )  # fmt: skip

        def q(r: Any) -> Any:
            high = q5 + r * (q6 + r * (q7 + r * (q8 + r * q9)))
            return q0 + r * (q1 + r * (q2 + r * (q3 + r * (q4 + r * high))))

    _in_loop(q)

    def parts(z: Any) -> Any:
        z = lowest if z < lowest else z  # NaN stays
        shifted = z * log2e + to_round
        n = shifted - to_round
        r = z - n * ln2_high - n * ln2_low
        return r + r * r * q(r), _power_of_two(shifted)

    return parts


@_in_loop
def sigmoid(a: Any) -> Any:
    one = type(a)(1)
    p, scale = _exp_parts(-abs(a))
    e = p * scale + scale
    return (e if a < 0 else one) / (one + e)


@_in_loop
def tanh(a: Any) -> Any:
    zero, one = type(a)(0), type(a)(1)
    p, scale = _exp_parts(-abs(a + a))
    u = p * scale + (scale - one)
    size = (zero - u) / (one + one + u)  # -u of tanh(0) would be -0
    return -size if a < zero else size


@_in_loop
def relu(a: Any) -> Any:
    zero = type(a)(0)
    return zero if a < zero else a  # NaN stays


@intrinsic  # type: ignore[untyped-decorator]
def _row(context: Any, b: Any) -> Any:
    """b, but LLVM does not see it: it would compare the pointers of a loop over j as far as all rows reach, find that
    the gates of many rows lie between each other, and take the loop that is not vectorised. LSTM of 128 units: 16 us
    instead of 1.5 for the elementwise part of 8 rows.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from llvmlite import ir

        kind = arguments[0].type
        return builder.asm(ir.FunctionType(kind, [kind]), "", "=r,0", arguments, side_effect=True)

    return b(b), generate


# The product of a step.


@_in_loop
def add_product(
    out: Any, out_column: int, left: Any, left_column: int, right: Any, row: int, column: int, depth: int, width: int
) -> None:
    """out[:, out_column:][:, :width] += left[:, left_column:][:, :depth] @ right[row:, column:][:depth, :width].

    Four rows and four steps of k at a time: 16 multiply-adds for 4 loads and stores of `out` and 4 loads of `right`.
    At B=8 H=128 that is 1.5 to 2.5 times as fast as OpenBLAS.
    """
    if out_column < 0 or left_column < 0 or row < 0 or column < 0:
        return  # never; it tells LLVM that indices do not wrap around
    rows = out.shape[0]
    rows_by_4 = rows // 4 * 4
    depth_by_4 = depth // 4 * 4
    for i in range(0, rows_by_4, 4):
        for k in range(0, depth_by_4, 4):
            x = left_column + k
            y = row + k
            a00, a01, a02, a03 = left[i, x], left[i, x + 1], left[i, x + 2], left[i, x + 3]
            a10, a11, a12, a13 = left[i + 1, x], left[i + 1, x + 1], left[i + 1, x + 2], left[i + 1, x + 3]
            a20, a21, a22, a23 = left[i + 2, x], left[i + 2, x + 1], left[i + 2, x + 2], left[i + 2, x + 3]
            a30, a31, a32, a33 = left[i + 3, x], left[i + 3, x + 1], left[i + 3, x + 2], left[i + 3, x + 3]
            for j in range(width):
                v = column + j
                u = out_column + j
                r0, r1, r2, r3 = right[y, v], right[y + 1, v], right[y + 2, v], right[y + 3, v]
                out[i, u] = out[i, u] + a00 * r0 + a01 * r1 + a02 * r2 + a03 * r3
                out[i + 1, u] = out[i + 1, u] + a10 * r0 + a11 * r1 + a12 * r2 + a13 * r3
                out[i + 2, u] = out[i + 2, u] + a20 * r0 + a21 * r1 + a22 * r2 + a23 * r3
                out[i + 3, u] = out[i + 3, u] + a30 * r0 + a31 * r1 + a32 * r2 + a33 * r3
    for i in range(rows_by_4, rows):
        for k in range(0, depth_by_4, 4):
            x = left_column + k
            y = row + k
            a0, a1, a2, a3 = left[i, x], left[i, x + 1], left[i, x + 2], left[i, x + 3]
            for j in range(width):
                v = column + j
                u = out_column + j
                out[i, u] = (
                    out[i, u] + a0 * right[y, v] + a1 * right[y + 1, v] + a2 * right[y + 2, v] + a3 * right[y + 3, v]
                )
    for i in range(rows):
        for k in range(depth_by_4, depth):
            a = left[i, left_column + k]
            for j in range(width):
                out[i, out_column + j] += a * right[row + k, column + j]


# Forward. A step finds in row t of `a` (and of `flat`, the same memory) the projected input and the biases, adds h's
# share, and leaves there what backward needs.


@_inner
def _forward(
    step: Any, a: Any, flat: Any, weight: Any, h0: Any, c0: Any, h: Any, c: Any, reset_h: Any, reverse: int, keep: int
) -> None:  # fmt: skip
    """All steps of a chunk. `c` has a place for every step where they are to be kept, or else two that take turns."""
    seq_len = h.shape[0]
    h_prev = h0
    c_prev = c0
    for number in range(seq_len):
        t = seq_len - 1 - number if reverse else number
        place = t if keep else number % 2
        h_now = h[t]
        c_now = c[place]
        step(a[t], flat[t], weight, h_prev, c_prev, h_now, c_now, reset_h)
        h_prev = h_now
        c_prev = c_now


@_in_loop
def _rnn_tanh_step(a: Any, flat: Any, weight: Any, h_prev: Any, c_prev: Any, h: Any, c: Any, reset_h: Any) -> None:
    batch_size, units = h.shape
    add_product(flat, 0, h_prev, 0, weight, 0, 0, units, units)
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            h[b, j] = rnn_tanh_forward(flat[b, j], tanh)


@_in_loop
def _rnn_relu_step(a: Any, flat: Any, weight: Any, h_prev: Any, c_prev: Any, h: Any, c: Any, reset_h: Any) -> None:
    batch_size, units = h.shape
    add_product(flat, 0, h_prev, 0, weight, 0, 0, units, units)
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            h[b, j] = rnn_relu_forward(flat[b, j], relu)


@_in_loop
def _lstm_step(a: Any, flat: Any, weight: Any, h_prev: Any, c_prev: Any, h: Any, c: Any, reset_h: Any) -> None:
    batch_size, units = h.shape
    add_product(flat, 0, h_prev, 0, weight, 0, 0, units, 4 * units)
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            i, f, g, o, c[b, j], h[b, j] = lstm_forward(
                a[b, 0, j], a[b, 1, j], a[b, 2, j], a[b, 3, j], c_prev[b, j], tanh, sigmoid
            )
            a[b, 0, j], a[b, 1, j], a[b, 2, j], a[b, 3, j] = i, f, g, o


@_in_loop
def _gru_step(a: Any, flat: Any, weight: Any, h_prev: Any, c_prev: Any, h: Any, c: Any, reset_h: Any) -> None:
    batch_size, units = h.shape
    add_product(flat, 0, h_prev, 0, weight, 0, 0, units, 2 * units)
    add_product(flat, 3 * units, h_prev, 0, weight, 0, 2 * units, units, units)
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            r, z, n, h[b, j] = gru_forward(
                a[b, 0, j], a[b, 1, j], a[b, 2, j], a[b, 3, j], h_prev[b, j], tanh, sigmoid
            )  # fmt: skip
            a[b, 0, j], a[b, 1, j], a[b, 2, j] = r, z, n


@_in_loop
def _gru_reset_before_step(
    a: Any, flat: Any, weight: Any, h_prev: Any, c_prev: Any, h: Any, c: Any, reset_h: Any
) -> None:
    batch_size, units = h.shape
    add_product(flat, 0, h_prev, 0, weight, 0, 0, units, 2 * units)
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            a[b, 0, j], a[b, 1, j], reset_h[b, j] = gru_reset_before_gates(
                a[b, 0, j], a[b, 1, j], h_prev[b, j], sigmoid
            )
    add_product(flat, 2 * units, reset_h, 0, weight, 0, 2 * units, units, units)
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            a[b, 2, j], h[b, j] = gru_reset_before_forward(a[b, 2, j], a[b, 1, j], h_prev[b, j], tanh)


# Backward. A step finds in dh (and dc) the gradient of h after it, leaves there that of h before it, and in row t of
# `d` (and of `flat`, the same memory) the gradients of the pre-activations.


@_inner
def _backward(
    step: Any, gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, grad_output: Any,
    grad_c: Any, dh: Any, dc: Any, reset_h: Any, dreset_h: Any, reverse: int,
) -> None:  # fmt: skip
    """All steps of a chunk, the last one first. `grad_output` and `grad_c` may have no step: then they are zero."""
    seq_len, batch_size, units = h.shape
    for number in range(seq_len):
        t = number if reverse else seq_len - 1 - number
        if grad_output.shape[0]:
            for b in range(batch_size):
                for j in range(units):
                    dh[b, j] += grad_output[t, b, j]
        if grad_c.shape[0]:
            for b in range(batch_size):
                for j in range(units):
                    dc[b, j] += grad_c[t, b, j]
        step(t, gates, d, flat[t], weight, h_prev, h, c_prev, c, dh, dc, reset_h, dreset_h)


@_in_loop
def _rnn_tanh_back(
    t: int, gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, dh: Any, dc: Any,
    reset_h: Any, dreset_h: Any,
) -> None:  # fmt: skip
    batch_size, units = dh.shape
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            flat[b, j] = rnn_tanh_backward(h[t, b, j], dh[b, j])
            dh[b, j] = 0
    add_product(dh, 0, flat, 0, weight, 0, 0, units, units)


@_in_loop
def _rnn_relu_back(
    t: int, gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, dh: Any, dc: Any,
    reset_h: Any, dreset_h: Any,
) -> None:  # fmt: skip
    batch_size, units = dh.shape
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            flat[b, j] = rnn_relu_backward(h[t, b, j], dh[b, j])
            dh[b, j] = 0
    add_product(dh, 0, flat, 0, weight, 0, 0, units, units)


@_in_loop
def _lstm_back(
    t: int, gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, dh: Any, dc: Any,
    reset_h: Any, dreset_h: Any,
) -> None:  # fmt: skip
    batch_size, units = dh.shape
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            d[t, b, 0, j], d[t, b, 1, j], d[t, b, 2, j], d[t, b, 3, j], dc[b, j] = lstm_backward(
                gates[t, b, 0, j], gates[t, b, 1, j], gates[t, b, 2, j], gates[t, b, 3, j],
                c_prev[t, b, j], c[t, b, j], dh[b, j], dc[b, j], tanh,
            )  # fmt: skip
            dh[b, j] = 0
    add_product(dh, 0, flat, 0, weight, 0, 0, 4 * units, units)


@_in_loop
def _gru_back(
    t: int, gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, dh: Any, dc: Any,
    reset_h: Any, dreset_h: Any,
) -> None:  # fmt: skip
    batch_size, units = dh.shape
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            d[t, b, 0, j], d[t, b, 1, j], d[t, b, 2, j], d[t, b, 3, j], dh[b, j] = gru_backward(
                gates[t, b, 0, j], gates[t, b, 1, j], gates[t, b, 2, j], gates[t, b, 3, j], h_prev[t, b, j], dh[b, j]
            )
    add_product(dh, 0, flat, 0, weight, 0, 0, 2 * units, units)
    add_product(dh, 0, flat, 3 * units, weight, 2 * units, 0, units, units)


@_in_loop
def _gru_reset_before_back(
    t: int, gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, dh: Any, dc: Any,
    reset_h: Any, dreset_h: Any,
) -> None:  # fmt: skip
    batch_size, units = dh.shape
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            d[t, b, 1, j], d[t, b, 2, j], dh[b, j] = gru_reset_before_backward(
                gates[t, b, 1, j], gates[t, b, 2, j], h_prev[t, b, j], dh[b, j]
            )
            dreset_h[b, j] = 0
    add_product(dreset_h, 0, flat, 2 * units, weight, 2 * units, 0, units, units)
    for row in range(batch_size):
        b = _row(row)
        for j in range(units):
            reset_h[t, b, j] = gates[t, b, 0, j] * h_prev[t, b, j]
            d[t, b, 0, j], d_operand = gru_reset_before_backward_reset(
                gates[t, b, 0, j], h_prev[t, b, j], dreset_h[b, j]
            )
            dh[b, j] += d_operand
    add_product(dh, 0, flat, 0, weight, 0, 0, 2 * units, units)


# What is compiled and called, one function each, for numba to keep on disk. Every argument is written out, since numba
# takes no *arguments with a signature. It names the files after the function and takes them for current as long as this
# file is the same, so the name says what `cells` is too.


def forward_rnn_tanh(
    a: Any, flat: Any, weight: Any, h0: Any, c0: Any, h: Any, c: Any, reset_h: Any, reverse: int, keep: int
) -> None:  # fmt: skip
    _forward(_rnn_tanh_step, a, flat, weight, h0, c0, h, c, reset_h, reverse, keep)


def backward_rnn_tanh(
    gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, grad_output: Any, grad_c: Any,
    dh: Any, dc: Any, reset_h: Any, dreset_h: Any, reverse: int,
) -> None:  # fmt: skip
    _backward(
        _rnn_tanh_back, gates, d, flat, weight, h_prev, h, c_prev, c, grad_output, grad_c, dh, dc, reset_h, dreset_h,
        reverse,
    )  # fmt: skip


def forward_rnn_relu(
    a: Any, flat: Any, weight: Any, h0: Any, c0: Any, h: Any, c: Any, reset_h: Any, reverse: int, keep: int
) -> None:  # fmt: skip
    _forward(_rnn_relu_step, a, flat, weight, h0, c0, h, c, reset_h, reverse, keep)


def backward_rnn_relu(
    gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, grad_output: Any, grad_c: Any,
    dh: Any, dc: Any, reset_h: Any, dreset_h: Any, reverse: int,
) -> None:  # fmt: skip
    _backward(
        _rnn_relu_back, gates, d, flat, weight, h_prev, h, c_prev, c, grad_output, grad_c, dh, dc, reset_h, dreset_h,
        reverse,
    )  # fmt: skip


def forward_lstm(
    a: Any, flat: Any, weight: Any, h0: Any, c0: Any, h: Any, c: Any, reset_h: Any, reverse: int, keep: int
) -> None:  # fmt: skip
    _forward(_lstm_step, a, flat, weight, h0, c0, h, c, reset_h, reverse, keep)


def backward_lstm(
    gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, grad_output: Any, grad_c: Any,
    dh: Any, dc: Any, reset_h: Any, dreset_h: Any, reverse: int,
) -> None:  # fmt: skip
    _backward(
        _lstm_back, gates, d, flat, weight, h_prev, h, c_prev, c, grad_output, grad_c, dh, dc, reset_h, dreset_h,
        reverse,
    )  # fmt: skip


def forward_gru(
    a: Any, flat: Any, weight: Any, h0: Any, c0: Any, h: Any, c: Any, reset_h: Any, reverse: int, keep: int
) -> None:  # fmt: skip
    _forward(_gru_step, a, flat, weight, h0, c0, h, c, reset_h, reverse, keep)


def backward_gru(
    gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, grad_output: Any, grad_c: Any,
    dh: Any, dc: Any, reset_h: Any, dreset_h: Any, reverse: int,
) -> None:  # fmt: skip
    _backward(
        _gru_back, gates, d, flat, weight, h_prev, h, c_prev, c, grad_output, grad_c, dh, dc, reset_h, dreset_h,
        reverse,
    )  # fmt: skip


def forward_gru_reset_before(
    a: Any, flat: Any, weight: Any, h0: Any, c0: Any, h: Any, c: Any, reset_h: Any, reverse: int, keep: int
) -> None:  # fmt: skip
    _forward(_gru_reset_before_step, a, flat, weight, h0, c0, h, c, reset_h, reverse, keep)


def backward_gru_reset_before(
    gates: Any, d: Any, flat: Any, weight: Any, h_prev: Any, h: Any, c_prev: Any, c: Any, grad_output: Any, grad_c: Any,
    dh: Any, dc: Any, reset_h: Any, dreset_h: Any, reverse: int,
) -> None:  # fmt: skip
    _backward(
        _gru_reset_before_back, gates, d, flat, weight, h_prev, h, c_prev, c, grad_output, grad_c, dh, dc, reset_h,
        dreset_h, reverse,
    )  # fmt: skip


_FORWARD_DIMENSIONS = (4, 3, 2, 2, 2, 3, 3, 2)
_BACKWARD_DIMENSIONS = (4, 4, 3, 2, 3, 3, 3, 3, 3, 3, 2, 2, 3, 2)
_lock = threading.Lock()
_compiled: dict[tuple[str, np.dtype[Any]], Any] = {}


def kernel(name: str, dtype: np.dtype[Any]) -> Any:
    """`forward_lstm` and its like, compiled for a dtype (or loaded from disk) at the first call."""
    try:
        return _compiled[name, dtype]
    except KeyError:
        pass
    with _lock:
        if (name, dtype) not in _compiled:
            dimensions = _FORWARD_DIMENSIONS if name.startswith("forward") else _BACKWARD_DIMENSIONS
            flags = [types.intp] * (2 if name.startswith("forward") else 1)
            arrays = [types.Array(from_dtype(dtype), n, "C") for n in dimensions]
            _compiled[name, dtype] = _compile(globals()[name], types.void(*arrays, *flags))
    return _compiled[name, dtype]


def _compile(function: Any, signature: Any) -> Any:
    """With the machine code kept on disk where that can be: numba raises where no folder is writable, or it is full."""
    try:
        source = inspect.getsource(cells)
        function.__qualname__ = f"{function.__name__}_{zlib.crc32(source.encode()):08x}"
        return njit(signature, cache=True, **_OUTER)(function)
    except Exception:  # an error that has nothing to do with the disk comes again
        return njit(signature, **_OUTER)(function)
