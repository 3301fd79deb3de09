"""What plans decide, at their edges: workspaces, what was not planned, processors that come and go, calls in turn."""

from __future__ import annotations

import signal
import threading
from functools import partial

import numpy as np
import pytest
from cases import Case, arguments, functions, infer
from test_abi import CELLS, Call, Executor, drive, ffi, lib, packed_weights, parameter, use_packed, workspace

import hotloop
from hotloop._backends import native


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param


def guarded(run, plan):
    size = lib.hotloop_workspace_bytes(plan)
    memory = np.full(size + 8192, 0xA5, np.uint8)
    start = -memory.ctypes.data % 64 + 64
    drive(partial(run, plan, (Call.address(memory[start:]), size)))
    assert (memory[:start] == 0xA5).all()
    assert (memory[start + size :] == 0xA5).all()


def test_many_teams(isa):
    call = Call(Case("lstm", "float32", 24, 16, 8, 256), threads=64)
    guarded(call.run_forward, call.plan())


@pytest.mark.parametrize("batch_size", [1, 7, 33, 150])
def test_inference(cell, batch_size, isa):
    for threads in (1, 2):
        for slack in (0, 60):
            call = Call(Case(cell, "float32", 40, batch_size, 9, 70), training=False, threads=threads)
            call.sizes = 40 + slack, batch_size + slack
            guarded(call.run_forward, call.plan())


@pytest.mark.parametrize("batch_size", [7, 300])
def test_resets_to_initial(cell, batch_size, isa):
    call = Call(Case(cell, "float32", 40, batch_size, 9, 70))
    resets = np.ones((40, batch_size), bool)
    f = call.buffers
    f.resets, f.reset_to_initial = ffi.cast("uint8_t *", resets.ctypes.data), 1
    f.resets_stride_t, f.resets_stride_b = batch_size, 1
    call.uses_backward |= lib.HOTLOOP_RESET_TO_INITIAL
    guarded(call.run_forward, call.plan())
    guarded(call.run_backward, call.plan(backward=True))


def test_strides_of_offsets(best_isa):
    call = Call(Case("lstm", "float32", 9, 2, 3, 17))
    offsets = ffi.new("int64_t[]", [0, 9, 18])
    call.buffers.offsets = offsets
    call.buffers.x_stride_t = 2_600_000_000_000_000  # 9 steps are not too far, 18 are
    assert call.run_forward() == lib.HOTLOOP_TOO_LARGE
    assert call.run_backward() == lib.HOTLOOP_TOO_LARGE


def test_packed_in_backward(cell, best_isa):
    call = Call(Case(cell, "float32"))
    use_packed(call, packed_weights(call))
    assert call.run_backward() == lib.HOTLOOP_BAD_ARGUMENT


def test_accumulate_not_planned(cell, best_isa):
    call = Call(Case(cell, "float32"))
    call.struct.accumulate = 1
    assert call.run_backward() == lib.HOTLOOP_BAD_ARGUMENT


def test_one_weight_not_planned(cell, best_isa):
    for name in ("grad_weight_ih", "grad_weight_hh"):
        call = Call(Case(cell, "float32"))
        call.struct.grad_parameters[parameter(name.removeprefix("grad_"))] = ffi.NULL
        plan = call.plan(uses=lib.HOTLOOP_BACKWARD | lib.HOTLOOP_GRAD_X)
        assert call.run_backward(plan) == lib.HOTLOOP_BAD_ARGUMENT


def test_a_step_of_several(cell, best_isa):
    call = Call(Case(cell, "float32", 2, 1, 3, 5), training=False)
    plan, b = ffi.new("hotloop_plan *"), call.buffers
    assert lib.hotloop_make_plan(plan, call.spec, 0, 2, 2, 1, 1) == lib.HOTLOOP_OK
    status = lib.hotloop_step(
        plan, call.weights, 2, 1, b.x, b.h0, b.c0, b.output, b.h_n, b.c_n, ffi.NULL,
        *workspace(lib.hotloop_workspace_bytes(plan)),
    )  # fmt: skip
    assert status == lib.HOTLOOP_BAD_ARGUMENT


