"""The benchmark command: arithmetic, processes and reports. How long anything takes is never asserted."""

import gc
import json
import math
import os
import signal
import sys
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the report needs it")
pytest.importorskip("rich", reason="the table needs it")

from bench_records import SMALL, grid_record, modules_record, page, stored_record
from rich.console import Console

import hotloop
from hotloop import cli
from hotloop._core import call
from hotloop.bench import attention, check, memory, peers, problems, processes, results, roof, rounds, run, stats
from hotloop.bench.peers import CANDIDATES, OURS, PEERS, missing_modules
from hotloop.bench.problems import GROUPS, Problem

FAST = rounds.Effort(sample_seconds=1e-4, samples=2, min_rounds=3, max_seconds=0.0)

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


# Statistics


def test_median_interval_holds_the_median_and_narrows_with_samples():
    rng = np.random.default_rng(1)
    few, many = (stats.median_interval(10 + rng.standard_normal(count)) for count in (10, 1000))
    assert few.low <= few.value <= few.high
    assert many.low < 10 < many.high
    assert many.spread < few.spread < 0.2
    assert stats.median_interval([3, 1, 2]).value == 2


def test_interval_of_equal_samples_is_a_point_and_of_one_sample_unknown():
    assert stats.median_interval([2.0] * 9) == (2, 2, 2)
    assert stats.median_interval([2.0] * 9).spread == 0
    single = stats.median_interval([2.0])
    assert single.value == 2
    assert math.isnan(single.low)
    assert single.spread == math.inf


def test_speedup_pairs_rounds():
    drift = [1.0, 2.0, 4.0, 8.0, 16.0]  # the machine slows down for everybody
    ours = [[seconds, seconds, 100.0] for seconds in drift]  # and one sample in three is disturbed
    theirs = [[3 * seconds] for seconds in drift]
    assert stats.speedup(ours, theirs) == (3, 3, 3)
    assert stats.speedup(ours, theirs[:2]) == (3, 3, 3)


# Problems


def test_problem_table_is_consistent():
    for name, group in GROUPS.items():
        assert len({problem.name for problem in group}) == len(group) > 0, name
        assert all(problem.why for problem in group)
    for name in ("grid", "sweep", "quick", "smoke"):
        assert {(p.cell, p.mode) for p in GROUPS[name]} == {
            (cell, mode) for cell in problems.CELL_NAMES for mode in problems.MODES
        }
    lengths = {problem.seq_len for problem in problems.SWEEP}
    assert (min(lengths), max(lengths)) == (1, 4096)


def test_headline_problems_do_not_change():
    assert [problem.name for problem in problems.HEADLINE] == [
        "lstm-inference-T512-B32-I256-H256",
        "lstm-inference-T1000-B1-I40-H128",
        "lstm-inference-T100-B1-I8-H32",
        "lstm-training-T512-B32-I256-H256",
        "lstm-training-T1000-B32-I8-H64",
        "gru-training-T1000-B1-I40-H128",
        "gru-training-T100-B1-I8-H32",
    ]


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_flops(cell, gates):
    forward = 2 * 7 * 3 * gates * 11 * (5 + 11)
    assert Problem(cell, "inference", 7, 3, 5, 11).flops == forward
    assert Problem(cell, "training", 7, 3, 5, 11).flops == 3 * forward


def test_flops_of_layers_and_directions():
    one = Problem("gru", "inference", 7, 3, 5, 11)
    upper = Problem("gru", "inference", 7, 3, 11, 11)
    assert replace(one, num_layers=3).flops == one.flops + 2 * upper.flops
    assert replace(one, bidirectional=True).flops == 2 * one.flops
    both = Problem("gru", "inference", 7, 3, 22, 11)  # an upper layer reads both directions
    assert replace(one, num_layers=2, bidirectional=True).flops == 2 * (one.flops + both.flops)


def test_names_say_layers_and_directions():
    problem = Problem("lstm", "training", 2000, 8, 256, 256, num_layers=2)
    assert problem.name == "lstm-training-T2000-B8-I256-H256-L2"
    assert replace(problem, bidirectional=True, dtype="float64").name.endswith("-H256-L2-bi-float64")
    assert Problem.from_dict(json.loads(json.dumps(problem.as_dict()))) == problem


def test_names_say_lengths_and_resets():
    problem = Problem("lstm", "training", 200, 32, 64, 128, lengths="uniform")
    assert problem.name == "lstm-training-T200-B32-I64-H128-ragged"
    assert replace(problem, lengths="", resets=0.01).name == "lstm-training-T200-B32-I64-H128-resets1%"
    assert replace(problem, resets=0.05, dtype="float64").name.endswith("-H128-ragged-resets5%-float64")
    for one in (problem, replace(problem, lengths="", resets=0.01), *problems.RAGGED):
        assert Problem.from_dict(json.loads(json.dumps(one.as_dict()))) == one
    before = {key: value for key, value in SMALL.as_dict().items() if key not in ("lengths", "resets")}
    assert Problem.from_dict(before) == SMALL


def test_lengths_are_those_of_the_shape_and_flops_those_of_the_tokens():
    dense = Problem("lstm", "training", 200, 32, 64, 128)
    ragged = replace(dense, lengths="uniform")
    assert dense.row_lengths == (200,) * 32
    assert sorted(ragged.row_lengths) != list(ragged.row_lengths)
    assert min(ragged.row_lengths) >= 1
    assert max(ragged.row_lengths) <= 200
    assert 0.48 < ragged.tokens / dense.tokens < 0.52
    assert ragged.flops * dense.tokens == dense.flops * ragged.tokens
    assert ragged.row_lengths == replace(ragged, cell="gru", mode="inference", dtype="float64").row_lengths
    # Kept records hold these: another draw would make their figures untrue.
    assert replace(ragged, batch_size=8, seq_len=100).row_lengths == (86, 44, 61, 20, 69, 100, 12, 34)
    assert replace(dense, resets=0.05).flops == dense.flops


def test_ragged_problems_stand_beside_their_dense_twins():
    names = {problem.name for problem in problems.RAGGED}
    assert names <= {problem.name for problem in problems.GRID}
    assert len(names) == 12
    for problem in problems.RAGGED:
        assert problem.is_dense or problem.seq_len == 128 or replace(problem, lengths="", resets=0.0).name in names


def test_the_grid_is_what_speed_is_judged_on():
    names = {problem.name for problem in problems.GRID}
    assert {problem.name for problem in problems.HEADLINE} <= names
    assert set(problems.DEFAULT_GROUPS) == {"headline", "grid"}
    for name in (
        "rnn-training-T100-B1-I1024-H1024", "gru-inference-T100-B64-I512-H512", "lstm-training-T1000-B1-I64-H128",
        "gru-training-T32-B64-I32-H128", "lstm-inference-T2000-B8-I256-H256-L2", "lstm-training-T80-B128-I128-H128",
        "rnn-inference-T1-B32-I64-H128", "gru-training-T31-B1-I32-H32-bi", "rnn-inference-T100-B16-I200-H200",
    ):  # fmt: skip
        assert name in names, name
    assert sum(problem.dtype == "float64" for problem in problems.GRID) == 5
    unjudged = [problem for problem in problems.GRID if not problem.is_judged]
    assert unjudged
    assert {(problem.mode, problem.seq_len) for problem in unjudged} == {("training", 1)}
    lengths = {problem.seq_len for problem in problems.GRID if (problem.batch_size, problem.input_size) == (1, 40)}
    assert len(lengths) >= 5
    assert max(lengths) <= 1024


