"""torch.compile and these layers.

Dynamo, which reads the code that torch.compile is given, breaks the graph at every torch.nn.RNN, LSTM and GRU and their
subclasses, unless its option `allow_rnn` is set; then it takes torch's own layers apart as well, step by step, which
for a long sequence takes minutes. So the option is set for our layers alone, while dynamo looks at one. Dynamo is
loaded when something is compiled, which takes longer than loading torch: it is not loaded for this.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from .._contract import check_flag

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
    if _BUILDER in sys.modules:
        _patch(sys.modules[_BUILDER], kind)
    else:
        sys.meta_path.insert(0, _Finder(kind))


def _patch(module: ModuleType, kind: type) -> None:
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


class _Finder(MetaPathFinder):
    """Finds the module as others do, once, and has it patched when it has run."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != _BUILDER:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._kind)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader, kind: type) -> None:
        self._loader, self._kind = loader, kind

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _patch(module, self._kind)
