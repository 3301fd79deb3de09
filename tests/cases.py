"""Problems for the tests: shapes, random data, how to run them, and the one table of tolerances."""

from __future__ import annotations

import itertools
import re
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest

import hotloop
import hotloop._backends.choice
from hotloop._backends import numpy as _numpy
from hotloop._core import arrays, checks, stack, types

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before")
DTYPES = ("float32", "float64")

# Relative L2 distance to the specification in float64, by dtype; forward holds for T <= 1024.
TOLERANCE = {
    "float32": {"forward": 1e-6, "gradient": 1e-5},
    "float64": {"forward": 1e-12, "gradient": 1e-10},
}

HIDDEN_SIZES = (*range(1, 41), 64, 100, 128, 200, 256)
INPUT_SIZES = (*range(1, 21), 40, 64)
BATCH_SIZES = (0, 1, 2, 5, 6, 7, 16, 33)
SEQ_LENS = (1, 2, 3, 17, 128)
BIASES = ("both", "none", "ih", "hh")
LAYOUTS = ("time_major", "batch_first", "unbatched")

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
INPUTS = ("x", *PARAMETERS, "h0", "c0")
UPSTREAM = ("grad_output", "grad_h_n", "grad_c_n")


def subsets(names):
    """Every subset of some names, the empty one included."""
    return [c for size in range(len(names) + 1) for c in itertools.combinations(names, size)]


@dataclass(frozen=True)
class Case:
    """One problem. Equal cases have equal data, on every backend and in every run."""

    cell: str
    dtype: str = "float64"
    seq_len: int = 5
    batch_size: int = 3
    input_size: int = 4
    hidden_size: int = 6
    biases: str = "both"
    states: tuple[str, ...] = ("h0", "c0")
    upstream: tuple[str, ...] = UPSTREAM
    reverse: bool = False
    layout: str = "time_major"

    def __post_init__(self):
        if self.cell != "lstm":
            object.__setattr__(self, "states", tuple(n for n in self.states if n != "c0"))
            object.__setattr__(self, "upstream", tuple(n for n in self.upstream if n != "grad_c_n"))
        if self.layout == "unbatched":
            object.__setattr__(self, "batch_size", 1)

    def __str__(self):
        """The test id; it shows whatever one needs to build the case again."""
        parts = [self.cell, self.dtype, f"T{self.seq_len}", f"B{self.batch_size}"]
        parts += [f"I{self.input_size}", f"H{self.hidden_size}", f"bias_{self.biases}", "+".join(self.states) or "zero"]
        parts += ["+".join(name.removeprefix("grad_") for name in self.upstream) or "no_upstream"]
        parts += ["reverse"] * self.reverse + [self.layout]
        return "-".join(parts)

    @property
    def constants(self):
        return types.CELLS[self.cell]

    @property
    def rows(self):
        return self.constants.gates * self.hidden_size

    def rng(self, what="data"):
        return np.random.default_rng(zlib.crc32(f"{self} {what}".encode()))

    def data(self):
        """Inputs and upstream gradients by name, sequences [T, B, *] whatever the layout; absent ones are left out.

        Weights are torch's: distinct, uniform in +-1/sqrt(hidden_size). Wide inputs are smaller in each feature, or
        every gate would be at its limit.
        """
        rng = self.rng()
        bound = self.hidden_size**-0.5
        steps, batch, state = (self.seq_len, self.batch_size), self.batch_size, (self.batch_size, self.hidden_size)
        arrays = {
            "x": rng.standard_normal((*steps, self.input_size)) * min(1, 8 * self.input_size**-0.5),
            "weight_ih": rng.uniform(-bound, bound, (self.rows, self.input_size)),
            "weight_hh": rng.uniform(-bound, bound, (self.rows, self.hidden_size)),
            "bias_ih": rng.uniform(-bound, bound, self.rows),
            "bias_hh": rng.uniform(-bound, bound, self.rows),
            "h0": rng.uniform(-1, 1, state),
            "c0": rng.uniform(-1, 1, state),
            "grad_output": rng.standard_normal((steps[0], batch, self.hidden_size)),
            "grad_h_n": rng.standard_normal(state),
            "grad_c_n": rng.standard_normal(state),
        }
        if self.cell == "rnn_relu":  # its states are never negative
            arrays["h0"] = np.abs(arrays["h0"])
        absent = {"both": (), "none": ("bias_ih", "bias_hh"), "ih": ("bias_hh",), "hh": ("bias_ih",)}[self.biases]
        keep = {"x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", *self.states, *self.upstream} - set(absent)
        return {name: array.astype(self.dtype) for name, array in arrays.items() if name in keep}


