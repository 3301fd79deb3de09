"""The parameters of layers: torch's names for them, what a mapping of them must hold, and arrays nobody writes to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .arrays import as_array
from .types import Array

PARAMETER = re.compile(r"(?P<name>(weight|bias)_(ih|hh)|weight_hr)_l(?P<layer>\d+)(?P<reverse>_reverse)?")
NO_PROJECTION = "proj_size argument is only supported for LSTM, not RNN or GRU"  # in torch's words
_CELLS = {1: "an RNN", 3: "a GRU", 4: "an LSTM"}  # by the number of gates


def frozen(array: Array) -> Array:
    """A copy that nobody can write to: NumPy sets no flag of an array over bytes."""
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


def check_mapping(mapping: Any) -> None:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping: expected a mapping of names to arrays, got {type(mapping).__name__}")
    if other := [name for name in mapping if not isinstance(name, str)]:
        raise TypeError(f"mapping: expected names that are strings, got {other}")


def read_state_dict(mapping: Any, prefix: Any, gates: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters whose names start with `prefix`, without it, and the constructor's arguments that they tell."""
    check_mapping(mapping)
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a string, got {prefix!r}")
    found = {name.removeprefix(prefix): value for name, value in mapping.items() if name.startswith(prefix)}
    if not found:
        raise ValueError(f"mapping: expected names that start with {prefix!r}, got {sorted(mapping)}")
    matches = [match for match in map(PARAMETER.fullmatch, found) if match]
    if unknown := [prefix + name for name in found if not PARAMETER.fullmatch(name)]:
        raise ValueError(f"mapping: expected names as {prefix}weight_ih_l0, got {unknown}")
    layers = sorted({int(match["layer"]) for match in matches})
    if layers != list(range(len(layers))):
        raise ValueError(f"mapping: expected layers 0, 1, ... without a gap, got {layers}")
    if "weight_ih_l0" not in found:
        raise ValueError(f"mapping: expected {prefix}weight_ih_l0, got {[prefix + name for name in found]}")
    weight = as_array(f"{prefix}weight_ih_l0", found["weight_ih_l0"])
    if weight.ndim != 2:
        raise ValueError(f"{prefix}weight_ih_l0: expected 2 dimensions, got shape {weight.shape}")
    projected = [prefix + name for name in found if name.startswith("weight_hr_l")]
    if projected and gates != 4:
        raise ValueError(f"mapping: {NO_PROJECTION}, got {projected}")
    if "weight_hh_l0" in found and not projected:
        _check_kind(f"{prefix}weight_hh_l0", as_array(f"{prefix}weight_hh_l0", found["weight_hh_l0"]), gates)
    shape = {
        "input_size": weight.shape[1],
        "hidden_size": weight.shape[0] // gates,
        "num_layers": len(layers),
        "bias": any(match["name"].startswith("bias") for match in matches),
        "bidirectional": any(match["reverse"] for match in matches),
        "dtype": weight.dtype,
    }
    if projected:
        weight_hr = as_array(f"{prefix}weight_hr_l0", found.get("weight_hr_l0"))
        if weight_hr.ndim != 2:
            raise ValueError(f"{prefix}weight_hr_l0: expected 2 dimensions, got shape {weight_hr.shape}")
        shape["proj_size"] = len(weight_hr)
    return found, shape


def _check_kind(name: str, weight_hh: Array, gates: int) -> None:
    """Rows over columns of weight_hh are the gates of its cell."""
    for other, kind in _CELLS.items():
        if other != gates and weight_hh.ndim == 2 and len(weight_hh) == other * weight_hh.shape[1] > 0:
            raise ValueError(
                f"mapping: expected the parameters of {_CELLS[gates]}, got {name} of shape {weight_hh.shape}, "
                f"which is that of {kind}"
            )
