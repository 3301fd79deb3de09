"""The cell equations, elementwise, in plain operators.

They stand here and in csrc/kernels/cells.h, same names, same order, and nowhere else. `tanh`, `relu` and `sigmoid` are
arguments, so that NumPy arrays, scalars under a compiler and other libraries' arrays all run the same lines.

a_* is a pre-activation: projected input plus recurrent product plus biases. d_* is the gradient of the loss with
respect to *.
"""

from __future__ import annotations

from typing import Any

# RNN, h' = tanh(a) or relu(a) (Elman, "Finding Structure in Time", Cognitive Science 14, 1990).


def rnn_tanh_forward(a: Any, tanh: Any) -> Any:
    return tanh(a)


def rnn_tanh_backward(h: Any, dh: Any) -> Any:
    return dh * (1 - h * h)


def rnn_relu_forward(a: Any, relu: Any) -> Any:
    return relu(a)


def rnn_relu_backward(h: Any, dh: Any) -> Any:
    return dh * (h > 0)


# LSTM with forget gate (Gers, Schmidhuber, Cummins, "Learning to Forget", Neural Computation 12, 2000).


def lstm_forward(a_i: Any, a_f: Any, a_g: Any, a_o: Any, c_prev: Any, tanh: Any, sigmoid: Any) -> Any:
    i = sigmoid(a_i)
    f = sigmoid(a_f)
    g = tanh(a_g)
    o = sigmoid(a_o)
    c = f * c_prev + i * g
    h = o * tanh(c)
    return i, f, g, o, c, h


def lstm_backward(i: Any, f: Any, g: Any, o: Any, c_prev: Any, c: Any, dh: Any, dc: Any, tanh: Any) -> Any:
    tanh_c = tanh(c)
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    da_i = dc * g * (i * (1 - i))
    da_f = dc * c_prev * (f * (1 - f))
    da_g = dc * i * (1 - g * g)
    da_o = dh * tanh_c * (o * (1 - o))
    dc_prev = dc * f
    return da_i, da_f, da_g, da_o, dc_prev


# GRU, reset after the product (Cho et al., "Learning Phrase Representations", 2014, in the form of cuDNN and PyTorch):
# q is h's share of gate n, W_hn h + b_hn, and r multiplies it alone.


def gru_forward(a_r: Any, a_z: Any, x_n: Any, q: Any, h_prev: Any, tanh: Any, sigmoid: Any) -> Any:
    r = sigmoid(a_r)
    z = sigmoid(a_z)
    n = tanh(x_n + r * q)
    h = n + z * (h_prev - n)
    return r, z, n, h


def gru_backward(r: Any, z: Any, n: Any, q: Any, h_prev: Any, dh: Any) -> Any:
    dx_n = dh * (1 - z) * (1 - n * n)
    dq = dx_n * r
    da_r = dx_n * q * (r * (1 - r))
    da_z = dh * (h_prev - n) * (z * (1 - z))
    dh_prev = dh * z
    return da_r, da_z, dx_n, dq, dh_prev


# GRU, reset before the product (Cho et al., 2014, as printed; ONNX's default): gate n multiplies reset_h = r * h_prev,
# so that a step takes two products, the second when r of every unit is known. a_n holds both biases.


def gru_reset_before_gates(a_r: Any, a_z: Any, h_prev: Any, sigmoid: Any) -> Any:
    r = sigmoid(a_r)
    z = sigmoid(a_z)
    reset_h = r * h_prev
    return r, z, reset_h


def gru_reset_before_forward(a_n: Any, z: Any, h_prev: Any, tanh: Any) -> Any:
    n = tanh(a_n)
    h = n + z * (h_prev - n)
    return n, h


def gru_reset_before_backward(z: Any, n: Any, h_prev: Any, dh: Any) -> Any:
    da_z = dh * (h_prev - n) * (z * (1 - z))
    da_n = dh * (1 - z) * (1 - n * n)
    dh_prev = dh * z
    return da_z, da_n, dh_prev


def gru_reset_before_backward_reset(r: Any, h_prev: Any, dreset_h: Any, dh_prev: Any) -> Any:
    da_r = dreset_h * h_prev * (r * (1 - r))
    dh_prev = dh_prev + dreset_h * r
    return da_r, dh_prev
