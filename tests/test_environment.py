"""What a process may count on around its calls: floating-point environment, forks, threads, signals, imports."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import CELLS, Case, assert_same_bits, train
from conftest import WITHOUT_NUMBA, numba

import hotloop
import hotloop._backends.choice

# Runs calls of every cell, large enough to be split, on the instruction set and number of threads that argv names.
CALLS = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from cases import CELLS, Case, forward_args, infer, train
import hotloop

def calls():
    for cell in CELLS:
        for dtype in ("float32", "float64"):
            case = Case(cell, dtype, 40, 9, 20, 70)
            for threads in (1, 2):
                infer(case, threads=threads)
                yield train(case, threads=threads)
"""

FLOATING_POINT = """
import ctypes, ctypes.util, threading, numpy as np
libm = ctypes.CDLL(ctypes.util.find_library("m"))

def environment():
    '''Rounding mode, as libm and as arithmetic see it, and whether subnormal operands and results count.'''
    one, tiny = np.float32(1), np.finfo(np.float32).tiny
    below = np.frombuffer(b"\\x01\\0\\0\\0", np.float32)  # the smallest subnormal number
    return (
        libm.fegetround(),
        float(one + np.float32(2) ** -26), float(-one - np.float32(2) ** -26),
        bool((below * one).view(np.int32)[0] == 1), bool(np.array([tiny]) * np.float32(0.5) != 0),
        float(np.float64(2.0**-1040) * 0.5),
    )

def everywhere():
    '''In this thread and in a new one, which inherits it.'''
    found = []
    thread = threading.Thread(target=lambda: found.append(environment()))
    thread.start()
    thread.join()
    return environment(), found[0]
"""


@pytest.fixture
def tests_folder(pytestconfig):
    return pytestconfig.rootpath / "tests"


def test_floating_point_environment_is_left_alone(run_python, isa, tests_folder):
    """By the import, and by calls on one thread and several."""
    code = (
        FLOATING_POINT
        + "before = everywhere()\nassert before[0][3] and before[0][4]\n"
        + CALLS
        + """
assert everywhere() == before, "import"
for _ in calls():
    assert everywhere() == before, "call"
assert hotloop.info().variant == sys.argv[2]
"""
    )
    run_python(code, tests_folder, isa, HOTLOOP_ISA=isa)


@pytest.mark.parametrize("mode", ["flush", "upward"])
def test_floating_point_environment_of_the_caller_is_kept(run_python, isa, tests_folder, mode):
    """One that the caller set is there afterwards, as it was."""
    change = {
        "flush": "import torch; assert torch.set_flush_denormal(True)",
        "upward": "assert libm.fesetround(0x800) == 0",  # FE_UPWARD of x86
    }[mode]
    code = (
        FLOATING_POINT
        + CALLS
        + f"""
before = environment()
list(calls())
{change}
changed = environment()
assert changed != before
for _ in calls():
    assert environment() == changed
"""
    )
    if mode == "upward":
        import platform

        if platform.machine() != "x86_64":
            pytest.skip("the constant is that of x86")
    run_python(code, tests_folder, HOTLOOP_ISA=isa)


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_import_is_light(run_python, backend, best_isa):
    """Nothing heavy, and nothing that sets the floating-point environment, comes along."""
    code = """
import sys, numpy
before = set(sys.modules)
import hotloop
heavy = {"torch", "numba", "matplotlib", "scipy", "onnxruntime", "onnx", "openvino", "jax", "rich", "pytest"}
heavy |= {"importlib.metadata", "hotloop.bench", "hotloop.cli"} - before
print(sorted(heavy & set(sys.modules)), hotloop.__version__ == hotloop.info().version)
"""
    assert run_python(code, HOTLOOP_BACKEND=backend).stdout.strip() == "[] True"


def test_there_are_no_other_names(best_isa):
    with pytest.raises(AttributeError, match="module 'hotloop' has no attribute 'lstn'"):
        _ = hotloop.lstn


