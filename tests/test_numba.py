"""What is special about the numba backend: strides, sigmoid and tanh, compiling, its cache.

The rest of the suite runs on it as on any other backend.
"""

from __future__ import annotations

import numpy as np
import pytest
import test_activations
from cases import CELLS, DTYPES, Case, assert_matches_reference, infer, train
from test_bitwise import features_apart, fortran, gap, misaligned, negative, one_byte_off_rows, padded

pytestmark = pytest.mark.usefixtures("numba_backend")


@pytest.mark.parametrize(
    "placed", [gap, negative, padded, misaligned, features_apart, fortran, one_byte_off_rows, np.broadcast_to]
)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_strides(cell, dtype, reverse, placed):
    """Whatever the memory of an argument looks like, over one chunk and over several; read-only where NumPy says so."""
    for seq_len in (9, 700):
        case = Case(cell, dtype, seq_len, 7, 5, 21, reverse=reverse)
        data = case.data()
        if placed is np.broadcast_to:
            x = np.broadcast_to(data["x"][:1, :1], data["x"].shape)
            copied, moved = data | {"x": x.copy()}, data | {"x": x}
            np.testing.assert_allclose(
                train(case, moved)["output"], train(case, copied)["output"], rtol=1e-5, atol=1e-6
            )
            continue
        whole = set(data) if placed not in (gap, negative, one_byte_off_rows) else {"x", "grad_output"}
        moved = {name: placed(array) if name in whole else array for name, array in data.items()}
        assert_matches_reference(case, train(case, moved))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_out(cell, dtype):
    """An output that is a half of a wider array, or goes backwards."""
    for reverse in (False, True):
        case = Case(cell, dtype, 300, 3, 5, 21, reverse=reverse)
        for wide in (
            np.full((300, 3, 42), np.nan, dtype),
            np.full((3, 300, 21), np.nan, dtype).transpose(1, 0, 2)[::-1],
        ):
            out = wide[..., :21]
            results = infer(case, out=out)
            assert results["output"] is out
            assert_matches_reference(case, results)
            assert np.isnan(wide[..., 21:]).all()


# sigmoid and tanh


@pytest.fixture(scope="module")
def compiled():
    numba = pytest.importorskip("numba")
    from hotloop._backends import numba_kernels as _numba_kernels

    def over(function):
        @numba.njit(**_numba_kernels.OPTIONS)
        def run(x, y):
            for i in range(x.size):
                y[i] = function(x[i])

        def activation(x):
            y = np.empty_like(x)
            run(x, y)
            return y

        return activation

    return {name: over(getattr(_numba_kernels, name)) for name in ("tanh", "sigmoid", "relu")}


