"""Ragged batches, resets and every c: against the same sequences and episodes one by one, the specification, finite
differences and torch.

What runs one by one are dense calls, which other tests hold against the specification.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from cases import (
    CELLS,
    DTYPES,
    INPUTS,
    PARAMETER_GRADIENTS,
    PARAMETERS,
    TOLERANCE,
    UPSTREAM,
    Case,
    assert_close,
    assert_same_bits,
    distance,
    functions,
    gradients_of,
    make_backward,
    make_forward,
    raises,
)
from conftest import Variant
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import hotloop
from hotloop._backends import numpy as _numpy
from hotloop._core import checks

LENGTHS = (4, 0, 9, 1, 9, 6, 3)  # in 9 steps
SEQUENCES = ("x", "grad_output", "grad_c", "output", "c", "grad_x", "resets")
LAYOUTS = ("padded", "batch_first", "flat")
RESULTS = ("output", "h_n", "c_n", "c", "grad_x", "grad_h0", "grad_c0")


def data_of(case):
    """As of a dense case, and grad_c."""
    data = case.data()
    if case.cell == "lstm":
        shape = (case.seq_len, case.batch_size, case.hidden_size)
        data["grad_c"] = case.rng("grad_c").standard_normal(shape).astype(case.dtype)
    return data


def random_resets(case, density=0.25):
    return case.rng("resets").random((case.seq_len, case.batch_size)) < density


def run(case, data, **options):
    """The public training function and its vjp: results and gradients by name, as they come."""
    _, function, extra = functions(case.cell)
    lstm = case.cell == "lstm"
    inputs = {name: data[name] for name in INPUTS if name in data}
    options |= {"return_states": True} if lstm else {}
    (output, state, *c), vjp = function(**inputs, reverse=case.reverse, **extra, **options)
    results = {"output": output} | (
        dict(zip(("h_n", "c_n", "c"), (*state, *c), strict=True)) if lstm else {"h_n": state}
    )
    grads = vjp(**{name: data[name] for name in (*UPSTREAM, "grad_c") if name in data})
    return results | {f"grad_{name}": array for name, array in grads._asdict().items() if name != "weight_hr"}


def flat(sequence, lengths):
    return np.concatenate([sequence[0, :0], *(sequence[:length, row] for row, length in enumerate(lengths))])


def lay_out(data, layout, lengths):
    """Sequences from [T, B, *] to another layout; the rest as it is. And the options that say so."""
    if layout == "flat":
        change, options = lambda s: flat(s, lengths), {"offsets": np.append(0, np.cumsum(lengths, dtype=np.int64))}
    elif layout == "batch_first":
        change, options = lambda s: np.ascontiguousarray(s.swapaxes(0, 1)), {"lengths": lengths, "batch_first": True}
    else:
        change, options = lambda s: s, {"lengths": lengths}
    return {name: change(array) if name in SEQUENCES else array for name, array in data.items()}, options


def padded(results, layout, lengths, seq_len):
    """Results of `lay_out` back in [T, B, *]."""

    def back(sequence):
        if layout == "batch_first":
            return sequence.swapaxes(0, 1)
        whole = np.zeros((seq_len, len(lengths), *sequence.shape[1:]), sequence.dtype)
        for row, end in enumerate(np.cumsum(lengths)):
            whole[: lengths[row], row] = sequence[end - lengths[row] : end]
        return whole

    if layout == "padded":
        return results
    return {name: back(array) if name in SEQUENCES else array for name, array in results.items()}


def run_in(layout, case, data, lengths, resets=None, **options):
    """`run` in a layout, of time-major data and with time-major results."""
    laid, where = lay_out(data | ({} if resets is None else {"resets": resets}), layout, lengths)
    results = run(case, laid, resets=laid.pop("resets", None), **where, **options)
    return padded(results, layout, lengths, case.seq_len)


def episodes(length, flags, reverse):
    """The pieces of a row between resets, as slices of time, in processing order."""
    order = range(length)[::-1] if reverse else range(length)
    cuts = [number for number, time in enumerate(order) if flags[time] and number]
    for first, last in itertools.pairwise([0, *cuts, length]):
        yield slice(length - last, length - first) if reverse else slice(first, last)


def one_by_one(case, data, lengths, resets=None, reset_state="zeros"):
    """What `run_in` has to give, from dense calls on one episode of one sequence each."""
    if resets is None:
        resets = np.zeros((case.seq_len, len(lengths)), bool)
    states = ("h", "c") if case.cell == "lstm" else ("h",)
    width, zero = case.hidden_size, np.dtype(case.dtype).type(0)
    steps = (case.seq_len, len(lengths))
    whole = {name: np.zeros((*steps, width), case.dtype) for name in ("output", "c")[: len(states)]}
    whole["grad_x"] = np.zeros((*steps, case.input_size), case.dtype)
    for name in states:
        start = data.get(f"{name}0", np.zeros((len(lengths), width), case.dtype))
        whole[f"{name}_n"] = start.copy()
        whole[f"grad_{name}0"] = data.get(f"grad_{name}_n", np.zeros_like(start)).copy()
    sums = {name: 0 for name in PARAMETER_GRADIENTS}
    for row, length in enumerate(lengths):
        here = slice(row, row + 1)
        pieces = list(episodes(length, resets[:, row], case.reverse)) if length else []
        for number, piece in reversed(list(enumerate(pieces))):
            last = number == len(pieces) - 1
            first_step = piece.stop - 1 if case.reverse else piece.start
            given = {name: data[name] for name in PARAMETERS if name in data}
            given |= {name: data[name][piece, here] for name in ("x", "grad_output", "grad_c") if name in data}
            takes_initial = reset_state == "initial" or not resets[first_step, row]  # at the first step, that is
            for name in states:
                if takes_initial and f"{name}0" in data:
                    given[f"{name}0"] = data[f"{name}0"][here]
                if last and f"grad_{name}_n" in data:
                    given[f"grad_{name}_n"] = data[f"grad_{name}_n"][here]
            got = run(case, given)
            for name in {"output", "c", "grad_x"} & set(whole):
                whole[name][piece, here] = got[name]
            for name in states:
                if last:
                    whole[f"{name}_n"][here] = got[f"{name}_n"]
                    whole[f"grad_{name}0"][here] = zero
                if takes_initial:
                    whole[f"grad_{name}0"][here] += got[f"grad_{name}0"]
            for name in sums:
                sums[name] = None if got[name] is None else sums[name] + got[name]
    return whole | {name: array for name, array in sums.items() if array is not None}


def assert_same(variant, case, got, want, exact=RESULTS):
    """Bit for bit on the native backend; gradients of weights, and what is not `exact`, within the tolerance."""
    for name, array in want.items():
        if isinstance(array, int):  # no step at all
            assert got[name] is None or not got[name].any(), name
        elif variant.backend == "native" and name in exact:
            assert_same_bits(got, want, [name])
        else:
            kind = "gradient" if name.startswith("grad_") else "forward"
            assert distance(got[name], array) <= 2 * TOLERANCE[case.dtype][kind], name


# The sum of several episodes' gradients of h0 is theirs one by one up to rounding.
UNSUMMED = tuple(name for name in RESULTS if name not in ("grad_h0", "grad_c0"))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_sequences_and_episodes_one_by_one(cell, reverse, variant):
    for dtype in DTYPES:
        case = Case(cell, dtype, 9, 7, 5, 21, reverse=reverse)
        data, resets = data_of(case), random_resets(case)
        want = one_by_one(case, data, LENGTHS)
        for layout in LAYOUTS:
            assert_same(variant, case, run_in(layout, case, data, LENGTHS), want)
        for form, exact in (("zeros", RESULTS), ("initial", UNSUMMED)):
            want = one_by_one(case, data, LENGTHS, resets, form)
            for layout in LAYOUTS:
                got = run_in(layout, case, data, LENGTHS, resets, reset_state=form)
                assert_same(variant, case, got, want, exact)
            want = one_by_one(case, data, [9] * 7, resets, form)
            assert_same(variant, case, run(case, data, resets=resets, reset_state=form), want, exact)


@pytest.mark.parametrize("cell", CELLS)
def test_inference_is_the_forward_of_training(cell, variant):
    function, _, extra = functions(cell)
    for dtype, reverse in (("float32", False), ("float64", True)):
        case = Case(cell, dtype, 9, 7, 5, 21, reverse=reverse)
        data, resets = data_of(case), random_resets(case)
        inputs = {name: data[name] for name in INPUTS if name in data} | extra | {"reverse": reverse}
        for options in ({"lengths": LENGTHS}, {"resets": resets}, {"lengths": LENGTHS, "resets": resets}):
            for form in ("zeros", "initial"):
                want = run(case, data, reset_state=form, **options)
                got = {"output": function(**inputs, **options, reset_state=form)[0]}
                assert_same_bits(got, want, ["output"])
                if cell == "lstm":
                    output, (h_n, c_n), c = function(**inputs, **options, reset_state=form, return_states=True)
                    assert_same_bits(
                        {"output": output, "h_n": h_n, "c_n": c_n, "c": c}, want, ["output", "h_n", "c_n", "c"]
                    )


def reference(case, data, lengths=None, offsets=None, resets=None, reset_state="zeros", output=None):
    """The specification in float64. `output`: of an RNN with relu, whose derivative is taken on these sides of 0."""
    data = {name: array.astype(np.float64) for name, array in data.items()}
    weights = checks.check_weights(case.constants, *(data.get(name) for name in PARAMETERS))
    args = make_forward(
        weights, data["x"], data.get("h0"), data.get("c0"), reverse=case.reverse, lengths=lengths, offsets=offsets,
        resets=resets, reset_state=reset_state,
    )  # fmt: skip
    _numpy.forward((args,), 1)
    results = {
        name: getattr(args, name).copy() for name in ("output", "h_n", "c_n", "c") if getattr(args, name) is not None
    }
    if case.cell == "rnn_relu":
        args.output[...] = output
    back = make_backward(args, *(data.get(name) for name in UPSTREAM), data.get("grad_c"))
    _numpy.backward((back,), 1)
    grads = gradients_of(back)
    if offsets is not None:
        grads["grad_x"] = grads["grad_x"][:, 0]
    return results | {name: array for name, array in grads.items() if array is not None}


def random_options(case, density, form):
    lengths = case.rng("lengths").integers(0, case.seq_len + 1, case.batch_size)
    return {"lengths": lengths, "resets": random_resets(case, density) if density else None, "reset_state": form}


@lru_cache(maxsize=64)
def cached_reference(case, density, form):
    return reference(case, data_of(case), **random_options(case, density, form))


SHAPES = [(1, 1, 1, 1), (1, 33, 3, 5), (40, 33, 8, 37), (50, 12, 3, 72)]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_specification(cell, shape, variant):
    for number, (dtype, reverse) in enumerate(itertools.product(DTYPES, (False, True))):
        case = Case(cell, dtype, *shape, biases=("both", "none", "ih", "hh")[number], reverse=reverse)
        data = data_of(case)
        for density, form in ((0, "zeros"), (0.1, ("zeros", "initial")[number % 2])):
            options = random_options(case, density, form)
            got = run(case, data, **options)
            if cell == "rnn_relu":
                want = reference(case, data, **options, output=got["output"])
            else:
                want = cached_reference(case, density, form)
            for part in ("forward", "gradient"):
                chosen = {
                    name: array for name, array in want.items() if name.startswith("grad_") == (part == "gradient")
                }
                assert_close(got, chosen, dtype, part)


@pytest.mark.parametrize("cell", CELLS)
def test_chunks_of_numba(cell, numba_backend, monkeypatch):
    """However short they are, and where a run is cut in two."""
    case = Case(cell, "float64", 30, 6, 5, 12)
    data, resets = data_of(case), random_resets(case, 0.03)
    lengths = case.rng("lengths").integers(0, 31, 6)
    for options in ({"lengths": lengths}, {"resets": resets, "reset_state": "initial"}):
        want = run(case, data, **options)
        for rows in (1, 7, 20):
            monkeypatch.setattr("hotloop._backends.numba._CHUNK_ROWS", (rows, rows))
            assert_same(Variant("numba"), case, run(case, data, **options), want)
        monkeypatch.undo()


@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences(cell, variant):
    """Every gradient in float64: of lengths, resets, both forms, all states and every c together."""
    for reverse, form in itertools.product((False, True), ("zeros", "initial")):
        case = Case(cell, "float64", 5, 4, 3, 4, reverse=reverse)
        data, lengths = data_of(case), [3, 5, 0, 4]
        resets = np.zeros((5, 4), bool)
        resets[[2, 0, 3, 4, 1, 3], [0, 1, 1, 1, 2, 3]] = True
        options = {"lengths": lengths, "resets": resets, "reset_state": form}
        grads = run(case, data, **options)
        rng = case.rng("direction")
        names = [name for name in INPUTS if name in data]
        upstream = {name.removeprefix("grad_"): data[name] for name in (*UPSTREAM, "grad_c") if name in data}

        def loss(step, which, directions, case=case, data=data, options=options, upstream=upstream):
            moved = data | {name: data[name] + step * directions[name] for name in which}
            results = run(case, moved, **options)
            return sum((results[name] * gradient).sum() for name, gradient in upstream.items())

        for which in [[name] for name in names]:
            for _ in range(3):
                directions = {name: rng.standard_normal(data[name].shape) for name in which}
                slope = (loss(1e-5, which, directions) - loss(-1e-5, which, directions)) / 2e-5
                want = sum((grads[f"grad_{name}"] * directions[name]).sum() for name in which)
                assert slope == pytest.approx(want, rel=1e-6, abs=1e-7), (which, reverse, form)


# What may stand in the padding, and where there is nothing


@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_nothing(cell, variant):
    """NaN, infinities and resets there; what comes back is zero there."""
    for dtype, reverse in itertools.product(DTYPES, (False, True)):
        case = Case(cell, dtype, 9, 7, 5, 21, reverse=reverse)
        data, resets = data_of(case), random_resets(case)
        padding = np.arange(9)[:, np.newaxis] >= np.array(LENGTHS)
        sequences = {name: data[name] for name in ("x", "grad_output", "grad_c") if name in data}
        want = run(case, data, lengths=LENGTHS, resets=resets, reset_state="initial")
        for value in (np.nan, np.inf):
            spoilt = {name: np.where(padding[..., np.newaxis], case.dtype and np.dtype(dtype).type(value), array)
                      for name, array in sequences.items()}  # fmt: skip
            got = run(case, data | spoilt, lengths=LENGTHS, resets=resets | padding, reset_state="initial")
            assert_same_bits(got, want)
            for name in {"output", "c", "grad_x"} & set(got):
                assert not got[name][padding].any(), name


@pytest.mark.parametrize("cell", CELLS)
def test_sequences_of_no_steps(cell, variant):
    """Their states are those they begin with, and so are the gradients."""
    case = Case(cell, "float32", 4, 3, 5, 6)
    data = data_of(case)
    for layout in LAYOUTS:
        for resets in (None, np.ones((4, 3), bool)):
            got = run_in(layout, case, data, [0, 0, 0], resets)
            for name in ("h", "c") if cell == "lstm" else ("h",):
                assert_same_bits(
                    {"state": got[f"{name}_n"], "gradient": got[f"grad_{name}0"]},
                    {"state": data[f"{name}0"], "gradient": data[f"grad_{name}_n"]},
                )
            for name in (*PARAMETER_GRADIENTS, "output", "grad_x"):
                assert not got[name].any(), name
    function, _, extra = functions(cell)
    parameters = [data[name] for name in PARAMETERS]
    _, state = function(data["x"], *parameters, lengths=[0, 4, 0], **extra)
    for array in state if cell == "lstm" else [state]:
        assert not array[[0, 2]].any()


@pytest.mark.parametrize("cell", CELLS)
def test_no_sequences(cell, variant):
    case = Case(cell, "float32", 4, 0, 5, 6)
    data = data_of(case)
    for options in ({"lengths": []}, {"lengths": np.zeros(0, np.int32), "resets": np.zeros((4, 0), bool)}):
        got = run(case, data, **options)
        assert got["output"].shape == (4, 0, 6)
        assert got["h_n"].shape == (0, 6)
        assert not got["grad_weight_hh"].any()
    got = run_in("flat", case, data, [])
    assert got["h_n"].shape == got["grad_h0"].shape == (0, 6)
    assert not got["grad_weight_ih"].any()


@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_one_length_are_a_dense_batch(cell, variant):
    """Rows are sorted by length, those of one length by number: sums over rows have the bits of the dense batch's."""
    rng = np.random.default_rng(0)
    case = Case(cell, "float32", 5, 40, 5, 6)
    data = case.data()
    x, weights = data["x"], [data.get(name) for name in PARAMETERS]
    _, start, options = functions(cell)
    upstream = rng.standard_normal((5, 40, 6)).astype(np.float32)
    upstream[4] = 0
    _, ragged = start(x, *weights, lengths=[4] * 40, **options)
    _, dense = start(x[:4].copy(), *weights, **options)
    got, want = ragged(upstream), dense(upstream[:4].copy())
    for name in PARAMETERS:
        assert_same_bits({name: getattr(got, name)}, {name: getattr(want, name)})