def test_isa_of_the_environment(run_python, isa):
    code = "import hotloop; i = hotloop.info(); print(i.backend, i.variant, *i.isas)"
    done = run_python(code, HOTLOOP_ISA=isa)
    assert done.stdout.split() == ["native", isa, *hotloop.info().isas]
    assert done.stderr == ""


def test_the_best_isa_is_chosen(run_python, best_isa):
    code = "import hotloop; print(hotloop.info().variant)"
    for variables in ({}, {"HOTLOOP_ISA": ""}):
        assert run_python(code, **variables).stdout.strip() == best_isa


def test_info_prints_as_a_table(variant):
    info = hotloop.info()
    lines = str(info).splitlines()
    assert len({line.index(value) for line, value in zip(lines[:2], (info.version, info.backend), strict=True)}) == 1
    assert lines[0].split() == ["version", hotloop.__version__]
    assert info.backend == variant.backend
    other = {"numpy": np, "numba": numba and numba.numba}.get(variant.backend)
    assert info.variant == (variant.isa or f"{variant.backend} {other.__version__}")


# The fallback

BLOCKED = """
import sys, warnings
BLOCK_NUMBA, NUMBA_ERROR = True, ModuleNotFoundError("No module named 'numba'")

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "hotloop._ffi":
            raise ImportError("_ffi is blocked, for a test")
        if name == "numba" and BLOCK_NUMBA:
            raise NUMBA_ERROR

sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize("backend", [pytest.param("numba", marks=() if numba else WITHOUT_NUMBA), "numpy"])
def test_without_the_native_module(run_python, backend):
    """One warning that says why and points at the import; info says it too; and all works on."""
    code = (
        BLOCKED
        + f"BLOCK_NUMBA = {backend == 'numpy'}\nbackend = {backend!r}\n"
        + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import hotloop
    import numpy as np
    info = hotloop.info()
    output, h_n = hotloop.gru(np.ones((3, 2, 4)), np.ones((15, 4)), np.ones((15, 5)))
assert output.shape == (3, 2, 5)
assert info.backend == backend and info.isas == ()
assert set(info.not_in_use) == ({"native", "numba"} if BLOCK_NUMBA else {"native"})
assert "_ffi is blocked, for a test" in info.not_in_use["native"]
assert "_ffi is blocked, for a test" in str(info)
(warning,) = caught
assert warning.category is RuntimeWarning
text = str(warning.message)
cost = "much slower" if BLOCK_NUMBA else "slower, and compiles at the first call"
assert text.startswith(f"hotloop runs on its {backend} backend, which is {cost}: native is not in use: "), text
assert "_ffi is blocked, for a test" in text
why = "numba is not in use: No module named 'numba'; pip install \\"hotloop[numba]\\""
assert (why in text) == BLOCK_NUMBA, text
"""
    )
    run_python(code)


def test_a_numba_that_does_not_load(run_python):
    """Numba has its own words for a NumPy that is too new for it; whatever it raises, NumPy takes over."""
    for error in ("ImportError", "SystemError"):
        code = BLOCKED + f"NUMBA_ERROR = {error}('too new')\nimport hotloop; print(hotloop.info().not_in_use['numba'])"
        done = run_python(code)
        assert done.stdout.strip() == "numba does not load: too new"
        assert done.stderr.count("RuntimeWarning") == 1


def test_a_backend_asked_for_is_not_replaced(run_python):
    done = run_python(BLOCKED + "import hotloop", check=False, HOTLOOP_BACKEND="numba")
    assert done.returncode == 1
    assert 'pip install "hotloop[numba]"' in done.stderr
    done = run_python(BLOCKED + "import hotloop", check=False, HOTLOOP_BACKEND="native")
    assert done.returncode == 1
    assert "_ffi is blocked, for a test" in done.stderr
    assert run_python(BLOCKED + "import hotloop", HOTLOOP_BACKEND="numpy").stderr == ""