def test_torch_problems_and_their_goals_do_not_change():
    assert {problem.name: problem.goal for problem in problems.TORCH} == {
        "lstm-training-T512-B32-I256-H256-torch": 1.4,
        "lstm-training-T1000-B32-I8-H64-torch": 2.7,
        "lstm-training-T32-B64-I32-H128-torch": 1.3,
        "gru-training-T512-B32-I256-H256-torch": 2.2,
        "gru-training-T1000-B32-I8-H64-torch": 5,
        "gru-training-T32-B64-I32-H128-torch": 3,
        "gru-training-T1000-B1-I40-H128-torch": 14,
        "gru-training-T100-B1-I8-H32-torch": 30,
        "rnn-training-T1000-B32-I8-H64-torch": 4,
        "lstm-training-T200-B32-I64-H128-packed-torch": 5,
        "lstm-training-T128-B8-I64-H128-P64-torch": 3,
        "lstm-inference-T1-B32-I64-H128-cell": 1.5,
        "gru-inference-T1-B32-I64-H128-cell": 1.5,
    }
    for problem in (*problems.TORCH, *problems.TORCH_SMOKE):
        assert Problem.from_dict(json.loads(json.dumps(problem.as_dict()))) == problem
    others = [problem for name, group in GROUPS.items() if not name.startswith("torch") for problem in group]
    assert not any(problem.module or problem.goal for problem in others)
    (shape,) = problems.select((), shapes=[(3, 2, 4, 5)], cells=["gru"], modes=["training"], module="layer")
    assert shape.name == "gru-training-T3-B2-I4-H5-torch"


def test_estimate_counts_who_takes_part():
    effort = rounds.Effort(min_rounds=2, max_seconds=50.0)
    inference = Problem("lstm", "inference", 6, 2, 5, 9)
    least, most = rounds.estimate([inference], ["torch", "openvino"], [1, 2], effort)
    assert 0 < least < 50 < most
    long = Problem("lstm", "training", 2000, 8, 256, 256, num_layers=2)
    first, second = (
        rounds.estimate([long], [], [1], replace(effort, min_rounds=count, most_seconds=20.0)) for count in (100, 1000)
    )
    assert first == second  # the bound counts, not the rounds
    assert rounds.estimate([inference] * 2, ["torch", "openvino"], [1, 2], effort) == (2 * least, 2 * most)
    module = replace(SMALL, module="layer")
    assert rounds.estimate([module], ["torch", "jax"], [1], effort) == rounds.estimate([module], ["torch"], [1], effort)
    assert rounds.estimate([SMALL], ["torch", "openvino"], [1], effort) == rounds.estimate(
        [SMALL], ["torch"], [1], effort
    )


def test_select_and_round_trip():
    found = problems.select(["headline", "sweep"], cells=["gru"], modes=["training"], dtype="float64")
    assert {(p.cell, p.mode, p.dtype) for p in found} == {("gru", "training", "float64")}
    assert {p.dtype for p in problems.select(["grid"])} == {"float32", "float64"}  # each its own
    assert len({p.name for p in found}) == len(found)
    for problem in problems.select((), shapes=[(3, 2, 4, 5)]):
        assert Problem.from_dict(json.loads(json.dumps(problem.as_dict()))) == problem
    assert len(problems.select((), shapes=[(3, 2, 4, 5), (3, 2, 4, 5)])) == 6


# Answers


def test_inputs_of_rows():
    problem = replace(SMALL, batch_size=8, lengths="uniform", resets=0.3)
    inputs = check.make_inputs(problem)
    assert list(inputs.rows) == ["lengths", "resets"]
    assert inputs.lengths.tolist() == list(problem.row_lengths)
    for row, length in enumerate(problem.row_lengths):
        assert (inputs.grad_output[:length, row] != 0).all()
        assert (inputs.grad_output[length:, row] == 0).all()
    assert inputs.resets.shape == (6, 8)
    assert inputs.resets.dtype == bool
    assert 0 < inputs.resets.mean() < 0.6
    np.testing.assert_array_equal(inputs.resets, check.make_inputs(replace(problem, cell="gru")).resets)
    dense = check.make_inputs(replace(problem, lengths="", resets=0.0))
    assert dense.rows == {}
    np.testing.assert_array_equal(dense.x, inputs.x)
    padded = dense.without_padding(dense.x)
    assert padded is dense.x
    np.testing.assert_array_equal(inputs.without_padding(dense.grad_output), inputs.grad_output)


@pytest.mark.usefixtures("numpy_backend")
@pytest.mark.parametrize("rows", [{"lengths": "uniform"}, {"resets": 0.3}], ids=["ragged", "resets"])
@pytest.mark.parametrize("mode", problems.MODES)
@pytest.mark.parametrize("cell", problems.CELL_NAMES)
def test_the_answer_to_a_dense_problem_is_wrong_for_others(cell, mode, rows):
    problem = replace(SMALL, cell=cell, mode=mode, batch_size=8, **rows)
    inputs, expected = check.make_inputs(problem), check.reference(problem)
    assert max(check.relative_errors(check.run_ours(problem, inputs, None, 1), expected).values()) < 1e-5
    dense = replace(inputs, lengths=None, resets=None)
    errors = check.relative_errors(check.run_ours(problem, dense, None, 1), expected)
    # Without upstream gradients in the padding nothing comes back from there, whoever runs through it.
    told = check.STATES if problem.lengths else errors
    assert min(errors[name] for name in ("output", *told) if name in errors) > 1e-2


def test_relative_errors():
    expected = {"output": np.ones((2, 1, 3)), "x": np.full((2, 1, 3), 2.0), "bias_ih": np.ones(4)}
    exact = {name: array.astype(np.float32) for name, array in expected.items()}
    assert set(check.relative_errors(exact, expected).values()) == {0}
    off = check.relative_errors({**exact, "bias_ih": np.array([1, 1, 1, 1.5], np.float32)}, expected)
    assert off == {"output": 0, "x": 0, "bias_ih": 0.25}
    longer = {**exact, "output": np.ones((5, 1, 3)), "x": np.concatenate((expected["x"], np.ones((3, 1, 3))))}
    errors = check.relative_errors(longer, expected)
    assert errors["output"] == 0  # steps beyond those compared may be anything finite
    assert errors["x"] == pytest.approx(math.sqrt(9 / 24))  # but their gradient is zero
    longer["output"][4] = np.nan
    del longer["bias_ih"]
    errors = check.relative_errors(longer, expected)
    assert errors["output"] == errors["bias_ih"] == math.inf


