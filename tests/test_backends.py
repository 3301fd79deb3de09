"""Every backend on every instruction set against the specification in float64, over a covering set of shapes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import (
    BATCH_SIZES,
    BIASES,
    CELLS,
    DTYPES,
    HIDDEN_SIZES,
    INPUT_SIZES,
    INPUTS,
    LAYOUTS,
    PARAMETERS,
    SEQ_LENS,
    UPSTREAM,
    Case,
    assert_close,
    assert_matches_reference,
    assert_same_bits,
    forward_args,
    infer,
    reference,
    reference_gradients,
    run,
    start_training,
    subsets,
    train,
)

import hotloop
import hotloop._backends.choice
from hotloop._backends import numpy as _numpy
from hotloop._core import arrays

SMALL_WORK = 128 * 33 * 40 * 40  # steps x rows x units squared; more than that is for the long form


def cycles(rng, values, length):
    """`length` values, every one of them before any comes again, in another order each time around."""
    rounds = -(-length // len(values))
    return [values[i] for _ in range(rounds) for i in rng.permutation(len(values))][:length]


def covering(cell, dtype):
    """Every hidden, batch and input size, length, layout and set of options at least once with this cell and dtype,
    in random company. Every hidden size comes once; the largest make do with the shorter sequences.
    """
    rng = Case(cell, dtype).rng("covering")
    count = len(HIDDEN_SIZES)
    states = subsets(("h0", "c0") if cell == "lstm" else ("h0",))
    upstream = subsets(UPSTREAM if cell == "lstm" else UPSTREAM[:2])[1:]
    axes = (SEQ_LENS, BATCH_SIZES, INPUT_SIZES, BIASES, states, upstream, (False, True), LAYOUTS[:2])
    single = itertools.cycle(LAYOUTS[::-1])
    columns = [cycles(rng, values, count) for values in axes]
    for hidden_size, (seq_len, batch, inputs, biases, state, up, reverse, layout) in zip(
        HIDDEN_SIZES, zip(*columns, strict=True), strict=True
    ):
        while seq_len > 1 and seq_len * batch * hidden_size**2 > SMALL_WORK:
            seq_len = SEQ_LENS[SEQ_LENS.index(seq_len) - 1]
        if batch == 1:
            layout = next(single)
        yield Case(cell, dtype, seq_len, batch, inputs, hidden_size, biases, state, up, reverse, layout)


COVERING = [case for cell in CELLS for dtype in DTYPES for case in covering(cell, dtype)]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_covering_set_covers(cell, dtype):
    cases = [case for case in COVERING if (case.cell, case.dtype) == (cell, dtype)]
    for field, values in [
        ("hidden_size", HIDDEN_SIZES),
        ("batch_size", BATCH_SIZES),
        ("input_size", INPUT_SIZES),
        ("seq_len", SEQ_LENS),
        ("biases", BIASES),
        ("reverse", (False, True)),
        ("layout", LAYOUTS),
        ("states", subsets(("h0", "c0") if cell == "lstm" else ("h0",))),
        ("upstream", subsets(UPSTREAM if cell == "lstm" else UPSTREAM[:2])[1:]),
    ]:
        assert {getattr(case, field) for case in cases} == set(values), field


@pytest.mark.parametrize("case", COVERING, ids=str)
def test_specification(case, variant):
    """Results, saved gates and c, and all gradients; and inference gives what training gives."""
    data = case.data()
    results = train(case, data)
    assert_matches_reference(case, results)
    assert_same_bits(infer(case, data), results, [name for name in ("output", "h_n", "c_n") if name in results])


@pytest.mark.parametrize("case", COVERING, ids=str)
def test_saved_arrays(case, variant):
    """Gates and c are in natural order and right, not just good enough for the same backend's backward."""
    args = forward_args(case)
    hotloop._core.settings.active().forward((args,), 1)
    want = {name: array for name, array in reference(case).items() if name in ("gates", "c")}
    assert_close({"gates": args.gates, "c": args.c}, want, case.dtype, "forward")


