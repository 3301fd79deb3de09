"""The C ABI itself: whatever would corrupt memory comes back as a status, a long call comes back early, and the built
files hold no symbol and need no library that they should not.
"""  # fmt: skip

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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
    lib.HOTLOOP_PACKED_ELSEWHERE: "weights were packed for another shape, type or instruction set",
}
HUGE = [2**31 - 1, 2**31, 2**32, 2**48, 2**60, 2**62, 2**63 - 1]


def workspace(size):
    """The last two arguments of a call: so many bytes, poisoned, at an odd address, since any alignment will do."""
    assert size >= 0
    memory = ffi.new("char[]", size + 1)
    ffi.memmove(memory, b"\xff" * (size + 1), size + 1)
    return ffi.gc(memory + 1, lambda _: memory), size


class Call:
    """Argument structs for a case, and the arrays they point to. Every array but the inputs starts as NaN."""

    def __init__(self, case, data=None, training=True, threads=1):
        self.case, self.threads, self.training = case, threads, training
        self.data = case.data() if data is None else data
        args = forward_args(case, self.data, training=training)
        names = ("output", "h_n", "c_n", "gates", "c")
        self.results = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
        self.struct = ffi.new("hotloop_backward_args *")
        self.forward = self.struct.forward
        f = self.forward
        f.cell, f.dtype, f.reverse = CELLS.index(case.cell), DTYPES.index(case.dtype), case.reverse
        f.seq_len, f.batch_size = case.seq_len, case.batch_size
        f.input_size, f.hidden_size = case.input_size, case.hidden_size
        f.x_stride_t, f.x_stride_b = case.batch_size * case.input_size, case.input_size
        f.output_stride_t, f.output_stride_b = case.batch_size * case.hidden_size, case.hidden_size
        f.c_stride_t, f.c_stride_b = f.output_stride_t, f.output_stride_b
        for name in ("x", *PARAMETERS, "h0", "c0"):
            setattr(f, name, self.address(self.data.get(name)))
        for name, array in self.results.items():
            setattr(f, name, self.address(array))
        self.gradients = {}
        if training:
            b = self.struct
            for name in ("x", *PARAMETERS, *(("h0", "c0") if case.cell == "lstm" else ("h0",))):
                array = np.full_like(self.data.get(name, self.results["h_n"]), np.nan)
                self.gradients[f"grad_{name}"] = array
                setattr(b, f"grad_{name}", self.address(array))
            for name in UPSTREAM:
                setattr(b, name, self.address(self.data.get(name)))
            b.grad_output_stride_t, b.grad_output_stride_b = f.output_stride_t, f.output_stride_b
            b.grad_x_stride_t, b.grad_x_stride_b = f.x_stride_t, f.x_stride_b
        self.forward_workspace = workspace(lib.hotloop_forward_workspace(ffi.addressof(f), 1, threads))
        if training:
            self.backward_workspace = workspace(lib.hotloop_backward_workspace(self.struct, 1, threads))

    @staticmethod
    def address(array):
        return ffi.NULL if array is None else ffi.cast("void *", array.ctypes.data)

    def run_forward(self):
        return lib.hotloop_forward(ffi.addressof(self.forward), 1, self.threads, *self.forward_workspace)

    def run_backward(self):
        return lib.hotloop_backward(self.struct, 1, self.threads, *self.backward_workspace)

    def untouched(self):
        return all(np.isnan(array).all() for array in (*self.results.values(), *self.gradients.values()))

    def all(self):
        results = {name: array for name, array in self.results.items() if name not in ("gates", "c")}
        return results | self.gradients


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