def test_a_broken_native_module_is_no_reason_to_fall_back_in_silence(run_python, best_isa):
    """An error that is not an ImportError, such as a bad HOTLOOP_ISA, is the user's to see."""
    done = run_python("import hotloop", check=False, HOTLOOP_ISA="sse9")
    assert "HOTLOOP_ISA" in done.stderr
    assert "numpy backend" not in done.stderr


# Forks and threads; how they hold under load is for test_pool.py


def test_a_forked_child_starts_threads_of_its_own(run_python, best_isa, tests_folder):
    """The parent's threads are not in the child, and must not be taken for its own."""
    if sys.platform != "linux" or hotloop._core.settings.processors() < 2:
        pytest.skip("needs /proc and two processors")
    code = (
        CALLS
        + """
import os
case = Case("lstm", "float32", 60, 16, 40, 64)
infer(case, threads=2)
child = os.fork()
if child == 0:
    before = len(os.listdir("/proc/self/task"))
    infer(case, threads=2)
    os._exit(0 if len(os.listdir("/proc/self/task")) == before + 1 else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    )
    run_python(code, tests_folder, timeout=60)


def test_several_python_threads(variant):
    """Four threads at once, each with the pool or without it: the bits of one after the other."""
    cases = [Case(cell, "float32", 40, 8, 20, 48) for cell in CELLS]
    serial = [train(case) for case in cases]

    def work(number):
        for turn in range(6):
            index = (number + turn) % len(cases)
            assert_same_bits(train(cases[index], threads=1 + turn % 2), serial[index])

    if variant.backend != "native":  # their promise is a tolerance; equal calls are equal calls all the same
        serial = [train(case) for case in cases]
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(work, range(4)))


def test_signals_are_left_to_the_programs_threads(run_python, best_isa, tests_folder):
    """A program that blocks a signal and waits for it gets it: no thread of the pool takes it and ends the process."""
    code = (
        """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # for the threads that NumPy starts
"""
        + CALLS
        + """
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
infer(Case("lstm", "float32", 60, 16, 40, 64), threads=2)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
import os
for _ in range(20):
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1
assert not signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1]) - {signal.SIGUSR1}
"""
    )
    run_python(code, tests_folder, timeout=60)


def test_the_pool_goes_on_working(run_python, best_isa, tests_folder):
    """Its thread takes part in later calls too, and not in the first alone."""
    if sys.platform != "linux" or hotloop._core.settings.processors() < 2:
        pytest.skip("needs /proc and two processors")
    code = (
        CALLS
        + """
import os, time
case = Case("lstm", "float32", 60, 16, 40, 64)
before = set(os.listdir("/proc/self/task"))
infer(case, threads=2)
(worker,) = set(os.listdir("/proc/self/task")) - before

def status():
    with open(f"/proc/self/task/{worker}/status") as file:
        return {name: value.strip() for name, value in (line.split(":", 1) for line in file)}

def switches():
    return int(status()["voluntary_ctxt_switches"])

while not status()["State"].startswith("S"):  # it sleeps, and never switches again unless it is woken
    time.sleep(0.01)
asleep = switches()
for _ in range(3000):
    infer(case, threads=2)
    if switches() > asleep:
        break
else:
    raise AssertionError("it slept through three thousand calls")
"""
    )
    run_python(code, tests_folder, timeout=60)


def test_processors_are_those_of_the_process(run_python, best_isa, tests_folder):
    """One that may run on one processor counts one, and starts no thread however many a call is given."""
    if sys.platform != "linux" or hotloop._core.settings.processors() < 2:
        pytest.skip("needs /proc and two processors")
    code = (
        CALLS
        + """
