"""`out=`: the result is written where the caller says; or the message says why it cannot be, and nothing is written."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cases import CELLS, DTYPES, LAYOUTS, PARAMETERS, Case, arguments, assert_same_bits, functions, time_major

from hotloop import _contract

CASE = Case("lstm", "float32", seq_len=40, batch_size=3, input_size=4, hidden_size=6)


def call(case, data, **options):
    args, keywords = arguments(case, data)
    function, _, extra = functions(case.cell)
    return function(*args, **keywords, **extra, **options)


def contiguous(shape, dtype):
    memory = np.full(shape, np.nan, dtype)
    return memory, memory


def every_second(shape, dtype):
    memory = np.full(tuple(2 * n for n in shape[:-1]) + shape[-1:], np.nan, dtype)
    return memory, memory[tuple(slice(1, None, 2) for _ in shape[:-1])]


def backwards(shape, dtype):
    memory = np.full(shape, np.nan, dtype)
    return memory, memory[tuple(slice(None, None, -1) for _ in shape[:-1])]


def features_apart(shape, dtype):
    memory = np.full((*shape[:-1], 2 * shape[-1]), np.nan, dtype)
    return memory, memory[..., ::2]


def fortran(shape, dtype):
    memory = np.full(shape, np.nan, dtype, order="F")
    return memory, memory


@pytest.mark.parametrize("place", [contiguous, every_second, backwards, features_apart, fortran])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_output_is_there(cell, dtype, layout, place, variant):
    """It is `out` itself, has the bits it has without, and nothing around it is written."""
    case = Case(cell, dtype, 9, 5, 4, 7, layout=layout, reverse=True)
    data = case.data()
    want = call(case, data)
    memory, out = place(want[0].shape, dtype)
    got = call(case, data, out=out)
    assert got[0] is out
    assert_same_bits({"output": out}, {"output": want[0]})
    states = zip(*(state if cell == "lstm" else (state,) for state in (got[1], want[1])), strict=True)
    assert all(np.array_equal(*pair) for pair in states)
    out[...] = np.nan
    assert np.isnan(memory).all()


def refuse(out, message, error=ValueError, data=None):
    """Both the message and that nothing was written."""
    before = out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises(error, match=f"^out: {re.escape(message)}$"):
        call(CASE, CASE.data() if data is None else data, out=out)
    if before is not None:
        np.testing.assert_array_equal(out, before)


def test_what_it_must_be():
    good = np.ones((40, 3, 6), np.float32)
    refuse(good.tolist(), "expected a numpy array, got list", TypeError)
    refuse(np.ma.masked_array(good), "expected an array without a mask, got a masked array", TypeError)
    refuse(good.astype(np.float64), "expected float32 (the dtype of weight_ih), got float64", TypeError)
    refuse(good[:, :2], "expected shape (seq_len, batch_size, hidden_size) = (40, 3, 6), got (40, 2, 6)")
    good.flags.writeable = False
    refuse(good, "expected a writeable array, got a read-only one")


@pytest.mark.parametrize("strides", [(72, 24, 0), (72, 0, 4), (0, 24, 4), (72, 20, 4), (68, 24, 4), (24, -24, 4)])
def test_every_element_needs_a_place_of_its_own(strides):
    """Rows that are one, and rows that overlap in part."""
    memory = np.ones(4000, np.float32)
    out = np.lib.stride_tricks.as_strided(memory[100:], (40, 3, 6), strides)
    refuse(out, f"expected every element at a place of its own, got strides {strides}")


@pytest.mark.parametrize("name", ["x", *PARAMETERS, "h0", "c0"])
def test_it_shares_no_memory_with_an_argument(name):
    data = CASE.data()
    out = np.ones((40, 3, 6), np.float32)
    over = out.reshape(-1)[-data[name].size :].reshape(data[name].shape)
    over[...] = data[name]
    refuse(out, f"expected memory of its own, got memory it shares with {name}", data=data | {name: over})


def test_memory_that_may_be_shared_counts_as_shared(monkeypatch):
    """Whether two arrays share memory can be too hard to say."""

    def too_hard(*args, **options):
        raise RuntimeError("Exceeded max_work")

    monkeypatch.setattr(_contract.np, "shares_memory", too_hard, raising=False)
    refuse(np.ones((40, 3, 6), np.float32), "expected memory of its own, got memory it shares with x")


@pytest.mark.parametrize("cell", CELLS)
def test_interleaved_is_not_shared(cell, variant):
    """x and out may lie side by side in one array, row by row."""
    case = Case(cell, "float32", 9, 5, 4, 7)
    data = case.data()
    both = np.zeros((9, 5, 11), np.float32)
    both[..., :4] = data["x"]
    want, _ = call(case, data)
    got, _ = call(case, data | {"x": both[..., :4]}, out=both[..., 4:])
    assert_same_bits({"output": time_major("output", got, case.layout)}, {"output": want})
    assert np.array_equal(both[..., :4], data["x"])
