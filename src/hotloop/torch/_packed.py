"""A module's weights as backends take them, and packed: kept from call to call, and never stale.

Torch counts the changes of a tensor in its version; but writes through `.data` or through a NumPy array over the same
memory do not count. So what was packed is used where address, type, shape and version are those it was made at and the
hash of all bytes is too. Hashing reads the weights once, as the call itself does; packing writes them besides.

Another thread may write to the weights at any time. So what is packed, and hashed, is a copy that no one else has: the
hash that is kept is that of the very bytes that were packed, whatever the weights held meanwhile. Were the weights
themselves hashed and then packed, writes in between that are undone later would leave what was packed stale for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .._core import memory as _memory
from .._core import settings
from .._core.types import Array, Weights
from ._bridge import Call, threads_of
from ._threads import executor

Tensor = torch.Tensor

# Calls of at least so many rows pack anew: that is 3 % of what they do, and nothing is to be kept.
MANY_ROWS = 256

# Ops keep what was packed for so many first weights at most: views at ever other places in one storage are as many.
MOST_OF_OPS = 256

PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


class Kept:
    """Views of the memory that weights had. It holds their storages, so a tensor at the same address has the same."""

    def __init__(self, call: Call, tensors: Sequence[Tensor]) -> None:
        """`tensors` are detached, and no one else's: a parameter may get other memory at any time."""
        self.call = call
        self.tensors = tensors
        self.dtype = tensors[0].dtype
        self.weights: list[list[Weights]] = call.weights(tensors)
        self._addresses = [tensor.data_ptr() for tensor in tensors]
        self._shapes = [tensor.shape for tensor in tensors]
        each = len(call.names)
        biases = [index for index in range(len(tensors)) if call.names[index % each].startswith("bias")]
        inputs = range(call.names.index("weight_ih"), call.directions * each, each)  # of the first layer
        self._unread = [*biases, *inputs], biases
        self.nbytes = sum(tensor.nbytes for tensor in tensors)
        self._of_layout: dict[str, Call] = {}
        self._one = len(self.weights) * len(self.weights[0]) == 1
        self._backend: Any = None
        self._fingerprint: Any = None
        self._packed: tuple[Any, Any, Any] = None, None, None  # versions, hash, what was packed
        # Prepared calls, by what they are for, each with what it was made for.
        self._runs: dict[Any, tuple[Any, Any]] = {}

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors are in this memory."""
        if len(tensors) != len(self._shapes):
            return False
        dtype = self.dtype
        try:
            for tensor, address, shape in zip(tensors, self._addresses, self._shapes, strict=True):
                if (
                    type(tensor) not in PLAIN or tensor.data_ptr() != address or tensor.shape != shape
                    or tensor.dtype is not dtype or not tensor.is_contiguous() or tensor.is_neg()
                ):  # fmt: skip
                    return False
        except RuntimeError:  # one has no address, such as a tensor that has outlived a transform of torch.func
            return False
        return True

    def unread(self, of_x: bool) -> list[int]:
        """The weights that the backward kernels do not read: biases, and weight_ih of the first layer without the
        gradient of x. Callers may write to those in place before backward, as torch's layers let them.
        """
        return self._unread[of_x]

    def unmoved(self) -> bool:
        """Whether the storages have the memory they had: `share_memory_` and `resize_` give them another."""
        return [tensor.data_ptr() for tensor in self.tensors] == self._addresses

    def plain(self, layout: str) -> Call:
        """A call without anything special: it can be used again."""
        call = self._of_layout.get(layout)
        if call is None:
            call = self._of_layout[layout] = replace(self.call, layout=layout)
        return call

    def _use(self, backend: Any) -> None:
        self._fingerprint = backend.fingerprint(_arrays(self.weights))
        self._packed = None, None, None
        self._runs = {}
        self._backend = backend

    @property
    def prepares(self) -> bool:
        """Whether calls of these weights can be prepared: one recurrence, and a backend that prepares any."""
        if self._backend is not (backend := settings.active()):
            self._use(backend)
        return self._one and self._fingerprint is not None

    def run(self, seq_len: int, batch_size: int, packed: Any, training: bool) -> Any:
        """A prepared call, forward; None from a backend that has none. See `Backend.prepare`."""
        now = settings.current, seq_len, batch_size, packed, threads_of(None), executor()
        made = self._runs.get(training)
        if made is None or made[0] != now:
            run = settings.active().prepare(
                self.weights[0][0], packed, seq_len=seq_len, batch_size=batch_size, batch_first=False,
                training=training, threads=now[4], executor=now[5],
            )  # fmt: skip
            self._runs[training] = made = now, run
        return made[1]

    def run_backward(self, seq_len: int, batch_size: int, x_wanted: bool, weights_wanted: bool) -> Any:
        """The same for backward."""
        now = settings.current, seq_len, batch_size, threads_of(None), executor()
        made = self._runs.get((x_wanted, weights_wanted))
        if made is None or made[0] != now:
            run = settings.active().prepare_backward(
                self.weights[0][0], seq_len=seq_len, batch_size=batch_size, batch_first=False, x_wanted=x_wanted,
                weights_wanted=weights_wanted, threads=now[3], executor=now[4],
            )  # fmt: skip
            self._runs[x_wanted, weights_wanted] = made = now, run
        return made[1]

    def packed(self, tensors: Sequence[Tensor]) -> Any:
        """What the backend in use makes of the weights; None where it makes nothing of them."""
        if self._backend is not (backend := settings.active()):
            self._use(backend)
        if self._fingerprint is None:
            return None
        before, hashed, packed = self._packed
        try:
            now = [tensor._version for tensor in tensors]
        except RuntimeError:  # tensors of inference mode have none
            now = versions(tensors)
        if before != now or hashed != self._fingerprint():
            hashed, packed = _hashed_and_packed(backend, self.weights)
            self._packed = now, hashed, packed
        return packed


_of_ops: dict[tuple[int, int], tuple[StorageWeakRef, Any, Any, Any]] = {}  # by storage and address of the first weight


def of_op(call: Call, tensors: Sequence[Tensor], weights: list[list[Weights]], x: Tensor) -> Any:
    """Packed weights for an op, which knows no module: kept as long as the memory of the first of them lives."""
    backend = settings.active()
    if x.numel() >= MANY_ROWS * x.shape[-1] or not all(tensor.is_contiguous() for tensor in tensors):
        return None
    fingerprint = backend.fingerprint(_arrays(weights))
    if fingerprint is None:
        return None
    storage = tensors[0].untyped_storage()
    place = storage._cdata, tensors[0].data_ptr()
    like = backend, call.cell, call.directions, [(tensor.data_ptr(), *_signs(tensor)) for tensor in tensors]
    hashed = fingerprint()
    entry = _of_ops.get(place)
    if entry is not None and not entry[0].expired() and entry[1] == like and entry[2] == hashed:
        return entry[3]
    hashed, packed = _hashed_and_packed(backend, weights)
    _let_go()
    _of_ops[place] = StorageWeakRef(storage), like, hashed, packed
    return packed


def _let_go() -> None:
    """Forget what was packed of weights that are gone, and the oldest where there are too many."""
    for place, (memory, *_) in list(_of_ops.items()):
        if memory.expired():
            _of_ops.pop(place, None)
    for place in list(_of_ops)[: 1 - MOST_OF_OPS]:
        _of_ops.pop(place, None)


def _hashed_and_packed(backend: Any, weights: list[list[Weights]]) -> tuple[Any, Any]:
    """A hash, and what was packed, of the same bytes."""
    copies = [[half.with_arrays(map(_copied, half.arrays)) for half in layer] for layer in weights]
    return backend.fingerprint(_arrays(copies))(), [[backend.pack(half) for half in layer] for layer in copies]


def _copied(array: Any) -> Any:
    if array is None:
        return None
    copy = _memory.empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def versions(tensors: Sequence[Tensor]) -> list[int]:
    return [-1 if tensor.is_inference() else tensor._version for tensor in tensors]


def version(tensor: Tensor) -> int:
    """How often it was written to; tensors of inference mode do not count."""
    return -1 if tensor.is_inference() else tensor._version


def _signs(tensor: Tensor) -> tuple[Any, ...]:
    return version(tensor), tensor.dtype, tensor.shape


def _arrays(weights: list[list[Weights]]) -> list[Array]:
    halves = [half for layer in weights for half in layer]
    return [array for half in halves for array in half.arrays if array is not None]