def test_processors_lost_since(best_isa):
    call, executor = Call(Case("lstm", "float32", 40, 9, 20, 130), threads=2), Executor(2)
    plan = call.plan()
    try:
        for processors, used in ((2, True), (1, False)):
            lib.hotloop_use_processors(processors)
            executor.shares.clear()
            call.buffers.cursor = 0
            drive(partial(call.run_forward, plan, executor=executor.struct))
            assert bool(executor.shares) is used
    finally:
        lib.hotloop_use_processors(0)


def test_openmp_of_fewer_and_signals(best_isa):
    masks, most = [], [1]

    @ffi.callback("void(void(*)(void *), void *, unsigned, unsigned)")
    def parallel(task, data, threads, flags):
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        task(data)

    threads = ffi.callback("int(void)", lambda: most[0])
    executor = lib.hotloop_openmp_executor(parallel, threads)
    lib.hotloop_use_processors(2)
    try:
        call = Call(Case("lstm", "float32", 40, 9, 20, 130), threads=2)
        drive(partial(call.run_forward, executor=executor))
        assert not masks
        most[0], after = 2, []

        def run():
            call.buffers.cursor = 0
            drive(partial(call.run_forward, executor=executor))
            after.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert masks
        assert signal.SIGTERM in masks[0]
        assert signal.SIGTERM not in after[0]
    finally:
        lib.hotloop_use_processors(0)


def test_threads_of_a_later_call(best_isa):
    layer, x = hotloop.GRU(5, 6, rng=0), np.ones((3, 2, 5), np.float32)
    layer(x)
    with pytest.raises(ValueError, match="threads: expected an integer >= 1, got 0"):
        layer(x, threads=0)


def test_offsets_after_one_sequence(best_isa):
    layer, x = hotloop.GRU(5, 6, rng=0), np.ones((6, 5), np.float32)
    want = hotloop.GRU(5, 6, rng=0)(x, offsets=[0, 4, 6])[0]
    layer(x)
    assert np.array_equal(layer(x, offsets=[0, 4, 6])[0], want)
    other = layer(x)[0]
    assert np.array_equal(layer(x)[0], other)
    assert not np.array_equal(want, other)


def test_resets_overwritten(best_isa):
    layer, x = hotloop.GRU(5, 6, rng=0), np.ones((6, 2, 5), np.float32)
    resets = np.zeros((6, 2), bool)
    resets[3] = True
    (output, _), vjp = layer.vjp(x, resets=resets)
    want = vjp(np.ones_like(output)).x
    resets[...] = False
    assert np.array_equal(vjp(np.ones_like(output)).x, want)


def test_small_strided_x(best_isa):
    layer, x = hotloop.GRU(5, 6, rng=0), np.random.default_rng(0).standard_normal((3, 2, 10)).astype(np.float32)
    want = layer(np.ascontiguousarray(x[..., ::2]))[0]
    assert np.array_equal(layer(x[..., ::2])[0], want)


def test_training_then_inference(best_isa):
    layer, x = hotloop.GRU(5, 6, rng=0), np.ones((3, 2, 5), np.float32)
    want = layer(x)[0]
    layer.vjp(x)
    assert np.array_equal(layer(x)[0], want)


@pytest.mark.parametrize("axis", [0, 1])
def test_length_one_reverse(axis, best_isa):
    shape = [4, 3, 5]
    shape[axis] = 1
    x = np.ones(shape, np.float32)
    weights = np.ones((18, 5), np.float32), np.ones((18, 6), np.float32)
    strides = list(x.strides)
    strides[axis] = 2**62
    odd = np.lib.stride_tricks.as_strided(x, strides=strides)
    for options in ({"reverse": True}, {"lengths": [1] * shape[1]}):
        want = hotloop.gru(x, *weights, **options)[0]
        assert np.array_equal(hotloop.gru(odd, *weights, **options)[0], want)


