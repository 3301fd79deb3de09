"""The C ABI itself: whatever would corrupt memory comes back as a status, a long call comes back early, and the built
files hold no symbol and need no library that they should not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cases import (
    CELLS,
    DTYPES,
    PARAMETER_GRADIENTS,
    PARAMETERS,
    SEQUENCE_RESULTS,
    UPSTREAM,
    Case,
    assert_same_bits,
    forward_args,
    in_case,
    train,
    train_in_pieces,
)

from hotloop._core import types

_ffi = pytest.importorskip("hotloop._ffi") if not os.environ.get("HOTLOOP_REQUIRE_NATIVE") else __import__(
    "hotloop._ffi", fromlist=["ffi"]
)  # fmt: skip
ffi, lib = _ffi.ffi, _ffi.lib

ROOT = Path(__file__).parents[1]
STATUSES = {
    lib.HOTLOOP_OK: "success",
    lib.HOTLOOP_AGAIN: "not finished: call again",
    lib.HOTLOOP_BAD_ARGUMENT: "a bad argument",
    lib.HOTLOOP_TOO_LARGE: "sizes whose byte count overflows",
    lib.HOTLOOP_WORKSPACE_TOO_SMALL: "the workspace is too small",
    lib.HOTLOOP_UNKNOWN_ISA: "HOTLOOP_ISA is unknown or not supported by this processor",
    lib.HOTLOOP_PACKED_ELSEWHERE: "weights were packed for another shape, type, instruction set or version",
    lib.HOTLOOP_PLANNED_ELSEWHERE: "the plan is of another instruction set or version",
}
HUGE = [2**31 - 1, 2**31, 2**32, 2**48, 2**60, 2**62, 2**63 - 1]


def workspace(size):
    """The last two arguments of a call: so many bytes, poisoned, at an odd address, since any alignment will do."""
    assert size >= 0
    memory = ffi.new("char[]", size + 1)
    ffi.memmove(memory, b"\xff" * (size + 1), size + 1)
    return ffi.gc(memory + 1, lambda _: memory), size


def parameter(name):
    """Its number."""
    return getattr(lib, f"HOTLOOP_{name.upper()}")


class Call:
    """The structs of a case, and the arrays they point to. Every array but the inputs starts as NaN."""

    def __init__(self, case, data=None, training=True, threads=1):
        self.case, self.threads, self.training = case, threads, training
        self.data = case.data() if data is None else data
        args = forward_args(case, self.data, training=training)
        names = ("output", "h_n", "c_n", "gates", "c")
        self.results = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
        self.spec = ffi.new("hotloop_spec *", (CELLS.index(case.cell), DTYPES.index(case.dtype), case.input_size,
                                               case.hidden_size, case.hidden_size))  # fmt: skip
        self.sizes = case.seq_len, case.batch_size  # of the plan
        self.uses = lib.HOTLOOP_TRAINING if training else lib.HOTLOOP_INFERENCE
        self.uses_backward = lib.HOTLOOP_BACKWARD | lib.HOTLOOP_GRAD_X | lib.HOTLOOP_GRAD_WEIGHTS
        self.weights = ffi.new("hotloop_weights *")
        for name in PARAMETERS:
            self.weights.parameters[parameter(name)] = self.address(self.data.get(name))
        f = self.buffers = ffi.new("hotloop_buffers *")
        f.weights, f.reverse, f.seq_len, f.batch_size = self.weights, case.reverse, case.seq_len, case.batch_size
        f.x_stride_t, f.x_stride_b = case.batch_size * case.input_size, case.input_size
        f.output_stride_t, f.output_stride_b = case.batch_size * case.hidden_size, case.hidden_size
        f.c_stride_t, f.c_stride_b = f.output_stride_t, f.output_stride_b
        for name in ("x", "h0", "c0"):
            setattr(f, name, self.address(self.data.get(name)))
        for name, array in self.results.items():
            setattr(f, name, self.address(array))
        self.gradients = {}
        b = self.struct = ffi.new("hotloop_gradients *")
        if training:
            for name in ("x", *PARAMETERS, *(("h0", "c0") if case.cell == "lstm" else ("h0",))):
                array = np.full_like(self.data.get(name, self.results["h_n"]), np.nan)
                self.gradients[f"grad_{name}"] = array
                if name in PARAMETERS:
                    b.grad_parameters[parameter(name)] = self.address(array)
                else:
                    setattr(b, f"grad_{name}", self.address(array))
            for name in UPSTREAM:
                setattr(b, name, self.address(self.data.get(name)))
            b.grad_output_stride_t, b.grad_output_stride_b = f.output_stride_t, f.output_stride_b
            b.grad_x_stride_t, b.grad_x_stride_b = f.x_stride_t, f.x_stride_b
        self._spaces = {}

    @staticmethod
    def address(array):
        return ffi.NULL if array is None else ffi.cast("void *", array.ctypes.data)

    def plan(self, backward=False, **changes):
        """A plan of this call; with other sizes, uses or threads where they are given."""
        uses = changes.get("uses", self.uses_backward if backward else self.uses)
        plan = ffi.new("hotloop_plan *")
        sizes = changes.get("sizes", self.sizes)
        status = lib.hotloop_make_plan(plan, self.spec, uses, 1, *sizes, changes.get("threads", self.threads))
        assert status == lib.HOTLOOP_OK, STATUSES[status]
        return plan

    def workspace(self, plan):
        """Of the bytes asked for, kept from call to call, as those that go on need it."""
        size = lib.hotloop_workspace_bytes(plan)
        if size not in self._spaces:
            self._spaces[size] = workspace(size)
        return self._spaces[size]

    def run_forward(self, plan=None, space=None, executor=ffi.NULL):
        plan = self.plan() if plan is None else plan
        space = self.workspace(plan) if space is None else space
        return lib.hotloop_forward(plan, self.buffers, executor, *space)

    def run_backward(self, plan=None, space=None, executor=ffi.NULL):
        """A finished forward's cursor starts again, from the last step."""
        plan = self.plan(backward=True) if plan is None else plan
        space = self.workspace(plan) if space is None else space
        if not self._going_back:
            self.buffers.cursor = 0
        status = lib.hotloop_backward(plan, self.buffers, self.struct, executor, *space)
        self._going_back = status == lib.HOTLOOP_AGAIN
        return status

    _going_back = False

    def untouched(self):
        return all(np.isnan(array).all() for array in (*self.results.values(), *self.gradients.values()))

    def all(self):
        results = {name: array for name, array in self.results.items() if name not in ("gates", "c")}
        return results | self.gradients


def side_by_side(calls, backward=False):
    """The structs of several calls, one behind the other."""
    buffers = ffi.new("hotloop_buffers[]", [call.buffers[0] for call in calls])
    for each in buffers:
        each.cursor = 0
    return (buffers, ffi.new("hotloop_gradients[]", [call.struct[0] for call in calls])) if backward else (buffers,)