@pytest.mark.usefixtures("numpy_backend")
@pytest.mark.parametrize("cell", problems.CELL_NAMES)
def test_a_shortened_check_is_exact_on_the_steps_it_compares(cell, monkeypatch):
    monkeypatch.setattr(check, "FULL_CHECK_FLOPS", 0)
    monkeypatch.setattr(check, "SHORTENED_STEPS", 4)
    problem = Problem(cell, "training", 9, 2, 5, 7, dtype="float64")
    assert check.checked_steps(problem) == 4
    inputs = check.make_inputs(problem)
    answer = check.run_ours(problem, inputs, check.checked_grad_output(problem, inputs), threads=1)
    expected = check.reference(problem)
    assert len(expected["output"]) == 4
    assert "h_n" not in expected
    assert "h_n" in answer
    assert max(check.relative_errors(answer, expected).values()) < 1e-14
    unmasked = check.run_ours(problem, inputs, None, threads=1)
    assert max(check.relative_errors(unmasked, expected).values()) > 1e-2


def test_where_a_check_is_shortened():
    long = Problem("lstm", "training", 2000, 8, 256, 256)
    assert check.checked_steps(long) == 64
    assert check.checked_steps(replace(long, bidirectional=True)) == 2000  # the first steps depend on the last
    assert check.checked_steps(replace(long, lengths="uniform")) == 2000  # where rows end is what could be wrong
    assert check.checked_steps(replace(long, resets=0.01)) == 2000
    assert check.checked_steps(Problem("lstm", "training", 100, 64, 1024, 1024)) == 16
    assert check.checked_steps(SMALL) == 6


@pytest.mark.usefixtures("numpy_backend")
@pytest.mark.parametrize("cell", problems.CELL_NAMES)
def test_one_layer_is_the_same_through_functions_and_layers(cell, monkeypatch):
    problem = replace(SMALL, cell=cell, dtype="float64")
    inputs = check.make_inputs(problem)
    functions = check.run_ours(problem, inputs, None, threads=1)
    states = ["h_n", "c_n"] if cell == "lstm" else ["h_n"]
    assert list(functions) == ["output", *states, "x", *inputs.parameters]
    monkeypatch.setattr(check, "is_stack", lambda _: True)
    layers = check.run_ours(problem, inputs, None, threads=1)
    assert list(layers) == list(functions)
    for name, array in functions.items():
        np.testing.assert_array_equal(layers[name], array)


def test_inputs_of_layers():
    inputs = check.make_inputs(replace(SMALL, num_layers=2, bidirectional=True))
    shapes = {name: array.shape for name, array in inputs.parameters.items()}
    assert list(shapes)[4:6] == ["weight_ih_l0_reverse", "weight_hh_l0_reverse"]
    assert shapes["weight_ih_l0_reverse"] == (36, 5)
    assert shapes["weight_ih_l1"] == (36, 18)
    assert inputs.grad_output.shape == (6, 2, 18)
    assert [weights[0].shape for weights in inputs.recurrences] == [(36, 5), (36, 5), (36, 18), (36, 18)]


def test_onnx_output_has_both_directions_side_by_side():
    array = np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)  # [T, D, B, H]
    ours = peers.onnx_output(array)
    assert ours.shape == (2, 3, 8)
    np.testing.assert_array_equal(ours[..., :4], array[:, 0])
    np.testing.assert_array_equal(ours[..., 4:], array[:, 1])


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_bound_input_outlives_the_preparation(name):
    if missing_modules(name):
        pytest.skip(f"{name} is not installed")
    problem = replace(SMALL, mode="inference")
    inputs = check.make_inputs(problem)
    array = weakref.ref(inputs.x)
    prepared = CANDIDATES[name](1).prepare(problem, inputs)
    del inputs
    gc.collect()
    assert array() is not None
    del prepared
    gc.collect()
    assert array() is None


# Roof

RATES = {
    "fma float32": 1e9,
    "read 4096": 4e9,
    "read 5120": 2e9,
    "read 16384": 1e9,
    "copy 43008": 1e9,
    "cell_forward lstm float32": 1e6,
    "cell_backward lstm float32": 2e6,
}  # fmt: skip


def test_roof_parts():
    problem = Problem("lstm", "training", 10, 3, 10, 32)  # weights: 5120 and 16384 bytes
    assert set(RATES) - {"read 4096"} == {probe.key for probe in roof.probes(problem)}
    parts = roof.parts(problem, RATES, lanes=16)
    flops = 2 * 10 * 3 * 4 * 32
    assert parts == pytest.approx(
        {
            "input projection": flops * 10 / 1e9,  # more than 5120 / 2e9
            "recurrence": flops * 32 / 1e9,  # more than 10 * 16384 / 1e9
            "cell, forward": 10 * 3 * 2 / 1e6,
            "packing": 4 * (5120 + 16384) / 1e9,
            "gradient of x": flops * 10 / 1e9,
            "gradient of h": flops * 32 / 1e9,
            "gradient of weight_ih": flops * 10 / 1e9,
            "gradient of weight_hh": flops * 32 / 1e9,
            "cell, backward": 10 * 3 * 2 / 2e6,
        }
    )
    halves = roof.parts(problem, RATES, lanes=16, threads=2)
    assert halves == pytest.approx({name: seconds / 2 for name, seconds in parts.items()})


def test_roof_of_one_sequence_is_the_reading_of_its_weights_every_step():
    problem = Problem("lstm", "inference", 10, 1, 1, 32)
    fast = {**RATES, "fma float32": 1e15}
    parts = roof.parts(problem, fast, lanes=8)
    assert parts["recurrence"] == pytest.approx(10 * 16384 / 1e9)
    assert parts["input projection"] == pytest.approx(512 / 4e9)  # a small buffer is probed at 4096 bytes
    assert list(parts) == ["input projection", "recurrence", "cell, forward"]


def test_roof_of_layers_and_directions_is_the_sum_of_theirs():
    one = Problem("lstm", "training", 10, 3, 10, 32)
    upper = replace(one, input_size=64)  # both directions of 32 units
    rates = {**RATES, "read 32768": 1e8, "copy 98304": 1e8}
    stack = replace(one, num_layers=2, bidirectional=True)
    assert set(rates) - {"read 4096"} == {probe.key for probe in roof.probes(stack)}
    lower, higher, found = (roof.parts(problem, rates, lanes=16) for problem in (one, upper, stack))
    assert found == pytest.approx({name: 2 * (lower[name] + higher[name]) for name in lower})


def test_roof_of_a_ragged_problem_counts_tokens():
    problem = Problem("lstm", "inference", 10, 8, 10, 32)
    ragged = replace(problem, lengths="uniform")
    dense, found = (roof.parts(one, RATES, lanes=16) for one in (problem, ragged))
    share = ragged.tokens / problem.tokens
    assert found == pytest.approx({name: share * seconds for name, seconds in dense.items()})
    fast = {**RATES, "fma float32": 1e15}
    assert roof.parts(ragged, fast, lanes=16)["recurrence"] == max(ragged.row_lengths) * 16384 / 1e9
    assert roof.parts(replace(problem, resets=0.5), RATES, lanes=16) == dense


