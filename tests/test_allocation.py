"""Memory that is not to be had: every allocation fails in turn, and an address space that is too small.

The call raises MemoryError, has written to nothing that the caller sees, and the next call works.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from cases import CELLS, PARAMETERS, UPSTREAM, Case, assert_same_bits, functions, named

import hotloop
from hotloop._core import arrays, call, checks, stack
from hotloop._core import memory as _memory


class Allocator:
    """Stands for numpy or cffi's ffi in the modules that allocate: the n-th allocation from now on fails."""

    FUNCTIONS = ("empty", "empty_like", "zeros", "zeros_like", "ascontiguousarray", "asarray", "new")

    def __init__(self):
        self.left = None  # until the one that fails; None: none does

    def around(self, module):
        class Wrapped:
            def __getattr__(_, name):
                return self.failing(getattr(module, name)) if name in self.FUNCTIONS else getattr(module, name)

        return Wrapped()

    def failing(self, function):
        def allocate(*arguments, **keywords):
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise MemoryError("this one fails")
            return function(*arguments, **keywords)

        return allocate

    def each(self, operation, check):
        """Call until nothing fails any more, one allocation later each time. Returns the result and how many failed."""
        for failed in range(200):
            self.left = failed
            try:
                return operation(), failed
            except MemoryError as error:
                assert str(error) == "this one fails"  # noqa: PT017  (success is as good)
                self.left = None
                check()
            finally:
                self.left = None
        raise AssertionError("two hundred allocations in one call")


@pytest.fixture
def allocator(variant, poisoned, monkeypatch):
    """Over the poisoned arrays of every test; large arrays come from the real `memory`."""
    allocator = Allocator()
    for module in (call, arrays, stack):
        monkeypatch.setattr(module, "np", allocator.around(poisoned))
        monkeypatch.setattr(module, "memory", _memory)
    monkeypatch.setattr(_memory, "np", allocator.around(np))
    if variant.backend == "native":
        from hotloop._backends import native as _native

        monkeypatch.setattr(_native, "np", allocator.around(poisoned))
        monkeypatch.setattr(_native, "ffi", allocator.around(_native.ffi))
    return allocator


def awkward(array):
    """Strides that make the library copy: features apart, columns first."""
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def inputs_of(case, data):
    names = ("x", *PARAMETERS, "h0", "c0")
    return {name: data[name] for name in names if name in data} | {"reverse": case.reverse}