@pytest.mark.parametrize("cell", CELLS)
def test_full_lengths_are_none(cell, variant):
    case = Case(cell, "float32", 9, 7, 5, 21)
    data = data_of(case)
    want = run(case, data)
    assert_same_bits(run(case, data, lengths=[9] * 7), want)
    assert_same(variant, case, run_in("flat", case, data, [9] * 7), want)
    assert_same(variant, case, run(case, data, resets=np.zeros((9, 7), bool)), want)


INTEGERS = [list, tuple, torch.tensor, np.int8, np.uint8, np.uint64, ">i4"]


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda kind: getattr(kind, "__name__", kind))
def test_kinds_of_integers(kind, numpy_backend):
    case = Case("gru", "float32", 9, 7, 5, 6)
    data = data_of(case)
    want = run_in("flat", case, data, LENGTHS)
    if kind in INTEGERS[:3]:

        def convert(values):
            return kind(values)
    else:

        def convert(values):
            return np.array(values, kind)

    offsets = np.append(0, np.cumsum(LENGTHS)).tolist()
    laid, _ = lay_out(data, "flat", LENGTHS)
    assert_same_bits(run(case, laid, offsets=convert(offsets)), run(case, laid, offsets=offsets))
    assert_same_bits(run(case, data, lengths=convert(list(LENGTHS))), want, ["h_n", "grad_h0"])
    resets = torch.tensor(random_resets(case))
    assert_same_bits(run(case, data, resets=resets), run(case, data, resets=resets.numpy()))


