"""Fused vanilla-RNN, LSTM and GRU kernels for CPUs: forward and backpropagation through time."""

from importlib.metadata import version as _version

from ._backend import Info, active, get_num_threads, info, set_num_threads
from ._contract import Gradients, LSTMGradients
from .functional import clip_grad_norm_, gru, gru_vjp, lstm, lstm_vjp, rnn, rnn_vjp
from .layers import GRU, LSTM, RNN, LayerGradients

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Gradients",
    "Info",
    "LSTMGradients",
    "LayerGradients",
    "clip_grad_norm_",
    "get_num_threads",
    "gru",
    "gru_vjp",
    "info",
    "lstm",
    "lstm_vjp",
    "rnn",
    "rnn_vjp",
    "set_num_threads",
]

__version__ = _version("hotloop")

active()  # chosen now, so that a fallback warns at import and not in the middle of a run
del active