@pytest.fixture
def call(cell, best_isa):
    return Call(Case(cell, "float32"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_call_without_python_around_it(cell, dtype, isa):
    """Two structs, workspaces at odd addresses, arrays of one's own: the bits of the Python functions."""
    case = Case(cell, dtype, 9, 5, 3, 17, reverse=True)
    call = Call(case)
    assert (call.run_forward(), call.run_backward()) == (lib.HOTLOOP_OK, lib.HOTLOOP_OK)
    assert (call.forward.cursor, call.struct.cursor) == (case.seq_len, case.seq_len)
    assert_same_bits(call.all(), train(case))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_several_recurrences_in_one_call(threads, isa):
    """Structs of different shapes, cells and types side by side have the bits they have alone."""
    kinds = [("lstm", "float32"), ("gru", "float64"), ("gru_reset_before", "float32"), ("lstm", "float64")]
    kinds = [Case(*kind, 40 + n, n, 3 + n, 15 * n) for n, kind in enumerate(kinds, 1)]
    calls = [Call(case) for case in kinds]
    array = ffi.new("hotloop_backward_args[]", len(calls))
    forward = ffi.new("hotloop_forward_args[]", [call.forward for call in calls])
    count = len(calls)
    size = lib.hotloop_forward_workspace(forward, count, threads)
    assert lib.hotloop_forward(forward, count, threads, *workspace(size - 1)) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert lib.hotloop_forward(forward, count, threads, *workspace(size)) == lib.HOTLOOP_OK
    for index, call in enumerate(calls):
        array[index] = call.struct[0]
    size = lib.hotloop_backward_workspace(array, count, threads)
    assert lib.hotloop_backward(array, count, threads, *workspace(size)) == lib.HOTLOOP_OK
    for call in calls:
        assert_same_bits(call.all(), train(call.case))
    nothing = ffi.new("hotloop_forward_args *", {"cell": 10_000_000})
    assert lib.hotloop_forward_workspace(nothing, 0, threads) == 0
    assert lib.hotloop_forward(nothing, 0, threads, *workspace(0)) == lib.HOTLOOP_OK


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_flat_entry_points(cell, dtype, training, isa):
    """Scalars and pointers instead of structs: the same bits, in a workspace of the size they say and no more."""
    case = Case(cell, dtype, 40, 5, 3, 17, reverse=True)
    call = Call(case, training=training, threads=2)
    f, b = call.forward, call.struct
    kind = (f.cell, f.dtype)
    sizes = (f.seq_len, f.batch_size, f.input_size, f.hidden_size)
    x, output = (f.x, f.x_stride_t, f.x_stride_b), (f.output, f.output_stride_t, f.output_stride_b)
    ragged = f.lengths, f.offsets, f.resets, f.resets_stride_t, f.resets_stride_b, f.reset_to_initial
    size = lib.hotloop_forward_flat_workspace(*kind, *sizes, 2)
    arguments = (*kind, f.reverse, *sizes, *x, f.weight_ih, f.weight_hh, f.bias_ih, f.bias_hh, f.h0, f.c0, *output,
                 f.h_n, f.c_n, f.gates, f.c, *ragged, 2)  # fmt: skip
    assert lib.hotloop_forward_flat(*arguments, *workspace(0)) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert lib.hotloop_forward_flat(*arguments, *workspace(size)) == lib.HOTLOOP_OK
    if training:
        size = lib.hotloop_backward_flat_workspace(*kind, *sizes, 2)
        arguments = (*kind, f.reverse, *sizes, *x, f.weight_ih, f.weight_hh, f.h0, f.c0, *output, f.gates, f.c, *ragged,
                     b.grad_output, b.grad_output_stride_t, b.grad_output_stride_b, b.grad_h_n, b.grad_c_n, b.grad_c,
                     b.grad_x, b.grad_x_stride_t, b.grad_x_stride_b, b.grad_weight_ih, b.grad_weight_hh,
                     b.grad_bias_ih, b.grad_bias_hh, b.grad_h0, b.grad_c0, 2)  # fmt: skip
        too_small = workspace(call.backward_workspace[1] - 1)  # `size` is enough for resets too
        assert lib.hotloop_backward_flat(*arguments, *too_small) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
        assert lib.hotloop_backward_flat(*arguments, *workspace(size)) == lib.HOTLOOP_OK
    assert_same_bits(call.all(), train(case), call.all())
    assert lib.hotloop_forward_flat_workspace(99, 0, *sizes, 1) == -1
    assert lib.hotloop_backward_flat_workspace(f.cell, 0, 0, *sizes[1:], 1) == -1


def test_a_total_that_overflows(best_isa):
    """Many recurrences of which not the first is large."""
    calls = [Call(Case("gru", "float32", 1), training=False) for _ in range(2)]
    calls[1].forward.batch_size = 2**41
    calls[1].forward.h0 = ffi.NULL
    array = ffi.new("hotloop_forward_args[]", [calls[0].forward] + [calls[1].forward] * 3000)
    assert lib.hotloop_forward_workspace(array, 2, 1) > 0
    assert lib.hotloop_forward_workspace(array, 3001, 1) == -1
    status = lib.hotloop_forward(array, 3001, 1, *workspace(4096))
    assert status == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert calls[0].untouched()


@pytest.mark.parametrize("threads", [1, 2])
def test_many_recurrences_come_back_early(threads, best_isa):
    """A call of many comes back for Ctrl-C as a call of one does, and goes on where it was."""
    case = Case("lstm", "float32", 6000, 8, 40, 64)
    data = case.data()
    calls = [Call(case, data, training=False) for _ in range(12)]  # some 200 ms on the fastest core
    forward = ffi.new("hotloop_forward_args[]", [call.forward for call in calls])
    space = workspace(lib.hotloop_forward_workspace(forward, 12, threads))
    came_back = 0
    while (status := lib.hotloop_forward(forward, 12, threads, *space)) == lib.HOTLOOP_AGAIN:
        came_back += 1
    assert status == lib.HOTLOOP_OK
    assert came_back > 0
    for call in calls[1:]:
        assert_same_bits(call.results, calls[0].results)


def test_one_bad_recurrence_stops_all(best_isa):
    """All structs are checked before anything is written."""
    calls = [Call(Case("gru")), Call(Case("gru"))]
    calls[1].forward.hidden_size = 0
    array = ffi.new("hotloop_forward_args[]", [call.forward for call in calls])
    assert lib.hotloop_forward_workspace(array, 2, 1) == -1
    assert lib.hotloop_forward(array, 2, 1, *workspace(1 << 20)) == lib.HOTLOOP_BAD_ARGUMENT
    assert calls[0].untouched()


def refuse(call, status=None):
    """Both functions return the status, or any but OK and AGAIN, and write nothing."""
    statuses = {call.run_forward(), call.run_backward()}
    expected = {status} if status is not None else set(STATUSES) - {lib.HOTLOOP_OK, lib.HOTLOOP_AGAIN}
    assert statuses <= expected, [STATUSES[s] for s in statuses]
    assert call.untouched()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("cell", [-1, 5, 2**31 - 1, -(2**31)]),
        ("dtype", [-1, 2, 2**31 - 1, -(2**31)]),
        ("seq_len", [0, -1, -(2**63)]),
        ("batch_size", [-1, -(2**63)]),
        ("input_size", [0, -1, -(2**63)]),
        ("hidden_size", [0, -1, -(2**63)]),
    ],
)
def test_bad_values(call, field, values):
    for value in values:
        before = getattr(call.forward, field)
        setattr(call.forward, field, value)
        refuse(call, lib.HOTLOOP_BAD_ARGUMENT)
        assert lib.hotloop_forward_workspace(ffi.addressof(call.forward), 1, 1) == -1
        assert lib.hotloop_backward_workspace(call.struct, 1, 1) == -1
        if field not in ("seq_len", "batch_size"):
            assert lib.hotloop_packed_bytes(ffi.addressof(call.forward)) == -1
            packed = ffi.new("char[]", 64)
            status = lib.hotloop_pack(ffi.addressof(call.forward), packed, 64)
            assert status == lib.HOTLOOP_BAD_ARGUMENT
        setattr(call.forward, field, before)
    assert call.run_forward() == lib.HOTLOOP_OK