def run_side_by_side(calls, threads, backward=False):
    """One call of several recurrences of one spec, to its end. Returns how often it came back early."""
    first = calls[0]
    uses = first.uses_backward if backward else first.uses
    sizes = [max(sizes) for sizes in zip(*(call.sizes for call in calls), strict=True)]
    plan = ffi.new("hotloop_plan *")
    assert lib.hotloop_make_plan(plan, first.spec, uses, len(calls), *sizes, threads) == lib.HOTLOOP_OK
    structs, function = side_by_side(calls, backward), lib.hotloop_backward if backward else lib.hotloop_forward
    size = lib.hotloop_workspace_bytes(plan)
    if size:
        assert function(plan, *structs, ffi.NULL, *workspace(size - 1)) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    return drive(partial(function, plan, *structs, ffi.NULL, *workspace(size)))


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


@pytest.fixture
def call(cell, best_isa):
    return Call(Case(cell, "float32"))


def test_the_version():
    assert lib.hotloop_abi_version() == lib.HOTLOOP_ABI_VERSION == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_call_without_python_around_it(cell, dtype, isa):
    """A plan, two structs, workspaces at odd addresses, arrays of one's own: the bits of the Python functions."""
    case = Case(cell, dtype, 9, 5, 3, 17, reverse=True)
    call = Call(case)
    assert call.run_forward() == lib.HOTLOOP_OK
    assert call.buffers.cursor == case.seq_len
    assert call.run_backward() == lib.HOTLOOP_OK
    assert call.buffers.cursor == case.seq_len
    assert_same_bits(call.all(), train(case))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_several_recurrences_in_one_call(threads, cell, isa):
    """Of other lengths, batches and directions side by side, they have the bits they have alone."""
    cases = [Case(cell, "float32", 40 + n, 5 - n, 6, 40, reverse=n % 2 == 1) for n in range(4)]
    calls = [Call(case) for case in cases]
    run_side_by_side(calls, threads)
    run_side_by_side(calls, threads, backward=True)
    for call in calls:
        assert_same_bits(call.all(), train(call.case))


@pytest.mark.parametrize("threads", [1, 3])
def test_larger_plans(cell, threads, isa):
    """A plan is good for fewer steps and rows, and fewer gradients, than it was made for: the bits are the same."""
    case = Case(cell, "float32", 9, 5, 3, 17)
    want = train(case)
    for steps, rows in [(10, 5), (9, 6), (400, 5), (9, 400), (60, 60)]:
        call = Call(case, threads=threads)
        call.sizes = steps, rows
        call.uses_backward |= lib.HOTLOOP_RESET_TO_INITIAL
        assert (drive(call.run_forward), drive(call.run_backward)) == (0, 0)
        assert_same_bits(call.all(), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (40, 33)])
def test_steps(cell, dtype, batch_first, sizes, isa):
    """Scalars and pointers instead of structs, weights packed or not, states in their place or apart: the same bits."""
    seq_len, batch_size = sizes
    case = Case(cell, dtype, seq_len, batch_size, 3, 17)
    want = Call(case, training=False)
    assert want.run_forward() == lib.HOTLOOP_OK
    turned = (lambda array: np.ascontiguousarray(array.swapaxes(0, 1))) if batch_first else (lambda array: array)
    x, output = turned(want.data["x"]), np.empty(turned(want.results["output"]).shape, dtype)
    packed = packed_weights(want)
    packed_struct = ffi.new("hotloop_weights *", {"packed": Call.address(packed)})
    for weights in (want.weights, packed_struct):
        for in_place in (False, True):
            call = Call(case, training=False)
            h_n, c_n = call.results["h_n"], call.results.get("c_n")
            h0, c0 = call.data.get("h0"), call.data.get("c0")
            if in_place:
                h_n[...] = h0
                h0 = h_n
                if c_n is not None:
                    c_n[...] = c0
                    c0 = c_n
            uses = (lib.HOTLOOP_PACKED if weights is packed_struct else 0) | batch_first * lib.HOTLOOP_BATCH_FIRST
            plan = call.plan(uses=uses, sizes=(seq_len + 1, batch_size + 2))
            arrays = tuple(map(Call.address, (x, h0, c0, output, h_n, c_n)))
            output.fill(np.nan)
            space = workspace(lib.hotloop_workspace_bytes(plan))
            for bad in [(0, batch_size), (-1, batch_size), (seq_len + 2, batch_size), (seq_len, -1),
                        (seq_len, batch_size + 3), (2**62, 2**62), (-(2**63), 1)]:  # fmt: skip
                status = lib.hotloop_step(plan, weights, *bad, *arrays, ffi.NULL, *space)
                assert status == lib.HOTLOOP_BAD_ARGUMENT
            if space[1]:
                status = lib.hotloop_step(plan, weights, *sizes, *arrays, ffi.NULL, space[0], space[1] - 1)
                assert status == lib.HOTLOOP_WORKSPACE_TOO_SMALL
            assert np.isnan(output).all()
            assert lib.hotloop_step(plan, weights, *sizes, *arrays, ffi.NULL, *space) == lib.HOTLOOP_OK
            got = {"output": turned(output), "h_n": h_n} | ({} if c_n is None else {"c_n": c_n})
            assert_same_bits(got, want.results)
    for training in (lib.HOTLOOP_TRAINING, lib.HOTLOOP_BACKWARD):
        plan = want.plan(uses=training)
        status = lib.hotloop_step(plan, want.weights, *sizes, *arrays, ffi.NULL, *workspace(1 << 20))
        assert status == lib.HOTLOOP_BAD_ARGUMENT


def test_a_total_that_overflows(best_isa):
    """Many recurrences of which none is too large."""
    spec, plan = Call(Case("gru")).spec, ffi.new("hotloop_plan *")
    make = partial(lib.hotloop_make_plan, plan, spec, lib.HOTLOOP_INFERENCE)
    assert make(2, 1, 2**41, 1) == lib.HOTLOOP_OK
    assert lib.hotloop_workspace_bytes(plan) > 2**41
    before = bytes(ffi.buffer(plan))
    assert make(1 << 20, 1, 2**41, 1) == lib.HOTLOOP_TOO_LARGE
    assert bytes(ffi.buffer(plan)) == before


@pytest.mark.parametrize("threads", [1, 2])
def test_many_recurrences_come_back_early(threads, best_isa):
    """A call of many comes back for Ctrl-C as a call of one does, and goes on where it was."""
    case = Case("lstm", "float32", 6000, 8, 40, 64)
    data = case.data()
    calls = [Call(case, data, training=False) for _ in range(12)]  # some 200 ms on the fastest core
    assert run_side_by_side(calls, threads) > 0
    for call in calls[1:]:
        assert_same_bits(call.results, calls[0].results)


def test_one_bad_recurrence_stops_all(best_isa):
    """All structs are checked before anything is written."""
    calls = [Call(Case("gru")), Call(Case("gru"))]
    calls[1].buffers.x = ffi.NULL
    plan = ffi.new("hotloop_plan *")
    assert lib.hotloop_make_plan(plan, calls[0].spec, calls[0].uses, 2, *calls[0].sizes, 1) == lib.HOTLOOP_OK
    assert lib.hotloop_forward(plan, *side_by_side(calls), ffi.NULL, *workspace(1 << 20)) == lib.HOTLOOP_BAD_ARGUMENT
    plan = ffi.new("hotloop_plan *")
    uses = calls[0].uses_backward
    assert lib.hotloop_make_plan(plan, calls[0].spec, uses, 2, *calls[0].sizes, 1) == lib.HOTLOOP_OK
    both = side_by_side(calls, backward=True)
    assert lib.hotloop_backward(plan, *both, ffi.NULL, *workspace(1 << 20)) == lib.HOTLOOP_BAD_ARGUMENT
    assert calls[0].untouched()