def test_strides_of_resets(variant):
    """They are read where they lie, in whatever order."""
    case = Case("lstm", "float32", 9, 7, 5, 21)
    data, resets = data_of(case), random_resets(case)
    want = run(case, data, resets=resets)
    wide = np.ones((18, 21), bool)
    wide[::2, ::3] = resets
    turned = np.ascontiguousarray(resets[::-1, ::-1])
    inputs = [data[name] for name in INPUTS]
    for array in (wide[::2, ::3], turned[::-1, ::-1], np.asfortranarray(resets)):
        assert_same_bits(run(case, data, resets=array), want)
        output, (h_n, c_n) = hotloop.lstm(*inputs, resets=array)
        assert_same_bits({"output": output, "h_n": h_n, "c_n": c_n}, want, ["output", "h_n", "c_n"])
    everywhere = np.broadcast_to(np.array(True), (9, 7))
    assert_same_bits(run(case, data, resets=everywhere), run(case, data, resets=np.ones((9, 7), bool)))


# Every c


def test_every_c(variant):
    """As step by step; in the layout of the output; backward reads it, so it is read-only."""
    for dtype, reverse in itertools.product(DTYPES, (False, True)):
        case = Case("lstm", dtype, 6, 3, 4, 9, reverse=reverse)
        data = data_of(case)
        inputs = {name: data[name] for name in INPUTS}
        output, (_, c_n), c = hotloop.lstm(**inputs, reverse=reverse, return_states=True)
        states, order = {"h0": data["h0"], "c0": data["c0"]}, range(6)[::-1] if reverse else range(6)
        for time in order:
            _, (states["h0"], states["c0"]) = hotloop.lstm(**inputs | states | {"x": data["x"][time : time + 1]})
            assert distance(c[time], states["c0"]) <= 2 * TOLERANCE[dtype]["forward"]
        np.testing.assert_array_equal(c[order[-1]], c_n)
        turned = {"x": data["x"].swapaxes(0, 1), "reverse": reverse, "return_states": True}
        (other, _, turned_c), vjp = hotloop.lstm_vjp(**inputs | turned, batch_first=True)
        assert_same_bits({"output": other.swapaxes(0, 1), "c": turned_c.swapaxes(0, 1)}, {"output": output, "c": c})
        for array in (other, turned_c):
            with pytest.raises(ValueError, match="read-only"):
                array[0, 0, 0] = 1
        grads = vjp(grad_c=data["grad_c"].swapaxes(0, 1), wrt=["h0", "c0"])
        want = run(case, {name: array for name, array in data.items() if name not in UPSTREAM})
        assert_same(
            variant, case, {"grad_h0": grads.h0, "grad_c0": grads.c0}, {n: want[n] for n in ("grad_h0", "grad_c0")}
        )
        alone = [array[:1] if name in ("h0", "c0") else array[:, 0] if name == "x" else array
                 for name, array in inputs.items()]  # fmt: skip
        _, _, c_alone = hotloop.lstm(
            *alone[:5], *(array[0] for array in alone[5:]), reverse=reverse, return_states=True
        )
        assert_same(variant, case, {"c": c_alone}, {"c": c[:, 0]})


