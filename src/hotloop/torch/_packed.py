"""A module's weights as backends take them, and packed: kept from call to call, and never stale.

Torch counts the changes of a tensor in its version; but writes through `.data` or through a NumPy array over the same
memory do not count. So what was packed is used where address, type, shape and version are those it was made at and the
hash of all bytes is too. Hashing reads the weights once, as the call itself does; packing writes them besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from .. import _backend
from .._contract import Weights
from ._bridge import Call

Tensor = torch.Tensor

# Calls of at least so many rows pack anew: that is 3 % of what they do, and nothing is to be kept.
MANY_ROWS = 256

PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


class Kept:
    """Views of the memory that weights had. It holds that memory, so a tensor at the same address has the same."""

    __slots__ = ("_arrays", "_fingerprint", "_of", "_packed", "weights")

    def __init__(self, call: Call, tensors: Sequence[Tensor]) -> None:
        self.weights: list[list[Weights]] = call.weights(tensors)
        self._of = [(tensor.data_ptr(), tensor.dtype, tensor.shape) for tensor in tensors]
        self._packed: tuple[Any, Any, Any, Any] = None, None, None, None  # backend, versions, hash, what it packed
        self._fingerprint: tuple[Any, Any] = None, None

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors are in this memory."""
        of = self._of
        if len(tensors) != len(of):
            return False
        for tensor, (address, dtype, shape) in zip(tensors, of, strict=True):
            if type(tensor) not in PLAIN or tensor.data_ptr() != address or tensor.dtype is not dtype:
                return False
            if tensor.shape != shape or not tensor.is_contiguous():
                return False
        return True

    def packed(self, tensors: Sequence[Tensor]) -> Any:
        """What the backend in use makes of the weights; None where it makes nothing of them."""
        backend = _backend.active()
        hashed_by, now = self._fingerprint
        if hashed_by is not backend:
            make = getattr(backend, "fingerprint", None)
            now = (
                None
                if make is None
                else make([a for layer in self.weights for half in layer for a in half[4:] if a is not None])
            )
            self._fingerprint = backend, now
        if now is None:
            return None
        packed_by, versions, hashed, packed = self._packed
        current_versions, current = [version(tensor) for tensor in tensors], now()
        if packed_by is not backend or versions != current_versions or hashed != current:
            # The hash is older than what is packed: if the weights are written to meanwhile, the next call sees it.
            packed = [[backend.pack(half) for half in layer] for layer in self.weights]
            self._packed = backend, current_versions, current, packed
        return packed


_of_tensors: Any = WeakIdKeyDictionary()


def of_tensors(call: Call, tensors: Sequence[Tensor], x: Tensor) -> Any:
    """Packed weights for an op, which knows no module; kept as long as the first of them lives."""
    if x.numel() >= MANY_ROWS * x.shape[-1] or not all(tensor.is_contiguous() for tensor in tensors):
        return None
    kept = _of_tensors.get(tensors[0])
    if kept is None or not kept.holds(tensors) or kept.weights[0][0].cell is not call.cell:
        kept = _of_tensors[tensors[0]] = Kept(call, tensors)
    return kept.packed(tensors)