@pytest.mark.parametrize("field", ["seq_len", "batch_size", "input_size", "hidden_size"])
@pytest.mark.parametrize("value", HUGE)
def test_huge_sizes(call, field, value):
    """A size near 2^31 needs a workspace larger than the one given, or no more where only the time grows; a size whose
    byte count overflows is named so. Never a count that wrapped around to something small or negative.
    """  # fmt: skip
    before = lib.hotloop_forward_workspace(ffi.addressof(call.forward), 1, 1)
    packed_before = lib.hotloop_packed_bytes(ffi.addressof(call.forward))
    setattr(call.forward, field, value)
    forward = lib.hotloop_forward_workspace(ffi.addressof(call.forward), 1, 2**31 - 1)
    backward = lib.hotloop_backward_workspace(call.struct, 1, 2**31 - 1)
    packed = lib.hotloop_packed_bytes(ffi.addressof(call.forward))
    if value >= 2**60:
        assert (forward, backward) == (-1, -1)
        refuse(call, lib.HOTLOOP_TOO_LARGE)
    elif forward == -1:
        refuse(call, lib.HOTLOOP_TOO_LARGE)
    else:
        assert forward >= before
        if field in ("batch_size", "hidden_size", "input_size"):
            assert backward > value  # more than a byte each
            if lib.hotloop_forward_workspace(ffi.addressof(call.forward), 1, 1) > before:
                assert call.run_forward() == lib.HOTLOOP_WORKSPACE_TOO_SMALL
            assert call.run_backward() == lib.HOTLOOP_WORKSPACE_TOO_SMALL
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
    for field, exponent in zip(("seq_len", "batch_size", "input_size", "hidden_size"), exponents, strict=True):
        setattr(call.forward, field, 2**exponent)
    forward = lib.hotloop_forward_workspace(ffi.addressof(call.forward), 1, 64)
    backward = lib.hotloop_backward_workspace(call.struct, 1, 64)
    steps, batch, inputs, units = exponents
    if max(steps + batch, units) + max(inputs, units) >= 60:
        assert (forward, backward) == (-1, -1)
        refuse(call, lib.HOTLOOP_TOO_LARGE)
    else:  # 2^48 units: a pity about the memory, but it can be counted
        assert min(forward, backward) > 2**32
        refuse(call, lib.HOTLOOP_WORKSPACE_TOO_SMALL)


