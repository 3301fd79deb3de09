"""The cell equations, elementwise, in plain operators.

They stand here and in csrc/kernels/cells.h, same names, same order, and nowhere else. `tanh`, `relu` and `sigmoid` are
arguments, so that NumPy arrays, scalars under a compiler and other libraries' arrays all run the same lines.

a_* is a pre-activation: projected input plus recurrent product plus biases. d_* is the gradient of the loss with
respect to *.

`STEPS` has a whole step of each cell, forward and backward, for any library's arrays. Who calls them splits arrays by
gates, in PyTorch's order, and does the products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


# LSTM with projection (Sak, Senior, Beaufays, "Long Short-Term Memory Based Recurrent Neural Network Architectures",
# 2014, without the non-recurrent projection): the h above is m, and h' = W_hr m. It has no equations of its own.


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


def gru_reset_before_gates(a_r: Any, a_z: Any, operand: Any, sigmoid: Any) -> Any:
    r = sigmoid(a_r)
    z = sigmoid(a_z)
    reset_h = r * operand
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


def gru_reset_before_backward_reset(r: Any, operand: Any, dreset_h: Any) -> Any:
    da_r = dreset_h * operand * (r * (1 - r))
    d_operand = dreset_h * r
    return da_r, d_operand


# Steps.


class Functions(NamedTuple):
    """A library's elementwise functions."""

    tanh: Any
    sigmoid: Any
    relu: Any


# product(operand, stage): an operand times the weights of a stage, and their bias, by gate.
Product = Callable[[Any, int], Sequence[Any]]
# product_back(da, stage): the gradient of that product's operand, from those of its gates.
ProductBack = Callable[[Sequence[Any], int], Any]


class State(NamedTuple):
    """What a step gives: saved arrays, in the order in which training saves them, and the new state."""

    saved: Sequence[Any]
    h: Any
    c: Any = None  # of an LSTM


class Given(NamedTuple):
    """What backward knows of a step."""

    saved: Sequence[Any]
    h: Any
    h_prev: Any
    operand: Any  # h_prev as the first stage multiplies it
    c: Any
    c_prev: Any


class Gradients(NamedTuple):
    """What backward of a step gives."""

    x: Sequence[Any]  # of the projected input, by gate
    stages: Sequence[tuple[Any, Sequence[Any]]]  # of every product: its operand, and the gradients of its gates
    h_prev: Any  # what reaches the state before without passing a product,
    operand: Any = 0  # and what reaches it through the operand of the first one
    c_prev: Any = None


class Step(NamedTuple):
    """A step of a cell: forward(x, product, h_prev, operand, c_prev, functions) with the projected input by gate, and
    backward(given, dh, dc, product_back, functions). `operand` is h_prev as the first stage multiplies it.
    """

    forward: Callable[[Sequence[Any], Product, Any, Any, Any, Functions], State]
    backward: Callable[[Given, Any, Any, ProductBack, Functions], Gradients]


def _rnn_tanh(x: Any, product: Product, h_prev: Any, operand: Any, c_prev: Any, functions: Functions) -> State:
    return State((), rnn_tanh_forward(x[0] + product(operand, 0)[0], functions.tanh))


def _rnn_tanh_back(given: Given, dh: Any, dc: Any, product_back: ProductBack, functions: Functions) -> Gradients:
    da = [rnn_tanh_backward(given.h, dh)]
    return Gradients(da, [(given.operand, da)], 0)


def _rnn_relu(x: Any, product: Product, h_prev: Any, operand: Any, c_prev: Any, functions: Functions) -> State:
    return State((), rnn_relu_forward(x[0] + product(operand, 0)[0], functions.relu))


def _rnn_relu_back(given: Given, dh: Any, dc: Any, product_back: ProductBack, functions: Functions) -> Gradients:
    da = [rnn_relu_backward(given.h, dh)]
    return Gradients(da, [(given.operand, da)], 0)


def _lstm(x: Any, product: Product, h_prev: Any, operand: Any, c_prev: Any, functions: Functions) -> State:
    a_i, a_f, a_g, a_o = (of_x + of_h for of_x, of_h in zip(x, product(operand, 0), strict=True))
    i, f, g, o, c, h = lstm_forward(a_i, a_f, a_g, a_o, c_prev, functions.tanh, functions.sigmoid)
    return State((i, f, g, o), h, c)


def _lstm_back(given: Given, dh: Any, dc: Any, product_back: ProductBack, functions: Functions) -> Gradients:
    i, f, g, o = given.saved
    *da, dc_prev = lstm_backward(i, f, g, o, given.c_prev, given.c, dh, dc, functions.tanh)
    return Gradients(da, [(given.operand, da)], 0, c_prev=dc_prev)


def _gru(x: Any, product: Product, h_prev: Any, operand: Any, c_prev: Any, functions: Functions) -> State:
    h_r, h_z, q = product(operand, 0)
    r, z, n, h = gru_forward(x[0] + h_r, x[1] + h_z, x[2], q, h_prev, functions.tanh, functions.sigmoid)
    return State((r, z, n, q), h)


def _gru_back(given: Given, dh: Any, dc: Any, product_back: ProductBack, functions: Functions) -> Gradients:
    r, z, n, q = given.saved
    da_r, da_z, dx_n, dq, dh_prev = gru_backward(r, z, n, q, given.h_prev, dh)
    return Gradients([da_r, da_z, dx_n], [(given.operand, [da_r, da_z, dq])], dh_prev)


def _gru_reset_before(x: Any, product: Product, h_prev: Any, operand: Any, c_prev: Any, functions: Functions) -> State:
    h_r, h_z = product(operand, 0)
    r, z, reset_h = gru_reset_before_gates(x[0] + h_r, x[1] + h_z, operand, functions.sigmoid)
    n, h = gru_reset_before_forward(x[2] + product(reset_h, 1)[0], z, h_prev, functions.tanh)
    return State((r, z, n), h)


def _gru_reset_before_back(
    given: Given, dh: Any, dc: Any, product_back: ProductBack, functions: Functions
) -> Gradients:
    r, z, n = given.saved
    da_z, da_n, dh_prev = gru_reset_before_backward(z, n, given.h_prev, dh)
    da_r, d_operand = gru_reset_before_backward_reset(r, given.operand, product_back([da_n], 1))
    stages = [(given.operand, [da_r, da_z]), (r * given.operand, [da_n])]
    return Gradients([da_r, da_z, da_n], stages, dh_prev, d_operand)


def _lstm_projected(x: Any, product: Product, h_prev: Any, operand: Any, c_prev: Any, functions: Functions) -> State:
    saved, m, c = _lstm(x, product, h_prev, operand, c_prev, functions)
    return State(saved, product(m, 1)[0], c)


def _lstm_projected_back(given: Given, dh: Any, dc: Any, product_back: ProductBack, functions: Functions) -> Gradients:
    found = _lstm_back(given, product_back([dh], 1), dc, product_back, functions)
    m = given.saved[3] * functions.tanh(given.c)
    return found._replace(stages=[*found.stages, (m, [dh])])


STEPS = {
    "rnn_tanh": Step(_rnn_tanh, _rnn_tanh_back),
    "rnn_relu": Step(_rnn_relu, _rnn_relu_back),
    "lstm": Step(_lstm, _lstm_back),
    "gru": Step(_gru, _gru_back),
    "gru_reset_before": Step(_gru_reset_before, _gru_reset_before_back),
    "lstm_projected": Step(_lstm_projected, _lstm_projected_back),
}