import os
from hotloop._backends import native as _native
from hotloop._core import settings
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
assert settings.processors() == _native.lib.hotloop_processors() == 1
case = Case("lstm", "float32", 60, 16, 40, 64)
before = len(os.listdir("/proc/self/task"))
infer(case, threads=2)
assert len(os.listdir("/proc/self/task")) == before
"""
    )
    run_python(code, tests_folder, timeout=60)


def test_a_worker_stays_where_the_user_put_the_process(run_python, best_isa, tests_folder):
    """`taskset -ap` with the very mask that a worker gave itself when it left its caller's processor."""
    if sys.platform != "linux" or hotloop._core.settings.processors() < 2:
        pytest.skip("needs /proc and two processors")
    code = (
        CALLS
        + """
import os
from hotloop._backends import native as _native

class Two:  # of two processors a process with one starts no thread, and there are no more here
    def __init__(self, lib):
        self.lib = lib
    def __getattr__(self, name):
        return (lambda: 2) if name == "hotloop_processors" else getattr(self.lib, name)

one, other = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, {one, other})
_native.lib = Two(_native.lib)
case = Case("lstm", "float32", 60, 16, 40, 64)
before = {int(task) for task in os.listdir("/proc/self/task")}
infer(case, threads=2)
(worker,) = {int(task) for task in os.listdir("/proc/self/task")} - before
os.sched_setaffinity(0, {one})
for _ in range(2000):
    infer(case, threads=2)
    if os.sched_getaffinity(worker) == {other}:
        break
else:
    print("it was never on its caller's processor")
for task in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(task), {other})
for _ in range(200):
    infer(case, threads=2)
    assert os.sched_getaffinity(worker) == {other}
"""
    )
    run_python(code, tests_folder, timeout=60)


def test_threads_compute_as_the_caller(run_python, best_isa, tests_folder):
    """With its rounding, and flushing subnormal numbers where it does; and no exception is left behind."""
    code = (
        CALLS
        + """
import ctypes, ctypes.util, platform
libm = ctypes.CDLL(ctypes.util.find_library("m"))
upward, everything = (0x800, 0x3f) if platform.machine() == "x86_64" else (0x400000, 0x1f)
case = Case("lstm", "float32", 60, 16, 40, 64)
bits = lambda threads: [np.asarray(one).tobytes() for one in infer(case, threads=threads).values() if one is not None]
nearest = bits(1)
assert bits(2) == nearest
assert libm.fesetround(upward) == 0
above, both = bits(1), bits(2)
assert libm.fesetround(0) == 0
assert above != nearest
assert both == above
assert bits(2) == nearest
layer, x = hotloop.LSTM(40, 64, rng=0), np.ones((60, 16, 40), np.float32)
(output, _), vjp = layer.vjp(x)
upstream = np.ones_like(output)
step = x[:1, :1].copy()
for call in (lambda: layer(x), lambda: layer(x, threads=1), lambda: vjp(upstream), lambda: layer(step)):
    call()
    for before in (0, everything & 0x4):
        libm.feclearexcept(everything)
        libm.feraiseexcept(before)
        call()
        assert libm.fetestexcept(everything) == before
"""
    )
    if hotloop.info().backend != "native":
        pytest.skip("NumPy and Numba leave what they leave")
    run_python(code, tests_folder, timeout=60)


def test_threads_of_an_executor_that_come_late_are_left_alone_for_a_while(run_python, best_isa, tests_folder):
    """A region that waits for a thread the system has put aside."""
    if hotloop.info().backend != "native" or hotloop._core.settings.processors() < 2:
        pytest.skip("the native module takes an executor, where there are two processors")
    code = (
        CALLS
        + """
import ctypes, time
from hotloop._backends import native as _native
TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
regions, late = [], [0.0]

@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
def region(task, data, threads, flags):
    regions.append(threads)
    TASK(task)(data)
    time.sleep(late[0])

most = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 2)
address = lambda function: ctypes.cast(function, ctypes.c_void_p).value
args = forward_args(Case("lstm", "float32", 4000, 16, 40, 64), training=False)  # several regions
_native.forward((args,), 1)
want = args.output.tobytes()
executor = _native.openmp_executor(address(region), address(most))

def used():
    regions.clear()
    args.output[...] = 0
    _native.forward((args,), 2, executor)
    assert args.output.tobytes() == want
    return len(regions)

def until_used():  # a busy machine may have put threads aside by itself, for a second at most
    for _ in range(600):
        if many := used():
            return many
        time.sleep(0.05)
    raise AssertionError("borrowed threads are left alone for ever")

assert max(until_used() for _ in range(5)) > 1
late[0] = 0.1
assert until_used() == 1  # the first was late: the others are the pool's
late[0], since = 0.0, time.monotonic()
assert used() == 0 or time.monotonic() - since > 0.9  # 20 times what it waited, of which 50 ms count at most
until_used()
regions.clear()
_native.forward((args,), 2)  # without an executor on hotloop's own threads
infer(Case("lstm", "float32", 4000, 16, 40, 64), threads=2)
assert not regions
assert _native.openmp_executor(0, 0) is None
"""
    )
    run_python(code, tests_folder, timeout=60)