def test_a_gradient_of_every_c_needs_every_c(variant):
    case = Case("lstm", "float32")
    inputs = {name: array for name, array in case.data().items() if name in INPUTS}
    _, vjp = hotloop.lstm_vjp(**inputs)
    with pytest.raises(TypeError, match="grad_c"):
        vjp(grad_c=np.zeros((5, 3, 6), np.float32))


# Properties


PROPERTY = settings(deadline=None, max_examples=15, database=None, derandomize=True,
                    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
                    phases=[Phase.explicit, Phase.generate, Phase.shrink])  # fmt: skip


@st.composite
def problems(draw):
    """A case, its lengths, its resets (or None) and their form."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=9))
    sizes = draw(st.tuples(st.integers(1, 12), st.integers(1, 40)))
    case = Case(
        draw(st.sampled_from(CELLS)), draw(st.sampled_from(DTYPES)), max(*lengths, 1), len(lengths), *sizes,
        biases=draw(st.sampled_from(("both", "none", "ih", "hh"))), reverse=draw(st.booleans()),
        states=draw(st.sampled_from([("h0", "c0"), ("h0",), ("c0",), ()])),
        upstream=draw(st.sampled_from([UPSTREAM, ("grad_output",), ("grad_h_n",), ()])),
    )  # fmt: skip
    density = draw(st.sampled_from([None, 0.05, 0.4, 1]))
    resets = None if density is None else random_resets(case, density)
    return case, lengths, resets, draw(st.sampled_from(("zeros", "initial")))


@PROPERTY
@given(problem=problems())
def test_one_by_one_of_anything(variant, problem):
    case, lengths, resets, form = problem
    data = data_of(case)
    want = one_by_one(case, data, lengths, resets, form)
    for layout in LAYOUTS:
        got = run_in(layout, case, data, lengths, resets, reset_state=form)
        assert_same(variant, case, got, want, RESULTS if form == "zeros" else UNSUMMED)


@PROPERTY
@given(problem=problems(), data=st.data())
def test_cut_anywhere(variant, problem, data):
    """A ragged batch cut in time, the states and their gradients passed on. With zeros: an inner piece has other h0."""
    case, lengths, resets, _ = problem
    given = data_of(case)
    cut = data.draw(st.integers(1, case.seq_len), "cut") if case.seq_len > 1 else 1
    if cut >= case.seq_len:
        return
    lengths = np.array(lengths)
    resets = np.zeros((case.seq_len, len(lengths)), bool) if resets is None else resets
    whole = run(case, given, lengths=lengths, resets=resets)
    pieces = [(slice(0, cut), np.minimum(lengths, cut)), (slice(cut, None), np.maximum(lengths - cut, 0))]
    pieces = pieces[::-1] if case.reverse else pieces
    states = [name for name in ("h", "c") if name == "h" or case.cell == "lstm"]

    def piece(number, names, more):
        where, parts = pieces[number]
        some = {name: given[name] for name in PARAMETERS if name in given}
        some |= {name: given[name][where] for name in names if name in given} | more
        return run(replace(case, seq_len=len(some["x"])), some, lengths=parts, resets=resets[where])

    initial = {name: given[name] for name in ("h0", "c0") if name in given}
    final = {name: given[name] for name in ("grad_h_n", "grad_c_n") if name in given}
    first = piece(0, ["x"], initial)
    passed = {f"{name}0": first[f"{name}_n"] for name in states}
    second = piece(1, ["x", "grad_output", "grad_c"], passed | final)
    back = {f"grad_{name}_n": second[f"grad_{name}0"] for name in states}
    first = piece(0, ["x", "grad_output", "grad_c"], initial | back)
    in_time = (second, first) if case.reverse else (first, second)
    want = {
        name: np.concatenate([part[name] for part in in_time]) for name in ("output", "c", "grad_x") if name in whole
    }
    want |= {f"{name}_n": second[f"{name}_n"] for name in states}
    want |= {f"grad_{name}0": first[f"grad_{name}0"] for name in states}
    want |= {name: first[name] + second[name] for name in PARAMETER_GRADIENTS if whole[name] is not None}
    assert_same(variant, case, whole, want)


@pytest.mark.parametrize("cell", CELLS)
def test_threads(cell, isa):
    """The same bits on any number, of rows and of units in shares."""
    for dtype, batch_size, hidden_size in (("float32", 33, 40), ("float64", 3, 130)):
        case = Case(cell, dtype, 60, batch_size, 8, hidden_size)
        data, resets = data_of(case), random_resets(case, 0.05)
        lengths = case.rng("lengths").integers(0, 61, batch_size)
        for layout, form in (("padded", "zeros"), ("flat", "initial")):
            want = run_in(layout, case, data, lengths, resets, reset_state=form, threads=1)
            for threads in (2, 3, 8):
                got = run_in(layout, case, data, lengths, resets, reset_state=form, threads=threads)
                assert_same_bits(got, want)


# Calls


@pytest.mark.parametrize("cell", CELLS)
def test_out(cell, variant):
    """The padding is zero there too, whatever it held."""
    case = Case(cell, "float32", 9, 7, 5, 21)
    data = data_of(case)
    function, _, extra = functions(cell)
    want = run(case, data, lengths=LENGTHS)
    for layout in LAYOUTS:
        laid, options = lay_out({name: data[name] for name in INPUTS if name in data}, layout, LENGTHS)
        shape = (*laid["x"].shape[:-1], 21)
        for out in (np.full(shape, np.nan, np.float32), np.full((*shape[:-1], 50), np.nan, np.float32)[..., 3:45:2]):
            output, _ = function(**laid, **extra, **options, out=out)
            assert output is out
            got = padded({"output": output}, layout, LENGTHS, 9)
            assert_same(variant, case, got, {"output": want["output"]})


def test_out_may_not_lie_in_resets(variant):
    case = Case("gru", "float32", 9, 7, 4, 6)
    inputs = {name: array for name, array in case.data().items() if name in INPUTS}
    memory = np.zeros((9, 7, 24), bool)
    with pytest.raises(ValueError, match=r"^out: expected memory of its own, got memory it shares with resets$"):
        hotloop.gru(**inputs, resets=memory[..., 0], out=memory.view(np.float32))


@pytest.mark.parametrize("cell", CELLS)
def test_vjp_again_after_arguments_have_changed(cell, variant):
    """Lengths, offsets, resets and states are the caller's to overwrite."""
    case = Case(cell, "float32", 9, 7, 5, 21)
    data = data_of(case)
    _, function, extra = functions(cell)
    for layout in LAYOUTS:
        laid, options = lay_out(data | {"resets": random_resets(case)}, layout, LENGTHS)
        options = {name: np.array(value) if name != "batch_first" else value for name, value in options.items()}
        options["resets"] = laid.pop("resets").copy()
        inputs = {name: laid[name].copy() for name in INPUTS if name in laid}
        _, vjp = function(**inputs, **extra, **options, reset_state="initial")
        upstream = {name: laid[name] for name in UPSTREAM if name in laid}
        want = vjp(**upstream)
        for name in ("h0", "c0", "lengths", "offsets", "resets"):
            if (array := inputs.get(name, options.get(name))) is not None:
                array[...] = 1
        assert_same_bits(vjp(**upstream)._asdict(), want._asdict())
        only = vjp(**upstream, wrt=["weight_hh"])
        assert_same_bits({"weight_hh": only.weight_hh}, {"weight_hh": want.weight_hh})