def test_saved_gates_that_overflow(call):
    """The bound is that of four gates of every step, which is more than any other sequence has."""
    f = call.forward
    f.seq_len, f.batch_size, f.input_size, f.hidden_size = 2**30, 1, 1, 2**21
    assert lib.hotloop_forward_workspace(ffi.addressof(f), 1, 1) == -1
    refuse(call, lib.HOTLOOP_TOO_LARGE)
    f.seq_len = 2**28
    assert lib.hotloop_forward_workspace(ffi.addressof(f), 1, 1) > 0
    refuse(call, lib.HOTLOOP_WORKSPACE_TOO_SMALL)


@pytest.mark.parametrize(
    "field",
    ["x_stride_t", "x_stride_b", "output_stride_t", "output_stride_b", "c_stride_t", "c_stride_b", "resets_stride_t",
     "resets_stride_b"],
)  # fmt: skip
@pytest.mark.parametrize("value", [2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_strides_that_overflow(call, field, value):
    setattr(call.forward, field, value)
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
            setattr(call.forward, name, array)
        assert call.run_forward() == call.run_backward() == lib.HOTLOOP_BAD_ARGUMENT
        assert lib.hotloop_forward_workspace(ffi.addressof(call.forward), 1, 1) == -1
        assert lib.hotloop_backward_workspace(call.struct, 1, 2) == -1
        assert call.untouched()
        call.forward.lengths = call.forward.offsets = ffi.NULL
    call.forward.resets_stride_t = 2**60
    assert call.run_forward() == lib.HOTLOOP_TOO_LARGE
    call.forward.resets_stride_t = 0
    call.struct.grad_c_stride_b = 2**60
    assert call.run_backward() == lib.HOTLOOP_TOO_LARGE


def test_null_pointers_of_forward(call):
    needed = ["x", "weight_ih", "weight_hh", "output", "h_n"] + ["c_n"] * (call.case.cell == "lstm")
    for field in needed:
        before = getattr(call.forward, field)
        setattr(call.forward, field, ffi.NULL)
        assert call.run_forward() == lib.HOTLOOP_BAD_ARGUMENT, field
        assert call.untouched()
        setattr(call.forward, field, before)
    call.forward_workspace = ffi.NULL, call.forward_workspace[1]
    assert call.run_forward() == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert call.untouched()


def test_null_pointers_of_backward(call):
    needed = ["x", "weight_ih", "weight_hh", "output", *(name for name in ("gates", "c") if name in call.results)]
    for struct, fields in [
        (call.forward, needed),
        (call.struct, ["grad_h0"] + ["grad_c0"] * (call.case.cell == "lstm")),
    ]:
        for field in fields:
            before = getattr(struct, field)
            setattr(struct, field, ffi.NULL)
            assert call.run_backward() == lib.HOTLOOP_BAD_ARGUMENT, field
            assert call.untouched()
            setattr(struct, field, before)
    call.backward_workspace = ffi.NULL, call.backward_workspace[1]
    assert call.run_backward() == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert call.untouched()


def test_null_structs(best_isa):
    null_forward, null_backward = ffi.cast("hotloop_forward_args *", 0), ffi.cast("hotloop_backward_args *", 0)
    assert lib.hotloop_forward_workspace(null_forward, 1, 1) == -1
    assert lib.hotloop_backward_workspace(null_backward, 1, 1) == -1
    assert lib.hotloop_packed_bytes(null_forward) == -1
    some = workspace(1 << 20)
    assert lib.hotloop_forward(null_forward, 1, 1, *some) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_backward(null_backward, 1, 1, *some) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_pack(null_forward, ffi.new("char[]", 64), 64) == lib.HOTLOOP_BAD_ARGUMENT
    call = Call(Case("gru"))
    for count in (-1, -(2**63), 2**40):  # the number of structs is refused before one is read
        assert lib.hotloop_forward_workspace(ffi.addressof(call.forward), count, 1) == -1
        assert lib.hotloop_forward(ffi.addressof(call.forward), count, 1, *some) == lib.HOTLOOP_BAD_ARGUMENT
        assert lib.hotloop_backward(call.struct, count, 1, *some) == lib.HOTLOOP_BAD_ARGUMENT


def test_arrays_of_another_cell(best_isa):
    """Arrays that a cell does not have are refused, not ignored: the caller has mixed something up."""
    call = Call(Case("gru"))
    some = call.forward.h0
    for field in ("c0", "c"):
        setattr(call.forward, field, some)
        assert call.run_forward() == lib.HOTLOOP_BAD_ARGUMENT, field
        setattr(call.forward, field, ffi.NULL)
    for field in ("grad_c_n", "grad_c0"):
        setattr(call.struct, field, some)
        assert call.run_backward() == lib.HOTLOOP_BAD_ARGUMENT, field
        setattr(call.struct, field, ffi.NULL)
    rnn = Call(Case("rnn_tanh"))
    rnn.forward.gates = some
    assert rnn.run_forward() == lib.HOTLOOP_BAD_ARGUMENT
    lstm = Call(Case("lstm"))
    lstm.forward.c = ffi.NULL  # gates without it are of no use to backward; c without gates is a result of its own
    assert lstm.run_forward() == lib.HOTLOOP_BAD_ARGUMENT
    assert call.untouched()
    assert rnn.untouched()
    assert lstm.untouched()


def test_bad_cursors(call):
    for value in (-1, call.case.seq_len + 1, 2**63 - 1, -(2**63)):
        call.forward.cursor = value
        assert call.run_forward() == lib.HOTLOOP_BAD_ARGUMENT
        call.forward.cursor = 0
        call.struct.cursor = value
        assert call.run_backward() == lib.HOTLOOP_BAD_ARGUMENT
        call.struct.cursor = 0
    assert call.untouched()


def test_small_workspaces(call):
    for name, run in [("forward_workspace", call.run_forward), ("backward_workspace", call.run_backward)]:
        address, enough = getattr(call, name)
        for size in (enough - 1, 0, -1, -(2**63)):
            setattr(call, name, (address, size))
            assert run() == lib.HOTLOOP_WORKSPACE_TOO_SMALL, size
        assert call.untouched()
        setattr(call, name, (address, enough))
    assert (call.run_forward(), call.run_backward()) == (lib.HOTLOOP_OK, lib.HOTLOOP_OK)


@pytest.mark.parametrize("batch_size", [1, 7, 33])
def test_workspaces_are_not_overrun(cell, batch_size, isa):
    """Bytes around a workspace of exactly the size asked for stay as they are, at every alignment."""
    for offset in (0, 1, 8, 63):
        for threads in (1, 2):
            call = Call(Case(cell, "float32", 40, batch_size, 9, 21), threads=threads)
            for name, run in [("forward_workspace", call.run_forward), ("backward_workspace", call.run_backward)]:
                _, size = getattr(call, name)
                memory = np.full(size + 256, 0xA5, np.uint8)
                start = -memory.ctypes.data % 64 + 64 + offset
                setattr(call, name, (call.address(memory[start:]), size))
                drive(run)  # on a busy machine several rounds may take long enough to come back early
                assert (memory[:start] == 0xA5).all()
                assert (memory[start + size :] == 0xA5).all()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("threads", [2, 4, 6])
def test_workspaces_of_teams_are_not_overrun(cell, threads, isa):
    """Several teams in one recurrence, each with flags of its own behind the others'; and of several recurrences."""
    for count in (1, 2):
        calls = [Call(Case(cell, "float32", 24, batch_size, 8, 256), threads=threads) for batch_size in (3, 2)][:count]
        want = [one.results["output"].copy() for one in calls]
        for one, kept in zip(calls, want, strict=True):
            one.threads = 1
            drive(one.run_forward)
            kept[...] = one.results["output"]
            one.results["output"][...] = np.nan
        structs = ffi.new("hotloop_forward_args[]", [one.forward for one in calls])
        for struct in structs:
            struct.cursor = 0
        size = lib.hotloop_forward_workspace(structs, count, threads)
        memory = np.full(size + 256, 0xA5, np.uint8)
        start = -memory.ctypes.data % 64 + 64
        drive(partial(lib.hotloop_forward, structs, count, threads, Call.address(memory[start:]), size))
        assert (memory[:start] == 0xA5).all()
        assert (memory[start + size :] == 0xA5).all()
        for one, kept in zip(calls, want, strict=True):
            assert np.array_equal(one.results["output"], kept)


def packed_weights(call):
    size = lib.hotloop_packed_bytes(ffi.addressof(call.forward))
    memory = np.full(size + 128, 0xA5, np.uint8)
    start = -memory.ctypes.data % 64
    packed = memory[start : start + size]
    assert lib.hotloop_pack(ffi.addressof(call.forward), call.address(packed), size) == lib.HOTLOOP_OK
    assert (memory[start + size :] == 0xA5).all()
    return packed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [1, 7, 8, 17, 64])
def test_packed_weights(cell, dtype, hidden_size, isa):
    """They fit in the bytes asked for, need no weights beside them, and give the same bits."""
    case = Case(cell, dtype, 5, 3, 4, hidden_size)
    want, call = Call(case, training=False), Call(case, training=False)
    packed = packed_weights(call)
    call.forward.packed = call.address(packed)
    for name in PARAMETERS:
        setattr(call.forward, name, ffi.NULL)
    assert (want.run_forward(), call.run_forward()) == (lib.HOTLOOP_OK, lib.HOTLOOP_OK)
    assert_same_bits(call.all(), want.all())


def test_pack_refuses(call):
    args = ffi.addressof(call.forward)
    size = lib.hotloop_packed_bytes(args)
    memory = np.full(size + 128, 0xA5, np.uint8)
    aligned = memory[-memory.ctypes.data % 64 :]
    assert lib.hotloop_pack(args, call.address(aligned), size - 1) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert lib.hotloop_pack(args, call.address(aligned), -1) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert lib.hotloop_pack(args, call.address(aligned[1:]), size) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_pack(args, ffi.NULL, size) == lib.HOTLOOP_BAD_ARGUMENT
    for field in ("weight_ih", "weight_hh"):
        before = getattr(call.forward, field)
        setattr(call.forward, field, ffi.NULL)
        assert lib.hotloop_pack(args, call.address(aligned), size) == lib.HOTLOOP_BAD_ARGUMENT
        setattr(call.forward, field, before)
    assert (memory == 0xA5).all()


def test_packed_for_something_else(best_isa):
    case = Case("lstm", "float32")
    packed = packed_weights(Call(case))
    for other in [replace(case, hidden_size=7), replace(case, input_size=5), replace(case, dtype="float64"),
                  replace(case, cell="gru")]:  # fmt: skip
        call = Call(other)
        call.forward.packed = call.address(packed)
        assert call.run_forward() == lib.HOTLOOP_PACKED_ELSEWHERE, other
        assert call.untouched()
    call = Call(case)
    shifted = np.empty(packed.nbytes + 128, np.uint8)
    shifted = shifted[-shifted.ctypes.data % 64 + 32 :][: packed.nbytes]
    shifted[...] = packed
    for wrong in (shifted, np.zeros(packed.nbytes + 64, np.uint8)):
        call.forward.packed = call.address(wrong[-wrong.ctypes.data % 64 % 64 :] if wrong is not shifted else wrong)
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
            other.forward.packed = call.address(packed)
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


def test_unknown_isa_in_the_environment(run_python):
    """C users have no Python check before theirs: every function says so, and naming a known one mends it."""
    code = """
from hotloop._ffi import ffi, lib
args = ffi.new("hotloop_backward_args *")
forward = ffi.addressof(args.forward)
args.forward.seq_len = args.forward.batch_size = args.forward.input_size = args.forward.hidden_size = 3
assert not lib.hotloop_isa()
assert ffi.string(lib.hotloop_isa_at(0))
unknown = lib.HOTLOOP_UNKNOWN_ISA
assert lib.hotloop_forward_workspace(forward, 1, 1) == lib.hotloop_backward_workspace(args, 1, 1) == -1
assert lib.hotloop_packed_bytes(forward) == -1
some = ffi.new("char[4096]")
assert lib.hotloop_forward(forward, 1, 1, some, 4096) == lib.hotloop_backward(args, 1, 1, some, 4096) == unknown
assert lib.hotloop_pack(forward, ffi.new("char[64]"), 64) == unknown
assert lib.hotloop_activation(0, 0, ffi.new("float[1]"), ffi.new("float[1]"), 1) == unknown
assert lib.hotloop_probe(0, 0, 0, ffi.new("char[4096]"), 4096, 1) < 0
assert lib.hotloop_use_isa(b"scalar") == lib.HOTLOOP_OK
assert ffi.string(lib.hotloop_isa()) == b"scalar"
assert lib.hotloop_forward_workspace(forward, 1, 1) > 0
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
    for status in (-1, 7, 2**31 - 1):
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
    for arguments in [(-1, 0, 0, 4096, 1), (5, 0, 0, 4096, 1), (0, -1, 0, 4096, 1), (0, 5, 0, 4096, 1),
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
    """  # fmt: skip
    seq_len, early = 1 << 16, (0, 0)
    while 0 in early:
        seq_len *= 2
        assert seq_len <= 1 << 21, "a call of a million steps never came back"
        case = Case(cell, "float32", seq_len, threads, 8, 32, upstream=("grad_output",))
        call = Call(case, threads=threads)
        cursors = []

        def watched(cursors=cursors, call=call):
            status = call.run_forward()
            cursors.append(call.forward.cursor)
            return status

        early = (drive(watched), drive(call.run_backward))
        assert cursors == sorted(set(cursors))
        assert cursors[-1] == call.struct.cursor == seq_len
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


def test_a_flat_call_does_not_come_back_early(best_isa):
    """However long it takes: a call that the struct's function takes in slices is done after one flat one."""
    early, seq_len = 0, 1 << 15
    while not early:
        seq_len *= 2
        assert seq_len <= 1 << 20, "it never came back"
        call = Call(Case("lstm", "float32", seq_len, 2, 4, 16), training=False)
        early = drive(call.run_forward)
    want = {name: array.copy() for name, array in call.all().items()}
    for array in call.results.values():
        array.fill(np.nan)
    f = call.forward
    assert lib.hotloop_forward_flat(
        f.cell, f.dtype, f.reverse, f.seq_len, f.batch_size, f.input_size, f.hidden_size, f.x, f.x_stride_t,
        f.x_stride_b, f.weight_ih, f.weight_hh, f.bias_ih, f.bias_hh, f.h0, f.c0, f.output, f.output_stride_t,
        f.output_stride_b, f.h_n, f.c_n, f.gates, f.c, f.lengths, f.offsets, f.resets, f.resets_stride_t,
        f.resets_stride_b, f.reset_to_initial, 1, *call.forward_workspace,
    ) == lib.HOTLOOP_OK  # fmt: skip
    assert_same_bits(call.all(), want)


# What lies beside the ordinary


def test_several_recurrences_the_largest_first(isa):
    """The workspace is that of the largest, wherever it stands."""
    calls = [Call(Case("gru", "float64", 20, 4, 6, units)) for units in (60, 30, 4)]
    forward = ffi.new("hotloop_forward_args[]", [call.forward for call in calls])
    size = lib.hotloop_forward_workspace(forward, 3, 1)
    assert size >= 3 * lib.hotloop_forward_workspace(ffi.addressof(calls[0].forward), 1, 1)
    assert lib.hotloop_forward(forward, 3, 1, *workspace(size)) == lib.HOTLOOP_OK
    backward = ffi.new("hotloop_backward_args[]", [call.struct[0] for call in calls])
    size = lib.hotloop_backward_workspace(backward, 3, 1)
    assert lib.hotloop_backward(backward, 3, 1, *workspace(size)) == lib.HOTLOOP_OK
    for call in calls:
        assert_same_bits(call.all(), train(call.case))


def test_short_calls(call, cell):
    """They run at once, on a workspace that is just enough; those that are long, or lack a byte, are left alone."""
    long = Call(Case(cell, "float32", 900, 9, 20, 70))
    forward, backward = (ffi.addressof(long.forward), 1), (long.struct, 1)
    assert lib.hotloop_forward_short(*forward, *long.forward_workspace) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert lib.hotloop_backward_short(*backward, *long.backward_workspace) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert (long.forward.cursor, long.struct.cursor, long.untouched()) == (0, 0, True)
    forward, backward = (ffi.addressof(call.forward), 1), (call.struct, 1)
    for run, args, (address, size) in (
        (lib.hotloop_forward_short, forward, call.forward_workspace),
        (lib.hotloop_backward_short, backward, call.backward_workspace),
    ):
        assert run(*args, address, size - 1) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
        assert run(*args, ffi.NULL, size) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
        assert run(ffi.NULL, 1, address, size) == run(args[0], -1, address, size) == lib.HOTLOOP_BAD_ARGUMENT
        assert run(ffi.NULL, 0, address, size) == lib.HOTLOOP_BAD_ARGUMENT
        assert run(args[0], 0, ffi.NULL, 0) == lib.HOTLOOP_OK
    assert call.untouched()
    # What has begun is not short: it goes on in the workspace it was begun in, split as it was.
    call.forward.cursor = call.struct.cursor = 1
    assert lib.hotloop_forward_short(*forward, *call.forward_workspace) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    assert lib.hotloop_backward_short(*backward, *call.backward_workspace) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
    call.forward.cursor = call.struct.cursor = 0
    assert lib.hotloop_forward_short(*forward, *call.forward_workspace) == lib.HOTLOOP_OK
    assert lib.hotloop_backward_short(*backward, *call.backward_workspace) == lib.HOTLOOP_OK
    assert_same_bits(call.all(), train(call.case))


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps(cell, dtype, isa):
    """One short call with packed weights and no workspace; what is not short, or not packed, is left alone."""
    case = Case(cell, dtype, 3, 2, 5, 9)
    want = Call(case)
    assert want.run_forward() == lib.HOTLOOP_OK
    like = ffi.new("hotloop_forward_args *", want.forward)
    arrays = {name: want.results[name] for name in ("output", "h_n", "c_n") if name in want.results}
    got = {name: np.full(array.shape, np.nan, dtype) for name, array in arrays.items()}

    def step(like, seq_len=3, batch_size=2, x=like.x):
        results = [ffi.from_buffer(got[name]) if name in got else ffi.NULL for name in ("output", "h_n", "c_n")]
        return lib.hotloop_forward_step(like, seq_len, batch_size, x, like.h0, like.c0, *results)

    assert step(like) == lib.HOTLOOP_BAD_ARGUMENT  # nothing is packed
    assert lib.hotloop_forward_step(ffi.NULL, 1, 1, *[ffi.NULL] * 6) == lib.HOTLOOP_BAD_ARGUMENT
    size = lib.hotloop_packed_bytes(like)
    memory = np.empty(size + 64, np.uint8)
    packed = memory[-memory.ctypes.data % 64 :][:size]
    assert lib.hotloop_pack(like, ffi.from_buffer(packed), size) == lib.HOTLOOP_OK
    like.packed = ffi.from_buffer(packed)
    assert step(like, x=ffi.NULL) == step(like, seq_len=0) == step(like, seq_len=-(2**63)) == lib.HOTLOOP_BAD_ARGUMENT
    for rows in (-1, -(2**62), -(2**63)):
        assert step(like, batch_size=rows) == lib.HOTLOOP_BAD_ARGUMENT
    for many in (4097, 2**31, 2**62, 2**63 - 1):
        assert step(like, batch_size=many) == lib.HOTLOOP_WORKSPACE_TOO_SMALL
        assert step(like, seq_len=many) in (lib.HOTLOOP_WORKSPACE_TOO_SMALL, lib.HOTLOOP_TOO_LARGE)
    assert all(np.isnan(array).all() for array in got.values())
    assert step(like) == lib.HOTLOOP_OK
    assert_same_bits(got, arrays)


@pytest.mark.parametrize("threads", [0, -1, -(2**31)])
def test_fewer_threads_than_one_are_one(cell, threads, best_isa):
    case = Case(cell, "float32", 40, 9, 20, 70)
    one, call = Call(case), Call(case, threads=threads)
    assert (one.run_forward(), one.run_backward()) == (lib.HOTLOOP_OK, lib.HOTLOOP_OK)
    assert (call.run_forward(), call.run_backward()) == (lib.HOTLOOP_OK, lib.HOTLOOP_OK)
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
    """  # fmt: skip
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
