"""tanh and sigmoid as the cells compute them, on every instruction set: accuracy, bounds, special values."""

from __future__ import annotations

import numpy as np
import pytest

from hotloop._backends import numpy as _numpy

FUNCTIONS = ("tanh", "sigmoid")
REFERENCE = {"tanh": np.tanh, "sigmoid": _numpy.sigmoid}
# The aim in float32 is 2. csrc/kernels/math.h says what it would cost in speed, and README.md promises this instead.
ULP = {"float32": 2.5, "float64": 4}
TINY = {dtype: np.finfo(dtype).tiny for dtype in ULP}  # the smallest normal number
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-40, 88.0, -88.0, 103.5, -104.0, 709.0, -745.5]

pytestmark = pytest.mark.filterwarnings("ignore:underflow")


def activation(function, x):
    from hotloop._ffi import ffi, lib

    guard = np.full(x.size + 32, -7.0, x.dtype)  # 16 elements on either side stay -7
    result = guard[16:-16]
    status = lib.hotloop_activation(
        FUNCTIONS.index(function), ("float32", "float64").index(x.dtype.name),
        ffi.cast("void *", x.ctypes.data), ffi.cast("void *", result.ctypes.data), x.size,
    )  # fmt: skip
    assert status == lib.HOTLOOP_OK
    assert (guard[:16] == -7).all()
    assert (guard[-16:] == -7).all()
    return result


def reference(function, x):
    """In float64 for float32, in extended precision for float64."""
    if x.dtype == np.float32:
        return REFERENCE[function](x.astype(np.float64))
    x = x.astype(np.longdouble)
    if function == "tanh":
        return np.tanh(x)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def ulps(x, got, want):
    """Distance in units of the last place of the true value, where it and x are normal numbers (else 0)."""
    tiny = TINY[x.dtype.name]
    size = np.abs(want)
    normal = (np.abs(x) >= tiny) & (size >= tiny)
    unit = np.spacing(size.astype(x.dtype)).astype(want.dtype)
    return np.where(normal, np.abs(got.astype(want.dtype) - want) / unit, 0)


def check(function, x):
    """Every property of finite inputs at once. Returns the largest error in ULP."""
    got = activation(function, x)
    want = reference(function, x)
    tiny = TINY[x.dtype.name]
    assert np.isfinite(got).all()
    assert (np.abs(got) <= 1).all()
    if function == "sigmoid":
        assert (got >= 0).all()
    else:
        assert (np.signbit(got) == np.signbit(x)).all()  # zeros have the sign of x too
    small = (np.abs(x) < tiny) | (np.abs(want) < tiny)
    assert (
        np.abs(got[small] - want[small]) <= np.maximum(tiny, 2 * np.spacing(np.abs(want[small])).astype(x.dtype))
    ).all()
    return ulps(x, got, want).max(initial=0)


def short_float32(rng):
    """About a million numbers: every exponent and sign with random significands, and the stretch where it happens."""
    exponents = np.arange(255, dtype=np.uint32).repeat(2000)
    bits = (exponents << 23) | rng.integers(0, 1 << 23, exponents.size, dtype=np.uint32)
    positive = np.concatenate((bits.view(np.float32), rng.uniform(0, 110, 200_000).astype(np.float32)))
    return np.concatenate((positive, -positive))


def near_powers(dtype):
    """The last number below, the first above and each power of two."""
    limits = np.finfo(dtype)
    powers = np.ldexp(np.ones((), dtype), np.arange(limits.minexp - 20, limits.maxexp)).astype(dtype)
    positive = np.concatenate((powers, np.nextafter(powers, dtype(0)), np.nextafter(powers, dtype(np.inf))))
    return np.concatenate((positive, -positive))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float32(function, isa, rng):
    assert check(function, short_float32(rng)) <= ULP["float32"]
    assert check(function, near_powers(np.float32)) <= ULP["float32"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float64(function, isa, rng):
    if np.finfo(np.longdouble).nmant < 60:
        pytest.skip("longdouble is no more precise than float64 here")
    exponents = np.arange(2047, dtype=np.uint64).repeat(40)
    bits = (exponents << np.uint64(52)) | rng.integers(0, 1 << 52, exponents.size, dtype=np.uint64)
    positive = np.concatenate((bits.view(np.float64), rng.uniform(0, 750, 50_000), rng.uniform(0, 2, 50_000)))
    assert check(function, np.concatenate((positive, -positive))) <= ULP["float64"]
    assert check(function, near_powers(np.float64)) <= ULP["float64"]


@pytest.mark.long
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_float32(function, isa):
    """All 2^32 of them; NaNs and infinities are left to the test of special values."""
    worst = 0
    for start in range(0, 1 << 32, 1 << 22):
        x = np.arange(start, start + (1 << 22), dtype=np.uint64).astype(np.uint32).view(np.float32)
        finite = np.isfinite(x)
        if not finite.all():
            assert np.isnan(activation(function, x[np.isnan(x)])).all()
            x = x[finite]
        worst = max(worst, check(function, x))
    assert worst <= ULP["float32"]


@pytest.mark.long
@pytest.mark.parametrize("function", FUNCTIONS)
def test_many_float64(function, isa, rng):
    if np.finfo(np.longdouble).nmant < 60:
        pytest.skip("longdouble is no more precise than float64 here")
    for scale in (1e-3, 0.1, 1, 3, 20, 50, 740):
        for _ in range(20):
            assert check(function, rng.uniform(-scale, scale, 500_000)) <= ULP["float64"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_special_values(function, dtype, isa):
    """NaN in, NaN out; the limits are exact; a zero keeps its sign in tanh. At every place of a vector."""
    for shift in range(len(SPECIAL)):
        x = np.roll(np.array(SPECIAL), shift).astype(dtype)
        got = dict(zip(np.roll(np.arange(len(SPECIAL)), shift).tolist(), activation(function, x), strict=True))
        zero, minus_zero, inf, minus_inf, nan = (got[index] for index in range(5))
        assert np.isnan(nan)
        assert inf == 1
        assert minus_inf == (-1 if function == "tanh" else 0)
        assert zero == minus_zero == (0 if function == "tanh" else 0.5)
        if function == "tanh":
            assert not np.signbit(zero)
            assert np.signbit(minus_zero)
        others = np.delete(x, np.flatnonzero(~np.isfinite(x)))
        assert check(function, others) <= ULP[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh_is_odd(dtype, isa, rng):
    x = np.concatenate((rng.standard_normal(100_000) * 4, rng.uniform(0, 1e-3, 1000))).astype(dtype)
    np.testing.assert_array_equal(activation("tanh", -x), -activation("tanh", x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_length(function, dtype, isa, rng):
    """The same bits whatever lane a number falls into, ragged ends included."""
    x = (rng.standard_normal(70) * 3).astype(dtype)
    want = activation(function, x).copy()
    for size in range(71):
        np.testing.assert_array_equal(activation(function, x[:size]), want[:size])
        np.testing.assert_array_equal(activation(function, x[70 - size :]), want[70 - size :])


def test_the_measure_sees_three_ulp():
    x = np.array([0.5], np.float32)
    want = reference("tanh", x)
    got = np.float32(want)
    for _ in range(3):
        got = np.nextafter(got, np.float32(1))
    assert 2 < ulps(x, got, want).max() < 4