ONES = np.ones
FLAGS = ONES((5, 3), bool)
FLAT_RULE = "0 = offsets[0] <= offsets[1] <= ... <= offsets[-1] = 7 (rows of x)"
BOOL = "resets: expected bool (for each step whether an episode begins), got "
BAD = [
    ("batch", {"lengths": [5, 6, 1]}, ValueError, "lengths: expected integers from 0 to seq_len = 5, got 6 at 1"),
    ("batch", {"lengths": [5, 3, -1]}, ValueError, "lengths: expected integers from 0 to seq_len = 5, got -1 at 2"),
    ("batch", {"lengths": np.array([2**64 - 1, 3, 1], np.uint64)}, ValueError,
     "lengths: expected integers from 0 to seq_len = 5, got 18446744073709551615 at 0"),
    ("batch", {"lengths": [5, 3]}, ValueError, "lengths: expected shape (batch_size,) = (3,), got (2,)"),
    ("batch", {"lengths": []}, ValueError, "lengths: expected shape (batch_size,) = (3,), got (0,)"),
    ("batch", {"lengths": 5}, ValueError, "lengths: expected shape (batch_size,) = (3,), got ()"),
    ("batch", {"lengths": [[5, 3, 1]]}, ValueError, "lengths: expected shape (batch_size,) = (3,), got (1, 3)"),
    ("batch", {"lengths": [5.0, 3.0, 1.0]}, TypeError,
     "lengths: expected integers from 0 to seq_len = 5, got float64"),
    ("batch", {"lengths": [True, True, False]}, TypeError,
     "lengths: expected integers from 0 to seq_len = 5, got bool"),
    ("batch", {"lengths": [None, 1, 2]}, TypeError, "lengths: expected integers from 0 to seq_len = 5, got object"),
    ("batch", {"lengths": np.ma.masked_array([5, 3, 1])}, TypeError,
     "lengths: expected an array without a mask, got a masked array; pass lengths.filled(...)"),
    ("batch", {"lengths": torch.ones(3, dtype=torch.int64, device="meta")}, TypeError,
     "lengths: expected an array in the processor's memory, got a Tensor on device meta; pass lengths.cpu()"),
    ("unbatched", {"lengths": [5]}, ValueError,
     "lengths: expected x of 3 dimensions (unbatched input has one length, flat input has offsets), got 2 (5, 4)"),
    ("batch", {"offsets": [0, 5]}, ValueError,
     "x: expected 2 dimensions (total, input_size) with offsets, got 3 (5, 3, 4)"),
    ("flat", {"offsets": [0, 3, 7], "lengths": [3, 4]}, ValueError,
     "lengths, offsets: expected one of them, got both"),
    ("flat", {"offsets": [0, 3, 8]}, ValueError, f"offsets: expected {FLAT_RULE}, got 8 at 2"),
    ("flat", {"offsets": [0, 3, 6]}, ValueError, f"offsets: expected {FLAT_RULE}, got 6 at 2"),
    ("flat", {"offsets": [1, 3, 7]}, ValueError, f"offsets: expected {FLAT_RULE}, got 1 at 0"),
    ("flat", {"offsets": [-1, 3, 7]}, ValueError, f"offsets: expected {FLAT_RULE}, got -1 at 0"),
    ("flat", {"offsets": [0, 4, 3, 7]}, ValueError, f"offsets: expected {FLAT_RULE}, got 3 at 2"),
    ("flat", {"offsets": np.array([0, 2**63 + 1, 7], np.uint64)}, ValueError,
     f"offsets: expected {FLAT_RULE}, got 9223372036854775809 at 1"),
    ("flat", {"offsets": [0]}, ValueError, f"offsets: expected {FLAT_RULE}, got 0 at 0"),
    ("flat", {"offsets": []}, ValueError, "offsets: expected shape (batch_size + 1,), got (0,)"),
    ("flat", {"offsets": [[0, 7]]}, ValueError, "offsets: expected shape (batch_size + 1,), got (1, 2)"),
    ("flat", {"offsets": [0.0, 7.0]}, TypeError, f"offsets: expected integers {FLAT_RULE}, got float64"),
    ("flat", {"offsets": [0, 3, 7], "resets": ONES((7, 1), bool)}, ValueError,
     "resets: expected shape (total,) = (7,), got (7, 1)"),
    ("flat", {"offsets": [0, 3, 7], "h0": ONES((3, 6), np.float32)}, ValueError,
     "h0: expected shape (batch_size, hidden_size) = (2, 6), got (3, 6)"),
    ("batch", {"resets": ONES((3, 5), bool)}, ValueError,
     "resets: expected shape (seq_len, batch_size) = (5, 3), got (3, 5)"),
    ("batch", {"resets": ONES(5, bool)}, ValueError,
     "resets: expected shape (seq_len, batch_size) = (5, 3), got (5,)"),
    ("batch_first", {"resets": FLAGS}, ValueError,
     "resets: expected shape (batch_size, seq_len) = (3, 5), got (5, 3)"),
    ("unbatched", {"resets": FLAGS}, ValueError, "resets: expected shape (seq_len,) = (5,), got (5, 3)"),
    ("batch", {"resets": ONES((5, 3), np.float32)}, TypeError, f"{BOOL}float32; pass resets.astype(bool)"),
    ("batch", {"resets": ONES((5, 3), np.int64)}, TypeError, f"{BOOL}int64; pass resets.astype(bool)"),
    ("batch", {"resets": np.ma.masked_array(FLAGS)}, TypeError,
     "resets: expected an array without a mask, got a masked array; pass resets.filled(...)"),
    ("batch", {"resets": np.lib.stride_tricks.as_strided(FLAGS, (5, 3), (2**56, 1))}, ValueError,
     f"resets: expected strides that span at most {2**55} bytes, got {(2**56, 1)} for (5, 3)"),
    ("batch", {"reset_state": "zero"}, ValueError, "reset_state: expected 'zeros' or 'initial', got 'zero'"),
    ("batch", {"reset_state": ONES((1, 2), np.float32)}, ValueError,
     "reset_state: expected 'zeros' or 'initial', got array([[1., 1.]], dtype=float32)"),
    ("batch", {"resets": FLAGS, "reset_state": None}, ValueError,
     "reset_state: expected 'zeros' or 'initial', got None"),
    ("batch", {"return_states": "c"}, TypeError, "return_states: expected True or False, got 'c'"),
]  # fmt: skip
BAD_OF_CELLS = [
    ("rnn", "return_states: expected False, since the output of an RNN holds every state, got True"),
    ("gru", "return_states: expected False, since the output of a GRU holds every state, got True"),
]