def lay_out(name, array, layout):
    """From [T, B, *] and [B, *] to the caller's layout."""
    if name in PARAMETERS or name not in (*INPUTS, *UPSTREAM):
        return array
    sequence = name in ("x", "grad_output")
    if layout == "unbatched":
        return array[:, 0] if sequence else array[0]
    return np.ascontiguousarray(array.transpose(1, 0, 2)) if layout == "batch_first" and sequence else array


def time_major(name, array, layout):
    """From the caller's layout back to [T, B, *] and [B, *]."""
    if array is None or name.removeprefix("grad_") in PARAMETERS:
        return array
    sequence = name in ("output", "grad_x")
    if layout == "unbatched":
        return array[:, np.newaxis] if sequence else array[np.newaxis]
    return array.transpose(1, 0, 2) if layout == "batch_first" and sequence else array


def functions(cell):
    """(inference, training, keyword arguments) of a cell in the public API."""
    if cell.startswith("rnn"):
        return hotloop.rnn, hotloop.rnn_vjp, {"nonlinearity": cell.removeprefix("rnn_")}
    if cell.startswith("gru"):
        return hotloop.gru, hotloop.gru_vjp, {"reset_after": cell == "gru"}
    return hotloop.lstm, hotloop.lstm_vjp, {}


def arguments(case, data):
    """Positional and keyword arguments of a public call."""
    inputs = {name: lay_out(name, data[name], case.layout) for name in INPUTS if name in data}
    x, weight_ih, weight_hh = inputs.pop("x"), inputs.pop("weight_ih"), inputs.pop("weight_hh")
    inputs |= {"batch_first": case.layout == "batch_first", "reverse": case.reverse}
    return (x, weight_ih, weight_hh), inputs


def named(case, output, state):
    """The results of a forward call by name, [T, B, *] and [B, *]."""
    h_n, c_n = state if case.cell == "lstm" else (state, None)
    results = {"output": output, "h_n": h_n} | ({"c_n": c_n} if case.cell == "lstm" else {})
    return {name: time_major(name, array, case.layout) for name, array in results.items()}


def infer(case, data=None, **options):
    """Run the public inference function. Returns results by name."""
    args, keywords = arguments(case, case.data() if data is None else data)
    function, _, extra = functions(case.cell)
    return named(case, *function(*args, **keywords, **extra, **options))


def start_training(case, data=None, **options):
    """Run the public training function. Returns results by name and vjp as the user gets it."""
    args, keywords = arguments(case, case.data() if data is None else data)
    _, function, extra = functions(case.cell)
    (output, state), vjp = function(*args, **keywords, **extra, **options)
    return named(case, output, state), vjp


def train(case, data=None, **options):
    """Run the public training function and its vjp. Returns results and gradients (grad_*) by name."""
    data = case.data() if data is None else data
    results, vjp = start_training(case, data, **options)
    grads = vjp(**{name: lay_out(name, data[name], case.layout) for name in UPSTREAM if name in data})
    for name, array in grads._asdict().items():
        if name == "weight_hr" and array is None:  # of a cell that projects
            continue
        results[f"grad_{name}"] = time_major(f"grad_{name}", array, case.layout)
    return results