# Ctrl-C

INTERRUPTED = """
import signal, sys, threading, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
sys.path.insert(0, sys.argv[1])
from cases import Case, backward_args, forward_args, run, reference, assert_matches_reference, train
import hotloop._backends.choice
backend = hotloop._core.settings.active()
assert backend.NAME == sys.argv[4]
train(Case("lstm", "float32"))  # numba compiles it
case = Case("lstm", "float32", 4000, 32, 256, 256, upstream=("grad_h_n",))
data = case.data()
args = forward_args(case, data)
threads = int(sys.argv[3])
args.output[...] = np.nan
back = backward_args(args, data)
back.grad_x[...] = np.nan
if sys.argv[2] == "backward":
    args.output[...] = 0
    args.gates[...] = 0.5
    args.c[...] = 0
calls = {"forward": lambda: backend.forward((args,), threads), "backward": lambda: backend.backward((back,), threads)}
try:  # on a busy machine the signal may come before the call
    print("ready", flush=True)
    calls[sys.argv[2]]()
except KeyboardInterrupt:
    print("interrupted", flush=True)
# What the call would have written last is as it was: it was interrupted, and not just finished early.
last = args.output[-1] if sys.argv[2] == "forward" else back.grad_x[0]
print("unfinished" if np.isnan(last).all() else "finished", flush=True)
small = Case("lstm", "float32", 20, 16, 40, 64)
assert_matches_reference(small, train(small, threads=2))
print("usable", flush=True)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("function", ["forward", "backward"])
def test_ctrl_c(function, threads, isa, tests_folder):
    """A long call is interrupted before its end, raises KeyboardInterrupt, and the next one works."""
    interrupt(function, threads, "native", tests_folder, {"HOTLOOP_ISA": isa})


@pytest.mark.parametrize("function", ["forward", "backward"])
def test_ctrl_c_numba(function, numba_backend, tests_folder):
    """The same on the numba backend."""
    interrupt(function, 1, "numba", tests_folder, {"OPENBLAS_NUM_THREADS": "1"})


def interrupt(function, threads, backend, tests_folder, variables):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, tests_folder, function, str(threads), backend],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(backend) | variables,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        with pytest.raises(subprocess.TimeoutExpired):  # the call is under way, and takes longer than this
            process.wait(0.15)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)  # against a hang; nothing is measured
    finally:
        process.kill()
        process.wait()
    assert output.split() == ["interrupted", "unfinished", "usable"], errors


def environment(backend):
    import os

    env = {name: value for name, value in os.environ.items() if not name.startswith("HOTLOOP_")}
    return env | {"HOTLOOP_BACKEND": backend}


def test_a_subinterpreter_is_told_so(run_python, best_isa):
    """The native module refuses it in a line; what runs instead, if NumPy can be imported there, is another backend."""
    if hotloop.info().backend != "native":
        pytest.skip("the native module refuses")
    code = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
inner = '''
import warnings
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import hotloop
    print(hotloop.info().backend, hotloop.info().not_in_use["native"])
except ImportError as error:
    print("refused", error)
'''
make = interpreters.create
try:
    interpreter = make("legacy")
except TypeError:
    interpreter = make(isolated=False)
interpreters.run_string(interpreter, inner)
"""
    done = run_python(code, HOTLOOP_BACKEND="")
    text = done.stdout
    assert "refused" in text or "main interpreter, not in a subinterpreter" in text