class Unused:
    """A backend that cannot be called."""

    prepare = staticmethod(lambda *_, **__: None)


class Prepares:
    """One whose prepared calls cannot."""

    @staticmethod
    def prepare(*_, **__):
        def run(*_):
            raise AssertionError("a backend was called")

        return run


@pytest.mark.parametrize("backend", [Unused, Prepares])
@pytest.mark.parametrize(("kind", "change", "error", "message"), BAD, ids=[message[:60] for *_, message in BAD])
def test_bad_input(kind, change, error, message, backend, monkeypatch):
    """Before a backend is called."""
    monkeypatch.setattr(hotloop._core.settings, "current", hotloop._core.settings.Settings(backend, 1))
    inputs = {name: array for name, array in Case("lstm", "float32").data().items() if name in PARAMETERS}
    shape = {"batch": (5, 3, 4), "batch_first": (3, 5, 4), "unbatched": (5, 4), "flat": (7, 4)}[kind]
    inputs |= {"x": ONES(shape, np.float32), "batch_first": kind == "batch_first"} | change
    for function in (hotloop.lstm, hotloop.lstm_vjp):
        with raises(error, message):
            function(**inputs)


@pytest.mark.parametrize(("kind", "message"), BAD_OF_CELLS)
def test_no_other_state(kind, message, numpy_backend):
    parameters = [ONES((24, 4)), ONES((24, 8))] if kind == "gru" else [ONES((6, 4)), ONES((6, 6))]
    layer = getattr(hotloop, kind.upper())(4, 6, dtype=np.float64)
    for function in (getattr(hotloop, kind), getattr(hotloop, f"{kind}_vjp")):
        with raises(TypeError, message):
            function(ONES((5, 3, 4)), *parameters, return_states=True)
    for function in (layer, layer.vjp):
        with raises(TypeError, message):
            function(ONES((5, 3, 4)), return_states=True)
        function(ONES((5, 3, 4)), return_states=False)


