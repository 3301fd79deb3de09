"""Recycled memory: an array never shares it with another one that is alive, and its bound holds."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hotloop._core import memory as _memory

LARGE = (1 << 19,)  # 2 MiB of float32
FLOAT32 = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def no_memory_left():
    forget()
    yield
    forget()


def forget():
    _memory._ended.clear()
    _memory._free.clear()


def kept_bytes():
    return sum(memory.nbytes for memory in _memory._free) + sum(end.memory.nbytes for end in _memory._ended)


def test_large_memory_is_used_again():
    array = _memory.empty(LARGE, FLOAT32)
    address = array.ctypes.data
    del array
    assert _memory.empty(LARGE, FLOAT32).ctypes.data == address
    assert _memory.empty((1 << 18,), np.dtype(np.float64)).ctypes.data == address  # another type, as large


def test_arrays_are_as_those_of_numpy():
    for shape in [LARGE, (2, 1 << 18), (3, 5, 1 << 17), (0, 4), (), (7,)]:
        for dtype in (FLOAT32, np.dtype(np.float64)):
            array, model = _memory.empty(shape, dtype), np.empty(shape, dtype)
            assert type(array) is np.ndarray
            assert (array.shape, array.dtype, array.strides) == (model.shape, model.dtype, model.strides)
            for flag in ("C_CONTIGUOUS", "ALIGNED", "WRITEABLE"):
                assert array.flags[flag], flag


@pytest.mark.parametrize("view", [lambda a: a[5:], lambda a: a.reshape(2, -1).T, lambda a: a.view(np.int32)[::2],
                                  memoryview, lambda a: np.asarray(memoryview(a))])  # fmt: skip
def test_a_view_keeps_the_memory(view):
    array = _memory.empty(LARGE, FLOAT32)
    array[...] = 3
    address, kept = array.ctypes.data, view(array)
    before = np.array(kept)
    del array
    gc.collect()
    other = _memory.empty(LARGE, FLOAT32)
    other[...] = 4
    assert other.ctypes.data != address
    np.testing.assert_array_equal(kept, before)


def test_live_arrays_are_apart():
    arrays = []
    for round_ in range(50):
        arrays.append(_memory.empty((LARGE[0] + 1000 * (round_ % 7),), FLOAT32))
        arrays[-1][...] = round_
        if len(arrays) > 5:
            del arrays[round_ * 3 % 5]
        assert len({array.flat[0] for array in arrays}) == len(arrays)
        assert all((array == array[0]).all() for array in arrays)


@pytest.mark.parametrize("next_one", [LARGE, (12 << 20,), (1 << 27,)], ids=["small", "one of those kept", "too large"])
def test_what_is_kept_is_bounded(next_one):
    """At the latest when the next large array is made, whether that takes memory that is kept or not."""
    arrays = [_memory.empty((12 << 20,), FLOAT32) for _ in range(8)]  # 48 MiB each, pages never touched
    del arrays
    assert kept_bytes() > 0
    array = _memory.empty(next_one, FLOAT32)
    assert kept_bytes() <= _memory._most
    del array
    assert _memory.empty(LARGE, FLOAT32).base.__array_interface__["shape"] == LARGE


def test_a_small_array_does_not_keep_the_memory_of_a_large_one():
    large = _memory.empty((12 << 20,), FLOAT32)
    address = large.ctypes.data
    del large
    small = _memory.empty(LARGE, FLOAT32)
    assert small.ctypes.data != address
    assert _memory.empty((12 << 20,), FLOAT32).ctypes.data == address


def test_threads():
    def work(number):
        for round_ in range(200):
            array = _memory.empty((LARGE[0] + 4096 * (round_ % 3),), FLOAT32)
            array[:: 1 << 12] = number
            assert (array[:: 1 << 12] == number).all()

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(work, range(4)))


@pytest.mark.parametrize(("value", "kept"), [("0", 0), ("2", 1), ("64", 1)])
def test_the_bound_is_the_users(run_python, value, kept):
    code = """
import hotloop, numpy as np
from hotloop._core import memory as _memory
_memory.empty((1 << 19,), np.dtype(np.float32))
print(len(_memory._free) + len(_memory._ended))
"""
    done = run_python(code, HOTLOOP_RECYCLE_MIB=value, HOTLOOP_BACKEND="numpy")
    assert done.stdout.split() == [str(kept)]


def test_bad_bound(run_python):
    for value in ("-1", "many", "1.5"):
        done = run_python("import hotloop", check=False, HOTLOOP_RECYCLE_MIB=value, HOTLOOP_BACKEND="numpy")
        assert done.stderr.strip().splitlines()[-1] == (
            f"ValueError: HOTLOOP_RECYCLE_MIB: expected an integer >= 0, got {value!r}"
        )


def test_arrays_may_outlive_the_module(run_python):
    code = """
import hotloop, numpy as np
from hotloop._core import memory as _memory
kept = _memory.empty((1 << 19,), np.dtype(np.float32))
"""
    assert run_python(code, HOTLOOP_BACKEND="numpy").stderr == ""