@pytest.mark.parametrize("numpy_first", [False, True], ids=["then_numpy", "numpy_first"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("seq_len", "batch_size", "hidden_size"), [(3, 2, 5), (17, 7, 33), (9, 16, 64)])
def test_backward_on_what_another_backend_saved(cell, dtype, seq_len, batch_size, hidden_size, numpy_first, variant):
    case = Case(cell, dtype, seq_len, batch_size, 11, hidden_size, reverse=seq_len == 17)
    backends = [hotloop._core.settings.active(), _numpy]
    assert_matches_reference(case, run(case, *(backends[::-1] if numpy_first else backends)))


@pytest.mark.long
@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_specification_on_every_shape(cell, dtype, hidden_size, variant):
    """The full product of hidden sizes, batch sizes and lengths; input sizes and options take turns."""
    options = itertools.cycle(itertools.product(INPUT_SIZES, BIASES, (("h0", "c0"), ()), (False, True), LAYOUTS[:2]))
    for _ in range(hidden_size * 7 % 97):  # other hidden sizes meet other options
        next(options)
    for batch_size, seq_len in itertools.product(BATCH_SIZES, SEQ_LENS):
        input_size, biases, states, reverse, layout = next(options)
        case = Case(cell, dtype, seq_len, batch_size, input_size, hidden_size, biases, states, reverse=reverse,
                    layout=layout)  # fmt: skip
        assert_matches_reference(case, train(case))


@pytest.mark.long
@pytest.mark.parametrize("input_size", INPUT_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_specification_on_every_input_and_option(cell, dtype, input_size, variant):
    """The full product of input sizes, biases, initial states, directions, layouts and upstream gradients."""
    product = itertools.product(BIASES, subsets(("h0", "c0")), subsets(UPSTREAM), (False, True), LAYOUTS)
    cases = (
        Case(cell, dtype, 3, 7, input_size, 10, biases, states, upstream, reverse, layout)
        for biases, states, upstream, reverse, layout in product
    )
    for case in set(cases):  # without c, several of the product are one case
        assert_matches_reference(case, train(case))


@pytest.mark.parametrize("cell", CELLS)
def test_float32_over_a_thousand_steps(cell, variant):
    """The forward tolerance holds up to T = 1024."""
    case = Case(cell, "float32", 1024, 2, 8, 24, upstream=("grad_output",))
    assert_matches_reference(case, train(case))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_more_rows_than_a_chunk(cell, dtype, variant):
    """Sequences of several chunks of rows, the last one ragged, in both directions of time."""
    for reverse in (False, True):
        case = Case(cell, dtype, 331, 5, 13, 9, reverse=reverse)
        assert_matches_reference(case, train(case))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_input(cell, dtype, variant):
    """Inputs wider than any block of the projection."""
    case = Case(cell, dtype, 3, 6, 1031, 5)
    assert_matches_reference(case, train(case))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 8, 13, 33])
def test_threads(cell, batch_size, isa):
    """Work large enough to be split is right on any number of threads."""
    case = Case(cell, "float32", 24, batch_size, 40, 96)
    for threads in (1, 2, 3, 8):
        assert_matches_reference(case, train(case, threads=threads))


@pytest.mark.parametrize("cell", CELLS)
def test_empty_batch(cell, variant):
    """No sequences: results of the right shapes, and gradients of the parameters that are zero and not rubbish."""
    for layout in LAYOUTS[:2]:
        case = Case(cell, "float32", 4, 0, 3, 5, layout=layout)
        results = train(case)
        assert results["output"].shape == (4, 0, 5)
        assert results["grad_x"].shape == (4, 0, 3)
        assert results["h_n"].shape == results["grad_h0"].shape == (0, 5)
        for name in PARAMETERS:
            np.testing.assert_array_equal(results[f"grad_{name}"], np.zeros_like(case.data()[name]))