def test_bad_gradients_of_every_c(numpy_backend):
    inputs = {name: array for name, array in Case("lstm", "float32").data().items() if name in INPUTS}
    _, vjp = hotloop.lstm_vjp(**inputs, return_states=True)
    with raises(ValueError, "grad_c: expected shape (seq_len, batch_size, hidden_size) = (5, 3, 6), got (3, 5, 6)"):
        vjp(grad_c=ONES((3, 5, 6), np.float32))
    with raises(TypeError, "grad_c: expected float32 (the dtype of weight_ih), got float64"):
        vjp(grad_c=ONES((5, 3, 6)))


# Layers


KINDS = ("RNN", "LSTM", "GRU")


def layer_of(kind, **options):
    return getattr(hotloop, kind)(5, 6, dtype=np.float64, rng=1, **options)


def train_layer(layer, x, state, upstream, **options):
    """Results and gradients, all in one list."""
    results, vjp = layer.vjp(x, state, **options)
    grads = vjp(*upstream)
    return [*leaves(results), grads.x, *leaves(grads.state), *grads.parameters.values()]


def leaves(nested):
    return [leaf for part in nested for leaf in leaves(part)] if isinstance(nested, (tuple, list)) else [nested]


def states_of(kind, shape, rng):
    drawn = [rng.standard_normal(shape) for _ in range(2 if kind == "LSTM" else 1)]
    return (tuple(drawn) if kind == "LSTM" else drawn[0]), drawn


def assert_all_close(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert distance(a, np.asarray(b)) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stack", [(1, False), (2, True)], ids=["one", "two_bidirectional"])
def test_packed_sequences_of_torch(kind, stack, variant, rng):
    num_layers, bidirectional = stack
    directions = 1 + bidirectional
    layer = layer_of(kind, num_layers=num_layers, bidirectional=bidirectional)
    twin = getattr(torch.nn, kind)(5, 6, num_layers, bidirectional=bidirectional, dtype=torch.float64)
    twin.load_state_dict({name: torch.tensor(array) for name, array in layer.state_dict().items()})
    lengths = [3, 8, 1, 8, 5]  # torch takes no zeros
    x, shape = rng.standard_normal((8, 5, 5)), (num_layers * directions, 5, 6)
    state, drawn = states_of(kind, shape, rng)
    upstream = [rng.standard_normal((8, 5, 6 * directions)), *(rng.standard_normal(shape) for _ in drawn)]

    inputs = [torch.tensor(array, requires_grad=True) for array in (x, *drawn)]
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs[0], torch.tensor(lengths), enforce_sorted=False)
    output, final = twin(packed, tuple(inputs[1:]) if kind == "LSTM" else inputs[1])
    results = [torch.nn.utils.rnn.pad_packed_sequence(output, total_length=8)[0], *leaves(final)]
    torch.autograd.backward(results, [torch.tensor(array) for array in upstream])
    named = dict(twin.named_parameters())
    want = [tensor.detach().numpy() for tensor in results] + [tensor.grad.numpy() for tensor in inputs]
    want += [named[name].grad.numpy() for name in layer.state_dict()]
    assert_all_close(train_layer(layer, x, state, upstream, lengths=lengths), want)


