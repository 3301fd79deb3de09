"""Tools of torch's that know classes by their type: they take these layers for torch's own.

Quantization, pruning and the numeric suite ask `torch.nn.utils.parametrize.type_before_parametrizations`, fx asks
whether a module is a leaf, torch.jit.script compiles the class, the counter of FLOPs looks ops up in a table.
"""

from __future__ import annotations

import sys
import warnings
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch.jit import TracerWarning  # type: ignore[attr-defined]
from torch.nn.utils import parametrize

from ._imports import when_loaded
from ._modules import _Recurrent
from ._shapes import sizes
from ._swap import theirs_of


def adapt() -> None:
    """Let the tools know, those that are loaded and those that will be."""
    _adapt_type_before_parametrizations()
    _adapt_quantization()
    _adapt_fx()
    _adapt_script()
    # As torch does for its own modules: the checks that torch.jit.trace leaves behind are made by the ops again.
    warnings.filterwarnings("ignore", category=TracerWarning, module=r"hotloop\.torch\.")
    when_loaded("torch.utils.flop_counter", _count_flops)
    when_loaded("torch.ao.ns._numeric_suite", _adapt_numeric_suite)


def _adapt_type_before_parametrizations() -> None:
    original = parametrize.type_before_parametrizations

    @wraps(original)
    def type_before_parametrizations(module: torch.nn.Module) -> type:
        kind = original(module)
        return (theirs_of(kind) or kind) if issubclass(kind, _Recurrent) else kind

    _put_everywhere(original, type_before_parametrizations)


def _adapt_quantization() -> None:
    """What makes a quantized layer of a layer asks for its exact type once more."""
    original = torch.ao.quantization.swap_module

    @wraps(original)
    def swap_module(mod: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(mod, _Recurrent):
            return original(mod, *args, **kwargs)
        theirs = mod._as_torchs()
        made = original(theirs, *args, **kwargs)
        return mod if made is theirs else made

    _put_everywhere(original, swap_module)


def _put_everywhere(original: Any, new: Any) -> None:
    """In all modules that have imported a function by its name."""
    name = original.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is original:
            setattr(module, name, new)


def _adapt_fx() -> None:
    original = torch.fx.Tracer.is_leaf_module

    @wraps(original)
    def is_leaf_module(self: Any, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _Recurrent) or original(self, m, module_qualified_name)

    setattr(torch.fx.Tracer, "is_leaf_module", is_leaf_module)  # noqa: B010 - a method, to mypy


def _with_torchs_layers(original: Any) -> Any:
    """A function of a model, which is torch's while it runs, and afterwards what it was."""

    @wraps(original)
    def function(obj: Any, *args: Any, **kwargs: Any) -> Any:
        layers = obj.modules() if isinstance(obj, torch.nn.Module) else ()
        changed = [(layer, type(layer)) for layer in layers if theirs_of(type(layer)) is not None]
        for layer, kind in changed:
            layer.__class__ = theirs_of(kind)  # type: ignore[assignment]
        try:
            return original(obj, *args, **kwargs)
        finally:
            for layer, kind in changed:
                layer.__class__ = kind

    return function


def _adapt_script() -> None:
    torch.jit.script = _with_torchs_layers(torch.jit.script)


def _adapt_numeric_suite(module: Any) -> None:
    """It shadows the layers whose exact types it is given."""
    module.prepare_model_with_stubs = _with_torchs_layers(module.prepare_model_with_stubs)


def _count_flops(module: ModuleType) -> None:
    """As torch counts its own layers: the products of matrices, a multiplication and an addition as two."""
    ops = torch.ops.hotloop
    module.register_flop_formula((ops.infer, ops.forward), get_raw=True)(_forward_flops)
    module.register_flop_formula(ops.backward, get_raw=True)(_backward_flops)


def _forward_flops(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    return sum(rows * (of_x + of_h) for rows, _, of_x, of_h in _products(args))


def _backward_flops(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    from ._ops import _call_fake

    wanted, total = args[-1], 0
    each = len(_call_fake(args[3], args[4:]).names)
    for index, (rows, first, of_x, of_h) in enumerate(_products(args)):
        below = wanted[0] if index < args[11] else True
        of_weights = wanted[3 + each * index :]
        total += rows * (of_x * (below + of_weights[0]) + of_h * of_weights[1])
        total += of_h * (rows if wanted[1] else rows - first)  # to the state before each step
    return total


def _products(args: Any) -> list[tuple[int, int, int, int]]:
    """By layer and direction: rows of all steps, of one step, and the FLOPs of one row by weight_ih and weight_hh."""
    from ._ops import _call_fake

    x, _, _, weights, *given = args
    call = _call_fake(weights, given)
    steps, batch_size = sizes(call, x)
    rows, first = (steps, batch_size) if call.layout == "packed" else (steps * batch_size, batch_size)
    of_x, of_h = call.names.index("weight_ih"), call.names.index("weight_hh")
    return [
        (int(rows), int(first), 2 * weights[index + of_x].numel(), 2 * weights[index + of_h].numel())
        for index in range(0, len(weights), len(call.names))
    ]