def make_plan(call, uses=None, count=1, sizes=None, threads=1):
    """The status, and the plan, which is not written where the status is not OK."""
    plan = ffi.new("hotloop_plan *", {"words": [0x5A5A5A5A5A5A5A5A] * 16})
    before = bytes(ffi.buffer(plan))
    uses, sizes = call.uses if uses is None else uses, call.sizes if sizes is None else sizes
    status = lib.hotloop_make_plan(plan, call.spec, uses, count, *sizes, threads)
    assert (bytes(ffi.buffer(plan)) == before) == (status != lib.HOTLOOP_OK)
    return status, plan


def statuses_of_plans(call, **changes):
    return {make_plan(call, uses=uses, **changes)[0] for uses in (call.uses, call.uses_backward)}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("cell", [-1, lib.HOTLOOP_CELL_COUNT, 2**31 - 1, -(2**31)]),
        ("dtype", [-1, 2, 2**31 - 1, -(2**31)]),
        ("input_size", [0, -1, -(2**63)]),
        ("hidden_size", [0, -1, -(2**63)]),
    ],
)
def test_bad_specs(call, field, values):
    for value in values:
        before = getattr(call.spec, field)
        setattr(call.spec, field, value)
        assert statuses_of_plans(call) == {lib.HOTLOOP_BAD_ARGUMENT}
        assert lib.hotloop_packed_bytes(call.spec) == -1
        packed = ffi.new("char[]", 64)
        assert lib.hotloop_pack(call.spec, call.weights, packed, 64) == lib.HOTLOOP_BAD_ARGUMENT
        setattr(call.spec, field, before)
    assert call.run_forward() == lib.HOTLOOP_OK


def test_bad_plans(call):
    """Sizes, counts and uses of which nothing can be made."""
    for sizes in [(0, 1), (-1, 1), (-(2**63), 1), (1, -1), (1, -(2**63)), (0, 0)]:
        assert statuses_of_plans(call, sizes=sizes) == {lib.HOTLOOP_BAD_ARGUMENT}
    for count in (0, -1, -(2**63), (1 << 20) + 1, 2**40, 2**63 - 1):
        assert statuses_of_plans(call, count=count) == {lib.HOTLOOP_BAD_ARGUMENT}
    training, backward = lib.HOTLOOP_TRAINING, lib.HOTLOOP_BACKWARD
    packed, first = lib.HOTLOOP_PACKED, lib.HOTLOOP_BATCH_FIRST
    of_backward = [lib.HOTLOOP_GRAD_X, lib.HOTLOOP_GRAD_WEIGHTS, lib.HOTLOOP_RESET_TO_INITIAL]
    for uses in [-1, -(2**31), 128, 2**31 - 1, training | backward, backward | packed, backward | first, *of_backward,
                 *(training | use for use in of_backward)]:  # fmt: skip
        assert make_plan(call, uses=uses)[0] == lib.HOTLOOP_BAD_ARGUMENT, uses
    for uses in [0, training, packed, first, packed | first, training | packed, backward, backward | sum(of_backward)]:
        assert make_plan(call, uses=uses)[0] == lib.HOTLOOP_OK, uses
    plan = ffi.new("hotloop_plan *")
    assert lib.hotloop_make_plan(ffi.NULL, call.spec, 0, 1, 1, 1, 1) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_make_plan(plan, ffi.NULL, 0, 1, 1, 1, 1) == lib.HOTLOOP_BAD_ARGUMENT


@pytest.mark.parametrize("field", ["seq_len", "batch_size", "input_size", "hidden_size"])
@pytest.mark.parametrize("value", HUGE)
def test_huge_sizes(call, field, value):
    """A size near 2^31 needs a larger workspace, or no larger one where only the time grows; a size whose byte count
    overflows is named so. Never a count that wrapped around to something small or negative.
    """
    before = [lib.hotloop_workspace_bytes(call.plan(backward)) for backward in (False, True)]
    packed_before, sizes = (
        lib.hotloop_packed_bytes(call.spec),
        dict(zip(("seq_len", "batch_size"), call.sizes, strict=True)),
    )
    if field in sizes:
        sizes[field] = value
    else:
        setattr(call.spec, field, value)
        call.spec.output_size = call.spec.hidden_size
    sizes = tuple(sizes.values())
    packed = lib.hotloop_packed_bytes(call.spec)
    for uses, small in zip((call.uses, call.uses_backward), before, strict=True):
        for threads in (1, 2**31 - 1):
            status, plan = make_plan(call, uses=uses, sizes=sizes, threads=threads)
            if value >= 2**60:
                assert status == lib.HOTLOOP_TOO_LARGE
            elif status != lib.HOTLOOP_TOO_LARGE:
                assert status == lib.HOTLOOP_OK
                size = lib.hotloop_workspace_bytes(plan)
                assert size >= small
                assert size > 0
                if field != "seq_len" and uses == call.uses_backward:
                    assert size > value  # more than a byte each
                if field == "batch_size":
                    assert size > value
                space = workspace(min(size - 1, 1 << 16))
                run = call.run_backward if uses == call.uses_backward else call.run_forward
                if field in ("seq_len", "batch_size"):  # and the call is as small as it was
                    assert run(plan, space) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    if field in ("input_size", "hidden_size"):
        assert packed == -1 or packed > value
    else:
        assert packed == packed_before
    assert call.untouched()


@pytest.mark.parametrize(
    "exponents", [(20, 20, 20, 20), (31, 31, 1, 1), (1, 1, 31, 31), (16, 16, 16, 16), (62, 2, 1, 1)]
)
def test_products_that_overflow(call, exponents):
    """Each size is harmless, their product is not."""
    steps, batch, inputs, units = exponents
    call.spec.input_size, call.spec.hidden_size, call.spec.output_size = 2**inputs, 2**units, 2**units
    made = [
        make_plan(call, uses=uses, sizes=(2**steps, 2**batch), threads=64) for uses in (call.uses, call.uses_backward)
    ]
    if max(steps + batch, units) + max(inputs, units) >= 60:
        assert {status for status, _ in made} == {lib.HOTLOOP_TOO_LARGE}
    else:  # 2^48 units: a pity about the memory, but it can be counted
        assert min(lib.hotloop_workspace_bytes(plan) for _, plan in made) > 2**32


def test_saved_gates_that_overflow(call):
    """The bound is that of four gates of every step, which is more than any other sequence has."""
    call.spec.input_size, call.spec.hidden_size, call.spec.output_size = 1, 2**21, 2**21
    assert statuses_of_plans(call, sizes=(2**30, 1)) == {lib.HOTLOOP_TOO_LARGE}
    assert statuses_of_plans(call, sizes=(2**28, 1)) == {lib.HOTLOOP_OK}


def refuse(call, status):
    """Both functions return the status and write nothing."""
    assert (call.run_forward(), call.run_backward()) == (status, status)
    assert call.untouched()


@pytest.mark.parametrize(("field", "extra"), [("seq_len", 0), ("batch_size", None)])
def test_sizes_that_were_not_planned(call, field, extra):
    planned = getattr(call.buffers, field)
    for value in [planned + 1, -1, 2**31, 2**63 - 1, -(2**63), *([] if extra is None else [extra])]:
        setattr(call.buffers, field, value)
        refuse(call, lib.HOTLOOP_BAD_ARGUMENT)


