"""clip_grad_norm_ against torch's, and its errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from cases import Case, start_training

import hotloop


def gradients(rng, dtype):
    return [rng.standard_normal(shape).astype(dtype) for shape in [(7, 5), (3,), (2, 3, 4), (0, 3), ()]]


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 5.0, 1e3, float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_as_torch(dtype, max_norm, rng):
    arrays = gradients(rng, dtype)
    parameters = [torch.nn.Parameter(torch.zeros(array.shape, dtype=getattr(torch, dtype))) for array in arrays]
    for parameter, array in zip(parameters, arrays, strict=True):
        parameter.grad = torch.tensor(array)
    want = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
    kept = arrays[1]
    norm = hotloop.clip_grad_norm_(arrays, max_norm)
    assert type(norm) is float
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    assert norm == pytest.approx(want, rel=tolerance)
    assert arrays[1] is kept  # in place
    for array, parameter in zip(arrays, parameters, strict=True):
        np.testing.assert_allclose(array, parameter.grad.numpy(), rtol=tolerance)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_as_torch(bad):
    array = np.array([1.0, bad, 2.0], np.float32)
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor(array)
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    kept = array.copy()
    with pytest.raises(ValueError, match=r"^grads: expected a finite norm, got (nan|inf)$"):
        hotloop.clip_grad_norm_(array, 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(array, kept)
    with np.errstate(invalid="ignore"):
        norm = hotloop.clip_grad_norm_(array, 1.0)
    assert not np.isfinite(norm)
    np.testing.assert_array_equal(array, parameter.grad)


def test_containers(variant):
    _, vjp = start_training(Case("lstm", "float32", biases="none"))
    for make in (lambda g: g, lambda g: g._asdict(), lambda g: (a for a in g), lambda g: list(g)):
        grads = vjp(grad_h_n=np.ones((3, 6), np.float32))
        assert grads.bias_ih is None
        norm = hotloop.clip_grad_norm_(make(grads), 0.5)
        assert norm > 0.5
        clipped = np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in grads if a is not None))
        assert clipped == pytest.approx(0.5, rel=1e-5)
    assert hotloop.clip_grad_norm_([], 1.0) == hotloop.clip_grad_norm_({"bias": None}, 1.0) == 0.0


def test_no_overflow_in_float32():
    array = np.full(4, 1e30, np.float32)  # its squares are not float32 numbers
    assert hotloop.clip_grad_norm_(array, 1.0) == pytest.approx(2e30)
    np.testing.assert_allclose(array, 0.5, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [-1.0, float("nan")])
def test_bad_max_norm(max_norm):
    array = np.ones(3)
    with pytest.raises(ValueError, match=f"^max_norm: expected a number >= 0, got {max_norm}$"):
        hotloop.clip_grad_norm_(array, max_norm)
    np.testing.assert_array_equal(array, 1)


@pytest.mark.parametrize("max_norm", ["1", None, [1.0], 1j])
def test_max_norm_of_a_wrong_type(max_norm):
    array = np.ones(3)
    with pytest.raises(TypeError, match=re.escape(f"max_norm: expected a number >= 0, got {max_norm!r}")):
        hotloop.clip_grad_norm_(array, max_norm)
    np.testing.assert_array_equal(array, 1)


def test_an_array_given_twice_is_scaled_once():
    """Two names for one parameter, as with tied weights."""
    array = np.full(8, 1.0)
    norm = hotloop.clip_grad_norm_({"a": array, "b": array}, 1.0)
    assert norm == pytest.approx(4.0)
    np.testing.assert_allclose(array, 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.ones(3, np.int64), "grads: expected float32 or float64 arrays, got int64 at 1"),
        (np.ones(3, np.float16), "grads: expected float32 or float64 arrays, got float16 at 1"),
        ([1.0], "grads: expected float32 or float64 arrays, got list at 1"),
        (torch.ones(3), "grads: expected float32 or float64 arrays, got Tensor at 1"),
        (np.broadcast_to(1.0, 3), "grads: expected writable arrays, got a read-only one at 1"),
    ],
)
def test_bad_gradients(bad, message):
    """Nothing is scaled where one of them cannot be."""
    good = np.full(3, 7.0)
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        hotloop.clip_grad_norm_([good, bad], 1.0)
    np.testing.assert_array_equal(good, 7)