@pytest.mark.skipif(roof.native_library() is None, reason="the native module was not built")
@pytest.mark.parametrize("dtype", problems.DTYPES)
def test_probes_run(dtype):
    for probe in roof.probes(Problem("gru", "training", 1, 1, 1, 1, dtype=dtype)):
        assert 1e3 < roof.run_probe(probe, seconds=3e-4) < 1e15, probe


@pytest.mark.skipif(roof.native_library() is None, reason="there is no native module")
def test_vector_bytes(isa):
    widths = {"avx512": 64, "avx2": 32, "scalar": 16}
    assert roof.vector_bytes() == widths[isa]


# Memory


@pytest.mark.usefixtures("numpy_backend")
@pytest.mark.parametrize("cell", problems.CELL_NAMES)
def test_what_is_computed_is_what_training_keeps(cell):
    problem = replace(SMALL, cell=cell, num_layers=2, bidirectional=True)
    inputs = check.make_inputs(problem)
    layer = check.make_layer(problem, inputs)
    none = [None] * 3
    output, *_, saved = call.run(
        layer._stack, inputs.x, None, None, False, *none, "zeros", False, 1, None, True, None, ()
    )  # fmt: skip
    kept = {"gates": 0, "c": 0}
    for recurrences in saved.recurrences:
        for recurrence in recurrences:
            for name in kept:
                array = getattr(recurrence, name)
                kept[name] += 0 if array is None else array.nbytes
    kept["output"] = output.nbytes
    kept["between layers"] = sum(upper[0].x.nbytes for upper in saved.recurrences[1:])
    found = memory.grows(problem)
    assert tuple(found) == memory.NAMES
    assert {name: found[name] for name in memory.KEPT} == kept


@pytest.mark.parametrize("problem", [SMALL, replace(SMALL, cell="gru", num_layers=2, bidirectional=True)])
def test_what_is_computed_grows_with_length(problem):
    once, twice = (memory.grows(one) for one in memory.lengths(problem))
    assert twice == {name: 2 * size for name, size in once.items()}


def test_memory_of_ragged_problems_is_left_out():
    for rows in ({"lengths": "uniform"}, {"resets": 0.1}):
        case = {"problem": replace(SMALL, **rows).as_dict()}
        assert results.memory_rows(case) == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be reset")
def test_a_step_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setenv("HOTLOOP_BACKEND", "numpy")
    problem = Problem("lstm", "training", 64, 32, 16, 64)  # keeps 3 MiB
    case = {"problem": problem.as_dict(), "memory": memory.measure(problem, 1)}
    short, long = results.memory_rows(case)
    assert [row.problem.seq_len for row in (short, long)] == [64, 128]
    for row in (short, long):
        assert row.kept == row.problem.seq_len * 32 * 64 * 4 * 6
        assert row.kept - (1 << 19) < row.forward <= row.peak  # the system may count some pages late
    assert long.peak - short.peak > (long.kept - short.kept) / 2


def test_memory_that_cannot_be_measured_is_a_remark(monkeypatch):
    def fail(*_):
        raise processes.WorkerDied("no clear_refs")

    monkeypatch.setattr(memory, "measure", fail)
    record = run.run([SMALL], run.Settings(peers=[], effort=FAST, memory=True))
    assert record["cases"][0]["memory"] == {"error": "no clear_refs"}
    assert "memory was not measured: no clear_refs" in results.remarks(record)
    assert [row.peak for row in results.memory_rows(record["cases"][0])] == [None]


# Processes


@contextmanager
def worker(*arguments):
    process = processes.WorkerProcess(["hotloop.bench.worker", *arguments], {"HOTLOOP_BACKEND": "numpy"})
    try:
        yield process
    finally:
        process.close()