def test_processors_come_back(run_python, best_isa, pytestconfig):
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from cases import Case, arguments, functions, infer
everywhere = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(everywhere)})
case = Case("lstm", "float32", 60, 16, 40, 64)
before = len(os.listdir("/proc/self/task"))
infer(case, threads=2)
assert len(os.listdir("/proc/self/task")) == before
os.sched_setaffinity(0, everywhere)
infer(case, threads=2)
assert len(os.listdir("/proc/self/task")) == before + 1
"""
    run_python(code, pytestconfig.rootpath / "tests", timeout=60)


def test_processors_told(run_python, best_isa, pytestconfig):
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from cases import Case, arguments, functions, infer
from hotloop._backends import native
before = len(os.listdir("/proc/self/task"))
native.lib.hotloop_use_processors(8)
infer(Case("lstm", "float32", 60, 16, 40, 64), threads=8)
assert len(os.listdir("/proc/self/task")) == before + 7
"""
    run_python(code, pytestconfig.rootpath / "tests", timeout=60)


def test_the_same_call_on_every_isa(best_isa):
    case = Case("gru", "float32")
    try:
        for name in (*native.isas()[::-1], *native.isas()):
            native.use_isa(name)
            infer(case)
    finally:
        native.use_isa(best_isa)


@pytest.mark.parametrize("batch_first", [False, True])
def test_resets_of_a_prepared_call(cell, batch_first, best_isa):
    """Forward and backward have the bits of the call with lengths, which is not prepared."""
    case = Case(cell, "float32", 7, 3, 4, 5)
    (x, *weights), states = arguments(case, case.data())
    states = {name: state for name, state in states.items() if name in ("h0", "c0")}
    resets = np.zeros((7, 3), bool)
    resets[[2, 5, 0], [0, 1, 2]] = True
    turned = (lambda array: np.ascontiguousarray(array.swapaxes(0, 1))) if batch_first else np.ascontiguousarray
    x, resets = turned(x), turned(resets)
    found = []
    for lengths in (None, [7, 7, 7]):
        (output, last), vjp = functions(cell)[1](
            x, *weights, **states, resets=resets, batch_first=batch_first, lengths=lengths
        )
        found.append([output, *np.atleast_2d(last), *(g for g in vjp(np.cos(output)) if g is not None)])
        output, _ = functions(cell)[0](x, *weights, **states, resets=resets, batch_first=batch_first, lengths=lengths)
        found[-1].append(output)
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(output, functions(cell)[0](x, *weights, **states, batch_first=batch_first)[0])


def test_out_at_the_ends_of_an_argument(best_isa):
    """An array that runs backwards begins at its last element, and ends with all bytes of its last one."""
    layer, message = hotloop.GRU(6, 6, rng=0), "out: expected memory of its own, got memory it shares with"
    memory = np.zeros((9, 2, 6), np.float32)
    with pytest.raises(ValueError, match=f"{message} x"):
        layer(memory[4:][::-1], out=memory[:5])
    layer(memory[5:][::-1], out=memory[1:5])
    data = np.zeros(4 * 60 + 8, np.uint8)
    out = data[:240].view(np.float32).reshape(5, 2, 6)
    with pytest.raises(ValueError, match=f"{message} resets"):
        layer(np.zeros((5, 2, 6), np.float32), resets=data[238:248].view(bool).reshape(5, 2), out=out)


def test_ctrl_c_in_a_prepared_call(run_python, best_isa):
    code = """
import os, signal, threading
import numpy as np, hotloop
signal.signal(signal.SIGINT, signal.default_int_handler)
layer, x = hotloop.GRU(512, 512, rng=0), np.zeros((20000, 1, 512), np.float32)
out = np.full((20000, 1, 512), np.nan, np.float32)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    layer(x, out=out, threads=1)
except KeyboardInterrupt:
    assert np.isnan(out[-1]).all()
else:
    raise AssertionError("it was not interrupted")
"""
    run_python(code, timeout=60)
