"""Gradients added to those of an earlier call: pieces of sequences give the bits of the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import hotloop
from hotloop._core import settings

CELLS = {
    "rnn": (hotloop.rnn_vjp, 1, {}),
    "relu": (hotloop.rnn_vjp, 1, {"nonlinearity": "relu"}),
    "lstm": (hotloop.lstm_vjp, 4, {}),
    "gru": (hotloop.gru_vjp, 3, {}),
    "gru before": (hotloop.gru_vjp, 3, {"reset_after": False}),
}
STEPS, ROWS, INPUTS, UNITS = 23, 5, 7, 19
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Problem:
    """A call, and the same in pieces of steps in processing order."""

    def __init__(self, rng, kind, dtype, ragged=False, reverse=False, resets=False, steps=STEPS, rows=ROWS):
        self.function, gates, options = CELLS[kind]
        self.options = {**options, "reverse": reverse}
        self.reverse, self.ragged, self.has_c = reverse, ragged, kind == "lstm"

        def some(*shape):
            return (rng.standard_normal(shape) * 0.4).astype(dtype)

        self.x, self.grad = some(steps, rows, INPUTS), some(steps, rows, UNITS)
        self.weights = [some(gates * UNITS, INPUTS), some(gates * UNITS, UNITS), *(some(gates * UNITS) for _ in "ih")]
        self.states = {name: some(rows, UNITS) for name in ("h0", "c0")[: 1 + self.has_c]}
        self.lengths = np.full(rows, steps)
        if ragged:
            self.lengths[:] = rng.integers(0, steps + 1, rows)
            self.lengths[[0, 1]] = 3 * steps // 4  # two that a piece cannot tell apart
            self.lengths[rows // 2] = steps
        self.resets = rng.random((steps, rows)) < 0.1 if resets else None

    def call(self, x, states, lengths, resets, **options):
        if self.ragged:
            options["lengths"] = lengths
        if resets is not None:
            options["resets"] = resets
        (_, state), vjp = self.function(x, *self.weights, **states, **self.options, **options)
        return vjp, dict(zip(("h0", "c0"), state if self.has_c else (state,), strict=False))

    def whole(self, **options):
        vjp, _ = self.call(self.x, self.states, self.lengths, self.resets, **options)
        return vjp(self.grad)

    def piece(self, array, first, last):
        """Steps first to last-1 of each row, where it begins at step 0."""
        piece = np.zeros((last - first, *array.shape[1:]), array.dtype)
        for row, length in enumerate(self.lengths):
            low, high = min(first, length), min(last, length)
            steps = slice(length - high, length - low) if self.reverse else slice(low, high)
            piece[: high - low, row] = array[steps, row]
        return piece

    def in_pieces(self, cuts, **options):
        bounds, states, calls = [0, *cuts, len(self.x)], self.states, []
        for first, last in pairwise(bounds):
            lengths = np.clip(self.lengths - first, 0, last - first)
            resets = None if self.resets is None else self.piece(self.resets, first, last)
            vjp, states = self.call(self.piece(self.x, first, last), states, lengths, resets, **options)
            calls.append((vjp, self.piece(self.grad, first, last)))
        grads, above = None, {}
        for vjp, grad in reversed(calls):
            grads = vjp(grad, **above, accumulate_into=grads)
            above = {"grad_h_n": grads.h0} | ({"grad_c_n": grads.c0} if self.has_c else {})
        return grads


def assert_same(found, wanted, names=(*PARAMETERS, "h0", "c0")):
    for name in names:
        one, other = getattr(found, name, None), getattr(wanted, name, None)
        assert (one is None) == (other is None)
        assert one is None or one.tobytes() == other.tobytes(), name


@pytest.mark.parametrize("resets", [False, True], ids=["", "resets"])
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
@pytest.mark.parametrize("kind", CELLS)
def test_pieces_have_the_bits_of_the_whole(kind, ragged, reverse, resets, isa, rng):
    for dtype in (np.float32, np.float64):
        problem = Problem(rng, kind, dtype, ragged, reverse, resets)
        cuts = sorted(rng.choice(np.arange(1, STEPS), 3, replace=False).tolist())
        for threads in (1, 3):
            assert_same(problem.in_pieces(cuts, threads=threads), problem.whole(threads=threads))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_large_pieces(kind, isa, rng):
    """Of several chunks, in teams, with rows enough that their order shows."""
    problem = Problem(rng, kind, np.float32, ragged=True, resets=True, steps=150, rows=40)
    assert_same(problem.in_pieces([1, 60, 149], threads=2), problem.whole(threads=2))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind", CELLS)
def test_pieces_on_other_backends(kind, backend, ragged, rng, monkeypatch):
    """The specification has the same bits too; numba sums in an order that chunks decide."""
    module = pytest.importorskip(f"hotloop._backends.{backend}")
    before = settings.current
    settings.use_backend(module)
    try:
        problem = Problem(rng, kind, np.float64, ragged, resets=True)
        found, wanted = problem.in_pieces([4, 15]), problem.whole()
    finally:
        settings.use_backend(before.backend)
    if backend == "numpy":
        assert_same(found, wanted)
    for name in PARAMETERS:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-12, atol=1e-12)


def test_gradients_are_added_in_place(isa, rng):
    """Of parameters; the other ones are new. What is there may be anything, and biases need not be the same."""
    problem = Problem(rng, "gru", np.float64)
    vjp, _ = problem.call(problem.x, problem.states, None, None)
    first, start = vjp(problem.grad), vjp(2 * problem.grad)
    start.bias_ih[...] = 7
    before = [getattr(start, name).copy() for name in PARAMETERS]
    found = vjp(problem.grad, accumulate_into=start)
    for name, array in zip(PARAMETERS, before, strict=True):
        assert getattr(found, name) is getattr(start, name)
        np.testing.assert_allclose(getattr(found, name), array + getattr(first, name), rtol=1e-12, atol=1e-12)
    assert found.x is not start.x
    assert_same(found, first, ["x", "h0"])
    some = vjp(problem.grad, wrt=["bias_hh"], accumulate_into=start)
    assert some.bias_hh is start.bias_hh
    assert some.weight_ih is some.x is None


def test_batches_of_other_sizes(rng):
    """Steps of an optimizer over several small batches."""
    problems = [Problem(rng, "lstm", np.float64, ragged=True, rows=rows) for rows in (5, 3)]
    problems[1].weights = problems[0].weights
    vjp, _ = problems[1].call(problems[1].x, problems[1].states, problems[1].lengths, None)
    total = vjp(problems[1].grad, accumulate_into=problems[0].whole())
    for name in PARAMETERS:
        want = sum(getattr(problem.whole(), name) for problem in problems)
        np.testing.assert_allclose(getattr(total, name), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [hotloop.LSTM, hotloop.GRU, hotloop.RNN])
def test_layers_in_pieces(make, rng):
    layer = make(INPUTS, UNITS, num_layers=3, rng=0)
    x, grad = (rng.standard_normal((STEPS, ROWS, size)).astype(np.float32) for size in (INPUTS, UNITS))
    lengths = np.array([23, 17, 17, 0, 9])
    _, vjp = layer.vjp(x, lengths=lengths)
    wanted, state, calls = vjp(grad), None, []
    for first, last in ((0, 10), (10, 12), (12, 23)):
        part = np.clip(lengths - first, 0, last - first)
        (_, state), vjp = layer.vjp(x[first:last], state, lengths=part)
        calls.append((vjp, grad[first:last]))
    found, above = None, []
    for vjp, upstream in reversed(calls):
        found = vjp(upstream, *above, accumulate_into=found)
        above = list(found.state) if make is hotloop.LSTM else [found.state]
    for name, gradient in wanted.parameters.items():
        assert found.parameters[name].tobytes() == gradient.tobytes(), name


def test_flat_pieces(rng):
    problem = Problem(rng, "lstm", np.float32, ragged=True)
    wanted, states, calls = problem.whole(), problem.states, []
    for first, last in ((0, 12), (12, STEPS)):
        part = np.clip(problem.lengths - first, 0, last - first)
        rows = [
            np.concatenate([one[first : first + n, b] for b, n in enumerate(part)]) for one in (problem.x, problem.grad)
        ]
        offsets = np.append(0, part.cumsum())
        (_, (h, c)), vjp = hotloop.lstm_vjp(rows[0], *problem.weights, **states, offsets=offsets)
        states = {"h0": h, "c0": c}
        calls.append((vjp, rows[1]))
    later = calls[1][0](calls[1][1])
    found = calls[0][0](calls[0][1], later.h0, later.c0, accumulate_into=later)
    assert_same(found, wanted)


def test_accumulate_refuses(rng):
    problem = Problem(rng, "lstm", np.float32)
    vjp, _ = problem.call(problem.x, problem.states, None, None)
    grads = vjp(problem.grad)
    before = [getattr(grads, name).copy() for name in PARAMETERS]

    def refuse(error, match, **changes):
        with pytest.raises(error, match=match):
            vjp(problem.grad, accumulate_into=grads._replace(**changes))

    refuse(ValueError, "accumulate_into: bias_ih: expected an array, since bias_ih is in wrt, got None", bias_ih=None)
    refuse(TypeError, "accumulate_into: weight_hh: expected float32", weight_hh=grads.weight_hh.astype(np.float64))
    refuse(ValueError, r"accumulate_into: weight_hh: .*\(76, 19\).*\(75, 19\)", weight_hh=grads.weight_hh[1:])
    refuse(ValueError, "accumulate_into: weight_hh: .*contiguous", weight_hh=np.asfortranarray(grads.weight_hh))
    refuse(ValueError, "accumulate_into: weight_ih: .*shares with an input", weight_ih=problem.weights[0])
    refuse(ValueError, "accumulate_into: bias_hh: .*shares with .* another gradient", bias_hh=grads.bias_ih)
    frozen = grads.bias_hh.copy()
    frozen.flags.writeable = False
    refuse(ValueError, "accumulate_into: bias_hh: .*read-only", bias_hh=frozen)
    for wrong in (tuple(grads), {"weight_ih": grads.weight_ih}, Problem(rng, "gru", np.float32).whole()):
        with pytest.raises(TypeError, match="accumulate_into: expected the LSTMGradients of an earlier call, got"):
            vjp(problem.grad, accumulate_into=wrong)
    layer = hotloop.GRU(INPUTS, UNITS)
    with pytest.raises(TypeError, match="accumulate_into: expected the LayerGradients of an earlier call, got LSTMGr"):
        layer.vjp(problem.x)[1](accumulate_into=grads)
    for name, array in zip(PARAMETERS, before, strict=True):
        assert (getattr(grads, name) == array).all()