def test_what_was_not_planned(call):
    """Gradients, resets to the initial state and saved gates that the plan has no room for; the other way's plan."""
    backward = lib.HOTLOOP_BACKWARD
    for uses in (backward, backward | lib.HOTLOOP_GRAD_X, backward | lib.HOTLOOP_GRAD_WEIGHTS):
        assert call.run_backward(call.plan(uses=uses)) == lib.HOTLOOP_BAD_ARGUMENT
    resets = np.zeros((call.case.seq_len, call.case.batch_size), bool)
    call.buffers.resets, call.buffers.reset_to_initial = ffi.cast("uint8_t *", resets.ctypes.data), 1
    call.buffers.resets_stride_t, call.buffers.resets_stride_b = call.case.batch_size, 1
    assert call.run_backward() == lib.HOTLOOP_BAD_ARGUMENT
    call.buffers.resets = ffi.NULL
    if call.buffers.gates:
        assert call.run_forward(call.plan(uses=lib.HOTLOOP_INFERENCE)) == lib.HOTLOOP_BAD_ARGUMENT
    assert call.run_forward(call.plan(uses=lib.HOTLOOP_TRAINING | lib.HOTLOOP_PACKED)) == lib.HOTLOOP_BAD_ARGUMENT
    assert call.run_forward(call.plan(backward=True)) == lib.HOTLOOP_BAD_ARGUMENT
    assert call.run_backward(call.plan()) == lib.HOTLOOP_BAD_ARGUMENT
    assert call.untouched()
    call.struct.grad_x = ffi.NULL  # what is planned need not be wanted
    assert call.run_forward() == call.run_backward() == lib.HOTLOOP_OK


def test_what_is_no_plan(call):
    for word in (0, 2**64 - 1):
        plan = ffi.new("hotloop_plan *", {"words": [word] * 16})
        assert lib.hotloop_workspace_bytes(plan) == -1
        assert call.run_forward(plan, workspace(64)) == lib.HOTLOOP_PLANNED_ELSEWHERE
        assert call.run_backward(plan, workspace(64)) == lib.HOTLOOP_PLANNED_ELSEWHERE
        assert lib.hotloop_step(plan, call.weights, 1, 1, *[ffi.NULL] * 8, 0) == lib.HOTLOOP_PLANNED_ELSEWHERE
    assert lib.hotloop_workspace_bytes(ffi.NULL) == -1
    assert call.run_forward(ffi.NULL, workspace(64)) == lib.HOTLOOP_PLANNED_ELSEWHERE
    other = call.plan()
    other.words[0] += 1  # of another version
    assert call.run_forward(other, workspace(64)) == lib.HOTLOOP_PLANNED_ELSEWHERE
    assert call.untouched()


def test_a_plan_of_another_isa(call):
    names = [ffi.string(lib.hotloop_isa_at(index)) for index in range(8) if lib.hotloop_isa_at(index)]
    if len(names) < 2:
        pytest.skip("this processor has one instruction set")
    plan, back = call.plan(), call.plan(backward=True)
    try:
        for name in names[1:]:
            assert lib.hotloop_use_isa(name) == lib.HOTLOOP_OK
            assert lib.hotloop_workspace_bytes(plan) == -1
            assert call.run_forward(plan, workspace(1 << 16)) == lib.HOTLOOP_PLANNED_ELSEWHERE
            assert call.run_backward(back, workspace(1 << 16)) == lib.HOTLOOP_PLANNED_ELSEWHERE
            assert call.untouched()
    finally:
        lib.hotloop_use_isa(names[0])
    assert call.run_forward(plan) == lib.HOTLOOP_OK