def make_forward(
    weights, x, h0=None, c0=None, *, reverse=False, lengths=None, offsets=None, resets=None, reset_state="zeros",
    training=True, packed=None,
):  # fmt: skip
    """A backend's arguments for one recurrence on a time-major x, checked as every call's are."""
    x, layout = checks.check_sequence(
        x, weights.input_size, weights.dtype, batch_first=False, flat=offsets is not None
    )  # fmt: skip
    ragged = None if lengths is offsets is None else checks.check_ragged(x, layout, lengths, offsets)
    flat = layout.flat and ragged is not None
    state = len(ragged.lengths) if flat else x.shape[1], weights.hidden_size
    marks = checks.check_resets(x, layout, resets, reset_state, copy=training)
    h0, c0 = (
        checks.check_state(name, value, "(batch_size, hidden_size)", state, weights.dtype, layout.unbatched)
        for name, value in (("h0", h0), ("c0", c0))
    )
    empty = arrays.np.empty
    output, h_n = empty((*x.shape[:2], weights.hidden_size), weights.dtype), empty(state, weights.dtype)
    c_n = empty(state, weights.dtype) if weights.cell.has_c else None
    return stack.make_forward(weights, packed, reverse, x, h0, c0, output, h_n, c_n, training, ragged, marks)


def make_backward(args, grad_output=None, grad_h_n=None, grad_c_n=None, grad_c=None):
    """A backend's arguments for all gradients of a finished forward."""
    empty = arrays.np.empty
    grad_c0 = empty(args.h_n.shape, args.h_n.dtype) if args.cell.has_c else None
    return stack.make_backward(
        args, grad_output, grad_h_n, grad_c_n, empty(args.x.shape, args.x.dtype),
        empty(args.h_n.shape, args.h_n.dtype), grad_c0, PARAMETERS, grad_c,
    )  # fmt: skip


def forward_args(case, data=None, *, training=True, backend=None):
    """What a backend's forward is given; on weights that `backend` packed, where it is given."""
    data = case.data() if data is None else data
    weights = checks.check_weights(case.constants, *(data.get(name) for name in PARAMETERS))
    packed = None if backend is None else backend.pack(weights)
    return make_forward(
        weights, data["x"], data.get("h0"), data.get("c0"), reverse=case.reverse, training=training, packed=packed
    )  # fmt: skip


def backward_args(args, data):
    """What a backend's backward is given for a finished forward."""
    return make_backward(args, *(data.get(name) for name in UPSTREAM))


def run(case, forward_backend, backward_backend=None, data=None):
    """Forward and backward through the Backend protocol, on one backend or on two.

    Returns results, saved arrays (gates, c) and gradients by name.
    """
    data = case.data() if data is None else data
    args = forward_args(case, data)
    forward_backend.forward((args,), 1)
    back = backward_args(args, data)
    (backward_backend or forward_backend).backward((back,), 1)
    results = {name: getattr(args, name) for name in ("output", "h_n", "c_n", "gates", "c")}
    return {name: array for name, array in results.items() if array is not None} | gradients_of(back)


def gradients_of(back):
    """What a backend's backward has filled, by name."""
    grads = {"grad_x": back.grad_x} | {f"grad_{name}": array for name, array in back.grad_parameters.items()}
    grads |= {"grad_h0": back.grad_h0, "grad_c0": back.grad_c0}
    return {name: array for name, array in grads.items() if array is not None}


@lru_cache(maxsize=8)
def reference(case):
    """The specification in float64 on the data of the case, rounded to its dtype as it is."""
    data = {name: array.astype(np.float64) for name, array in case.data().items()}
    return run(replace(case, layout="time_major"), _numpy, data=data)


def reference_gradients(case, output):
    """The specification's gradients. `output` is what the tested backend gave.

    relu's derivative jumps at 0, where rounding decides its side, so an RNN with relu is differentiated on the
    sides that the tested forward, checked before, took.
    """
    if case.cell != "rnn_relu":
        return {name: array for name, array in reference(case).items() if name.startswith("grad_")}
    data = {name: array.astype(np.float64) for name, array in case.data().items()}
    args = forward_args(case, data)
    args.output[...] = output
    back = backward_args(args, data)
    _numpy.backward((back,), 1)
    return gradients_of(back)