@pytest.mark.parametrize("cell", CELLS)
def test_no_upstream_gradient(cell, variant):
    """Absent upstream gradients count as zero, all of them too."""
    results = train(Case(cell, upstream=()))
    for name, array in results.items():
        if name.startswith("grad_"):
            np.testing.assert_array_equal(array, 0, err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_absent_upstream_gradient_is_zeros(cell, variant):
    case = Case(cell, "float32", 17, 6, 5, 20)
    data = case.data()
    for present in subsets([name for name in UPSTREAM if name in data]):
        absent = {n: a for n, a in data.items() if n not in UPSTREAM or n in present}
        zeros = {n: a if n not in UPSTREAM or n in present else np.zeros_like(a) for n, a in data.items()}
        assert_equal_numbers(train(case, absent), train(case, zeros))


def assert_equal_numbers(got, want):
    """Equal but for the sign of zeros, which an absent gradient need not add."""
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_vjp_again(cell, variant):
    """The same upstream gradients give the same bits any number of times, other ones in between."""
    case = Case(cell, "float32", 17, 6, 5, 20)
    data = case.data()
    results, vjp = start_training(case, data)
    kept = {name: array.copy() for name, array in results.items()}
    upstream = {name: data[name] for name in UPSTREAM if name in data}
    first = vjp(**upstream)._asdict()
    other = vjp(**{name: 2 * array for name, array in upstream.items()})
    assert not np.array_equal(other.x, first["x"])
    assert_same_bits(vjp(**upstream)._asdict(), first)
    assert_same_bits(results, kept)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("biases", BIASES)
def test_wrt(cell, biases, variant):
    """Every single name and every name but one: what is asked for has the bits it has in full, the rest is None."""
    case = Case(cell, "float32", 17, 6, 5, 20, biases=biases)
    data = case.data()
    _, vjp = start_training(case, data)
    upstream = {name: data[name] for name in UPSTREAM if name in data}
    full = vjp(**upstream)._asdict()
    names = list(full)
    of_lstm = ["weight_hr"] * (cell == "lstm")  # there is none
    assert names == [name for name in INPUTS if name != "c0" or cell == "lstm"] + of_lstm
    assert {name for name, array in full.items() if array is None} == {*PARAMETERS, *of_lstm} - set(data)
    for wrt in [[], *([name] for name in names), *([n for n in names if n != name] for name in names)]:
        assert_same_bits(
            vjp(**upstream, wrt=wrt)._asdict(), {name: full[name] if name in wrt else None for name in names}
        )
    assert_same_bits(vjp(**upstream, wrt="x")._asdict(), {"x": full["x"]})
    assert_same_bits(vjp(**upstream, wrt=iter(["weight_hh", "h0"]))._asdict(), {"h0": full["h0"]})


@pytest.mark.parametrize("cell", CELLS)
def test_inputs_stay_as_they_are(cell, variant):
    """Nothing that is passed in is written to: read-only arrays do, and have their bits afterwards."""
    case = Case(cell, "float32", 17, 6, 5, 20)
    data = case.data()
    kept = {name: array.copy() for name, array in data.items()}
    for array in data.values():
        array.flags.writeable = False
    train(case, data)
    infer(case, data)
    assert_same_bits(data, kept)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_sequence(cell, variant):
    """A NaN in one row shows in that row from its step on, and in no other row or step."""
    case = Case(cell, "float32", 6, 9, 5, 20)
    data = case.data()
    clean = infer(case, data)["output"]
    data["x"][2, 4, 3] = np.nan
    output = infer(case, data)["output"]
    assert np.isnan(output[2:, 4]).all()
    assert np.array_equal(np.delete(output, 4, axis=1), np.delete(clean, 4, axis=1))
    assert np.array_equal(output[:2, 4], clean[:2, 4])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("scale", [1e2, 1e10, 1e38])
def test_overflow_saturates(cell, scale, variant):
    """Inputs that drive every gate to its limit give the limit, as in the specification."""
    case = Case(cell, "float32", 3, 5, 4, 20)
    data = case.data()
    data["x"] = (np.sign(data["x"]) * scale).astype(np.float32) / 8
    got = infer(case, data)
    want = run(case, _numpy, data={name: array.astype(np.float64) for name, array in data.items()})
    assert all(np.isfinite(array).all() for array in got.values())
    assert_close(got, {name: want[name] for name in got}, "float32", "forward")


def test_results_are_poisoned(monkeypatch, poisoned):
    """The other tests would see what a backend leaves unwritten: a backend that writes nothing leaves NaN."""

    class Idle:
        NAME = "idle"
        forward = backward = staticmethod(lambda recurrences, threads, executor: None)
        prepare = prepare_backward = staticmethod(lambda *_, **__: None)

    monkeypatch.setattr(hotloop._core.settings, "current", hotloop._core.settings.Settings(Idle, 1))
    for layout in LAYOUTS:
        results = train(Case("lstm", layout=layout))
        for name, array in results.items():
            assert np.isnan(array).all(), name
    spill = arrays.np.empty((3,), np.float32)
    spill.base[spill.base.size // 2 + 16] = 0
    with pytest.raises(AssertionError, match="past the end"):
        poisoned.check()


def test_the_comparison_sees_a_gate_swap():
    """Distinct weights: exchanging two gates of the reference is far outside every tolerance."""
    case = Case("lstm")
    swapped = {name: array.copy() for name, array in case.data().items()}
    for name in PARAMETERS:
        i, f, g, o = np.split(swapped[name], 4)
        swapped[name] = np.concatenate((f, i, g, o))
    results = run(case, _numpy, data=swapped)
    with pytest.raises(AssertionError, match="output"):
        assert_matches_reference(case, results)
    assert set(reference_gradients(case, results["output"])) == {f"grad_{name}" for name in INPUTS}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("cell", CELLS)
def test_rows_a_byte_further_apart(cell, axis, variant):
    """Steps, or rows, whose distance is no whole number of elements, while the other's is."""
    case = Case(cell, "float32", 9, 7, 5, 21)
    data = case.data()
    moved = dict(data)
    for name in ("x", "grad_output"):
        strides = list(data[name].strides)
        strides[axis] = data[name].nbytes + 1  # room for all there is along the other axis
        raw = np.zeros(strides[axis] * data[name].shape[axis], np.uint8)
        moved[name] = np.ndarray(data[name].shape, data[name].dtype, raw, strides=strides)
        moved[name][...] = data[name]
    assert_equal_numbers(train(case, moved), train(case, data))


def test_plans_of_one_instruction_set(best_isa):
    """A call like the one before, on another instruction set, is planned anew."""
    native = pytest.importorskip("hotloop._backends.native")
    case = Case("lstm", "float32", 3, 2, 4, 5)
    try:
        for name in (*native.isas(), best_isa):
            native.use_isa(name)
            assert_matches_reference(case, train(case))
    finally:
        native.use_isa(best_isa)


def test_a_prepared_call_takes_processors_that_come(best_isa):
    """A layer's and a vjp's, which were prepared when there was one."""
    native = pytest.importorskip("hotloop._backends.native")
    layer = hotloop.GRU(30, 150)
    x = np.ones((300, 20, 30), np.float32)
    uses = native.lib.HOTLOOP_INFERENCE | native.lib.HOTLOOP_PACKED, native.lib.HOTLOOP_TRAINING
    native._last_plans.clear()
    try:
        native.lib.hotloop_use_processors(1)
        layer(x, threads=3)
        (output, _), vjp = layer.vjp(x, threads=3)
        vjp(output)
        native.lib.hotloop_use_processors(4)
        layer(x, threads=3)
        layer.vjp(x, threads=3)
        vjp(output)
        plans = {key: plan.threads for key, plan in native._last_plans.items()}
        assert len(plans) == 3
        assert uses[1] in plans
        assert set(plans.values()) == {3}
    finally:
        native.lib.hotloop_use_processors(0)
        native._last_plans.clear()


def test_a_plan_is_for_the_processors_there_are(best_isa):
    """A long call's, which was made when there were fewer, or more."""
    native = pytest.importorskip("hotloop._backends.native")
    weights = forward_args(Case("gru", "float32", hidden_size=150)).weights
    try:
        native.lib.hotloop_use_processors(1)
        assert native._plan(weights, native.lib.HOTLOOP_INFERENCE, 1, 300, 20, 3).threads == 1
        for processors in (1, 2, 4, 2, 1):
            native.lib.hotloop_use_processors(processors)
            plan = native._plan(weights, native.lib.HOTLOOP_INFERENCE, 1, 400, 20, 3)
            assert plan.threads >= min(3, processors)  # one of more is kept: a call takes no more than there are
            assert plan.threads <= 3
            assert plan.workspace_bytes > 0
    finally:
        native.lib.hotloop_use_processors(0)
        native._last_plans.clear()
