"""One line for a model that is there: its layers become ours, and torch's again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from . import _modules

_OURS: dict[type, type] = {
    ours._torch: ours
    for ours in (
        _modules.RNN, _modules.LSTM, _modules.GRU, _modules.RNNCell, _modules.LSTMCell, _modules.GRUCell,
    )
}  # fmt: skip
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_NAMES = frozenset(kind.__name__ for kind in _OURS)


@dataclass(frozen=True)
class Replaced:
    """What `replace_modules` did, by the names of `model.named_modules()`; printed, one line a layer."""

    replaced: dict[str, str] = field(default_factory=dict)  # to the name of its class
    left: dict[str, str] = field(default_factory=dict)  # to the reason
    already: dict[str, str] = field(default_factory=dict)  # to the name of its class: hotloop's before the call

    def __str__(self) -> str:
        lines = [f"replaced {name or '(model)'}: {kind}" for name, kind in self.replaced.items()]
        lines += [f"left {name or '(model)'}: {reason}" for name, reason in self.left.items()]
        lines += [f"already hotloop's {name or '(model)'}: {kind}" for name, kind in self.already.items()]
        return "\n".join(lines) or "no recurrent layers"


def _check(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def replace_modules(model: torch.nn.Module) -> Replaced:
    """Make the recurrent layers and cells of `model` that are exactly of torch's types hotloop's, in place.

    Only the class of a layer changes: parameters, optimizers that hold them, hooks, shared layers and the names in a
    state_dict stay as they are.

    Parameters
    ----------
    model : torch.nn.Module
        Itself a layer, or made of some.

    Returns
    -------
    Replaced
        `replaced`, a dict from the names of layers to their classes, and `left`, a dict from the names of recurrent
        layers that stay torch's to the reason: subclasses (with what they do on their own), parametrized, pruned or
        weight-normed layers, quantized ones, and those whose parameters are not on the CPU or
        neither float32 nor float64. `already`, a dict from the names of layers that were hotloop's before the call to
        their classes.

    Raises
    ------
    TypeError
        `model` is not a torch.nn.Module.

    Examples
    --------
    >>> import torch, hotloop.torch
    >>> model = torch.nn.ModuleDict({"a": torch.nn.GRU(8, 16), "b": torch.nn.LSTM(8, 16, proj_size=4).half()})
    >>> print(hotloop.torch.replace_modules(model))
    replaced a: GRU
    left b: parameters of torch.float16
    >>> type(model["a"])
    <class 'hotloop.torch.GRU'>
    """
    _check(model)
    done = Replaced()
    for name, module in model.named_modules():
        kind = type(module)
        if kind in _OURS:
            reason = _reason(module)
            if reason is None:
                module.__class__ = _OURS[kind]
                done.replaced[name] = kind.__name__
            else:
                done.left[name] = reason
        elif kind in _THEIRS:
            done.already[name] = kind.__name__
        elif (other := _kin(module)) is not None:
            done.left[name] = other
    return done


def restore_modules(model: torch.nn.Module) -> list[str]:
    """Make the layers of `model` that are hotloop's torch's again, in place.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    list of str
        Their names, as in `model.named_modules()`.

    Raises
    ------
    TypeError
        `model` is not a torch.nn.Module.

    Examples
    --------
    >>> import torch, hotloop.torch
    >>> model = torch.nn.Sequential(hotloop.torch.GRUCell(8, 16))
    >>> hotloop.torch.restore_modules(model)
    ['0']
    >>> type(model[0]) is torch.nn.GRUCell
    True
    """
    _check(model)
    names = []
    for name, module in model.named_modules():
        theirs = theirs_of(type(module))
        if theirs is not None:
            module.__dict__.pop("_hotloop", None)
            module.__class__ = theirs
            names.append(name)
    return names


def theirs_of(kind: type) -> type | None:
    """Torch's class in the place of one of ours; of a parametrized layer's too, which parametrize made for it alone."""
    if kind in _THEIRS:
        return _THEIRS[kind]
    if kind.__bases__[0] in _THEIRS and kind.__name__ == f"Parametrized{kind.__bases__[0].__name__}":
        names = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        return type(kind.__name__, (_THEIRS[kind.__bases__[0]],), names)
    return None


def _reason(module: Any) -> str | None:
    """Why a layer of torch's own type is left as it is."""
    if "forward" in vars(module):
        return "a forward of its own"
    parameters = module._parameters
    names = getattr(module, "_flat_weights_names", None) or [
        f"{kind}_{gate}" for kind in (("weight", "bias") if module.bias else ("weight",)) for gate in ("ih", "hh")
    ]
    if missing := [name for name in names if parameters.get(name) is None]:
        return f"no parameter {missing[0]}, as in a weight-normed or pruned layer"
    tensors = [parameters[name] for name in names]
    if others := [tensor for tensor in tensors if type(tensor) is not torch.nn.Parameter]:
        return f"parameters of type {type(others[0]).__name__}"
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"parameters on {tensor.device}"
        if tensor.dtype not in (torch.float32, torch.float64):
            return f"parameters of {tensor.dtype}"
    return None


def _kin(module: torch.nn.Module) -> str | None:
    """What a recurrent layer is that is not of torch's own types."""
    kind = type(module)
    where = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(module, torch.jit.ScriptModule):
        return f"a TorchScript module of {module.original_name}" if module.original_name in _NAMES else None
    if isinstance(module, tuple(_OURS)):
        if torch.nn.utils.parametrize.is_parametrized(module):
            return "parametrized"
        return f"a subclass, {where}"
    if kind.__module__.startswith("torch.ao.") and kind.__name__ in _NAMES:
        return f"quantized, {where}"
    return None