# The last is large enough for memory that is used again.
CASES = [*(Case(cell, "float32", 5, 3, 4, 6) for cell in CELLS), Case("lstm", "float32", 16, 160, 3, 110)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_allocation_of_inference(case, allocator, variant):
    data = {name: awkward(array) for name, array in case.data().items()}
    kept = {name: array.copy() for name, array in data.items()}
    infer, _, extra = functions(case.cell)
    want = named(case, *infer(**inputs_of(case, data), **extra))
    out = awkward(np.full((case.seq_len, case.batch_size, case.hidden_size), 7, case.dtype))
    options = [{}, {"out": out}, {"threads": 2}]
    prepared = case.batch_size < 100  # a small x is copied and the call is a prepared one
    least = [5, 4, 5] if variant.backend == "native" and not prepared else [3, 2, 3]
    for option, few in zip(options, least, strict=True):

        def check(option=option):
            assert_same_bits(data, kept)
            if variant.backend == "native":  # where a backend has begun to write, `out` is undefined
                assert (out == 7).all()

        got, failed = allocator.each(lambda o=option: infer(**inputs_of(case, data), **extra, **o), check)
        assert failed >= few
        assert_same_bits(named(case, *got), want)
        assert option.get("out") is None or got[0] is out
        assert_same_bits(data, kept)
        out[...] = 7


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_allocation_of_training(case, allocator):
    """Forward; and vjp, which after any number of failures gives what it would have given at once."""
    data = {name: awkward(array) for name, array in case.data().items()}
    kept = {name: array.copy() for name, array in data.items()}
    _, train, extra = functions(case.cell)
    upstream = {name: data[name] for name in UPSTREAM if name in data}
    (output, state), vjp = train(**inputs_of(case, data), **extra)
    want, gradients = named(case, output, state), vjp(**upstream)._asdict()
    ((output, state), vjp), failed = allocator.each(
        lambda: train(**inputs_of(case, data), **extra), lambda: assert_same_bits(data, kept)
    )
    assert failed >= 3
    results = named(case, output, state)
    assert_same_bits(results, want)

    def check():
        assert_same_bits(results, want)
        assert_same_bits(data, kept)

    for _ in range(2):
        got, failed = allocator.each(lambda: vjp(**upstream), check)
        assert failed >= 3
        assert_same_bits(got._asdict(), gradients)


@pytest.mark.parametrize("cell", CELLS)
def test_every_allocation_of_packing(cell, allocator, variant):
    case = Case(cell, "float32", 5, 3, 4, 6)
    data = {name: awkward(array) for name, array in case.data().items()}
    backend = hotloop._core.settings.active()
    parameters = [data[name] for name in PARAMETERS]

    def pack():
        return backend.pack(checks.check_weights(case.constants, *parameters))

    want = pack()
    packed, failed = allocator.each(pack, lambda: None)
    if variant.backend == "native":
        assert failed >= 4
        assert packed.nbytes == want.nbytes


def test_memory_of_failed_calls_is_used_again(allocator):
    """What a failed call had taken already goes back."""
    case = Case("lstm", "float32", 16, 160, 3, 110)
    data = case.data()
    allocator.each(lambda: hotloop.lstm_vjp(**inputs_of(case, data)), lambda: None)
    kept = sum(memory.nbytes for memory in _memory._free) + sum(end.memory.nbytes for end in _memory._ended)
    assert kept <= _memory._most


# A process whose address space ends soon

LIMITED = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from cases import CELLS, Case, assert_same_bits, infer, train
import hotloop

def size():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def limit(more):
    resource.setrlimit(resource.RLIMIT_AS, (size() + more if more is not None else resource.RLIM_INFINITY, -1))

def tasks():
    return len(os.listdir("/proc/self/task"))
"""

TOO_SMALL = (
    LIMITED
    + """
case = Case(sys.argv[2], "float32", 600, 32, 48, 64)
data = case.data()
kept = {name: array.copy() for name, array in data.items()}
for function in (infer, train):
    failed = 0
    for more in range(0, 1 << 28, 1 << 20):
        out = {"out": np.full((600, 32, 64), 7, np.float32)} if function is infer and more >> 20 & 1 else {}
        limit(more)
        try:
            results = function(case, data, threads=1, **out)
        except MemoryError:
            failed += 1
            limit(None)
            assert (out.get("out", 7) == np.float32(7)).all()
            continue
        limit(None)
        break
    assert_same_bits(data, kept)
    assert_same_bits(function(case, data), results)
    print(failed)
"""
)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("cell", CELLS)
def test_a_small_address_space(run_python, best_isa, pytestconfig, cell):
    """A megabyte more each time, until it is enough: MemoryError until then, and the right bits at last."""
    done = run_python(TOO_SMALL, pytestconfig.rootpath / "tests", cell, HOTLOOP_RECYCLE_MIB="0")
    infer, train = map(int, done.stdout.split())
    assert infer >= 1
    assert train >= 2


NO_THREAD = (
    LIMITED
    + """
case = Case("rnn_tanh", "float32", 300, 4, 8, 64)
data = case.data()
want = infer(case, data, threads=1)
before = tasks()
limit(3 << 19)  # enough for the arrays, and less than the stack of a thread
results = infer(case, data, threads=2)
assert tasks() == before
assert_same_bits(results, want)
limit(None)
assert_same_bits(infer(case, data, threads=2), want)
assert tasks() > before or hotloop.info().processors == 1
"""
)


@needs_proc
def test_threads_that_cannot_be_started(run_python, best_isa, pytestconfig):
    """The call runs on those there are; a later one starts them."""
    run_python(NO_THREAD, pytestconfig.rootpath / "tests")