@pytest.mark.parametrize(
    "field",
    ["x_stride_t", "x_stride_b", "output_stride_t", "output_stride_b", "c_stride_t", "c_stride_b", "resets_stride_t",
     "resets_stride_b"],
)  # fmt: skip
@pytest.mark.parametrize("value", [2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_strides_that_overflow(call, field, value):
    setattr(call.buffers, field, value)
    refuse(call, lib.HOTLOOP_TOO_LARGE)


@pytest.mark.parametrize(
    "field",
    ["grad_output_stride_t", "grad_output_stride_b", "grad_x_stride_t", "grad_x_stride_b", "grad_c_stride_t",
     "grad_c_stride_b"],
)  # fmt: skip
@pytest.mark.parametrize("value", [2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_gradient_strides_that_overflow(call, field, value):
    setattr(call.struct, field, value)
    assert call.run_backward() == lib.HOTLOOP_TOO_LARGE
    assert call.untouched()


BAD_LENGTHS = [[0, 10], [-1, 3], [2**63 - 1, 0], [-(2**63), 0]]
BAD_OFFSETS = [[0, 3, 2], [1, 3, 4], [0, 0, 10], [-1, 0, 3], [0, 2**62, 2**62], [0, -(2**63), 5]]


@pytest.mark.parametrize("field", ["lengths", "offsets", "both"])
def test_lengths_and_offsets(field, best_isa):
    """What would lie outside the arrays is refused, and nothing is written."""
    call = Call(Case("lstm", "float32", 9, 2, 3, 17))
    good = {"lengths": [9, 0], "offsets": [0, 9, 9]}
    fields = good if field == "both" else {field: None}
    values = [None] if field == "both" else {"lengths": BAD_LENGTHS, "offsets": BAD_OFFSETS}[field]
    for value in values:
        arrays = {name: ffi.new("int64_t[]", value or good[name]) for name in fields}
        for name, array in arrays.items():
            setattr(call.buffers, name, array)
        refuse(call, lib.HOTLOOP_BAD_ARGUMENT)
        call.buffers.lengths = call.buffers.offsets = ffi.NULL
    call.buffers.resets_stride_t = 2**60
    assert call.run_forward() == lib.HOTLOOP_TOO_LARGE
    call.buffers.resets_stride_t = 0
    call.struct.grad_c_stride_b = 2**60
    assert call.run_backward() == lib.HOTLOOP_TOO_LARGE


@contextmanager
def null(struct, field):
    """In which a field, or an element of an array, is NULL."""
    of_array = isinstance(field, int)
    before = struct[field] if of_array else getattr(struct, field)

    def put(value):
        if of_array:
            struct[field] = value
        else:
            setattr(struct, field, value)

    put(ffi.NULL)
    yield
    put(before)


def test_null_pointers_of_forward(call):
    needed = [(call.buffers, name) for name in ("x", "output", "h_n", "weights")]
    needed += [(call.weights.parameters, parameter(name)) for name in ("weight_ih", "weight_hh")]
    needed += [(call.buffers, "c_n")] * (call.case.cell == "lstm")
    for struct, field in needed:
        with null(struct, field):
            assert call.run_forward() == lib.HOTLOOP_BAD_ARGUMENT, field
            assert call.untouched()


def test_null_pointers_of_backward(call):
    needed = ["x", "output", "weights", *(name for name in ("gates", "c") if name in call.results)]
    for struct, fields in [
        (call.buffers, needed),
        (call.weights.parameters, [parameter("weight_ih"), parameter("weight_hh")]),
        (call.struct, ["grad_h0"] + ["grad_c0"] * (call.case.cell == "lstm")),
    ]:
        for field in fields:
            with null(struct, field):
                assert call.run_backward() == lib.HOTLOOP_BAD_ARGUMENT, field
                assert call.untouched()


def test_null_structs(best_isa):
    assert lib.hotloop_packed_bytes(ffi.NULL) == -1
    call, some = Call(Case("gru")), workspace(1 << 20)
    plan, back = call.plan(), call.plan(backward=True)
    assert lib.hotloop_forward(plan, ffi.NULL, ffi.NULL, *some) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_backward(back, ffi.NULL, call.struct, ffi.NULL, *some) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_backward(back, call.buffers, ffi.NULL, ffi.NULL, *some) == lib.HOTLOOP_BAD_ARGUMENT
    packed = ffi.new("char[]", 64)
    assert lib.hotloop_pack(ffi.NULL, call.weights, packed, 64) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_pack(call.spec, ffi.NULL, packed, 64) == lib.HOTLOOP_BAD_ARGUMENT


def test_arrays_of_another_cell(best_isa):
    """Arrays that a cell does not have are refused, not ignored: the caller has mixed something up."""
    call = Call(Case("gru"))
    some = call.buffers.h0
    for field in ("c0", "c"):
        setattr(call.buffers, field, some)
        assert call.run_forward() == lib.HOTLOOP_BAD_ARGUMENT, field
        setattr(call.buffers, field, ffi.NULL)
    for field in ("grad_c_n", "grad_c0", "grad_c"):
        setattr(call.struct, field, some)
        assert call.run_backward() == lib.HOTLOOP_BAD_ARGUMENT, field
        setattr(call.struct, field, ffi.NULL)
    rnn = Call(Case("rnn_tanh"))
    rnn.buffers.gates = some
    assert rnn.run_forward() == lib.HOTLOOP_BAD_ARGUMENT
    lstm = Call(Case("lstm"))
    lstm.buffers.c = ffi.NULL  # gates without it are of no use to backward; c without gates is a result of its own
    assert lstm.run_forward() == lib.HOTLOOP_BAD_ARGUMENT
    assert call.untouched()
    assert rnn.untouched()
    assert lstm.untouched()


@pytest.fixture
def long_call(cell, best_isa):
    """One that needs a workspace."""
    return Call(Case(cell, "float32", 40, 9, 20, 130))


def test_bad_cursors(call, long_call):
    for one in (call, long_call):
        for value in (-1, one.case.seq_len + 1, 2**63 - 1, -(2**63)):
            one.buffers.cursor = value
            assert one.run_forward() == lib.HOTLOOP_BAD_ARGUMENT
            plan = one.plan(backward=True)
            status = lib.hotloop_backward(plan, one.buffers, one.struct, ffi.NULL, *one.workspace(plan))
            assert status == lib.HOTLOOP_BAD_ARGUMENT
        assert one.untouched()
    # One that needs no workspace cannot have begun.
    assert lib.hotloop_workspace_bytes(call.plan()) == 0
    call.buffers.cursor = 1
    assert call.run_forward() == lib.HOTLOOP_BAD_ARGUMENT
    assert call.untouched()


def test_small_workspaces(long_call):
    call = long_call
    for plan, run in [(call.plan(), call.run_forward), (call.plan(backward=True), call.run_backward)]:
        address, enough = call.workspace(plan)
        assert enough > 0
        for size in (enough - 1, 0, -1, -(2**63)):
            assert run(plan, (address, size)) == lib.HOTLOOP_WORKSPACE_TOO_SMALL, size
        assert run(plan, (ffi.NULL, enough)) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
        assert call.untouched()
    assert (drive(call.run_forward), drive(call.run_backward)) == (0, 0)


@pytest.mark.parametrize("batch_size", [1, 7, 33])
def test_workspaces_are_not_overrun(cell, batch_size, isa):
    """Bytes around a workspace of exactly the size asked for stay as they are, at every alignment."""
    for offset in (0, 1, 8, 63):
        for threads in (1, 2):
            for slack in (0, 60):  # a plan for more has room for a call of any size in between
                call = Call(Case(cell, "float32", 40, batch_size, 9, 70), threads=threads)
                call.sizes = 40 + slack, batch_size + slack
                for backward, run in [(False, call.run_forward), (True, call.run_backward)]:
                    plan = call.plan(backward)
                    size = lib.hotloop_workspace_bytes(plan)
                    memory = np.full(size + 256, 0xA5, np.uint8)
                    start = -memory.ctypes.data % 64 + 64 + offset
                    # On a busy machine several rounds may take long enough to come back early.
                    drive(partial(run, plan, (call.address(memory[start:]), size)))
                    assert (memory[:start] == 0xA5).all()
                    assert (memory[start + size :] == 0xA5).all()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("threads", [2, 4, 6])
def test_workspaces_of_teams_are_not_overrun(cell, threads, isa):
    """Several teams in one recurrence, each with flags of its own behind the others'; and of several recurrences."""
    for count in (1, 2):
        calls = [Call(Case(cell, "float32", 24, batch_size, 8, 256), threads=threads) for batch_size in (3, 2)][:count]
        want = []
        for one in calls:
            one.threads = 1
            drive(one.run_forward)
            want.append(one.results["output"].copy())
            one.results["output"][...] = np.nan
        plan = ffi.new("hotloop_plan *")
        assert lib.hotloop_make_plan(plan, calls[0].spec, calls[0].uses, count, 24, 3, threads) == lib.HOTLOOP_OK
        size, structs = lib.hotloop_workspace_bytes(plan), side_by_side(calls)
        memory = np.full(size + 256, 0xA5, np.uint8)
        start = -memory.ctypes.data % 64 + 64
        drive(partial(lib.hotloop_forward, plan, *structs, ffi.NULL, Call.address(memory[start:]), size))
        assert (memory[:start] == 0xA5).all()
        assert (memory[start + size :] == 0xA5).all()
        for one, kept in zip(calls, want, strict=True):
            assert np.array_equal(one.results["output"], kept)


# Executors


class Executor:
    """Runs the shares of a call on the caller, from the last to the first, and counts."""

    def __init__(self, threads):
        self.threads, self.shares = threads, []
        kinds = "int32_t(void *)", "int32_t(void *)", "void(void *, int32_t, void(*)(void *, int32_t), void *)"
        self._callbacks = [
            ffi.callback(kind, function)
            for kind, function in zip(kinds, (self._threads, lambda _: 1, self._parallel_for), strict=True)
        ]
        self.struct = ffi.new("hotloop_executor *", (ffi.NULL, *self._callbacks))

    def _threads(self, _):
        return self.threads

    def _parallel_for(self, _, count, task, data):
        self.shares.append(count)
        for index in reversed(range(count)):
            task(data, index)


def test_executors(long_call):
    """They are used for long calls, with the same bits; and left alone where they have fewer threads than the plan."""
    if lib.hotloop_processors() < 2:
        pytest.skip("needs two processors")
    want = train(long_call.case)
    for threads, used in ((1, False), (2, True), (3, True)):
        call, executor = Call(long_call.case, threads=2), Executor(threads)
        drive(partial(call.run_forward, executor=executor.struct))
        drive(partial(call.run_backward, executor=executor.struct))
        assert_same_bits(call.all(), want)
        assert bool(executor.shares) is used
        assert set(executor.shares) <= {2}
    small = Call(Case(long_call.case.cell, "float32"), threads=2)
    executor = Executor(2)
    assert small.run_forward(executor=executor.struct) == lib.HOTLOOP_OK
    assert not executor.shares  # one thread does it soonest


def test_an_executor_of_openmp(long_call):
    """GOMP_parallel and omp_get_max_threads, as this process has them: here of one region of three threads' calls."""
    if lib.hotloop_processors() < 2:
        pytest.skip("needs two processors")
    regions = []

    @ffi.callback("void(void(*)(void *), void *, unsigned, unsigned)")
    def parallel(task, data, threads, flags):
        regions.append((threads, flags))
        for _ in range(3):
            task(data)

    @ffi.callback("int(void)")
    def most():
        return 3

    executor = lib.hotloop_openmp_executor(parallel, most)
    call = Call(long_call.case, threads=2)
    drive(partial(call.run_forward, executor=executor))
    assert regions
    assert set(regions) == {(0, 0)}  # as many threads as the runtime is set to
    assert_same_bits({n: call.results[n] for n in ("output", "h_n")}, train(call.case), ["output", "h_n"])
    assert lib.hotloop_openmp_executor(ffi.NULL, most) == ffi.NULL
    assert lib.hotloop_openmp_executor(parallel, ffi.NULL) == ffi.NULL


def packed_weights(call):
    size = lib.hotloop_packed_bytes(call.spec)
    memory = np.full(size + 128, 0xA5, np.uint8)
    start = -memory.ctypes.data % 64
    packed = memory[start : start + size]
    assert lib.hotloop_pack(call.spec, call.weights, call.address(packed), size) == lib.HOTLOOP_OK
    assert (memory[start + size :] == 0xA5).all()
    return packed


def use_packed(call, packed):
    """In the place of the weights."""
    for name in PARAMETERS:
        call.weights.parameters[parameter(name)] = ffi.NULL
    call.weights.packed = call.address(packed)
    call.uses |= lib.HOTLOOP_PACKED


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [1, 7, 8, 17, 64])
def test_packed_weights(cell, dtype, hidden_size, isa):
    """They fit in the bytes asked for, need no weights beside them, and give the same bits; at another address too."""
    case = Case(cell, dtype, 5, 3, 4, hidden_size)
    want, call = Call(case, training=False), Call(case, training=False)
    packed = packed_weights(call)
    copy = np.empty(packed.nbytes + 64, np.uint8)
    copy = copy[-copy.ctypes.data % 64 :][: packed.nbytes]
    copy[...] = packed
    packed[...] = 0
    use_packed(call, copy)
    assert (want.run_forward(), call.run_forward()) == (lib.HOTLOOP_OK, lib.HOTLOOP_OK)
    assert_same_bits(call.all(), want.all())


def test_pack_refuses(call):
    spec, weights = call.spec, call.weights
    size = lib.hotloop_packed_bytes(spec)
    memory = np.full(size + 128, 0xA5, np.uint8)
    aligned = memory[-memory.ctypes.data % 64 :]
    assert lib.hotloop_pack(spec, weights, call.address(aligned), size - 1) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert lib.hotloop_pack(spec, weights, call.address(aligned), -1) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert lib.hotloop_pack(spec, weights, call.address(aligned[1:]), size) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_pack(spec, weights, ffi.NULL, size) == lib.HOTLOOP_BAD_ARGUMENT
    for field in ("weight_ih", "weight_hh"):
        before = weights.parameters[parameter(field)]
        weights.parameters[parameter(field)] = ffi.NULL
        assert lib.hotloop_pack(spec, weights, call.address(aligned), size) == lib.HOTLOOP_BAD_ARGUMENT
        weights.parameters[parameter(field)] = before
    assert (memory == 0xA5).all()


def test_packed_for_something_else(best_isa):
    case = Case("lstm", "float32")
    packed = packed_weights(Call(case))
    for other in [replace(case, hidden_size=7), replace(case, input_size=5), replace(case, dtype="float64"),
                  replace(case, cell="gru")]:  # fmt: skip
        call = Call(other)
        use_packed(call, packed)
        assert call.run_forward() == lib.HOTLOOP_PACKED_ELSEWHERE, other
        assert call.untouched()
    call = Call(case)
    shifted = np.empty(packed.nbytes + 128, np.uint8)
    shifted = shifted[-shifted.ctypes.data % 64 + 32 :][: packed.nbytes]
    shifted[...] = packed
    zeros = np.zeros(packed.nbytes + 64, np.uint8)
    older = np.empty(packed.nbytes + 64, np.uint8)
    older = older[-older.ctypes.data % 64 :][: packed.nbytes]
    older[...] = packed
    older[0] += 1  # of another version
    for wrong in (shifted, zeros[-zeros.ctypes.data % 64 :], older):
        use_packed(call, wrong)
        assert call.run_forward() == lib.HOTLOOP_PACKED_ELSEWHERE
        assert call.untouched()


def test_packed_for_another_isa(best_isa):
    names = [ffi.string(lib.hotloop_isa_at(index)) for index in range(8) if lib.hotloop_isa_at(index)]
    if len(names) < 2:
        pytest.skip("this processor has one instruction set")
    call = Call(Case("lstm", "float32"))
    packed = packed_weights(call)
    try:
        for name in names[1:]:
            assert lib.hotloop_use_isa(name) == lib.HOTLOOP_OK
            other = Call(call.case)
            use_packed(other, packed)
            assert other.run_forward() == lib.HOTLOOP_PACKED_ELSEWHERE, name
            assert other.untouched()
    finally:
        lib.hotloop_use_isa(names[0])


def test_isas(best_isa):
    names = []
    while name := lib.hotloop_isa_at(len(names)):
        names.append(ffi.string(name).decode())
    assert names[-1] == "scalar"  # every processor has it
    assert len(set(names)) == len(names)
    assert set(names) <= {"avx512", "avx2", "scalar"}
    assert ffi.string(lib.hotloop_isa()).decode() == best_isa == names[0]
    for index in (-1, len(names), 2**31 - 1, -(2**31)):
        assert not lib.hotloop_isa_at(index)
    for name in (ffi.NULL, b"", b"sse9", b"AVX2", names[0].encode() + b" "):
        assert lib.hotloop_use_isa(name) == lib.HOTLOOP_UNKNOWN_ISA
        assert ffi.string(lib.hotloop_isa()).decode() == names[0]


def test_traits_of_isas(isa):
    """The width is that of the units that a probe counts; what is not fused rounds a product before it is added."""
    traits = ffi.new("hotloop_isa_traits *")
    assert lib.hotloop_describe_isa(traits) == lib.HOTLOOP_OK
    assert ffi.string(traits.name).decode() == isa
    costs = traits.lane_flops_ns, traits.cell_flops, traits.read_bytes_ns, traits.wake_ns, traits.handover_ns
    assert min(*costs, traits.exchange_ns) > 0
    memory = np.zeros(8192 + 64, np.uint8)
    work = lib.hotloop_probe(lib.HOTLOOP_PROBE_FMA, 0, lib.HOTLOOP_FLOAT32, Call.address(memory), 8192, 1)
    assert work == 2 * 12 * traits.vector_bytes // 4  # of 12 chains
    assert traits.registers == (32 if isa == "avx512" else 16)
    call = Call(Case("rnn_relu", "float32", 1, 1, 1, 1), training=False)
    value = np.float32(1 + 2**-23)
    call.data["x"][...] = call.data["weight_ih"][...] = value
    for name in ("weight_hh", "bias_hh", "h0"):
        call.data[name][...] = 0
    call.data["bias_ih"][...] = -(value * value)
    assert call.run_forward() == lib.HOTLOOP_OK
    assert (call.results["output"].item() != 0) == bool(traits.fuses) == (isa != "scalar")
    assert lib.hotloop_describe_isa(ffi.NULL) == lib.HOTLOOP_BAD_ARGUMENT


def test_traits_of_cells(isa):
    """What Python says of cells is what the core says of them."""
    traits = ffi.new("hotloop_cell_traits *")
    for name, cell in types.CELLS.items():
        assert lib.hotloop_describe_cell(getattr(lib, f"HOTLOOP_{name.upper()}"), traits) == lib.HOTLOOP_OK
        assert (traits.gates, traits.stages, traits.saved) == (cell.gates, len(cell.stages), len(cell.saved))
        assert bool(traits.has_c) is cell.has_c
    assert len(types.CELLS) == lib.HOTLOOP_CELL_COUNT
    for number, where in ((-1, traits), (lib.HOTLOOP_CELL_COUNT, traits), (0, ffi.NULL)):
        assert lib.hotloop_describe_cell(number, where) == lib.HOTLOOP_BAD_ARGUMENT


def test_tables_of_parameters(isa):
    """The cells' parameters, their order and shapes, are the core's; others it does not have."""
    traits = ffi.new("hotloop_parameter_traits *")
    for name, cell in types.CELLS.items():
        sizes = (3, 7, 5 if "weight_hr" in cell.names else 7)
        spec = ffi.new("hotloop_spec *", (getattr(lib, f"HOTLOOP_{name.upper()}"), 0, *sizes))
        found = []
        for number in range(lib.HOTLOOP_PARAMETER_COUNT):
            assert lib.hotloop_describe_parameter(spec, number, traits) == lib.HOTLOOP_OK
            if traits.rows:
                assert len(found) == number
                shape = (traits.rows,) if traits.is_bias else (traits.rows, traits.columns)
                found.append((ffi.string(traits.name).decode(), shape))
        assert found == [(one.name, one.shape(cell, *sizes)) for one in cell.parameters]
        for number, where in ((-1, traits), (lib.HOTLOOP_PARAMETER_COUNT, traits), (0, ffi.NULL)):
            assert lib.hotloop_describe_parameter(spec, number, where) == lib.HOTLOOP_BAD_ARGUMENT
        spec.output_size = 0
        assert lib.hotloop_describe_parameter(spec, 0, traits) == lib.HOTLOOP_BAD_ARGUMENT


def test_unknown_isa_in_the_environment(run_python):
    """C users have no Python check before theirs: every function says so, and naming a known one mends it."""
    code = """
from hotloop._ffi import ffi, lib
spec = ffi.new("hotloop_spec *", (0, 0, 3, 3, 3))
plan, weights = ffi.new("hotloop_plan *"), ffi.new("hotloop_weights *")
assert not lib.hotloop_isa()
assert ffi.string(lib.hotloop_isa_at(0))
unknown = lib.HOTLOOP_UNKNOWN_ISA
assert lib.hotloop_make_plan(plan, spec, 0, 1, 3, 3, 1) == unknown
assert lib.hotloop_packed_bytes(spec) == lib.hotloop_workspace_bytes(plan) == -1
assert lib.hotloop_pack(spec, weights, ffi.new("char[64]"), 64) == unknown
assert lib.hotloop_activation(0, 0, ffi.new("float[1]"), ffi.new("float[1]"), 1) == unknown
assert lib.hotloop_probe(0, 0, 0, ffi.new("char[4096]"), 4096, 1) < 0
assert lib.hotloop_use_isa(b"scalar") == lib.HOTLOOP_OK
assert ffi.string(lib.hotloop_isa()) == b"scalar"
assert lib.hotloop_make_plan(plan, spec, 0, 1, 3, 3, 1) == lib.HOTLOOP_OK
assert lib.hotloop_workspace_bytes(plan) >= 0
print("mended")
"""
    # The package refuses to load with this variable, so the module is loaded as C would, without the package.
    loader = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('hotloop._ffi', sys.argv[1])\n"
        "module = sys.modules['hotloop._ffi'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
    )
    code = loader + code.replace("from hotloop._ffi import ffi, lib", "ffi, lib = module.ffi, module.lib")
    done = run_python(code, _ffi.__file__, HOTLOOP_ISA="sse9")
    assert done.stdout.strip() == "mended"


def test_status_strings():
    for status, text in STATUSES.items():
        assert ffi.string(lib.hotloop_status_string(status)).decode() == text
    for status in (-1, 8, 2**31 - 1):
        assert ffi.string(lib.hotloop_status_string(status)).decode() == "unknown status"


def test_activation_and_probe_refuse(best_isa):
    x = np.ones(4, np.float32)
    address = Call.address(x)
    for arguments in [(-1, 0, address, address, 4), (2, 0, address, address, 4), (0, 2, address, address, 4),
                      (0, -1, address, address, 4), (0, 0, ffi.NULL, address, 4), (0, 0, address, ffi.NULL, 4),
                      (0, 0, address, address, -1)]:  # fmt: skip
        assert lib.hotloop_activation(*arguments) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_activation(0, 0, ffi.NULL, ffi.NULL, 0) == lib.HOTLOOP_OK
    assert (x == 1).all()
    buffer = np.ones(4096, np.uint8)
    for arguments in [(-1, 0, 0, 4096, 1), (5, 0, 0, 4096, 1), (0, -1, 0, 4096, 1),
                      (0, lib.HOTLOOP_CELL_COUNT, 0, 4096, 1),
                      (0, 0, 2, 4096, 1), (0, 0, 0, 0, 1), (0, 0, 0, -1, 1), (0, 0, 0, 4096, -1)]:  # fmt: skip
        assert lib.hotloop_probe(*arguments[:3], Call.address(buffer), *arguments[3:]) < 0, arguments
    assert lib.hotloop_probe(0, 0, 0, ffi.NULL, 4096, 1) < 0


def test_probes_stay_in_their_buffer(isa):
    for probe in range(5):
        for cell in range(len(CELLS)):
            for dtype in range(len(DTYPES)):
                buffer = np.zeros(9000, np.uint8)
                buffer[8003:] = 0xA5
                work = lib.hotloop_probe(probe, cell, dtype, Call.address(buffer[3:]), 8000, 3)
                assert work > 0
                assert (buffer[8003:] == 0xA5).all()


# Long calls


def drive(run):
    """Call until it is done. Returns how often it came back early."""
    early = 0
    while (status := run()) == lib.HOTLOOP_AGAIN:
        early += 1
    assert status == lib.HOTLOOP_OK
    return early


@pytest.mark.parametrize(("cell", "threads"), [("rnn_tanh", 1), ("rnn_relu", 1), ("lstm", 1), ("gru", 1), ("lstm", 2)])
def test_long_calls_come_back(cell, threads, isa):
    """AGAIN with a cursor that grows; the resumed call has the bits of the same sequence cut by hand into short ones,
    and its weight gradients those of another number of threads.
    """
    seq_len, early = 1 << 16, (0, 0)
    while 0 in early:
        seq_len *= 2
        assert seq_len <= 1 << 21, "a call of a million steps never came back"
        case = Case(cell, "float32", seq_len, threads, 8, 32, upstream=("grad_output",))
        call = Call(case, threads=threads)
        cursors = []

        def watched(cursors=cursors, call=call):
            status = call.run_forward()
            cursors.append(call.buffers.cursor)
            return status

        early = (drive(watched), drive(call.run_backward))
        assert cursors == sorted(set(cursors))
        assert cursors[-1] == call.buffers.cursor == seq_len
    results = call.all()
    pieces = train_in_pieces(case, call.data, range(seq_len // 16, seq_len, seq_len // 16))
    assert_same_bits(results, pieces, in_case(SEQUENCE_RESULTS, case))
    assert_same_bits(results, train(case, call.data, threads=3 - threads), PARAMETER_GRADIENTS)


def test_long_calls_of_tiny_cells_come_back(cell, isa):
    """Work is not measured in multiplications alone: with one unit the cells' own time is nearly all of it."""
    seq_len, early = 1 << 15, 0
    while not early:
        seq_len *= 2
        assert seq_len <= 1 << 20, "thirty-five million states, and it never came back"
        call = Call(Case(cell, "float32", seq_len, 33, 1, 1), training=False)
        early = drive(call.run_forward)


def test_a_call_in_scalars_does_not_come_back_early(best_isa):
    """However long it takes: a call that the structs' function takes in slices is done after one of hotloop_step."""
    early, seq_len = 0, 1 << 15
    while not early:
        seq_len *= 2
        assert seq_len <= 1 << 20, "it never came back"
        call = Call(Case("lstm", "float32", seq_len, 2, 4, 16), training=False)
        early = drive(call.run_forward)
    want = {name: array.copy() for name, array in call.all().items()}
    for array in call.results.values():
        array.fill(np.nan)
    b, plan = call.buffers, call.plan()
    assert lib.hotloop_step(
        plan, call.weights, seq_len, 2, b.x, b.h0, b.c0, b.output, b.h_n, b.c_n, ffi.NULL, *call.workspace(plan)
    ) == lib.HOTLOOP_OK  # fmt: skip
    assert_same_bits(call.all(), want)


# What lies beside the ordinary


@pytest.mark.parametrize("threads", [0, -1, -(2**31)])
def test_fewer_threads_than_one_are_one(cell, threads, best_isa):
    case = Case(cell, "float32", 40, 9, 20, 70)
    one, call = Call(case), Call(case, threads=threads)
    assert (drive(one.run_forward), drive(one.run_backward)) == (0, 0)
    assert (drive(call.run_forward), drive(call.run_backward)) == (0, 0)
    assert_same_bits(call.all(), one.all())


def test_an_unknown_isa_leaves_the_one_in_use(isa):
    assert lib.hotloop_use_isa(b"sse9") == lib.HOTLOOP_UNKNOWN_ISA
    assert ffi.string(lib.hotloop_isa()).decode() == isa


# What was built


def need(program):
    path = shutil.which(program)
    if not path:
        pytest.skip(f"{program} is not installed")
    return path


needs_elf = pytest.mark.skipif(sys.platform == "darwin", reason="reads symbol tables as ELF has them")


def run(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def kernel_flags():
    """Of every kernel source, the flags that CMakeLists.txt compiles it with."""
    text = (ROOT / "CMakeLists.txt").read_text()
    common = re.search(r"target_compile_options\(\s*hotloop_kernels PRIVATE ([^)]*)\)", text)[1].split()
    special = dict(re.findall(r'set_source_files_properties\(\s*(\S+) PROPERTIES COMPILE_OPTIONS "([^"]*)"\s*\)', text))
    sources = re.findall(r"csrc/kernels/isa_\w+\.cpp", text)
    assert set(special) < set(sources)
    return {source: [*common, *special.get(source, "").split(";")] for source in sources}


# A folder of the kernels' object files, as .ci/run has one: to compile them again takes minutes.
OBJECTS = os.environ.get("HOTLOOP_KERNEL_OBJECTS", "")


OF_OURS = "hotloop::run_team(", "hotloop::sort_rows(", "hotloop::place_rows("


@needs_elf
@pytest.mark.parametrize(
    "level",
    [
        "built" if OBJECTS else pytest.param("-O1", marks=pytest.mark.long),
        pytest.param("-O3", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("source", kernel_flags())
def test_an_isa_exports_one_symbol(source, level, tmp_path):
    """Its table. A weak symbol would let the linker keep an AVX-512 copy of a shared inline for everybody; an undefined
    one from a library of inline functions would hide the same.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("there is no C++ compiler")
    nm = need("nm")
    if os.uname().machine != "x86_64" and source.removesuffix(".cpp").endswith(("avx2", "avx512")):
        pytest.skip("instruction sets of other processors")
    assert (ROOT / source).exists()
    if level == "built":
        (target,) = Path(OBJECTS).rglob(f"{Path(source).name}.o")
    else:
        target = tmp_path / "isa.o"
        flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", level, *filter(None, kernel_flags()[source])]
        run(*compiler.split(), *flags, "-I", ROOT / "csrc", "-c", ROOT / source, "-o", target)
    symbols = [line.split() for line in run(nm, "-C", "--format=posix", target).splitlines()]
    kinds = {}
    for *name, kind in [
        entry[: next(i for i, part in enumerate(entry) if len(part) == 1 and i) + 1] for entry in symbols
    ]:
        kinds.setdefault(kind, []).append(" ".join(name))
    name = Path(source).stem.removeprefix("isa_")
    local = set("abdrtsnp")  # lower case: internal linkage
    exported = [symbol for kind, names in kinds.items() if kind not in local | {"U"} for symbol in names]
    exported = [symbol for symbol in exported if not symbol.startswith("__odr_asan.")]
    assert exported == [f"hotloop::kernel_table_{name}"]
    undefined = set(kinds.get("U", ()))
    assert undefined <= {
        *("hotloop::monotonic_ns()", "hotloop::processors()", "memcpy", "memset", "memmove", "__stack_chk_fail"),
        *(
            symbol
            for symbol in undefined
            if symbol.startswith((*OF_OURS, "__asan_", "__ubsan_", "__tsan_")) or symbol == "_GLOBAL_OFFSET_TABLE_"
        ),
    }, undefined


def test_the_module_needs_no_openmp(best_isa):
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run(need("readelf"), "-d", _ffi.__file__))
    assert any(name.startswith("libc.") for name in needed)  # the list was read
    assert not [name for name in needed if re.search(r"gomp|omp5|libomp|iomp", name)]


@needs_elf
def test_the_module_exports_its_entry_alone(best_isa):
    """The dynamic symbol table of the module: no C++ of ours can meet another library's."""
    lines = run(need("nm"), "-D", "--defined-only", _ffi.__file__).splitlines()
    names = {line.split()[-1].split("@")[0] for line in lines}
    assert "PyInit__ffi" in names
    assert names <= {"PyInit__ffi", "_cffi_pypyinit__ffi"}