def state(pid):
    """T for stopped."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rsplit(")", 1)[1].split()[0]


def prepare_request(problem, path):
    return {"do": "prepare", "problem": problem.as_dict(), "reference": str(path), "sample_seconds": 1e-4}


def test_worker_protocol(tmp_path):
    path = tmp_path / "reference.npz"
    with worker("numpy", "1") as process:
        hello = process.greet()
        assert hello["info"]["backend"] == "numpy"
        with process.awake():
            with pytest.raises(processes.WorkerError, match="no problem is prepared"):
                process.ask({"do": "time", "samples": 1})
            process.ask({"do": "reference", "problem": SMALL.as_dict(), "path": str(path)})
            reply = process.ask(prepare_request(SMALL, path))
            assert reply["status"] == "ok"
            assert set(reply["errors"]) == {"output", "h_n", "c_n", "x", *check.make_inputs(SMALL).parameters}
            assert 0 < max(reply["errors"].values()) < 1e-5
            samples = process.ask({"do": "time", "samples": 3})["samples"]
            assert len(samples) == 3
            assert min(samples) > 0
            with pytest.raises(processes.WorkerError, match="KeyError: 'nonsense'"):
                process.ask({"do": "nonsense"})
        assert process.alive


@pytest.mark.usefixtures("numpy_backend")
def test_a_wrong_answer_is_not_timed(tmp_path):
    path = tmp_path / "reference.npz"
    expected = check.reference(SMALL)
    np.savez(path, **{**expected, "weight_hh_l0": expected["weight_hh_l0"][:, ::-1]})
    with worker("numpy", "1") as process:
        process.greet()
        with process.awake():
            reply = process.ask(prepare_request(SMALL, path))
            assert reply["status"] == "wrong"
            assert "weight_hh" in reply["detail"]
            with pytest.raises(processes.WorkerError, match="no problem is prepared"):
                process.ask({"do": "time", "samples": 1})


@needs_proc
def test_a_worker_runs_only_inside_awake():
    with worker("numpy", "1") as process:
        process.greet()
        for _ in range(3):
            assert state(process.pid) == "T"
            with process.awake():
                assert state(process.pid) != "T"
        assert state(process.pid) == "T"
        with pytest.raises(ZeroDivisionError), process.awake():
            1 / 0  # noqa: B018
        assert state(process.pid) == "T"
        process.close()  # it is stopped, and ends all the same
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_a_worker_that_cannot_start_says_why():
    with worker("no-such-candidate", "1") as process, pytest.raises(processes.WorkerDied, match="no-such-candidate"):
        process.greet()


def test_a_worker_that_dies_is_reported():
    with worker("numpy", "1") as process:
        process.greet()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(processes.WorkerDied, match="killed by signal 9"), process.awake():
            process.ask({"do": "time", "samples": 1})
        assert not process.alive


def test_a_worker_that_does_not_answer_is_given_up():
    with worker("numpy", "1") as process:
        process.greet()  # and stays stopped
        with pytest.raises(processes.WorkerDied, match="no answer in time"):
            process.ask({"do": "time", "samples": 1}, seconds=0.05)


# Rounds, on workers that only pretend


class Pretender(processes.WorkerProcess):
    log: list = []  # noqa: RUF012

    def __init__(self, name, seconds, fails_at=None):
        self.name, self.seconds, self.fails_at, self.turns = name, seconds, fails_at, 0

    @property
    def alive(self):
        return True

    @contextmanager
    def awake(self):
        yield

    def ask(self, request, *, seconds=0.0):
        assert request["do"] == "time"
        self.log.append(self.name)
        self.turns += 1
        if self.turns == self.fails_at:
            raise processes.WorkerDied("exit status 1")
        return {"samples": [self.seconds] * request["samples"]}


def pretend(times, effort, fails_at=None):
    """Run rounds over candidates with these times; returns the case."""
    Pretender.log = []
    workers = {(name, 1): Pretender(name, seconds, (fails_at or {}).get(name)) for name, seconds in times.items()}
    case = {
        "problem": SMALL.as_dict(),
        "flops": SMALL.flops,
        "probes": None,
        "candidates": [
            {"name": name, "threads": 1, "status": "ok", "detail": "", "rounds": []} for name in times
        ],
    }  # fmt: skip
    rounds.run_rounds(case, workers, effort)
    return case


def test_rounds_rotate_and_stop_when_the_ratio_is_known():
    case = pretend({OURS: 1.0, "torch": 2.0, "jax": 2.5}, replace(FAST, min_rounds=4, max_seconds=60.0))
    assert Pretender.log == [
        OURS, "torch", "jax",
        "torch", "jax", OURS,
        "jax", OURS, "torch",
        OURS, "torch", "jax",
    ]  # fmt: skip
    (row,) = results.rows(case)
    assert row.peer["name"] == "torch"
    assert row.speedup == (2, 2, 2)
    assert row.seconds == 1
    assert row.of_roof is None


@pytest.mark.parametrize(("dtype", "lanes"), [("float32", 16), ("float64", 8)])
def test_probes_tell_the_lanes(dtype, lanes):
    class Probed(Pretender):
        def ask(self, request, *, seconds=0.0):
            if request["do"] == "probe":
                return {"rates": [1.0] * len(request["probes"]), "vector_bytes": 64}
            return super().ask(request)

    problem = replace(SMALL, dtype=dtype)
    candidate = {"name": OURS, "threads": 1, "status": "ok", "detail": "", "rounds": []}
    case = {"problem": problem.as_dict(), "flops": problem.flops, "probes": {}, "candidates": [candidate]}
    rounds.run_rounds(case, {(OURS, 1): Probed(OURS, 1.0)}, FAST)
    assert set(case["probes"]) == {probe.key for probe in roof.probes(problem)}
    assert case["lanes"] == lanes


def test_rounds_of_long_calls_are_bounded():
    effort = replace(FAST, min_rounds=9)
    assert len(pretend({OURS: 1.0, "torch": 2.0}, effort)["candidates"][0]["rounds"]) == 9
    bounded = replace(effort, most_seconds=0.0)
    rounds_run = len(pretend({OURS: 1.0, "torch": 2.0}, bounded)["candidates"][0]["rounds"])
    assert rounds_run == rounds.TRIAL_ROUNDS


def test_a_peer_far_behind_is_left_out_of_later_rounds():
    case = pretend({OURS: 1.0, "torch": 2.0, "numpy": 7.0}, replace(FAST, min_rounds=5))
    assert [len(candidate["rounds"]) for candidate in case["candidates"]] == [5, 5, rounds.TRIAL_ROUNDS]
    case = pretend({OURS: 100.0, "torch": 2.0}, replace(FAST, min_rounds=5))
    assert [len(candidate["rounds"]) for candidate in case["candidates"]] == [5, 5]  # we are never left out


def test_a_candidate_that_fails_is_reported_and_the_others_go_on():
    case = pretend({OURS: 1.0, "torch": 2.0, "jax": 1.5}, replace(FAST, min_rounds=5), fails_at={"jax": 2})
    assert [candidate["status"] for candidate in case["candidates"]] == ["ok", "ok", "failed"]
    (row,) = results.rows(case)
    assert row.peer["name"] == "torch"
    record = {"cases": [case], "environment": {"not_installed": ["openvino"]}}
    lines = results.remarks(record)
    assert "openvino: not installed" in lines
    assert f"jax, failed: exit status 1 ({SMALL.name})" in lines


def test_numpy_is_left_out_where_a_call_takes_seconds(tmp_path):
    def ask(request):
        return {"status": "ok"}

    process = Pretender("numpy", 1.0)
    process.ask = ask
    workers = {("numpy", 1): process}
    (record,) = rounds.prepare(SMALL, workers, tmp_path, FAST)
    assert record["status"] == "ok"
    (record,) = rounds.prepare(replace(SMALL, seq_len=10**6, hidden_size=100), workers, tmp_path, FAST)
    assert record["status"] == "unsupported"
    assert "5 GF" in record["detail"]


# Modules of torch

needs_torch = pytest.mark.skipif(bool(missing_modules("torch")), reason="torch is not installed")


def module_errors(problem, prepared):
    """How far the answer of a prepared problem is from the specification."""
    gradient = check.checked_grad_output(problem, check.make_inputs(problem))
    return check.relative_errors(prepared.answer(gradient), check.reference(problem))


@needs_torch
@pytest.mark.usefixtures("numpy_backend")
@pytest.mark.parametrize("name", peers.RUN_MODULES)
@pytest.mark.parametrize("problem", problems.TORCH_SMOKE, ids=lambda problem: problem.name)
def test_modules_are_checked_by_what_a_step_does(problem, name, monkeypatch):
    import torch

    import hotloop.torch

    swapped, made = [], peers.torch_module
    monkeypatch.setattr(peers, "torch_module", lambda *args: swapped.append(made(*args)) or swapped[0])
    inputs = check.make_inputs(problem)
    prepared = CANDIDATES[name](torch.get_num_threads()).prepare(problem, inputs)
    (module,) = swapped
    assert isinstance(module, (hotloop.torch._modules._Recurrent, torch.nn.Module))
    assert isinstance(module, hotloop.torch._modules._Recurrent) == (name == OURS)
    errors = module_errors(problem, prepared)
    assert "x" not in errors
    assert len(errors) > (4 if problem.mode == "training" else 1)
    assert max(errors.values()) < check.TOLERANCE[problem.dtype]
    before = [parameter.detach().clone() for parameter in module.parameters()]
    assert all(np.array_equal(a, b) for a, b in zip(before, inputs.parameters.values(), strict=True))
    prepared.run()
    moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert all(moved) == any(moved) == (problem.mode == "training")


@needs_torch
@pytest.mark.usefixtures("numpy_backend")
@pytest.mark.parametrize("name", peers.RUN_MODULES)
def test_a_step_without_its_update_is_wrong(name, monkeypatch):
    import torch

    problem = replace(SMALL, module="layer")
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_: None)
    prepared = CANDIDATES[name](torch.get_num_threads()).prepare(problem, check.make_inputs(problem))
    errors = module_errors(problem, prepared)
    assert errors["output"] < 1e-5
    assert min(error for key, error in errors.items() if key not in ("output", *check.STATES)) == 1


@needs_torch
@pytest.mark.usefixtures("numpy_backend")
def test_modules_that_cannot_be_swapped_are_not_timed(monkeypatch):
    import torch

    import hotloop.torch

    monkeypatch.setattr(hotloop.torch, "replace_modules", lambda module: hotloop.torch.Replaced(left={"": "why"}))
    with pytest.raises(RuntimeError, match=r"replace_modules: left \(model\): why"):
        CANDIDATES[OURS](torch.get_num_threads()).prepare(
            replace(SMALL, module="layer"), check.make_inputs(replace(SMALL, module="layer"))
        )
    cell = replace(SMALL, module="cell")
    with pytest.raises(peers.Unsupported, match="cells"):
        CANDIDATES["torch"](torch.get_num_threads()).prepare(cell, check.make_inputs(cell))


def test_other_libraries_run_no_modules(tmp_path):
    workers = {(name, 1): Pretender(name, 1.0) for name in (OURS, "torch", "jax", "numba")}
    for process in workers.values():
        process.ask = lambda request: {"status": "ok"}
    found = rounds.prepare(replace(SMALL, module="layer"), workers, tmp_path, FAST)
    assert [record["status"] for record in found] == ["ok", "ok", "unsupported", "unsupported"]
    assert found[2]["detail"] == "runs no modules of torch"


def test_modules_are_compared_at_their_best_threads():
    record = modules_record()
    found = results.swaps(record)
    assert [(one.ratio.value, one.swapped["threads"], one.stock["threads"], one.below_goal) for one in found] == [
        (4, 2, 2, False),
        (2, 2, 1, True),
        (2.5, 1, 1, False),
    ]
    assert [results.swap_cells(case) for case in record["cases"]] == [
        ("16 ms 2t", "4 ms 2t", "4.00 (4.00-4.00)", "3"),
        ("8 ms 1t", "4 ms 2t", "2.00 (2.00-2.00)", "5, missed"),
        ("25 us 1t", "10 us 1t", "2.50 (2.50-2.50)", "-"),
        ("25 us 1t", "-", "-", "3"),
    ]
    text = "2.71 times as fast, geometric mean of 3 problems; 1 of 2 below the project's own goal:\n"
    text += "gru-training-T100-B32-I16-H64-packed-torch 2.00 (2.00-2.00), goal 5"
    assert results.summary(record) == [("hotloop.torch over torch.nn", text)]
    assert results.judged(record) == []
    record["cases"] = record["cases"][2:3]
    (line,) = results.summary(record)
    assert line[1] == "2.50 times as fast, lstm-inference-T1-B32-I16-H64-cell"


def test_modules_are_in_table_and_report(capsys):
    from hotloop.bench.table import print_results

    record = json.loads(json.dumps(modules_record()))
    html = page(record)
    print_results(record, Console(width=200), show_roof=True)
    text = capsys.readouterr().out
    for figures in (html, text):
        for figure in ("replace_modules", "16 ms 2t", "4.00 (4.00-4.00)", "5, missed", "Training is a whole step"):
            assert figure in figures, figure
    assert "best over best" not in text  # a table of their own
    assert "no probes" not in text
    assert '<h2 id="modules">' in html
    assert html.count("class=behind") == 2  # the goal that is missed, and the answer that is wrong
    assert "Modules of torch.nn, swapped. Faster than the stock module on 3 of 3 problems: 2.71" in html
    record["cases"] += stored_record()["cases"]
    print_results(record, Console(width=200))
    text = capsys.readouterr().out
    assert text.index("times as fast") < text.index("best over best")
    assert text.count("gru-training-T100-B32-I16-H64-torch") == 1
    assert 'id="modules"' not in page(stored_record())


# Whole runs


def test_a_run_keeps_all_but_one_worker_stopped(monkeypatch):
    pids, seen = [], []
    start, ask = processes.start_candidate, processes.WorkerProcess.ask

    def noted_start(*args, **kwargs):
        process = start(*args, **kwargs)
        pids.append(process.pid)
        return process

    def noted_ask(self, request, **kwargs):
        if sys.platform.startswith("linux"):
            assert [pid for pid in pids if state(pid) != "T"] == [self.pid]
        seen.append(request["do"])
        return ask(self, request, **kwargs)

    monkeypatch.setattr(run, "start_candidate", noted_start)
    monkeypatch.setattr(processes.WorkerProcess, "ask", noted_ask)
    record = run.run([SMALL], run.Settings(peers=["numpy"], effort=FAST))
    assert seen.count("time") == 6
    assert len(pids) == 3  # ourselves, numpy and the specification
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert [c["status"] for c in record["cases"][0]["candidates"]] == ["ok", "ok"]


def test_an_interrupted_run_keeps_what_is_complete_and_ends_its_workers(monkeypatch):
    started = []
    start = processes.start_candidate

    def noted_start(*args, **kwargs):
        started.append(start(*args, **kwargs))
        return started[-1]

    def interrupt(done, text):
        if done == 1 and "round" in text:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "start_candidate", noted_start)
    other = replace(SMALL, cell="gru")
    record = run.run([SMALL, other], run.Settings(peers=["numpy"], effort=FAST), progress=interrupt)
    assert record["interrupted"] is True
    assert [case["problem"]["name"] for case in record["cases"]] == [SMALL.name]
    assert len(started) == 3
    assert not any(process.alive for process in started)
    assert "interrupted" in results.remarks(record)[-1]


def test_every_installed_peer_gives_the_right_answer(tmp_path, capsys):
    status = cli.main(["bench", "--smoke", "--threads", "1", "--out", str(tmp_path), "--roof"])
    printed = capsys.readouterr().out
    assert status == 0

    def reject(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"), parse_constant=reject)
    assert record["schema_version"] == run.SCHEMA_VERSION
    assert len(record["cases"]) == len(problems.SMOKE)
    installed = [peer for peer in PEERS if not missing_modules(peer)]
    for case in record["cases"]:
        assert [c["name"] for c in case["candidates"]] == [OURS, *installed]
        for candidate in case["candidates"]:
            problem = results.problem_of(case)
            inference_only = candidate["name"] in ("onnxruntime", "openvino")
            if inference_only and (problem.mode == "training" or problem.resets):
                assert candidate["status"] == "unsupported"
            else:
                assert candidate["status"] == "ok", candidate
                assert len(candidate["rounds"]) == 2
        assert case["problem"]["name"] in printed
    assert set(record["environment"]["versions"]) == {OURS, *installed}
    assert (tmp_path / "report.html").stat().st_size > 10_000


@needs_torch
def test_modules_of_torch_from_the_command(tmp_path, capsys):
    status = cli.main(["bench", "--torch", "--smoke", "--threads", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert status == 0
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert [case["problem"]["name"] for case in record["cases"]] == [problem.name for problem in problems.TORCH_SMOKE]
    for case in record["cases"]:
        assert [(c["name"], c["status"], len(c["rounds"])) for c in case["candidates"]] == [
            (OURS, "ok", 2),
            ("torch", "ok", 2),
        ]
        assert case["problem"]["name"] in printed
    assert 'id="modules"' in (tmp_path / "report.html").read_text(encoding="utf-8")


# The table and the report

MEASURED = Path(__file__).parents[1] / "benchmarks" / "measured"


def test_summary_of_ratios():
    record = json.loads(json.dumps(grid_record()))
    found = {one.problem.name: one.ratio.value for one in results.compare(results.judged(record))}
    assert found == pytest.approx({
        "lstm-inference-T1000-B1-I64-H64": 0.8,
        "gru-training-T1000-B1-I128-H128": 5000 / 6000,
        "lstm-inference-T1-B1-I64-H64": 1.0,
        "lstm-inference-T100-B16-I128-H128": 2.0,
        "rnn-training-T100-B16-I128-H128": 3.0,
    })  # fmt: skip
    assert list(found.values()) == sorted(found.values())
    assert [one.problem.cell for one in results.behind(record)] == ["lstm", "gru"]
    lines = dict(results.summary(record))
    lost = ("lstm-inference-T1000-B1-I64-H64 0.80 (0.80-0.80) times as fast as openvino 2t",
            "gru-training-T1000-B1-I128-H128 0.83 (0.83-0.83) times as fast as hotloop (numpy) 1t")  # fmt: skip
    assert lines["behind the best peer"] == "\n".join(("on 2 of 5 problems, worst first:", *lost))
    means = {name: text for name, text in lines.items() if "hotloop over" in name}
    assert means == {
        # the cube root of 2 * 0.8 * 1; its worst has been told
        "inference, hotloop over the best peer": "1.17 times as fast, geometric mean of 3 problems",
        # the root of 2 * 3: numpy does not count
        "training, hotloop over the best of torch and jax": "2.45 times as fast, geometric mean of 2 problems; "
        "the worst is gru-training-T1000-B1-I128-H128 2.00 (2.00-2.00) times as fast as jax 1t",
        # one problem each: no mean
        "GRU training, hotloop over torch": "gru-training-T1000-B1-I128-H128 "
        "9.00 (9.00-9.00) times as fast as torch 2t",
        "RNN training, hotloop over torch": "rnn-training-T100-B16-I128-H128 "
        "3.00 (3.00-3.00) times as fast as torch 1t",
    }


def test_no_comparison_is_told_twice():
    record = grid_record()
    (fast,) = [case for case in record["cases"] if case["problem"]["cell"] == "rnn" and case["problem"]["seq_len"] > 1]
    record["cases"] = [fast]
    told = "rnn-training-T100-B16-I128-H128 3.00 (3.00-3.00) times as fast as torch 1t"
    lines = results.summary(record)
    assert lines[0] == ("against the best peer", told)
    assert [what for what, text in lines if told in text] == ["against the best peer"]
    record = grid_record()
    del record["cases"][1]
    record["cases"][2]["candidates"] = [c for c in record["cases"][2]["candidates"] if c["name"] != "numpy"]
    lines = results.summary(record)
    closest = "lstm-inference-T1-B1-I64-H64 1.00 (1.00-1.00) times as fast as torch 1t"
    assert lines[0] == ("behind the best peer", f"on none of 4 problems; the closest is {closest}")
    assert sum(closest in text for _, text in lines) == 1


def test_summary_of_the_second_thread():
    found = results.second_thread(grid_record())
    expected = {
        "B >= 8": ({"lstm-inference-T100-B16-I128-H128": 1.5, "rnn-training-T100-B16-I128-H128": 2.0}, 1.8),
        "B < 8, steps of 2 us or more": ({"gru-training-T1000-B1-I128-H128": 1.5}, 1.6),
        "B < 8, shorter steps": ({"lstm-inference-T1000-B1-I64-H64": 0.8}, None),
    }
    assert list(found) == list(expected)
    for name, (values, bar) in expected.items():
        assert found[name].values == pytest.approx(values)
        assert found[name].bar == bar
    lines = dict(results.summary(grid_record()))
    assert lines["two threads over one, B >= 8"] == (
        "1.73 times as fast, geometric mean of 2 problems; least 1.50 (lstm-inference-T100-B16-I128-H128); "
        "1 of 2 below the project's own goal of 1.80"
    )
    assert lines["two threads over one, B < 8, shorter steps"] == (
        "0.80 times as fast (lstm-inference-T1000-B1-I64-H64)"
    )


def test_summary_of_the_roof():
    record = grid_record()
    found = results.shares_of_roof(record)
    assert {name: set(share.values) for name, share in found.items()} == {
        "H >= 128": {"lstm-inference-T100-B16-I128-H128", "gru-training-T1000-B1-I128-H128",
                     "rnn-training-T100-B16-I128-H128"},
        "64 <= H < 128": {"lstm-inference-T1000-B1-I64-H64"},
    }  # fmt: skip
    (row, _) = results.rows(record["cases"][1])
    assert found["64 <= H < 128"].values["lstm-inference-T1000-B1-I64-H64"] == row.of_roof
    assert [share.bar for share in found.values()] == [0.9, 0.8]
    assert "of the roof, H >= 128" in dict(results.summary(record))
    record["cases"][1]["candidates"][0]["rounds"] = [[1e-6]]
    assert "its probe was too slow" in dict(results.summary(record))["of the roof, 64 <= H < 128"]


def test_summary_of_memory():
    text = dict(results.summary(grid_record()))["memory, beside what grows with T"]
    problem = Problem("gru", "training", 1000, 1, 128, 128)
    kept = 1000 * 128 * 4 * 5
    assert f"largest rise 97.7 KiB where {results.format_bytes(kept)} more are kept ({problem.name})" in text


def test_a_summary_of_nothing_is_empty():
    record = grid_record()
    for case in record["cases"]:
        case["candidates"] = []
        case.pop("memory", None)
    assert results.summary(record) == []


def test_summary_roof_and_memory_are_in_table_and_report(capsys):
    from hotloop.bench.table import print_results

    record = json.loads(json.dumps(grid_record()))
    html = page(record)
    print_results(record, Console(width=200), show_roof=True)
    text = capsys.readouterr().out
    for figures in (text, html):
        for figure in ("gradients of sequences", "2.44 MiB", "4.88 MiB", "97.7 KiB", "gradient of weight_hh",
                       "1 of 2 below the project"):  # fmt: skip
            assert figure in figures, figure


@pytest.mark.parametrize("path", sorted(MEASURED.glob("*.json")), ids=lambda path: path.stem)
def test_records_that_were_kept_can_still_be_read(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    for case in record["cases"]:
        problem = results.problem_of(case)
        assert (problem.name, problem.flops) == (case["problem"]["name"], case["flops"])
        assert all(row.of_roof is not None or problem.module for row in results.rows(case))
    whats = [what for what, _ in results.summary(record)]
    assert whats[0].endswith("the best peer") or whats == ["hotloop.torch over torch.nn"]
    assert page(record)


def test_our_other_backends_have_our_name(capsys):
    from hotloop.bench.table import print_results

    record = grid_record()
    html = page(record)
    print_results(record, Console(width=200))
    for text in (html, capsys.readouterr().out):
        assert "hotloop (numpy) 1t" in text
    assert ">numpy" not in html
    record["environment"]["not_installed"] = ["numba"]
    assert "hotloop (numba): not installed" in results.remarks(record)


def test_a_machine_that_was_not_quiet_is_said_in_table_and_report_alike():
    record = stored_record()
    assert "(load average of the last minute: 2.5, on 2 processors)" in results.busy(record)
    record["environment"]["processors"] = 8  # of the machine; before, those of our last worker were recorded
    assert results.busy(record) is None
    assert 'class="warning busy"' not in page(record)
    record["environment"] |= {"processors": 1, "load": 0.51}
    assert "on 1 processor)" in results.busy(record)
    assert 'class="warning busy"' in page(record)


def test_table_holds_the_figures(capsys):
    from hotloop.bench.table import print_results

    print_results(stored_record(), Console(width=160), show_roof=True)
    text = capsys.readouterr().out
    for figure in ("10 us", "2.50 (2.50-2.50) torch 2t", "Test <CPU>", "2.5, on 2 processors", "recurrence",
                   "torch, wrong: x: relative error inf", "10.00 ns a vector", "no probes"):  # fmt: skip
        assert figure in text, figure


@pytest.mark.parametrize("width", [60, 200])
def test_the_terminal_explains_the_columns_that_are_shown(width, capsys):
    from hotloop.bench.table import print_results

    print_results(stored_record(), Console(width=width))
    text = capsys.readouterr().out
    head = next(line for line in text.splitlines() if line.startswith("problem "))
    for name in results.MEANINGS:
        assert (f"\n{name}: " in text) == (f"  {name}" in f"  {head}"), name
    assert ("GF/s" in head) == (width == 200)
    assert "2.50 (2.50-2.50)" in text  # whole, however narrow
    assert "…" not in text


def test_formats():
    assert [results.format_seconds(s) for s in (1.5e-6, 0.0123, 2.0)] == ["1.5 us", "12.3 ms", "2 s"]
    assert [results.format_bytes(n) for n in (12, 1000, 1023 << 10, -(5 << 20), None)] == [
        "12 B", "0.977 KiB", "0.999 MiB", "-5 MiB", "-",
    ]  # fmt: skip
    assert [results.format_count(n) for n in (12.0, 4567.0, 3.3e6)] == ["12", "4.57 k", "3.3 M"]


# The command line


def test_version_and_help(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hotloop {hotloop.__version__}\n"
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: hotloop ")
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert "shown as hotloop (numba) and hotloop (numpy)" in " ".join(capsys.readouterr().out.split())


def test_info(capsys):
    assert cli.main(["info"]) == 0
    assert "backend" in capsys.readouterr().out


def test_bench_without_its_extra_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert cli.main(["bench", "--smoke"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hotloop bench needs rich.progress: ")
    assert 'pip install ".[bench]"' in error


@pytest.mark.parametrize("arguments", [["--torch"], ["--torch", "--quick"], ["--problems", "torch"],
                                       ["--smoke", "--attention"]])  # fmt: skip
def test_modules_of_torch_without_torch(arguments, monkeypatch, capsys):
    monkeypatch.setattr(peers, "missing_modules", lambda peer: [peer] if peer == "torch" else [])
    assert cli.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hotloop bench {'--attention' if '--attention' in arguments else '--torch'} needs torch: ")
    assert 'pip install ".[torch]"' in error


def test_what_is_measured_beside_the_problems(tmp_path, monkeypatch):
    seen = []

    def stop(problems, settings, **_):
        seen.append(settings)
        raise processes.WorkerDied("enough")

    monkeypatch.setattr(run, "run", stop)
    monkeypatch.setattr(peers, "missing_modules", lambda peer: [])
    for arguments in ([], ["--latency", "--attention"], ["--smoke", "--latency", "--attention"]):
        assert cli.main(["bench", "--out", str(tmp_path), *arguments]) == 1
    none, whole, small = seen
    assert (none.latency, none.attention) == ((), None)
    assert (whole.latency, whole.attention) == (problems.LATENCY, attention.Plan())
    assert (small.latency, small.attention) == (problems.LATENCY_SMOKE, attention.SMALL)
    assert whole.latency_calls.turns * whole.latency_calls.calls == 10_000 > small.latency_calls.calls
    assert whole.attention.contexts[0] == 64
    assert whole.attention.contexts[-1] == 16384


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--torch", "--problems", "grid"], "argument --torch: not allowed with argument --problems"),
        (["--torch", "--peers", "jax"], "argument --torch: not allowed with argument --peers"),
        (["--torch", "--memory"], "argument --torch: not allowed with argument --memory"),
        (["--torch", "--cells", "rnn", "--modes", "inference"], "no problem of these groups"),
        (["--shape", "1,2,3"], "expected four integers T,B,I,H, got '1,2,3'"),
        (["--shape", "1,2,3,0"], "expected integers >= 1"),
        (["--problems", "all"], "headline"),
        (["--quick", "--smoke"], "not allowed with"),
        (["--threads", "100000"], "got '100000'"),
        (["--threads", "0"], "got '0'"),
        (["--seconds-per-case", "-1"], "expected a finite number >= 0, got '-1'"),
        (["--seconds-per-case", "nan"], "expected a finite number >= 0, got 'nan'"),
        (["--problems", "headline", "--cells", "rnn"], "no problem of these groups"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: hotloop bench ")
    assert error.splitlines()[-1].startswith("hotloop bench: error: ")
    assert message in error


def test_results_that_could_not_be_written_are_not_measured(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "out" / "run.json").mkdir(parents=True)
    for folder in (file, file / "below", tmp_path / "out"):
        with pytest.raises(SystemExit) as caught:
            cli.main(["bench", "--smoke", "--out", str(folder)])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"hotloop bench: error: argument --out: cannot write to {folder}: ")


def test_trying_a_folder_leaves_no_trace(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "run.json").write_text("{}")
    assert cli._why_not_writable(tmp_path / "here") is None
    assert cli._why_not_writable(tmp_path / "a" / "b") is None
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["here", "here/run.json"]
    assert (tmp_path / "here" / "run.json").read_text() == "{}"


def test_an_interrupt_before_the_first_case_writes_nothing(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "start_candidate", interrupt)
    assert cli.main(["bench", "--smoke", "--peers", "--out", str(tmp_path / "out")]) == 130
    assert "interrupted before a case was complete" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("best_isa")
def test_an_unknown_instruction_set_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--smoke", "--isa", "mmx"])
    assert f"this processor has {', '.join(hotloop.info().isas)}; got 'mmx'" in capsys.readouterr().err


@pytest.mark.usefixtures("numpy_backend")
def test_no_instruction_set_without_the_native_backend(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--smoke", "--isa", "scalar"])
    assert "numpy is in use" in capsys.readouterr().err
