"""Layers that have been called before: of the next call nothing is taken for granted.

What a layer keeps from call to call (its weights, packed; what was found out about its arguments) makes calls fast.
Here each argument in its turn is one that does not fit, or lies in memory otherwise, and what comes back is what a
fresh layer gives.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from cases import raises

import hotloop

T, B, N, H = 4, 3, 5, 6  # seq_len, batch_size, input_size, hidden_size

CELLS = {"lstm": hotloop.LSTM, "gru": hotloop.GRU, "rnn": hotloop.RNN}


def numbers(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def warm(cell, steps=1, rows=1, **options):
    """A layer that has been called."""
    layer = CELLS[cell](N, H, rng=0, **options)
    x, state = given(cell, steps, rows)
    for _ in range(3):
        layer(x)
        layer(x, state)
    return layer


def given(cell, steps, rows, dtype="float32"):
    h0, c0 = numbers(1, rows, H, dtype=dtype, seed=1), numbers(1, rows, H, dtype=dtype, seed=2)
    return numbers(steps, rows, N, dtype=dtype), ((h0, c0) if cell == "lstm" else h0)


def flat(result):
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


def same(got, want):
    for one, other in zip(flat(got), flat(want), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def every_second(array, axis):
    """The same numbers, with as many others between them."""
    wide = np.full([size * (1 + (index == axis)) for index, size in enumerate(array.shape)], np.nan, array.dtype)
    view = wide[tuple(slice(None, None, 2) if index == axis else slice(None) for index in range(array.ndim))]
    view[...] = array
    return view


def turned(array):
    return np.ascontiguousarray(array[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


LYING = {
    "features apart": lambda array: every_second(array, 2), "rows apart": lambda array: every_second(array, 1),
    "steps apart": lambda array: every_second(array, 0), "columns first": np.asfortranarray, "turned": turned,
    "misaligned": misaligned, "read-only": read_only,
}  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(1, 1), (1, 3), (4, 1), (4, 3)])
@pytest.mark.parametrize("lying", LYING)
def test_arguments_that_lie_otherwise(cell, sizes, lying):
    layer, (x, state) = warm(cell, *sizes), given(cell, *sizes)
    want = layer(x, state)
    place = LYING[lying]
    same(layer(place(x), state), want)
    if cell == "lstm":
        h0, c0 = state
        same(layer(x, (place(h0), c0)), want)
        same(layer(x, (h0, place(c0))), want)
        same(layer(x, [place(h0), place(c0)]), want)
    else:
        same(layer(x, place(state)), want)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(1, 1), (4, 3)])
def test_arguments_that_do_not_fit(cell, sizes):
    layer, (x, state) = warm(cell, *sizes), given(cell, *sizes)
    steps, rows = sizes
    wide, wide_state = given(cell, steps, rows, "float64")
    with raises(TypeError, "x: expected float32 (the dtype of weight_ih), got float64"):
        layer(wide, state)
    for features in (N - 1, N + 1):
        with raises(ValueError, f"x: expected input_size = {N} (columns of weight_ih), got {features}"):
            layer(numbers(steps, rows, features), state)
    with raises(ValueError, "x: expected seq_len >= 1, got 0"):
        layer(x[:0], state)
    rule = f"expected shape (num_layers*num_directions, batch_size, hidden_size) = (1, {rows}, {H})"
    names = ("h0", "c0") if cell == "lstm" else ("h0",)
    for index, name in enumerate(names):

        def put(array, index=index):
            return array if len(names) == 1 else tuple(array if i == index else state[i] for i in (0, 1))

        double = wide_state[index] if len(names) == 2 else wide_state
        with raises(TypeError, f"{name}: expected float32 (the dtype of weight_ih), got float64"):
            layer(x, put(double))
        for shape in ((1, rows + 1, H), (1, rows, H + 1), (1, rows, H - 1), (2, rows, H)):
            with raises(ValueError, f"{name}: {rule}, got {shape}"):
                layer(x, put(numbers(*shape)))
    if cell != "lstm":
        with raises(TypeError, "state: expected h0, an array, got a tuple of 2"):
            layer(x, (state, state))
    # After each error the layer is what it was.
    same(layer(x, state), CELLS[cell](N, H, rng=0)(x, state))


@pytest.mark.parametrize("cell", CELLS)
def test_results_are_the_callers(cell):
    """What one call returned no later call writes to; in several threads at once, with memory that is used again."""
    layer = CELLS[cell](N, 64, rng=0)
    xs = [numbers(40, 16, N, seed=seed) for seed in range(8)]  # output of 164 KB, which is recycled
    want = [layer(x, threads=1)[0].copy() for x in xs]
    failures = []

    def run(first):
        held = []
        for turn in range(60):
            index = (first + turn) % len(xs)
            held.append((index, layer(xs[index], threads=1)[0]))
            if len(held) > 3:
                place, output = held.pop(turn % 3)
                if not np.array_equal(output, want[place]):
                    failures.append(place)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_one_length(cell):
    """Rows are taken in the order of their lengths; among those of one length each keeps its own state and output."""
    layer = CELLS[cell](N, H, rng=0)
    rows = 13
    x, state = given(cell, T, rows)
    lengths = [3, 4, 3, 0, 3, 4, 4, 3, 1, 3, 0, 4, 3]
    output, end = layer(x, state, lengths=lengths)
    ends = end if cell == "lstm" else (end,)
    for row, steps in enumerate(lengths):
        of_row = tuple(one[:, row : row + 1] for one in state) if cell == "lstm" else state[:, row : row + 1]
        if not steps:
            assert not output[:, row].any()
            for one, given_state in zip(ends, state if cell == "lstm" else (state,), strict=True):
                assert np.array_equal(one[:, row], given_state[:, row])
            continue
        want, want_end = layer(x[:steps, row : row + 1], of_row)
        assert np.array_equal(output[:steps, row : row + 1], want)
        for one, other in zip(ends, want_end if cell == "lstm" else (want_end,), strict=True):
            assert np.array_equal(one[:, row : row + 1], other)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("lying", ["features apart", "rows apart", "steps apart", "columns first", "turned"])
def test_upstream_gradients_that_lie_otherwise(cell, lying):
    layer = CELLS[cell](N, H, rng=0)
    x, state = given(cell, T, B)
    _, vjp = layer.vjp(x, state)
    place = LYING[lying]
    grad_output, grad_h_n = numbers(T, B, H, seed=3), numbers(1, B, H, seed=4)
    more = {"grad_c_n": numbers(1, B, H, seed=5)} if cell == "lstm" else {}
    want = vjp(grad_output, grad_h_n, **more)
    got = vjp(place(grad_output), place(grad_h_n), **{name: place(array) for name, array in more.items()})
    same((got.x, got.state), (want.x, want.state))
    for name, expected in want.parameters.items():
        assert np.array_equal(got.parameters[name], expected), name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (4, 3)])
def test_batch_first(cell, sizes):
    """In every call, not the first alone."""
    layer, turned = warm(cell, *sizes), warm(cell, batch_first=True)
    x, state = given(cell, *sizes)
    for one in (state, None):
        output, end = layer(x, one)
        for _ in range(3):
            got, got_end = turned(x.swapaxes(0, 1).copy(), one)
            same((got.swapaxes(0, 1), got_end), (output, end))


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_out_over_the_state(cell):
    layer = warm(cell)
    memory = np.zeros(T * B * H, np.float32)
    out, h0 = memory.reshape(T, B, H), memory[: B * H].reshape(1, B, H)
    with raises(ValueError, "out: expected memory of its own, got memory it shares with h0"):
        layer(numbers(T, B, N), h0, out=out)


def test_gradients_of_one_state_alone():
    weights = numbers(4 * H, N), numbers(4 * H, H)
    h0, c0 = numbers(B, H), numbers(B, H, seed=1)
    _, vjp = hotloop.lstm_vjp(numbers(T, B, N), *weights, h0=h0, c0=c0)
    every = vjp(numbers(T, B, H, seed=2))
    for name, other in (("h0", "c0"), ("c0", "h0")):
        alone = vjp(numbers(T, B, H, seed=2), wrt=[name])
        assert np.array_equal(getattr(alone, name), getattr(every, name))
        assert getattr(alone, other) is None
