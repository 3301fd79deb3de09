"""`out=`: the result is there, bit for bit what it is without, wherever `out` lies; nothing around it is touched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import CELLS, LAYOUTS, Case, arguments, assert_same_bits, functions, infer, lay_out, named, raises

import hotloop

FILL = 0xA5


class Place:
    """An array of some strides in memory that holds nothing but FILL."""

    def __init__(self, shape, dtype, strides=None, offset=0):
        """`strides` of a contiguous shape are the default; `offset` in bytes beyond 64."""
        size = np.dtype(dtype).itemsize
        strides = np.empty(shape, dtype).strides if strides is None else strides
        steps = [stride * (length - 1) for stride, length in zip(strides, shape, strict=True)]
        start = 64 + offset - sum(step for step in steps if step < 0)
        self.memory = np.full(start + sum(step for step in steps if step > 0) + size + 64, FILL, np.uint8)
        self.out = np.ndarray(shape, dtype, self.memory, start, strides)

    def assert_rest_untouched(self):
        """Overwrites `out`."""
        self.out.fill(0)
        written = (self.memory == 0).sum()
        assert written == self.out.nbytes
        assert (self.memory == FILL).sum() == len(self.memory) - written


def contiguous(shape, dtype):
    return Place(shape, dtype)


def strides_of(shape, dtype, *, pitch=0, gap=1, feature=1, turned=()):
    """Rows `pitch` elements longer than they need be, every `gap`-th of them, features `feature` elements apart."""
    size = np.dtype(dtype).itemsize
    strides = [feature * size]
    for length in shape[:0:-1]:
        strides.append((strides[-1] * length + pitch * size) * gap)
        pitch = 0
    strides = strides[::-1]
    return tuple(-s if axis in turned else s for axis, s in enumerate(strides))


def gap(shape, dtype):
    return Place(shape, dtype, strides_of(shape, dtype, gap=2))


def padded(shape, dtype):
    return Place(shape, dtype, strides_of(shape, dtype, pitch=3), np.dtype(dtype).itemsize)


def backwards(shape, dtype):
    return Place(shape, dtype, strides_of(shape, dtype, turned=range(len(shape) - 1)))


def features_apart(shape, dtype):
    return Place(shape, dtype, strides_of(shape, dtype, feature=2))


def features_backwards(shape, dtype):
    return Place(shape, dtype, strides_of(shape, dtype, turned=[len(shape) - 1]))


def columns_first(shape, dtype):
    return Place(shape, dtype, np.empty(shape, dtype, "F").strides)


def exchanged(shape, dtype):
    """The first two axes in the other order: time-major memory of a batch_first call, and the reverse."""
    first = (shape[-2], *shape[:-2], shape[-1])
    return Place(shape, dtype, np.moveaxis(np.empty(first, dtype), 0, -2).strides)


def misaligned(shape, dtype):
    return Place(shape, dtype, offset=1)


def misaligned_and_apart(shape, dtype):
    return Place(shape, dtype, strides_of(shape, dtype, feature=3), 1)


def one_byte_off_rows(shape, dtype):
    strides = list(np.empty(shape, dtype).strides)
    strides[-2] += 1
    if len(shape) > 2:
        strides[-3] = strides[-2] * shape[-2] + 1
    return Place(shape, dtype, tuple(strides))


PLACES = [
    *(contiguous, gap, padded, backwards, features_apart, features_backwards, columns_first, exchanged, misaligned),
    *(misaligned_and_apart, one_byte_off_rows),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_out(layout, place, variant):
    """Also on two threads and over several chunks of steps."""
    for cell in CELLS:
        for dtype, seq_len, reverse in (("float32", 1, False), ("float64", 9, True), ("float32", 110, False)):
            case = Case(cell, dtype, seq_len, 7, 5, 21, reverse=reverse, layout=layout)
            data = case.data()
            want = infer(case, data)
            placed = place(lay_out("x", want["output"], layout).shape, dtype)
            args, keywords = arguments(case, data)
            function, _, extra = functions(cell)
            output, state = function(*args, **keywords, **extra, out=placed.out, threads=2)
            assert output is placed.out
            assert_same_bits(named(case, output, state), want)
            placed.assert_rest_untouched()


@pytest.mark.parametrize("cell", CELLS)
def test_out_for_no_sequences(cell, variant):
    """B = 0: returned as it is, whatever its strides."""
    for layout in LAYOUTS[:2]:
        case = Case(cell, "float32", 4, 0, 3, 5, layout=layout)
        shape = (0, 4, 5) if layout == "batch_first" else (4, 0, 5)
        zero_strides = np.lib.stride_tricks.as_strided(np.empty(shape, np.float32), strides=(0, 0, 0))
        for out in (np.empty(shape, np.float32), np.empty((8, 8, 5), np.float32)[: shape[0], : shape[1]], zero_strides):
            args, keywords = arguments(case, case.data())
            function, _, extra = functions(cell)
            output, _ = function(*args, **keywords, **extra, out=out)
            assert output is out


@pytest.mark.parametrize("cell", CELLS)
def test_memory_between_that_of_the_inputs(cell, variant):
    """Interleaved with every other argument, element by element, and yet apart."""
    case = Case(cell, "float32", 9, 7, 20, 20)
    data = case.data()
    want = infer(case, data)
    wide = np.full((9, 7, 61), np.nan, np.float32)
    wide[..., :20], x, out = data["x"], wide[..., :20], wide[..., 20:40]
    infer(case, data | {"x": x}, out=out)
    assert_same_bits({"output": out}, want, ["output"])
    assert np.isnan(wide[..., 40:]).all()

    every_third = np.full((9, 7, 60), np.nan, np.float32)
    every_third[..., ::3] = data["x"]
    out = every_third[..., 1::3]
    assert_same_bits(infer(case, data | {"x": every_third[..., ::3]}, out=out), want)
    assert np.isnan(every_third[..., 2::3]).all()
    assert_same_bits({"x": every_third[..., ::3]}, {"x": data["x"]})

    states = np.full((10, 7, 20), np.nan, np.float32)  # h0 before the first step, as a loop over pieces has it
    states[0] = data["h0"]
    assert_same_bits(infer(case, data | {"h0": states[0]}, out=states[1:]), want)
    assert_same_bits({"h0": states[0]}, data, ["h0"])


@pytest.mark.parametrize("cell", CELLS)
def test_pieces_into_one_array(cell, variant):
    """What out= is for: the pieces of a sequence, and the directions of a layer, written where they belong."""
    case = Case(cell, "float32", 12, 5, 4, 19)
    data = case.data()
    whole = np.full((12, 5, 38), np.nan, np.float32)
    states = {name: data[name] for name in case.states}
    for start in range(0, 12, 4):
        piece = data | {"x": data["x"][start : start + 4]} | states
        results = infer(replace(case, seq_len=4), piece, out=whole[start : start + 4, :, :19])
        states = {f"{name[0]}0": array for name, array in results.items() if name != "output"}
    reverse = infer(replace(case, reverse=True), data, out=whole[..., 19:])
    assert_same_bits({"output": whole[..., :19]}, infer(case, data), ["output"])
    assert_same_bits({"output": whole[..., 19:]}, infer(replace(case, reverse=True), data), ["output"])
    assert_same_bits(reverse, infer(replace(case, reverse=True), data))


class Subclass(np.ndarray):
    """Anything that is an array."""


def test_kinds_of_arrays(variant, tmp_path):
    """A file mapped into memory, a subclass, the memory of a tensor."""
    torch = pytest.importorskip("torch")
    case = Case("gru", "float32", 5, 1, 4, 6, layout="unbatched")
    data = case.data()
    want = infer(case, data)
    outs = [np.memmap(tmp_path / "out", np.float32, "w+", shape=(5, 6)), np.zeros((5, 6), np.float32).view(Subclass),
            torch.zeros(5, 6).numpy(), np.frombuffer(bytearray(120), np.float32).reshape(5, 6)]  # fmt: skip
    for out in outs:
        args, keywords = arguments(case, data)
        output, _ = hotloop.gru(*args, **keywords, out=out)
        assert output is out
        np.testing.assert_array_equal(np.asarray(out), want["output"][:, 0])


@pytest.mark.parametrize("cell", CELLS)
def test_out_again_and_again(cell, variant):
    """What it held before does not matter, NaN included."""
    case = Case(cell, "float32", 9, 7, 5, 21)
    data = case.data()
    out = np.full((9, 7, 21), np.nan, np.float32)
    first = infer(case, data, out=out)["output"].copy()
    for value in (np.inf, 0, np.nan):
        out.fill(value)
        assert_same_bits(infer(case, data, out=out), {"output": first}, ["output"])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_out_over_a_state_that_is_copied(cell, variant):
    """What is converted before the call, such as a state with strides, is looked at as the caller has it."""
    layer = getattr(hotloop, cell.upper())(4, 6, rng=0)
    memory = np.zeros((1, 3, 12), np.float32)
    out = memory.reshape(-1)[:18].reshape(1, 3, 6)
    strided = memory[:, :, ::2]
    x = np.ones((1, 3, 4), np.float32)
    fine = np.zeros((1, 3, 6), np.float32)
    for name, state in [
        ("h0", strided),
        *([("c0", (fine, strided)), ("h0", (strided, fine))] if cell == "lstm" else []),
    ]:
        if cell == "lstm" and not isinstance(state, tuple):
            continue
        with raises(ValueError, f"out: expected memory of its own, got memory it shares with {name}"):
            layer(x, state, out=out)


def test_out_over_an_x_that_is_copied(variant):
    layer = hotloop.GRU(4, 6, rng=0)
    memory = np.zeros((2, 3, 12), np.float32)
    out = memory.reshape(-1)[:36].reshape(2, 3, 6)
    with raises(ValueError, "out: expected memory of its own, got memory it shares with x"):
        layer(memory[:, :, 1:9:2], out=out)
