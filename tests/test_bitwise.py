"""The numerical contract of the native backend: what is the same bit for bit, on every instruction set.

For any number of threads, any place in any batch, any layout and stride, and any cut in time, a sequence has the same
output, states and gradients of its own. Gradients of weights and biases are the same for any number of threads and any
layout; those of pieces, which the caller sums, agree within tolerance.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import (
    CELLS,
    DTYPES,
    LAYOUTS,
    PARAMETER_GRADIENTS,
    SEQUENCE_RESULTS,
    UPSTREAM,
    Case,
    assert_close,
    assert_same_bits,
    backward_args,
    forward_args,
    gradients_of,
    in_case,
    infer,
    train,
    train_in_pieces,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import hotloop._backends.choice

# Small ones, whose last vector and last tile are ragged; one whose rows threads split, and two whose units they split,
# of which the last takes several chunks.
SHAPES = [
    (7, 5, 3, 1),
    (9, 13, 5, 17),
    (5, 9, 20, 40),
    (20, 33, 24, 72),
    (60, 2, 40, 100),
    (300, 1, 5, 130),
]  # T, B, I, H
# A reverse sequence is the forward one through negative strides; and the other way around for one shape.
cases = pytest.mark.parametrize(
    "case",
    [
        Case(cell, dtype, *shape, reverse=bool(number % 2))
        for cell in CELLS
        for dtype in DTYPES
        for number, shape in enumerate(SHAPES)
    ],
    ids=str,
)

STATES = ("h0", "c0", "grad_h_n", "grad_c_n")


def rows(data, index):
    """The problem of some sequences of a batch."""
    cut = {name: array[:, index] for name, array in data.items() if name in ("x", "grad_output")}
    return data | cut | {name: data[name][index] for name in STATES if name in data}


def result_rows(results, index):
    """The results of some sequences of a batch."""
    return {
        name: array[:, index] if name in ("output", "grad_x") else array[index]
        for name, array in results.items()
        if name in SEQUENCE_RESULTS
    }


@cases
def test_threads(case, isa):
    """Everything, gradients of weights too."""
    data = case.data()
    serial = train(case, data, threads=1)
    for threads in (2, 3, 4):
        assert_same_bits(train(case, data, threads=threads), serial)
        assert_same_bits(infer(case, data, threads=threads), {n: serial[n] for n in in_case(("output", "h_n"), case)})


@cases
def test_a_sequence_alone_and_in_any_batch(case, isa):
    """Alone, at every place of the batch, and in batches of every size, which tiles of other heights compute."""
    data = case.data()
    whole = train(case, data, threads=1)
    for batch_size in range(1, case.batch_size + 1):
        first = case.batch_size - batch_size
        some = slice(first, case.batch_size)
        part = train(replace(case, batch_size=batch_size), rows(data, some), threads=1 + batch_size % 2)
        assert_same_bits(part, result_rows(whole, some))
    for place in range(case.batch_size):
        alone = train(replace(case, batch_size=1), rows(data, [place]), threads=1)
        assert_same_bits(alone, result_rows(whole, [place]))


@cases
def test_the_order_of_a_batch(case, isa, rng):
    """Each sequence has its own bits among other neighbours."""
    data = case.data()
    order = rng.permutation(case.batch_size)
    assert_same_bits(train(case, rows(data, order)), result_rows(train(case, data), order))


@cases
def test_layouts(case, isa):
    """Time-major and batch_first have the same bits, gradients of weights too; a single sequence also unbatched."""
    data = case.data()
    assert_same_bits(train(replace(case, layout="batch_first"), data), train(case, data))
    one = replace(case, batch_size=1)
    data = rows(data, [0])
    want = train(one, data)
    for layout in LAYOUTS[1:]:
        assert_same_bits(train(replace(one, layout=layout), data), want)


def gap(array):
    """Every second step and row of an array that is NaN elsewhere."""
    wide = np.full(tuple(2 * n for n in array.shape[:2]) + array.shape[2:], np.nan, array.dtype)
    wide[::2, 1::2] = array
    return wide[::2, 1::2]


def negative(array):
    """Time and batch run backwards through memory."""
    return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]


def padded(array):
    """Rows wider than the features, beginning at an address that no vector is aligned to; NaN all around."""
    wide = np.full((*array.shape[:-1], array.shape[-1] + 3), np.nan, array.dtype)
    wide[..., 1:-2] = array
    return wide[..., 1:-2]


def misaligned(array):
    """An address that is not even a multiple of the element size."""
    raw = np.empty(array.nbytes + 1, np.uint8)
    odd = raw[1:].view(array.dtype).reshape(array.shape)
    odd[...] = array
    return odd


def features_apart(array):
    """A feature stride other than 1."""
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def backwards(array):
    """Every axis runs backwards through memory."""
    turned = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[turned])[turned]


def fortran(array):
    return np.asfortranarray(array)


def one_byte_off_rows(array):
    """Rows whose distance is no whole number of elements."""
    pitch = array.shape[-1] * array.itemsize + 1
    raw = np.zeros((*array.shape[:-1], pitch), np.uint8)
    raw[..., :-1] = np.ascontiguousarray(array).view(np.uint8)
    strides = (*raw.strides[:-1], array.itemsize)
    return np.ndarray(array.shape, array.dtype, raw, strides=strides)


@pytest.mark.parametrize(
    "placed", [gap, negative, padded, misaligned, features_apart, backwards, fortran, one_byte_off_rows]
)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_strides(cell, dtype, reverse, placed, isa):
    """Whatever the memory of an argument looks like, the bits are the same."""
    case = Case(cell, dtype, 9, 7, 5, 21, reverse=reverse)
    data = case.data()
    # gap and negative are about time and batch; the others hold for weights, states and their gradients as well.
    whole = set(data) if placed not in (gap, negative, one_byte_off_rows) else {"x", "grad_output"}
    moved = {name: placed(array) if name in whole else array for name, array in data.items()}
    assert not all(array.flags.c_contiguous and array.flags.aligned for array in moved.values())
    assert_same_bits(train(case, moved), train(case, data))
    assert_same_bits(infer(case, moved), infer(case, data))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_zero_strides(cell, dtype, isa):
    """One row broadcast over the batch and over time; one number over any argument; all of them at once."""
    case = Case(cell, dtype, 9, 7, 5, 21)
    data = case.data()
    rows = {name: np.broadcast_to(data[name][:1, :1], data[name].shape) for name in ("x", "grad_output")}
    numbers = {name: np.broadcast_to(array.flat[0], array.shape) for name, array in data.items()}
    for change in (rows, *({name: array} for name, array in numbers.items()), numbers):
        copied = {name: array.copy() for name, array in change.items()}
        assert_same_bits(train(case, data | change), train(case, data | copied))
        assert_same_bits(infer(case, data | change), infer(case, data | copied))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("cell", CELLS)
def test_strides_of_axes_of_length_one(cell, axis, isa):
    """They mean nothing and may be anything."""
    case = Case(cell, "float32", *((1, 7) if axis == 0 else (9, 1)), 5, 21)
    data = case.data()
    want = train(case, data)
    for stride in (0, 4, -(2**61), 2**62):
        moved = dict(data)
        for name in ("x", "grad_output"):
            strides = list(data[name].strides)
            strides[axis] = stride
            moved[name] = np.lib.stride_tricks.as_strided(data[name], strides=strides)
            assert moved[name].strides[axis] == stride
        assert_same_bits(train(case, moved), want)


@cases
def test_cut_anywhere(case, isa):
    """A sequence in two pieces at every step; in single steps; and on other numbers of threads."""
    data = case.data()
    whole = train(case, data, threads=1)
    every = range(1, case.seq_len) if case.seq_len < 10 else (1, 2, case.seq_len // 2, case.seq_len - 1)
    for cuts in [*([cut] for cut in every), list(range(1, case.seq_len))]:
        pieces = train_in_pieces(case, data, cuts, threads=1 + cuts[0] % 3)
        assert_same_bits(pieces, whole, in_case(SEQUENCE_RESULTS, case))
        assert_close(pieces, {name: whole[name] for name in PARAMETER_GRADIENTS}, case.dtype, "gradient")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_cut_a_long_sequence(cell, dtype, isa, rng):
    """Cuts within and between the chunks in which projections and weight gradients are computed."""
    case = Case(cell, dtype, 700, 3, 5, 19)
    data = case.data()
    whole = train(case, data)
    for _ in range(4):
        cuts = sorted(rng.choice(np.arange(1, case.seq_len), 3, replace=False).tolist())
        assert_same_bits(train_in_pieces(case, data, cuts), whole, in_case(SEQUENCE_RESULTS, case))


@cases
def test_reverse_is_the_sequence_turned_around(case, isa):
    data = case.data()
    turned = data | {name: data[name][::-1] for name in ("x", "grad_output")}
    want = train(case, data)
    got = train(replace(case, reverse=not case.reverse), turned)
    got |= {name: got[name][::-1] for name in ("output", "grad_x")}
    assert_same_bits(got, want)


@cases
def test_inference_training_packed_and_repeated(case, isa):
    data = case.data()
    trained = train(case, data)
    assert_same_bits(train(case, data), trained)
    forward = {name: trained[name] for name in in_case(("output", "h_n", "c_n"), case)}
    assert_same_bits(infer(case, data), forward)
    for threads in (1, 2):
        assert_same_bits(infer_packed(case, data, threads), forward)


def infer_packed(case, data, threads):
    """Inference on weights packed before."""
    backend = hotloop._core.settings.active()
    args = forward_args(case, data, training=False, backend=backend)
    assert args.packed is not None
    backend.forward((args,), threads)
    return {name: getattr(args, name) for name in ("output", "h_n", "c_n")}


# Properties of any problem


@st.composite
def any_case(draw, largest):
    """A case of any shape and options."""
    return Case(
        draw(st.sampled_from(CELLS)),
        draw(st.sampled_from(DTYPES)),
        draw(st.integers(2, largest)),
        draw(st.integers(1, largest)),
        draw(st.integers(1, largest)),
        draw(st.integers(1, 2 * largest)),
        draw(st.sampled_from(("both", "none", "ih", "hh"))),
        draw(st.sampled_from(((), ("h0",), ("h0", "c0")))),
        draw(st.sampled_from((UPSTREAM, ("grad_output",), ("grad_h_n",), ("grad_output", "grad_c_n")))),
        draw(st.booleans()),
    )


@st.composite
def problems(draw, largest):
    """A case, a cut, a number of threads and some of its sequences in some order."""
    case = draw(any_case(largest))
    cuts = sorted(draw(st.sets(st.integers(1, case.seq_len - 1), min_size=1, max_size=4)))
    threads = draw(st.integers(1, 4))
    batch = draw(st.lists(st.integers(0, case.batch_size - 1), min_size=1, max_size=largest))
    return case, cuts, threads, batch


def check_contract(problem):
    """Threads, layout, place in a batch, cuts; and the sequence turned around."""
    case, cuts, threads, batch = problem
    data = case.data()
    whole = train(case, data, threads=1)
    assert_same_bits(train(case, data, threads=threads), whole)
    assert_same_bits(train(replace(case, layout="batch_first"), data, threads=threads), whole)
    some = replace(case, batch_size=len(batch))
    assert_same_bits(train(some, rows(data, batch), threads=threads), result_rows(whole, batch))
    alone = replace(case, batch_size=1, layout="unbatched")
    assert_same_bits(train(alone, rows(data, batch[:1]), threads=threads), result_rows(whole, batch[:1]))
    pieces = train_in_pieces(case, data, cuts, threads=threads)
    assert_same_bits(pieces, whole, in_case(SEQUENCE_RESULTS, case))
    turned = data | {name: data[name][::-1] for name in ("x", "grad_output") if name in data}
    got = train(replace(case, reverse=not case.reverse), turned, threads=threads)
    assert_same_bits(got | {name: got[name][::-1] for name in ("output", "grad_x")}, whole)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def as_it_is(array):
    return array


ANY_ARRAY = (as_it_is, read_only, padded, misaligned, features_apart, backwards, fortran)
SEQUENCES = (*ANY_ARRAY, gap, negative, one_byte_off_rows)


@st.composite
def placed_problems(draw, largest):
    """A case, and where in memory each of its arrays lies."""
    case = draw(any_case(largest))
    places = {
        name: draw(st.sampled_from(SEQUENCES if name in ("x", "grad_output") else ANY_ARRAY)) for name in case.data()
    }
    return case, places, draw(st.integers(1, 4)), draw(st.sampled_from(SEQUENCES))


def check_memory(problem):
    """Strides, alignment and read-only memory of every argument, and of out=; inference is training."""
    case, places, threads, place_of_out = problem
    data = case.data()
    want = train(case, data, threads=1)
    moved = {name: place(data[name]) for name, place in places.items()}
    assert_same_bits(train(case, moved, threads=threads), want)
    forward = {name: want[name] for name in in_case(("output", "h_n", "c_n"), case)}
    assert_same_bits(infer(case, moved, threads=threads), forward)
    if place_of_out is not read_only:
        out = place_of_out(np.full_like(want["output"], np.nan))
        got = infer(case, moved, threads=threads, out=out)
        assert np.shares_memory(got["output"], out)
        assert_same_bits(got, forward)
    assert_same_bits({name: moved[name] for name in data}, data)


def check_calls(problem):
    """Several recurrences in one call, forward and backward, and on packed weights: the bits of separate calls."""
    kinds, threads = problem
    first = kinds[0]  # a call is of one cell, dtype and size
    like = {name: getattr(first, name) for name in ("cell", "dtype", "input_size", "hidden_size")}
    kinds = [replace(case, **like) for case in kinds]
    backend = hotloop._core.settings.active()
    data = [case.data() for case in kinds]
    separate = [train(case, one, threads=1) for case, one in zip(kinds, data, strict=True)]
    args = [forward_args(case, one) for case, one in zip(kinds, data, strict=True)]
    backend.forward(args, threads)
    back = [backward_args(one, inputs) for one, inputs in zip(args, data, strict=True)]
    backend.backward(back, threads)
    packed = [forward_args(c, one, training=False, backend=backend) for c, one in zip(kinds, data, strict=True)]
    backend.forward(packed, threads)
    for case, want, one, gradients, inference in zip(kinds, separate, args, back, packed, strict=True):
        forward = in_case(("output", "h_n", "c_n"), case)
        got = {name: getattr(one, name) for name in forward}
        got |= dict.fromkeys(want.keys() & {"grad_bias_ih", "grad_bias_hh"}) | gradients_of(gradients)
        assert_same_bits(got, want)
        assert_same_bits({name: getattr(inference, name) for name in forward}, want, forward)
        assert_same_bits(infer_packed(case, case.data(), threads), want, forward)


def call_problems(largest):
    """Cases of one call and its number of threads."""
    return st.tuples(st.lists(any_case(largest), min_size=1, max_size=4), st.integers(1, 4))


# What a test leaves behind (the backend in use) is the same for every example, and examples are not kept in a database.
PROPERTY = settings(deadline=None, max_examples=40, database=None, derandomize=True,
                    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
                    phases=[Phase.explicit, Phase.generate, Phase.shrink])  # fmt: skip


@PROPERTY
@given(problem=problems(largest=24))
def test_contract(isa, problem):
    check_contract(problem)


@PROPERTY
@given(problem=placed_problems(largest=24))
def test_contract_of_memory(isa, problem):
    check_memory(problem)


@PROPERTY
@given(problem=call_problems(largest=24))
def test_contract_of_calls(isa, problem):
    check_calls(problem)


@pytest.mark.long
@settings(PROPERTY, max_examples=2000, derandomize=False)
@given(problem=problems(largest=90))
def test_contract_on_many_shapes(isa, problem):
    check_contract(problem)


@pytest.mark.long
@settings(PROPERTY, max_examples=2000, derandomize=False)
@given(problem=placed_problems(largest=90))
def test_contract_of_memory_on_many_shapes(isa, problem):
    check_memory(problem)


@pytest.mark.long
@settings(PROPERTY, max_examples=1000, derandomize=False)
@given(problem=call_problems(largest=90))
def test_contract_of_calls_on_many_shapes(isa, problem):
    check_calls(problem)


def test_the_comparison_sees_one_bit():
    results = {name: np.ones(3, np.float32) for name in ("output", "h_n")}
    changed = {name: array.copy() for name, array in results.items()}
    changed["h_n"][1] = np.nextafter(np.float32(1), np.float32(2))
    with pytest.raises(AssertionError, match="h_n: 1 of 3 elements differ"):
        assert_same_bits(changed, results)
    with pytest.raises(AssertionError, match="output: 1 of 1"):
        assert_same_bits({"output": np.array([-0.0])}, {"output": np.array([0.0])})
