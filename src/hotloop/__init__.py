"""Fused vanilla-RNN, LSTM and GRU kernels for CPUs: forward and backpropagation through time."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from ._backends.choice import Info, choose, info
from ._core.settings import get_num_threads, set_num_threads
from ._core.types import Gradients, LSTMGradients
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

__version__: str

if not _TYPE_CHECKING:  # else every name would seem to be there

    def __getattr__(name: str) -> str:
        """`__version__`, looked up when asked for: importlib.metadata is two thirds of the time of an import."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ._backends.choice import version

        return version()


choose()  # now, so that a fallback warns at import and not in the middle of a run
del choose