def episodes_of_layer(layer, kind, x, flags, length, upstream):
    """One sequence without initial states, episode by episode in time; the sum of the gradients of the parameters."""
    bounds = [0, *(time for time in range(1, length) if flags[time]), length]
    done = []
    for first, last in itertools.pairwise(bounds):
        (output, _, *c), vjp = layer.vjp(x[first:last], return_states=kind == "LSTM")
        grads = vjp(
            *(array[first:last] for array in upstream[:1]), **({"grad_c": upstream[1][first:last]} if c else {})
        )
        done.append(([output, *c, grads.x], list(grads.parameters.values())))
    sequences = [np.concatenate(parts) for parts in zip(*(part for part, _ in done), strict=True)]
    return sequences, [sum(parts) for parts in zip(*(part for _, part in done), strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_of_layers(kind, variant, rng):
    """Two layers, both directions: each episode is as if it were alone, padded, flat and unbatched."""
    layer = layer_of(kind, num_layers=2, bidirectional=True)
    lengths = [7, 0, 4, 1, 9]
    x, flags = rng.standard_normal((9, 5, 5)), rng.random((9, 5)) < 0.3
    upstream = [rng.standard_normal((9, 5, 12)) for _ in range(2 if kind == "LSTM" else 1)]
    options = {"return_states": True} if kind == "LSTM" else {}
    parameters, padding = None, np.arange(9)[:, np.newaxis] >= np.array(lengths)

    def train(x, upstream, **more):
        (output, _, *c), vjp = layer.vjp(x, **options, **more)
        grads = vjp(upstream[0], **({"grad_c": upstream[1]} if c else {}))
        return [output, *c, grads.x], list(grads.parameters.values())

    got, got_parameters = train(x, upstream, lengths=lengths, resets=flags | padding)
    offsets = np.append(0, np.cumsum(lengths))
    got_flat, _ = train(
        flat(x, lengths), [flat(g, lengths) for g in upstream], offsets=offsets, resets=flat(flags, lengths)
    )
    for array, flat_array in zip(got, got_flat, strict=True):
        assert distance(flat_array, flat(array, lengths)) <= 1e-12
        assert not array[padding].any()
    for row, length in enumerate(lengths):
        if not length:
            continue
        alone = [g[:length, row] for g in upstream]
        want, added = episodes_of_layer(layer, kind, x[:length, row], flags[:, row], length, alone)
        parameters = added if parameters is None else [a + b for a, b in zip(parameters, added, strict=True)]
        unbatched, _ = train(x[:length, row], alone, resets=flags[:length, row])
        for array, expected, single in zip(got, want, unbatched, strict=True):
            if variant.backend == "native":
                assert_same_bits({"all": array[:length, row], "one": single}, {"all": expected, "one": expected})
            assert distance(array[:length, row], expected) <= 1e-10
            assert distance(single, expected) <= 1e-10
    assert_all_close(got_parameters, parameters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["zeros", "initial"])
def test_torch_step_by_step(kind, form, variant, rng):
    """As libraries for reinforcement learning do it: the state is multiplied by a mask before every step."""
    layer = layer_of(kind)
    cell = getattr(torch.nn, f"{kind}Cell")(5, 6, dtype=torch.float64)
    cell.load_state_dict({n.removesuffix("_l0"): torch.tensor(a) for n, a in layer.state_dict().items()})
    x, flags = rng.standard_normal((9, 4, 5)), rng.random((9, 4)) < 0.3
    state, drawn = states_of(kind, (1, 4, 6), rng)
    upstream = [rng.standard_normal((9, 4, 6)), *(rng.standard_normal((1, 4, 6)) for _ in drawn)]
    inputs = [torch.tensor(array, requires_grad=True) for array in (x, *drawn)]
    now = start = [tensor[0] for tensor in inputs[1:]]
    outputs = []
    for time in range(9):
        mask = torch.tensor(flags[time, :, np.newaxis])
        now = [torch.where(mask, a if form == "initial" else 0 * b, b) for a, b in zip(start, now, strict=True)]
        now = leaves(cell(inputs[0][time], tuple(now) if kind == "LSTM" else now[0]))
        outputs.append(now[0])
    results = [torch.stack(outputs), *(tensor[None] for tensor in now)]
    torch.autograd.backward(results, [torch.tensor(array) for array in upstream])
    named = dict(cell.named_parameters())
    want = [tensor.detach().numpy() for tensor in results] + [tensor.grad.numpy() for tensor in inputs]
    want += [named[name.removesuffix("_l0")].grad.numpy() for name in layer.state_dict()]
    assert_all_close(train_layer(layer, x, state, upstream, resets=flags, reset_state=form), want)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_their_directions(kind, variant, rng):
    """With initial states: what each direction starts an episode with is its own part of them."""
    layer = layer_of(kind, bidirectional=True)
    parameters = list(layer.state_dict().values())
    function = getattr(hotloop, kind.lower())
    lengths = np.array([7, 0, 4, 9])
    x, flags = rng.standard_normal((9, 4, 5)), rng.random((9, 4)) < 0.4
    flags[lengths[:3], range(3)] = flags[0] = True  # behind the end of a row, where another may begin
    state, drawn = states_of(kind, (2, 4, 6), rng)
    moved = np.zeros_like(flags)  # before step t-1, in the reverse direction
    moved[:-1] = flags[1:]
    moved[lengths[lengths > 0] - 1, np.flatnonzero(lengths)] = False
    for form in ("zeros", "initial"):
        options = {"lengths": lengths, "reset_state": form} | ({"return_states": True} if kind == "LSTM" else {})
        got = layer(x, state, resets=flags, **options)
        forward = function(x, *parameters[:4], *(s[0] for s in drawn), resets=flags, **options)
        reverse = function(x, *parameters[4:], *(s[1] for s in drawn), reverse=True, resets=moved, **options)
        for number, array in enumerate(leaves(got)):
            halves = leaves(forward)[number], leaves(reverse)[number]
            joined = np.stack(halves) if array.shape == (2, 4, 6) else np.concatenate(halves, axis=2)
            np.testing.assert_array_equal(array, joined)
        options["offsets"] = np.append(0, options.pop("lengths").cumsum())
        got_flat = layer(flat(x, lengths), state, resets=flat(flags, lengths), **options)
        assert_all_close(leaves(got_flat), [a if a.shape == (2, 4, 6) else flat(a, lengths) for a in leaves(got)])


def test_every_c_of_layers(variant, rng):
    """The last layer's, both directions side by side; finite differences through all layers."""
    layer = layer_of("LSTM", num_layers=3, bidirectional=True, batch_first=True)
    x, grad_c, direction = (rng.standard_normal(shape) for shape in ((2, 5, 5), (2, 5, 12), (2, 5, 5)))
    (output, (_, c_n), c), vjp = layer.vjp(x, return_states=True)
    assert c.shape == output.shape
    np.testing.assert_array_equal(c[:, -1, :6], c_n[4])
    np.testing.assert_array_equal(c[:, 0, 6:], c_n[5])
    for array in (output, c):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0, 0] = 1
    ends = [(layer(x + step * direction, return_states=True)[2] * grad_c).sum() for step in (1e-6, -1e-6)]
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx((vjp(grad_c=grad_c).x * direction).sum(), rel=1e-6)
    with raises(ValueError, "grad_c: expected shape (batch_size, seq_len, 2*hidden_size) = (2, 5, 12), got (5, 2, 12)"):
        vjp(grad_c=grad_c.swapaxes(0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_ragged_layers(kind, variant, rng):
    """Finite differences at one seed; NaN in the padding."""
    layer = layer_of(kind, num_layers=3, bidirectional=True, dropout=0.4)
    lengths, padding = [3, 0, 6], np.arange(6)[:, np.newaxis] >= np.array([3, 0, 6])
    x, upstream, flags = rng.standard_normal((6, 3, 5)), rng.standard_normal((6, 3, 12)), rng.random((6, 3)) < 0.2
    x[padding] = upstream[padding] = np.nan
    options = {"lengths": lengths, "resets": flags, "seed": 3}
    (output, _), vjp = layer.vjp(x, **options)
    grads = vjp(upstream)
    assert not output[padding].any()
    assert not grads.x[padding].any()
    direction = rng.standard_normal(x.shape)
    ends = [np.nansum(layer.vjp(x + step * direction, **options)[0][0] * upstream) for step in (1e-6, -1e-6)]
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx((grads.x * direction).sum(), rel=1e-6)


def test_layers_take_the_long_way_where_they_must(variant, rng):
    """A short call of a layer has a way of its own, which knows nothing of these options."""
    layer = hotloop.LSTM(5, 6, rng=0)
    x = rng.standard_normal((3, 2, 5)).astype(np.float32)
    plain = layer(x)
    assert len(layer(x, return_states=True)) == 3
    for options in ({"lengths": [1, 2]}, {"resets": ONES((3, 2), bool)}):
        assert distance(layer(x, **options)[0], plain[0].astype(np.float64)) > 1e-3
    with raises(ValueError, "reset_state: expected 'zeros' or 'initial', got 'ones'"):
        layer(x, reset_state="ones")
    assert layer(x.reshape(6, 5), offsets=[0, 2, 6])[1][0].shape == (1, 2, 6)
