"""A mask on h where products read it: variational dropout."""

from __future__ import annotations

import numpy as np
import pytest
from cases import distance
from test_accumulate import CELLS, INPUTS, PARAMETERS, ROWS, STEPS, UNITS, Problem

import hotloop
from hotloop._backends import numpy as specification
from hotloop._core import settings


class Masked(Problem):
    """A call with a mask, and, of an LSTM, with a projection."""

    def __init__(self, rng, kind, dtype, proj=0, **options):
        super().__init__(rng, "lstm" if proj else kind, dtype, **options)
        rows, size = self.x.shape[1], proj or UNITS
        self.mask = (rng.random((rows, size)) < 0.5).astype(dtype) * 2
        self.options["recurrent_mask"] = self.mask
        if proj:
            self.weights[1] = np.ascontiguousarray(self.weights[1][:, :proj])
            self.options["weight_hr"] = (rng.standard_normal((proj, UNITS)) * 0.4).astype(dtype)
            self.states["h0"] = np.ascontiguousarray(self.states["h0"][:, :proj])
            self.grad = np.ascontiguousarray(self.grad[..., :proj])


def with_specification(problem):
    before = settings.current
    settings.use_backend(specification)
    try:
        return problem.whole()
    finally:
        settings.use_backend(before.backend)


@pytest.mark.parametrize("shape", ["dense", "ragged", "reverse"])
@pytest.mark.parametrize("kind", [*CELLS, "projected"])
def test_masked_as_specified(kind, shape, isa, rng):
    """Also in teams, with resets, in pieces; and where there is no mask of zeros: ones change no bit."""
    options = {"ragged": shape == "ragged", "reverse": shape == "reverse", "resets": shape == "ragged"}
    for rows, threads in ((5, 1), (1, 3), (40, 2)):
        problem = Masked(rng, kind, np.float64, 7 * (kind == "projected"), rows=max(rows, 3), **options)
        want, found = with_specification(problem), problem.whole(threads=threads)
        for name in (*PARAMETERS, "x", "h0", "c0", "weight_hr")[: None if problem.has_c else 6]:
            if getattr(want, name) is not None:
                assert distance(getattr(found, name), getattr(want, name)) < 1e-11, name
        pieces = problem.in_pieces([4, 15], threads=threads)
        for name in PARAMETERS:
            assert getattr(pieces, name).tobytes() == getattr(found, name).tobytes()
        problem.options["recurrent_mask"] = np.ones_like(problem.mask)
        ones = problem.whole(threads=threads)
        problem.options["recurrent_mask"] = None
        plain = problem.whole(threads=threads)
        for name in PARAMETERS:
            assert getattr(ones, name).tobytes() == getattr(plain, name).tobytes()


@pytest.mark.parametrize("kind", [*CELLS, "projected"])
def test_gradients_by_difference(kind, rng):
    problem = Masked(rng, kind, np.float64, 7 * (kind == "projected"), steps=4, rows=3)
    grads = problem.whole()

    def loss():
        (output, _), _ = problem.function(problem.x, *problem.weights, **problem.states, **problem.options)
        return float((output * problem.grad).sum())

    for name, array in (("weight_hh", problem.weights[1]), ("h0", problem.states["h0"]), ("x", problem.x)):
        for _ in range(4):
            place = tuple(rng.integers(0, size) for size in array.shape)
            before, step = array[place], 1e-5
            array[place] = before + step
            high = loss()
            array[place] = before - step
            low = loss()
            array[place] = before
            assert getattr(grads, name)[place] == pytest.approx((high - low) / (2 * step), rel=1e-5, abs=1e-7)


def test_what_is_masked(rng):
    """An LSTM step by hand: the product reads masked h, c and the rest are as they are; of a GRU z keeps h whole."""
    x, h, c = rng.standard_normal((1, 2, 3)), rng.standard_normal((2, 4)), rng.standard_normal((2, 4))
    w, u = rng.standard_normal((16, 3)), rng.standard_normal((16, 4))
    mask = np.array([[0.0, 2, 2, 0], [2, 0, 2, 2]])
    for function, rows in ((hotloop.lstm, 16), (hotloop.rnn, 4)):
        states = {"h0": h, "c0": c} if function is hotloop.lstm else {"h0": h}
        masked = {**states, "h0": h * mask}
        one = function(x, w[:rows], u[:rows], **states, recurrent_mask=mask)[0]
        other = function(x, w[:rows], u[:rows], **masked)[0]
        assert (one == other).all()
    zero = np.zeros((2, 4))
    output, _ = hotloop.gru(x, w[:12], u[:12], h0=h, recurrent_mask=zero)
    r_z_n = x[0] @ w[:12].T
    z, n = 1 / (1 + np.exp(-r_z_n[:, 4:8])), np.tanh(r_z_n[:, 8:])
    np.testing.assert_allclose(output[0], n + z * (h - n), rtol=1e-12)


def test_layers(rng):
    layer = hotloop.LSTM(INPUTS, UNITS, num_layers=2, bidirectional=True, rng=0, dtype=np.float64)
    x = rng.standard_normal((STEPS, ROWS, INPUTS))
    mask = (rng.random((4, ROWS, UNITS)) < 0.7) / 0.7
    output, _ = layer(x, recurrent_mask=mask)
    (trained, _), vjp = layer.vjp(x, recurrent_mask=mask)
    assert (output == trained).all()
    assert not np.allclose(output, layer(x)[0])
    parameters = layer.state_dict()
    below = []
    for suffix, index in (("_l0", 0), ("_l0_reverse", 1)):
        names = [f"{name}{suffix}" for name in PARAMETERS]
        weights = [parameters[name] for name in names]
        below.append(hotloop.lstm(x, *weights, reverse=index == 1, recurrent_mask=mask[index])[0])
    names = [f"{name}_l1" for name in PARAMETERS]
    top = hotloop.lstm(np.concatenate(below, 2), *[parameters[name] for name in names], recurrent_mask=mask[2])[0]
    np.testing.assert_allclose(output[..., :UNITS], top, rtol=1e-12, atol=1e-12)
    mask[...] = np.nan  # it was copied
    assert all(np.isfinite(grad).all() for grad in vjp(np.ones_like(trained)).parameters.values())


def test_mask_refuses(rng):
    x, w, u = rng.standard_normal((3, 2, 3)), rng.standard_normal((12, 3)), rng.standard_normal((12, 4))
    with pytest.raises(ValueError, match=r"recurrent_mask: expected .*\(2, 4\).*got .*\(2, 5\)"):
        hotloop.gru(x, w, u, recurrent_mask=np.ones((2, 5)))
    with pytest.raises(TypeError, match="recurrent_mask: expected float64"):
        hotloop.gru(x, w, u, recurrent_mask=np.ones((2, 4), np.float32))
    out = np.zeros((3, 2, 4))
    mask = out[0]
    mask[...] = 1
    want, _ = hotloop.gru(x, w, u, recurrent_mask=np.ones((2, 4)))
    assert (hotloop.gru(x, w, u, recurrent_mask=mask, out=out)[0] == want).all()