def distance(got, want):
    """Relative L2 distance; NaN or infinite where `got` is not finite.

    Gradients that vanish over a long sequence may be too small for their dtype to hold with full accuracy: the
    distance is relative to tiny/eps at least, from where on rounding to a subnormal number (or to zero) is within eps.
    """
    assert got.shape == want.shape
    limits = np.finfo(got.dtype)
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), float(limits.tiny) / float(limits.eps))


def assert_close(results, expected, dtype, kind):
    """Every expected array is there and within the tolerance of its dtype."""
    for name, want in expected.items():
        got = results[name]
        assert got.dtype == np.dtype(dtype), name
        assert distance(got, want) <= TOLERANCE[dtype][kind], f"{name}: {distance(got, want):.3g}"


def assert_matches_reference(case, results):
    """Forward results (and gradients, where `results` has them) agree with the specification."""
    forward = {n: a for n, a in reference(case).items() if not n.startswith("grad_") and n in results}
    assert_close(results, forward, case.dtype, "forward")
    if "grad_x" in results:
        gradients = reference_gradients(case, results["output"])
        assert_close(results, gradients, case.dtype, "gradient")
        absent = {name for name in results if name.startswith("grad_")} - set(gradients)
        assert all(results[name] is None for name in absent), absent


def bits(array):
    """The array's bits as integers, so that comparison tells -0.0 from 0.0 and finds equal NaNs equal."""
    return np.ascontiguousarray(array).view(np.dtype(f"i{array.itemsize}"))


def assert_same_bits(got, want, names=None):
    """Bitwise equality of arrays by name: all of those in `want`, or those named."""
    for name in want if names is None else names:
        if want[name] is None:
            assert got.get(name) is None, name
            continue
        assert got[name].shape == want[name].shape, name
        different = np.count_nonzero(bits(got[name]) != bits(want[name]))
        assert not different, f"{name}: {different} of {got[name].size} elements differ"


# The results that are bitwise the same wherever a sequence lies and however it is cut (contract (a) of the design).
SEQUENCE_RESULTS = ("output", "h_n", "c_n", "grad_x", "grad_h0", "grad_c0")
PARAMETER_GRADIENTS = tuple(f"grad_{name}" for name in PARAMETERS)


def in_case(names, case):
    """Those of the names that a case's cell has."""
    return [name for name in names if case.cell == "lstm" or name not in ("c_n", "grad_c0")]


def steps(case, data, first, last):
    """The problem of steps first..last in processing order, without states."""
    start, stop = (case.seq_len - last, case.seq_len - first) if case.reverse else (first, last)
    piece = {name: data[name] for name in PARAMETERS if name in data}
    return piece | {name: data[name][start:stop] for name in ("x", "grad_output") if name in data}


def train_in_pieces(case, data, cuts, **options):
    """Train on the pieces between the cuts, states and their gradients handed on. Gradients of weights are summed."""
    bounds = [0, *cuts, case.seq_len]
    pieces = [steps(case, data, *pair) for pair in itertools.pairwise(bounds)]
    state = {name: data[name] for name in ("h0", "c0") if name in data}
    for piece in pieces:
        piece |= state
        results = infer(replace(case, seq_len=len(piece["x"])), piece, **options)
        state = {f"{name[0]}0": array for name, array in results.items() if name != "output"}
    upstream = {name: data[name] for name in ("grad_h_n", "grad_c_n") if name in data}
    done = []
    for piece in reversed(pieces):
        results = train(replace(case, seq_len=len(piece["x"])), piece | upstream, **options)
        upstream = {f"grad_{name}_n": results[f"grad_{name}0"] for name in ("h", "c") if f"grad_{name}0" in results}
        done.insert(0, results)
    in_time = done[::-1] if case.reverse else done
    whole = {name: np.concatenate([results[name] for results in in_time]) for name in ("output", "grad_x")}
    whole |= {name: done[-1][name] for name in in_case(("h_n", "c_n"), case)}
    whole |= {name: done[0][name] for name in in_case(("grad_h0", "grad_c0"), case)}
    for name in PARAMETER_GRADIENTS:
        whole[name] = None if done[0][name] is None else sum(results[name] for results in done)
    return whole


def raises(error, message):
    """The error with exactly this message."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")