# Without fma in every place, a little more than the C++ kernels' 2.5 in float32.
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 3), ("float64", 4)])
@pytest.mark.parametrize("function", ["tanh", "sigmoid"])
@pytest.mark.filterwarnings("ignore:underflow")
def test_accuracy(function, dtype, limit, compiled, rng):
    """Numbers of every size, in relative terms in the negative tail of sigmoid too; never beyond the limits."""
    if dtype == "float32":
        x = np.arange(0, 1 << 32, 4099, dtype=np.int64).astype(np.uint32).view(np.float32)
        x = x[np.isfinite(x)]
    else:
        x = np.concatenate([rng.uniform(-bound, bound, 100_000) for bound in (1e-8, 1e-3, 1, 40, 700)])
    got = compiled[function](x)
    want = test_activations.reference(function, x)
    assert test_activations.ulps(x, got, want).max() <= limit
    assert (np.abs(got) <= 1).all()
    assert (got >= (-1 if function == "tanh" else 0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype, compiled):
    x = np.array([-np.inf, np.inf, np.nan, 0.0, -1e30, 1e30], dtype)
    np.testing.assert_array_equal(compiled["tanh"](x), np.array([-1, 1, np.nan, 0, -1, 1], dtype))
    np.testing.assert_allclose(compiled["sigmoid"](x), np.array([0, 1, np.nan, 0.5, 0, 1], dtype), atol=1e-37)
    np.testing.assert_array_equal(compiled["relu"](x), np.array([0, np.inf, np.nan, 0, 0, 1e30], dtype))


# Compiling

QUICK = """
import sys
sys.path.insert(0, sys.argv[1])
from cases import Case, assert_matches_reference, infer
case = Case("rnn_relu", "float32", 9, 5, 4, 20)
"""


@pytest.fixture
def tests_folder(pytestconfig):
    return pytestconfig.rootpath / "tests"


@pytest.mark.parametrize(
    "broken",
    [
        "numba.core.caching.CacheImpl._locator_classes = []",  # as where no folder is writable
        "numba.core.caching.IndexDataCacheFile.save = full",
        "numba.core.caching.IndexDataCacheFile.load = full",
        "import inspect; inspect.getsource = full",
    ],
)
def test_without_a_cache(run_python, tests_folder, tmp_path, broken):
    """Where nothing can be kept on disk, it is compiled in every process, and nobody is told off."""
    code = (
        f"""
import errno, numba

def full(*args, **keywords):
    raise OSError(errno.ENOSPC, "No space left on device")

{broken}
"""
        + QUICK
        + """
assert_matches_reference(case, infer(case))
"""
    )
    done = run_python(code, tests_folder, HOTLOOP_BACKEND="numba", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stderr == ""
    assert not list(tmp_path.rglob("*.nbc"))


def test_cache(run_python, tests_folder, tmp_path):
    """The second process loads what the first one compiled; not where the equations changed in between."""
    code = (
        "import hotloop._backends.cells\n{}\n"
        + QUICK
        + """
from hotloop._backends import numba_kernels as _numba_kernels
infer(case)
(kernel,) = _numba_kernels._compiled.values()
(hits,) = [*kernel.stats.cache_hits.values()] or [0]
print(hits)
"""
    )
    other = "import inspect; inspect.getsource = lambda module: 'other equations'"
    for line, hits in (("", "0"), ("", "1"), (other, "0"), ("", "1")):
        done = run_python(code.format(line), tests_folder, HOTLOOP_BACKEND="numba", NUMBA_CACHE_DIR=str(tmp_path))
        assert done.stdout.strip() == hits
        assert done.stderr == ""


def test_one_compilation_for_every_layout():
    """A kernel is compiled once a dtype, whatever is read-only, strided, absent or unbatched."""
    from hotloop._backends import numba_kernels as _numba_kernels

    case = Case("rnn_tanh", "float32", 9, 5, 4, 20)
    data = case.data()
    for array in data.values():
        array.flags.writeable = False
    train(case, data)
    before = dict(_numba_kernels._compiled)
    train(case, data | {"x": negative(data["x"])})
    train(Case("rnn_tanh", "float32", 9, 1, 4, 20, "none", (), ("grad_h_n",), layout="unbatched"))
    assert _numba_kernels._compiled == before
    for kernel in before.values():
        assert len(kernel.signatures) == 1


def test_import_compiles_nothing(run_python):
    """And brings nothing heavy but numba."""
    code = """
import sys, hotloop
from hotloop._backends import numba_kernels as _numba_kernels
assert not _numba_kernels._compiled
assert hotloop.info().backend == "numba" and hotloop.info().variant.startswith("numba ")
assert hotloop.info().not_in_use == {"native": "HOTLOOP_BACKEND=numba"}
print(sorted({"torch", "numba", "matplotlib", "onnxruntime", "jax", "rich", "pytest"} & set(sys.modules)))
"""
    done = run_python(code, HOTLOOP_BACKEND="numba")
    assert done.stdout.strip() == "['numba']"
    assert done.stderr == ""


def test_without_jit(run_python):
    done = run_python("import hotloop", check=False, HOTLOOP_BACKEND="numba", NUMBA_DISABLE_JIT="1")
    assert done.stderr.endswith("NUMBA_DISABLE_JIT is set\n")


def test_several_threads_at_their_first_call(run_python, tests_folder):
    """Threads that all compile, or load, the same kernels."""
    code = (
        QUICK
        + """
import threading
barrier, wrong = threading.Barrier(4), []

def work():
    barrier.wait()
    try:
        assert_matches_reference(case, infer(case))
    except BaseException as error:
        wrong.append(error)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong, wrong
"""
    )
    run_python(code, tests_folder, HOTLOOP_BACKEND="numba")


def test_fork(run_python, tests_folder):
    """A child goes on with what the parent has compiled, and compiles more."""
    code = (
        QUICK
        + """
import os
from cases import assert_same_bits, train
want = train(case)
child = os.fork()
if child == 0:
    try:
        assert_same_bits(train(case), want)
        other = Case("rnn_tanh", "float32", 9, 5, 4, 20)
        assert_matches_reference(other, train(other))
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert_same_bits(train(case), want)
"""
    )
    run_python(code, tests_folder, HOTLOOP_BACKEND="numba", timeout=60)
