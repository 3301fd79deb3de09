"""Fixtures: backends and instruction sets, random numbers, poisoned results, fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # the fallback's warning has a test of its own
    import hotloop._backends.choice
    from hotloop._core import arrays, call, stack

try:
    import hotloop._backends.native as native
except ImportError:
    if os.environ.get("HOTLOOP_REQUIRE_NATIVE"):
        raise
    native = None

try:
    import hotloop._backends.numba as numba
except ImportError:
    numba = None

WITHOUT_NUMBA = pytest.mark.skip(reason="numba is not installed")
WITHOUT_NATIVE = pytest.mark.skip(reason="the native module was not built, and HOTLOOP_REQUIRE_NATIVE is not set")
ISAS = native.isas() if native else ("native",)


class Variant(NamedTuple):
    """A backend and, where it has several, the instruction set it runs on."""

    backend: str
    isa: str | None = None

    def __str__(self):
        return self.isa or self.backend


def _parameter(value):
    marks = {"numpy": (), "numba": () if numba else WITHOUT_NUMBA}.get(str(value), () if native else WITHOUT_NATIVE)
    return pytest.param(value, id=str(value), marks=marks)


VARIANTS = (*(Variant("native", isa) for isa in ISAS), Variant("numba"), Variant("numpy"))


@pytest.fixture(params=[_parameter(variant) for variant in VARIANTS])
def variant(request):
    """Every backend on every instruction set, switched to for the length of a test."""
    yield from _switched(request.param)


@pytest.fixture(params=[_parameter(isa) for isa in ISAS])
def isa(request):
    """Every instruction set of the native backend."""
    for variant in _switched(Variant("native", request.param)):
        yield variant.isa


@pytest.fixture
def best_isa():
    """The native backend on the instruction set it chooses itself; for what does not depend on which."""
    if native is None:
        pytest.skip(WITHOUT_NATIVE.kwargs["reason"])
    for variant in _switched(Variant("native", ISAS[0])):
        yield variant.isa


@pytest.fixture(params=[_parameter(Variant("numba"))])
def numba_backend(request):
    """The numba backend, where numba is installed."""
    for variant in _switched(request.param):
        yield variant.backend


@pytest.fixture
def numpy_backend():
    """The specification as the backend."""
    for variant in _switched(Variant("numpy")):
        yield variant.backend


def _switched(variant):
    restore = hotloop._backends.choice.use(variant.backend)
    before = None if variant.isa is None else native.description()
    try:
        if variant.isa is not None:
            native.use_isa(variant.isa)
            assert native.description() == variant.isa
        yield variant
    finally:
        if before is not None:
            native.use_isa(before)
        restore()


@pytest.fixture
def rng(request):
    """Random numbers that depend on the test's name alone."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


class PoisonedNumpy:
    """numpy, but new arrays hold NaN (every bit set) and lie between guards of the same bits."""

    GUARD = 256  # bytes

    def __init__(self):
        self.buffers = []
        self.bytes = 0

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=np.float64):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        buffer = np.full(size + 2 * self.GUARD, 0xFF, np.uint8)
        self.buffers.append(buffer)
        self.bytes += size
        if self.bytes > 64 << 20:  # a long test must not keep every array it ever made
            self.check()
        return buffer[self.GUARD : self.GUARD + size].view(dtype).reshape(shape)

    def empty_like(self, array):
        return self.empty(array.shape, array.dtype)

    def check(self):
        """Nothing was written outside the arrays."""
        buffers, self.buffers, self.bytes = self.buffers, [], 0
        for buffer in buffers:
            assert (buffer[: self.GUARD] == 0xFF).all(), "a backend wrote before the start of an array"
            assert (buffer[-self.GUARD :] == 0xFF).all(), "a backend wrote past the end of an array"


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Results hold NaN before a backend fills them, and what lies around them stays as it is."""
    numpy = PoisonedNumpy()
    for module in filter(None, (call, arrays, stack, native, numba)):  # the results; the workspaces
        monkeypatch.setattr(module, "np", numpy)
    for module in (call, arrays, stack):
        monkeypatch.setattr(module, "memory", numpy)
    for module in filter(None, (sys.modules.get(f"hotloop.torch.{name}") for name in ("_bridge", "_prepared"))):
        monkeypatch.setattr(module, "np", numpy)
        monkeypatch.setattr(module, "_memory", numpy)
    yield numpy
    numpy.check()


@pytest.fixture
def run_python():
    """Run code in a fresh interpreter without HOTLOOP_* variables but those given; returns what it printed.

    A hang fails by the time limit, which is no measurement.
    """

    def run(code, *arguments, check=True, timeout=120, **environment):
        env = {name: value for name, value in os.environ.items() if not name.startswith("HOTLOOP_")}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(
            command, env=env | environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


def pytest_collection_modifyitems(config, items):
    """Leave out the long forms unless -m speaks of them, or a test is named on the command line."""
    if "long" in config.option.markexpr or any("::" in arg for arg in config.invocation_params.args):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
