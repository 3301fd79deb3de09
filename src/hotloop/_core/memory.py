"""Large arrays from memory used before, instead of fresh pages.

The system clears every fresh page: the forward of a training step of LSTM T512 B32 I256 H256 takes 223 ms on fresh
pages and 80 ms on used ones. So when the last array over some memory is gone, the memory is kept for the next array of
about that size. What is kept is trimmed to HOTLOOP_RECYCLE_MIB (256 by default, 0 turns recycling off) whenever a large
array is made. The arrays do not own their memory in NumPy's sense (`base` is set, `resize` refuses, WRITEABLE once
cleared cannot be set again); in every other respect they are those of np.empty.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .environment import natural, quoted, refuse

Array = npt.NDArray[Any]

_LARGE = 1 << 17  # below, malloc recycles by itself; at 1 MiB RNN T1000 B1 H128 took 0.58 ms in place of 0.33


def _limit() -> int:
    text = os.environ.get("HOTLOOP_RECYCLE_MIB") or "256"
    if (number := natural(text)) is None:
        refuse(ValueError(f"HOTLOOP_RECYCLE_MIB: expected an integer >= 0, got {quoted(text)}"))
    return number << 20


_most = _limit()
_free: list[Array] = []


class _Block:
    """Owns the memory of one array, which refers to it as its base."""

    __slots__ = ("__array_interface__", "__weakref__", "end")

    def __init__(self, memory: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {
            "data": memory.__array_interface__["data"],  # memory.ctypes imports, which the end of Python does not allow
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }
        self.end = _End(self, _ended.append)
        self.end.memory = memory


class _End(weakref.ref[_Block]):
    """Carries the memory of a block past its end.

    The callback is a method written in C on purpose: a `__del__` in Python is where the interpreter would handle a
    pending Ctrl-C, and the KeyboardInterrupt raised there would be lost.
    """

    __slots__ = ("memory",)
    memory: Array


_ended: deque[_End] = deque()


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """As np.empty."""
    size = prod(shape) * dtype.itemsize
    if size < _LARGE or _most == 0:
        return np.empty(shape, dtype)
    memory = _take(size)
    if memory is None:
        if size > _most:
            return np.empty(shape, dtype)
        memory = np.empty(-(-size // _LARGE) * _LARGE, np.uint8)
    return np.asarray(_Block(memory, shape, dtype))


def _take(size: int) -> Array | None:
    """Memory that is kept and fits; the rest is trimmed."""
    # Another thread may do the same in between: each step is one operation on a list or a deque.
    taken = None
    try:
        while _ended:
            _free.append(_ended.popleft().memory)
        for index, memory in enumerate(_free):
            if size <= memory.nbytes <= size + size // 8 + _LARGE:
                taken = _free.pop(index)
                break
        while sum(memory.nbytes for memory in tuple(_free)) > _most:
            _free.pop(0)
    except IndexError:
        pass
    return None if taken is None or taken.nbytes < size else taken
