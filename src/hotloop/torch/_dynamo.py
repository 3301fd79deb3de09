"""torch.compile and these layers.

Dynamo, which reads the code that torch.compile is given, breaks the graph at every torch.nn.RNN, LSTM and GRU and their
subclasses, unless its option `allow_rnn` is set; then it takes torch's own layers apart as well, step by step, which
for a long sequence takes minutes. So the option is set for our layers alone, while dynamo looks at one. Dynamo is
loaded when something is compiled, which takes longer than loading torch: it is not loaded for this.
"""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType
from typing import Any

from .._core.checks import check_flag
from ._imports import when_loaded

_BUILDER = "torch._dynamo.variables.builder"

_allowed = True


def allow_in_compile(allow: bool = True) -> None:
    """Whether torch.compile takes hotloop's layers into its graphs; it does unless it is told otherwise.

    Without, it breaks the graph at every layer, as it does at torch's own layers, and calls the layer as it is;
    `fullgraph=True` is then an error. What has been compiled stays as it is.

    Parameters
    ----------
    allow : bool

    Raises
    ------
    TypeError
        `allow` is neither True nor False.

    Examples
    --------
    >>> import hotloop.torch
    >>> hotloop.torch.allow_in_compile(False)
    >>> hotloop.torch.allow_in_compile()
    """
    global _allowed
    _allowed = check_flag("allow", allow)


def watch(kind: type) -> None:
    """Let dynamo, now or when it is loaded, take instances of `kind`."""
    when_loaded(_BUILDER, partial(_patch, kind))


def _patch(kind: type, module: ModuleType) -> None:
    builder: Any = getattr(module, "VariableBuilder", None)
    wrap = getattr(builder, "wrap_module", None)
    if wrap is None:  # another version: the graph breaks
        return

    def wrap_module(self: Any, value: Any) -> Any:
        if not (_allowed and isinstance(value, kind)):
            return wrap(self, value)
        with importlib.import_module("torch._dynamo.config").patch(allow_rnn=True):
            return wrap(self, value)

    builder.wrap_module = wrap_module
