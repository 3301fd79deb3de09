"""Every message, word for word: it names the argument, the rule and both values. And nothing is half-written."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import (
    CELLS,
    DTYPES,
    PARAMETERS,
    Case,
    arguments,
    assert_same_bits,
    functions,
    make_forward,
    raises,
    start_training,
)
from numpy.lib.stride_tricks import as_strided

import hotloop
import hotloop._backends.choice
from hotloop._core import arrays, checks

CASE = Case("lstm", "float32", seq_len=5, batch_size=3, input_size=4, hidden_size=6)
MOST = 2**55  # bytes of an array


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def call(case, change, **options):
    """Call inference and training with some arguments changed; both must raise the same error, which is raised here.

    Nothing is written, neither to an argument nor to `out`.
    """
    (x, weight_ih, weight_hh), keywords = arguments(case, case.data())
    keywords |= {"x": x, "weight_ih": weight_ih, "weight_hh": weight_hh} | change | options
    given = {name: value for name, value in keywords.items() if name not in change and isinstance(value, np.ndarray)}
    kept = {name: value.copy() for name, value in given.items()}
    infer, train, extra = functions(case.cell)
    out = np.full((case.seq_len, case.batch_size, case.hidden_size), 7, case.dtype)
    errors = []
    for function, more in ((infer, {}), (infer, {"out": out}), (train, {})):
        with pytest.raises(Exception) as caught:  # noqa: PT011  (which one is compared below)
            function(**extra | keywords | more)
        errors.append(caught.value)
    assert len({(type(error), str(error)) for error in errors}) == 1, errors
    assert (out == 7).all()
    assert_same_bits(given, kept)
    raise errors[0]


@pytest.fixture(params=["general", "prepared"])
def no_backend(request, monkeypatch):
    """What is wrong is found before a backend is called, whether it prepares calls or not."""

    class Untouchable:
        NAME = "untouchable"

        @staticmethod
        def forward(*args):
            raise AssertionError("a backend was called")

        backward = forward
        pack = staticmethod(lambda weights: None)

        @staticmethod
        def prepare(*_, **__):
            return Untouchable.forward if request.param == "prepared" else None

        prepare_backward = prepare

    monkeypatch.setattr(hotloop._core.settings, "current", hotloop._core.settings.Settings(Untouchable, 1))


class Unwilling:
    """Something that looks like an array and raises."""

    def __init__(self, error, **attributes):
        self.error = error
        self.__dict__ |= attributes

    def __array__(self, *args, **keywords):
        raise self.error


def why_numpy_refuses(value):
    try:
        np.asarray(value)
    except Exception as error:
        return str(error)
    raise AssertionError("NumPy takes it")


# The table of bad inputs: what is changed in a call that is right, and the message.

SHAPES = [
    ({"x": ones(4)}, "x: expected (seq_len, batch_size, input_size) or (seq_len, input_size), got 1 dimensions (4,)"),
    (
        {"x": ones(1, 5, 3, 4)},
        "x: expected (seq_len, batch_size, input_size) or (seq_len, input_size), got 4 dimensions (1, 5, 3, 4)",
    ),
    (
        {"x": ones(4), "batch_first": True},
        "x: expected (batch_size, seq_len, input_size) or (seq_len, input_size), got 1 dimensions (4,)",
    ),
    (
        {"x": np.float32(1)},
        "x: expected (seq_len, batch_size, input_size) or (seq_len, input_size), got 0 dimensions ()",
    ),
    ({"x": ones(5, 3, 7)}, "x: expected input_size = 4 (columns of weight_ih), got 7"),
    ({"x": ones(5, 7)}, "x: expected input_size = 4 (columns of weight_ih), got 7"),
    ({"x": ones(0, 3, 4)}, "x: expected seq_len >= 1, got 0"),
    ({"x": ones(0, 4)}, "x: expected seq_len >= 1, got 0"),
    ({"x": ones(3, 0, 4), "batch_first": True}, "x: expected seq_len >= 1, got 0"),
    ({"x": ones(0, 0, 4)}, "x: expected seq_len >= 1, got 0"),
    ({"x": ones(5, 3, 0)}, "x: expected input_size = 4 (columns of weight_ih), got 0"),
    ({"weight_ih": ones()}, "weight_ih: expected 2 dimensions (4*hidden_size, input_size), got 0 ()"),
    ({"weight_ih": ones(4)}, "weight_ih: expected 2 dimensions (4*hidden_size, input_size), got 1 (4,)"),
    ({"weight_hh": ones(1, 24, 6)}, "weight_hh: expected 2 dimensions (4*hidden_size, hidden_size), got 3 (1, 24, 6)"),
    ({"weight_hh": ones(24, 5)}, "weight_hh: expected shape (4*hidden_size, hidden_size) = (24, 6), got (24, 5)"),
    ({"weight_hh": ones(6, 24)}, "weight_hh: expected shape (4*hidden_size, hidden_size) = (24, 6), got (6, 24)"),
    ({"weight_hh": ones(0, 0)}, "weight_hh: expected shape (4*hidden_size, hidden_size) = (24, 6), got (0, 0)"),
    ({"weight_ih": ones(23, 4)}, "weight_ih: expected shape (4*hidden_size, input_size), a multiple of 4, got (23, 4)"),
    ({"weight_ih": ones(24, 0)}, "weight_ih: expected hidden_size >= 1 and input_size >= 1, got shape (24, 0)"),
    ({"weight_ih": ones(0, 4)}, "weight_ih: expected hidden_size >= 1 and input_size >= 1, got shape (0, 4)"),
    ({"bias_ih": ones(6)}, "bias_ih: expected shape (4*hidden_size,) = (24,), got (6,)"),
    ({"bias_ih": ones()}, "bias_ih: expected shape (4*hidden_size,) = (24,), got ()"),
    ({"bias_hh": ones(24, 1)}, "bias_hh: expected shape (4*hidden_size,) = (24,), got (24, 1)"),
    ({"bias_hh": ones(0)}, "bias_hh: expected shape (4*hidden_size,) = (24,), got (0,)"),
    ({"h0": ones()}, "h0: expected shape (batch_size, hidden_size) = (3, 6), got ()"),
    ({"h0": ones(0, 6)}, "h0: expected shape (batch_size, hidden_size) = (3, 6), got (0, 6)"),
    ({"h0": ones(6, 3)}, "h0: expected shape (batch_size, hidden_size) = (3, 6), got (6, 3)"),
    ({"h0": ones(6)}, "h0: expected shape (batch_size, hidden_size) = (3, 6), got (6,)"),
    ({"h0": ones(1, 3, 6)}, "h0: expected shape (batch_size, hidden_size) = (3, 6), got (1, 3, 6)"),
    ({"h0": ones(1, 6)}, "h0: expected shape (batch_size, hidden_size) = (3, 6), got (1, 6)"),
    ({"c0": ones(4, 6)}, "c0: expected shape (batch_size, hidden_size) = (3, 6), got (4, 6)"),
    ({"x": ones(3, 5, 4), "batch_first": True, "h0": ones(5, 6)},
     "h0: expected shape (batch_size, hidden_size) = (3, 6), got (5, 6)"),
    ({"c0": ones(3, 5)}, "c0: expected shape (batch_size, hidden_size) = (3, 6), got (3, 5)"),
    ({"x": ones(5, 4), "h0": ones(1, 6)}, "h0: expected shape (hidden_size,) = (6,), got (1, 6)"),
    ({"x": ones(5, 4), "h0": ones(6), "c0": ones(5)}, "c0: expected shape (hidden_size,) = (6,), got (5,)"),
]  # fmt: skip

SHAPES_BY_CELL = [
    ("rnn_tanh", {"weight_hh": ones(6, 5)},
     "weight_hh: expected shape (hidden_size, hidden_size) = (6, 6), got (6, 5)"),
    ("rnn_relu", {"bias_ih": ones(5)}, "bias_ih: expected shape (hidden_size,) = (6,), got (5,)"),
    ("rnn_tanh", {"weight_ih": ones(4)}, "weight_ih: expected 2 dimensions (hidden_size, input_size), got 1 (4,)"),
    ("gru", {"weight_hh": ones(18, 5)},
     "weight_hh: expected shape (3*hidden_size, hidden_size) = (18, 6), got (18, 5)"),
    ("gru", {"weight_ih": ones(20, 4)},
     "weight_ih: expected shape (3*hidden_size, input_size), a multiple of 3, got (20, 4)"),
    ("gru_reset_before", {"bias_hh": ones(12)}, "bias_hh: expected shape (3*hidden_size,) = (18,), got (12,)"),
    ("gru_reset_before", {"h0": ones(3, 5)}, "h0: expected shape (batch_size, hidden_size) = (3, 6), got (3, 5)"),
]  # fmt: skip

WRONG_TYPES = [
    ({"weight_ih": ones(24, 4, dtype=np.float16)}, "weight_ih: expected float32 or float64, got float16"),
    ({"weight_ih": ones(24, 4, dtype=np.int64)}, "weight_ih: expected float32 or float64, got int64"),
    ({"weight_ih": ones(24, 4, dtype=np.complex64)}, "weight_ih: expected float32 or float64, got complex64"),
    ({"weight_ih": ones(24, 4, dtype=object)}, "weight_ih: expected float32 or float64, got object"),
    ({"weight_ih": ones(24, 4, dtype=">f4")}, "weight_ih: expected float32 or float64, got >f4"),
    ({"weight_ih": "weights"}, "weight_ih: expected float32 or float64, got <U7"),
    ({"weight_ih": ones(24, 4, dtype=np.longdouble)},
     f"weight_ih: expected float32 or float64, got {np.dtype(np.longdouble)}"),
    ({"weight_ih": ones(24, 4, dtype=bool)}, "weight_ih: expected float32 or float64, got bool"),
    ({"weight_ih": np.zeros((24, 4), [("a", "f4")])}, "weight_ih: expected float32 or float64, got [('a', '<f4')]"),
    ({"weight_ih": torch.ones(24, 4, dtype=torch.bfloat16)}, "weight_ih: expected float32 or float64, got bfloat16"),
    ({"weight_ih": torch.ones(24, 4, dtype=torch.float16)}, "weight_ih: expected float32 or float64, got float16"),
    ({"weight_ih": None}, "weight_ih: expected an array, got None"),
    *(
        ({name: ones(3, dtype=np.float64)}, f"{name}: expected float32 (the dtype of weight_ih), got float64")
        for name in ("x", "weight_hh", "bias_ih", "bias_hh", "h0", "c0")
    ),
    ({"x": ones(5, 3, 4, dtype=">f4")}, "x: expected float32 (the dtype of weight_ih), got >f4"),
    ({"x": ones(5, 3, 4, dtype=object)}, "x: expected float32 (the dtype of weight_ih), got object"),
    *(({"x": ones(5, 3, 4, dtype=dtype)}, f"x: expected float32 (the dtype of weight_ih), got {np.dtype(dtype)}")
      for dtype in (np.float16, np.longdouble, np.int8, np.int64, np.uint32, bool, np.complex64, "M8[s]", "S1")),
    *(({name: ones(3, dtype=">f4")}, f"{name}: expected float32 (the dtype of weight_ih), got >f4")
      for name in ("weight_hh", "bias_ih", "bias_hh", "h0", "c0")),
    *(({name: ones(3, dtype=object)}, f"{name}: expected float32 (the dtype of weight_ih), got object")
      for name in ("weight_hh", "bias_ih", "bias_hh", "h0", "c0")),
    ({"x": torch.ones(5, 3, 4, dtype=torch.bfloat16)}, "x: expected float32 (the dtype of weight_ih), got bfloat16"),
    ({"h0": torch.ones(3, 6, dtype=torch.int32)}, "h0: expected float32 (the dtype of weight_ih), got int32"),
    ({"h0": {"h": 1}}, "h0: expected float32 (the dtype of weight_ih), got object"),
    ({"c0": "c0"}, "c0: expected float32 (the dtype of weight_ih), got <U2"),
    ({"bias_ih": 0}, "bias_ih: expected float32 (the dtype of weight_ih), got int64"),
    ({"x": [[[1.0] * 4] * 3] * 5}, "x: expected float32 (the dtype of weight_ih), got float64"),
    ({"x": None}, "x: expected an array, got None"),
    *(
        (
            {name: np.ma.masked_array(np.ones(shape, np.float32), False)},
            f"{name}: expected an array without a mask, got a masked array; pass {name}.filled(...)",
        )
        for name, shape in (("x", (5, 3, 4)), ("weight_hh", (24, 6)), ("bias_ih", 24), ("c0", (3, 6)))
    ),
]  # fmt: skip

RAGGED = [[1.0], [1.0, 2.0]]
NO_ARRAYS = [
    ({"x": RAGGED}, f"x: expected an array, got list: {why_numpy_refuses(RAGGED)}"),
    ({"h0": tuple(RAGGED)}, f"h0: expected an array, got tuple: {why_numpy_refuses(RAGGED)}"),
    ({"x": Unwilling(AttributeError("no such buffer"))}, "x: expected an array, got Unwilling: no such buffer"),
    ({"x": Unwilling(RuntimeError("gone"), dtype=np.dtype(np.float32))}, "x: expected an array, got Unwilling: gone"),
    ({"x": Unwilling(TypeError("no"), dtype="float16")}, "x: expected float32 (the dtype of weight_ih), got float16"),
    ({"x": Unwilling(TypeError("no"), device="cuda:1")},
     "x: expected an array in the processor's memory, got a Unwilling on device cuda:1; pass x.cpu()"),
    *(({name: torch.ones(3, device="meta")},
       f"{name}: expected an array in the processor's memory, got a Tensor on device meta; pass {name}.cpu()")
      for name in ("x", *PARAMETERS, "h0", "c0")),
    ({"x": torch.ones(5, 4).to_sparse()},
     f"x: expected an array, got Tensor: {why_numpy_refuses(torch.ones(5, 4).to_sparse())}"),
    *(({name: torch.ones(3, requires_grad=True)},
       f"{name}: expected an array without gradient tracking, got a tensor that requires grad; pass {name}.detach()")
      for name in ("x", *PARAMETERS, "h0", "c0")),
    ({"h0": torch.ones(3, 6, dtype=torch.float64, requires_grad=True)},
     "h0: expected an array without gradient tracking, got a tensor that requires grad; pass h0.detach()"),
]  # fmt: skip

FLAGS = [
    *(({name: value}, f"{name}: expected True or False, got {value!r}")
      for name in ("batch_first", "reverse") for value in (None, "no", 2, -1, 1.0, np.array([True, False]), [])),
]  # fmt: skip


def strided(*strides, shape=(5, 3, 4)):
    """An array with these strides, over memory enough for small ones; it is only looked at, never read."""
    return as_strided(ones(200)[90:], shape=shape, strides=strides)


SPAN = f"expected strides that span at most {MOST} bytes, got"
OVERFLOWING_STRIDES = [
    ({"x": strided(2**62, 16, 4)}, f"x: {SPAN} ({2**62}, 16, 4) for (5, 3, 4)"),
    ({"x": strided(-(2**62), 16, 4)}, f"x: {SPAN} ({-(2**62)}, 16, 4) for (5, 3, 4)"),
    ({"x": strided(48, 2**63 - 4, 4)}, f"x: {SPAN} (48, {2**63 - 4}, 4) for (5, 3, 4)"),
    ({"x": strided(48, -(2**63), 4)}, f"x: {SPAN} (48, {-(2**63)}, 4) for (5, 3, 4)"),
    ({"x": strided(48, 16, 2**62)}, f"x: {SPAN} (48, 16, {2**62}) for (5, 3, 4)"),
    ({"x": strided(2**53, 16, 4)}, f"x: {SPAN} ({2**53}, 16, 4) for (5, 3, 4)"),
    ({"x": strided(2**62, 4, shape=(5, 4))}, f"x: {SPAN} ({2**62}, 4) for (5, 4)"),
    ({"x": strided(2**62, 48, 4, shape=(3, 5, 4)), "batch_first": True}, f"x: {SPAN} ({2**62}, 48, 4) for (3, 5, 4)"),
    ({"weight_ih": strided(2**60, 4, shape=(24, 4))}, f"weight_ih: {SPAN} ({2**60}, 4) for (24, 4)"),
    ({"weight_hh": strided(24, 2**61, shape=(24, 6))}, f"weight_hh: {SPAN} (24, {2**61}) for (24, 6)"),
    ({"bias_ih": strided(2**60, shape=(24,))}, f"bias_ih: {SPAN} ({2**60},) for (24,)"),
    ({"bias_hh": strided(-(2**60), shape=(24,))}, f"bias_hh: {SPAN} ({-(2**60)},) for (24,)"),
    ({"h0": strided(2**62, 4, shape=(3, 6))}, f"h0: {SPAN} ({2**62}, 4) for (3, 6)"),
    ({"c0": strided(24, 2**62, shape=(3, 6))}, f"c0: {SPAN} (24, {2**62}) for (3, 6)"),
]

BYTES = f"expected at most {MOST} bytes, got shape"
RESULTS = f"x: expected sizes whose results have at most {MOST} bytes, got seq_len, batch_size, hidden_size ="
TOO_LARGE = [
    ({"x": strided(0, 0, 4, shape=(2**58, 1, 4))}, f"x: {BYTES} ({2**58}, 1, 4) of float32"),
    ({"x": strided(0, 0, 4, shape=(1, 2**58, 4))}, f"x: {BYTES} (1, {2**58}, 4) of float32"),
    ({"x": strided(0, 0, 4, shape=(2**28, 2**28, 4))}, f"x: {BYTES} ({2**28}, {2**28}, 4) of float32"),
    ({"x": strided(0, 4, shape=(2**52, 4))}, f"x: {BYTES} ({2**52}, 4) of float32"),
    ({"x": strided(0, 0, 4, shape=(2**51, 1, 4))}, f"{RESULTS} {2**51}, 1, 6"),
    ({"x": strided(0, 0, 4, shape=(1, 2**51, 4)), "h0": ones(3, 6)}, f"{RESULTS} 1, {2**51}, 6"),
    ({"x": strided(0, 0, 4, shape=(2**25, 2**26, 4)), "batch_first": True}, f"{RESULTS} {2**26}, {2**25}, 6"),
    ({"weight_ih": strided(0, 0, shape=(4 * 2**50, 4))}, f"weight_ih: {BYTES} ({2**52}, 4) of float32"),
    ({"weight_hh": strided(0, 0, shape=(24, 2**50))}, f"weight_hh: {BYTES} (24, {2**50}) of float32"),
    ({"bias_ih": strided(0, shape=(2**54,))}, f"bias_ih: {BYTES} ({2**54},) of float32"),
    ({"h0": strided(0, 0, shape=(2**27, 2**28))}, f"h0: {BYTES} ({2**27}, {2**28}) of float32"),
]


BAD_INPUTS = [
    *((ValueError, CASE.cell, change, message) for change, message in SHAPES),
    *((ValueError, cell, change, message) for cell, change, message in SHAPES_BY_CELL),
    *((TypeError, CASE.cell, change, message) for change, message in WRONG_TYPES + NO_ARRAYS + FLAGS),
    *((ValueError, CASE.cell, change, message) for change, message in OVERFLOWING_STRIDES),
    *((MemoryError, CASE.cell, change, message) for change, message in TOO_LARGE),
]


@pytest.mark.parametrize(
    ("error", "cell", "change", "message"),
    BAD_INPUTS,
    ids=[f"{cell}-{number}-{message[:70]}" for number, (_, cell, _, message) in enumerate(BAD_INPUTS)],
)
@pytest.mark.usefixtures("no_backend")
def test_bad_input(error, cell, change, message):
    with raises(error, message):
        call(Case(cell, "float32", 5, 3, 4, 6), change)


def test_the_table_is_long():
    assert len(BAD_INPUTS) + len(BAD_OUT) + len(BAD_UPSTREAM) >= 180


@pytest.mark.usefixtures("no_backend")
def test_memory_errors_of_the_input_pass():
    """No memory for np.asarray is no wrong type."""
    with raises(MemoryError, "no memory"):
        call(CASE, {"x": Unwilling(MemoryError("no memory"))})


@pytest.mark.usefixtures("no_backend")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_saved_gates_that_cannot_be_counted(cell):
    """The output could be counted, its gates could not: said before NumPy has to."""
    gates = {"lstm": 4, "gru": 3}[cell]
    x = np.broadcast_to(np.float32(0), (2**26, 2**26, 1))
    weights = np.zeros((gates, 1), np.float32), np.zeros((gates, 1), np.float32)
    message = (
        f"x: expected sizes whose results have at most {2**55} bytes, got seq_len, batch_size, hidden_size = "
        f"{2**26}, {2**26}, 1"
    )
    with raises(MemoryError, message):
        getattr(hotloop, f"{cell}_vjp")(x, *weights)


def test_arguments_of_other_cells():
    for cell in ("rnn_tanh", "rnn_relu", "gru", "gru_reset_before"):
        name = cell.split("_")[0]
        for function in functions(cell)[:2]:
            with pytest.raises(TypeError, match=rf"{name}(_vjp)?\(\) got an unexpected keyword argument 'c0'"):
                function(ones(5, 3, 4), ones(18, 4), ones(18, 6), c0=ones(3, 6))


# out=


def sharing(name, shape, skip):
    """A change in which `out` begins in the last element (skip 1), or the first (0), of the argument of that name."""
    size = int(np.prod(shape))
    memory = ones(size + 90)
    start = (size - 1) * skip
    return {name: memory[:size].reshape(shape), "out": memory[start : start + 90].reshape(5, 3, 6)}


BAD_OUT = [
    (TypeError, {"out": [[0.0]]}, "out: expected a numpy array, got list"),
    (TypeError, {"out": torch.ones(5, 3, 6)}, "out: expected a numpy array, got Tensor"),
    (TypeError, {"out": memoryview(ones(5, 3, 6))}, "out: expected a numpy array, got memoryview"),
    (TypeError, {"out": 0.0}, "out: expected a numpy array, got float"),
    (TypeError, {"out": True}, "out: expected a numpy array, got bool"),
    (TypeError, {"out": np.float32(0)}, "out: expected a numpy array, got float32"),
    (TypeError, {"out": np.ma.masked_array(ones(5, 3, 6), False)},
     "out: expected an array without a mask, got a masked array"),
    *((TypeError, {"out": ones(5, 3, 6, dtype=dtype)}, f"out: expected float32 (the dtype of weight_ih), got {name}")
      for dtype, name in ((np.float64, "float64"), (np.float16, "float16"), (np.int32, "int32"), (">f4", ">f4"),
                          (object, "object"), (np.complex64, "complex64"))),
    *((ValueError, {"out": ones(*shape)},
       f"out: expected shape (seq_len, batch_size, hidden_size) = (5, 3, 6), got {shape}")
      for shape in ((5, 3, 7), (5, 6), (3, 5, 6), (6, 3, 6), (5, 3, 1), (1, 5, 3, 6), (90,), ())),
    (ValueError, {"x": ones(3, 5, 4), "batch_first": True, "out": ones(5, 3, 6)},
     "out: expected shape (batch_size, seq_len, hidden_size) = (3, 5, 6), got (5, 3, 6)"),
    (ValueError, {"x": ones(5, 4), "h0": ones(6), "c0": ones(6), "out": ones(5, 1, 6)},
     "out: expected shape (seq_len, hidden_size) = (5, 6), got (5, 1, 6)"),
    (ValueError, {"x": ones(5, 0, 4), "h0": ones(0, 6), "c0": ones(0, 6), "out": ones(5, 1, 6)},
     "out: expected shape (seq_len, batch_size, hidden_size) = (5, 0, 6), got (5, 1, 6)"),
    (ValueError, {"out": np.frombuffer(bytes(360), np.float32).reshape(5, 3, 6)},
     "out: expected a writeable array, got a read-only one"),
    (ValueError, {"out": np.broadcast_to(ones(6), (5, 3, 6))}, "out: expected a writeable array, got a read-only one"),
    *((ValueError, {"out": strided(*strides, shape=(5, 3, 6))},
       f"out: expected every element at a place of its own, got strides {strides}")
      for strides in ((0, 0, 4), (0, 24, 4), (72, 0, 4), (72, 24, 0), (72, 20, 4), (24, 24, 4), (-72, -20, 4),
                      (4, 24, 8), (60, 24, 4), (72, 24, 2), (4, 12, 4))),
    (ValueError, {"out": strided(2**62, 24, 4, shape=(5, 3, 6))}, f"out: {SPAN} ({2**62}, 24, 4) for (5, 3, 6)"),
    (ValueError, {"out": strided(72, 24, -(2**62), shape=(5, 3, 6))},
     f"out: {SPAN} (72, 24, {-(2**62)}) for (5, 3, 6)"),
    *((ValueError, sharing(name, shape, skip), f"out: expected memory of its own, got memory it shares with {name}")
      for name, shape in (("x", (5, 3, 4)), ("weight_ih", (24, 4)), ("weight_hh", (24, 6)), ("bias_ih", (24,)),
                          ("bias_hh", (24,)), ("h0", (3, 6)), ("c0", (3, 6))) for skip in (0, 1)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "change", "message"), BAD_OUT, ids=[f"{n}-{m[:70]}" for n, (_, _, m) in enumerate(BAD_OUT)]
)
@pytest.mark.usefixtures("no_backend")
def test_bad_out(error, change, message):
    """Refused before a backend is called, and left as it is."""
    (x, weight_ih, weight_hh), keywords = arguments(CASE, CASE.data())
    keywords |= {"x": x, "weight_ih": weight_ih, "weight_hh": weight_hh} | change
    out = change["out"]
    in_memory = isinstance(out, np.ndarray) and max(map(abs, out.strides), default=0) < 2**32
    before = out.copy() if in_memory else None
    with raises(error, message):
        hotloop.lstm(**keywords)
    if in_memory:
        np.testing.assert_array_equal(out, before)


@pytest.mark.usefixtures("no_backend")
def test_out_that_is_an_argument_seen_otherwise():
    """The same memory in another order, as another type, or in part."""
    message = "out: expected memory of its own, got memory it shares with x"
    square = {"weight_ih": ones(24, 6), "weight_hh": ones(24, 6)}
    x = ones(5, 3, 6)
    for out in (x, x[::-1], x[:, ::-1, ::-1], x.view(np.int32).view(np.float32)):
        with raises(ValueError, message):
            hotloop.lstm(x, **square, out=out)
    with raises(ValueError, message):
        hotloop.lstm(x.transpose(1, 0, 2), **square, batch_first=True, out=x.transpose(1, 0, 2))
    with raises(ValueError, message):  # features apart: x is copied, out is written at the end
        wide = ones(5, 3, 12)
        hotloop.lstm(wide[..., ::2], **square, out=wide[..., 5:11])
    with raises(ValueError, message):
        hotloop.lstm(torch.from_numpy(x), **square, out=x)


@pytest.mark.parametrize("columns_first", [False, True])
@pytest.mark.parametrize("name", ["x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "c0"])
@pytest.mark.usefixtures("no_backend")
def test_out_in_the_memory_of_an_argument_that_is_copied(name, columns_first):
    """The library reads a copy, and the caller's array would change all the same."""
    (x, weight_ih, weight_hh), keywords = arguments(CASE, CASE.data())
    keywords |= {"x": x, "weight_ih": weight_ih, "weight_hh": weight_hh}
    shape = keywords[name].shape
    memory = ones(400)
    size = int(np.prod(shape))
    inner = memory[:size].reshape(shape[::-1]).T if columns_first else memory[:size].reshape(shape)[..., ::-1]
    out = memory[size - 1 :][:90].reshape(5, 3, 6)
    with raises(ValueError, f"out: expected memory of its own, got memory it shares with {name}"):
        hotloop.lstm(**keywords | {name: inner}, out=out)
    odd = np.frombuffer(bytearray(1701), np.uint8)[1:].view(np.float32)
    with raises(ValueError, f"out: expected memory of its own, got memory it shares with {name}"):
        hotloop.lstm(**keywords | {name: odd[:size].reshape(shape)}, out=odd[:90].reshape(5, 3, 6))


@pytest.mark.usefixtures("no_backend")
def test_out_that_may_share_memory(poisoned, monkeypatch):
    """Where NumPy gives up finding out, it is refused."""

    def too_hard(*args, **keywords):
        raise RuntimeError("Exceeded max_work")

    poisoned.shares_memory = too_hard
    monkeypatch.setattr(checks, "np", poisoned)
    with raises(ValueError, "out: expected memory of its own, got memory it shares with x"):
        memory = ones(5, 3, 10)  # which the two share without an element in common
        hotloop.lstm(memory[..., :4], ones(24, 4), ones(24, 6), out=memory[..., 4:])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("no_backend")
def test_training_takes_no_out(cell):
    """vjp reads the output: it is the library's."""
    case = Case(cell, "float32")
    (x, weight_ih, weight_hh), _ = arguments(case, case.data())
    with pytest.raises(TypeError, match="unexpected keyword argument 'out'"):
        functions(cell)[1](x, weight_ih, weight_hh, out=ones(5, 3, 6))


# Options


@pytest.mark.usefixtures("no_backend")
def test_options():
    for value in (None, 2, "after"):
        with raises(TypeError, f"reset_after: expected True or False, got {value!r}"):
            call(Case("gru", "float32"), {}, reset_after=value)
    for value in ("sigmoid", "TANH", None, ["tanh"]):
        with raises(ValueError, f"nonlinearity: expected 'tanh' or 'relu', got {value!r}"):
            call(Case("rnn_tanh", "float32"), {}, nonlinearity=value)


def test_flags_of_other_types(variant):
    """0 and 1, and NumPy's own, are as good as False and True."""
    data = CASE.data()
    inputs = {name: data[name] for name in ("x", *PARAMETERS)}
    for no, yes in ((0, 1), (np.False_, np.True_), (np.int64(0), np.int8(1))):
        for option in ("reverse", "batch_first"):
            for value, same in ((no, False), (yes, True)):
                assert np.array_equal(hotloop.lstm(**inputs, **{option: value})[0],
                                      hotloop.lstm(**inputs, **{option: same})[0])  # fmt: skip


@pytest.mark.parametrize("value", ["2", True, False, 2.0, np.True_, [1]])
@pytest.mark.usefixtures("no_backend")
def test_threads_of_a_wrong_type(value):
    message = f"threads: expected an integer >= 1, got {value!r}"
    with raises(TypeError, message):
        call(CASE, {}, threads=value)
    with raises(TypeError, message):
        hotloop.set_num_threads(value)


@pytest.mark.parametrize("value", [0, -1, np.int64(0)])
@pytest.mark.usefixtures("no_backend")
def test_too_few_threads(value):
    before = hotloop.get_num_threads()
    message = f"threads: expected an integer >= 1, got {value}"
    with raises(ValueError, message):
        call(CASE, {}, threads=value)
    with raises(ValueError, message):
        hotloop.set_num_threads(value)
    assert hotloop.get_num_threads() == before


def test_set_num_threads():
    before = hotloop.get_num_threads()
    try:
        for value in (1, np.int32(3), 7):
            hotloop.set_num_threads(value)
            assert hotloop.get_num_threads() == hotloop.info().threads == value
    finally:
        hotloop.set_num_threads(before)
    with raises(TypeError, "threads: expected an integer >= 1, got None"):
        hotloop.set_num_threads(None)


def test_many_threads_are_no_error(variant):
    (x, weight_ih, weight_hh), _ = arguments(CASE, CASE.data())
    few, _ = hotloop.lstm(x, weight_ih, weight_hh, threads=1)
    for threads in (1000, 2**31, 2**70):
        many, _ = hotloop.lstm(x, weight_ih, weight_hh, threads=threads)
        assert np.array_equal(many, few)


# Upstream gradients and wrt


def vjp_of(case):
    return start_training(case)[1]


LSTM_FIELDS = "('x', 'weight_ih', 'weight_hh', 'bias_ih', 'bias_hh', 'h0', 'c0', 'weight_hr')"
GRU_FIELDS = "('x', 'weight_ih', 'weight_hh', 'bias_ih', 'bias_hh', 'h0')"


BAD_UPSTREAM = [
    (ValueError, {}, {"grad_output": ones(5, 3, 4)},
     "grad_output: expected shape (seq_len, batch_size, hidden_size) = (5, 3, 6), got (5, 3, 4)"),
    (ValueError, {}, {"grad_output": ones()},
     "grad_output: expected shape (seq_len, batch_size, hidden_size) = (5, 3, 6), got ()"),
    (ValueError, {}, {"grad_output": ones(3, 6)},
     "grad_output: expected shape (seq_len, batch_size, hidden_size) = (5, 3, 6), got (3, 6)"),
    (ValueError, {"layout": "batch_first"}, {"grad_output": ones(5, 3, 6)},
     "grad_output: expected shape (batch_size, seq_len, hidden_size) = (3, 5, 6), got (5, 3, 6)"),
    (ValueError, {"layout": "unbatched"}, {"grad_output": ones(5, 1, 6)},
     "grad_output: expected shape (seq_len, hidden_size) = (5, 6), got (5, 1, 6)"),
    (ValueError, {}, {"grad_output": strided(2**62, 24, 4, shape=(5, 3, 6))},
     f"grad_output: {SPAN} ({2**62}, 24, 4) for (5, 3, 6)"),
    (ValueError, {}, {"grad_h_n": ones(6)}, "grad_h_n: expected shape (batch_size, hidden_size) = (3, 6), got (6,)"),
    (ValueError, {}, {"grad_h_n": ones(1, 3, 6)},
     "grad_h_n: expected shape (batch_size, hidden_size) = (3, 6), got (1, 3, 6)"),
    (ValueError, {}, {"grad_h_n": strided(2**62, 4, shape=(3, 6))}, f"grad_h_n: {SPAN} ({2**62}, 4) for (3, 6)"),
    (ValueError, {}, {"grad_c_n": ones(3, 1)},
     "grad_c_n: expected shape (batch_size, hidden_size) = (3, 6), got (3, 1)"),
    (ValueError, {"layout": "unbatched"}, {"grad_h_n": ones(5)},
     "grad_h_n: expected shape (hidden_size,) = (6,), got (5,)"),
    (ValueError, {"layout": "unbatched"}, {"grad_c_n": ones(3)},
     "grad_c_n: expected shape (hidden_size,) = (6,), got (3,)"),
    (ValueError, {}, {"wrt": ["x", "weights"]}, f"wrt: expected names among {LSTM_FIELDS}, got ['weights']"),
    (ValueError, {}, {"wrt": "h_0"}, f"wrt: expected names among {LSTM_FIELDS}, got ['h_0']"),
    (ValueError, {}, {"wrt": [0, None]}, f"wrt: expected names among {LSTM_FIELDS}, got [0, None]"),
    (ValueError, {"cell": "gru"}, {"wrt": ["c0"]}, f"wrt: expected names among {GRU_FIELDS}, got ['c0']"),
    *((TypeError, {}, {"wrt": value}, f"wrt: expected a name or an iterable of names, got {value!r}")
      for value in (1, True, np.float32(1))),
    *((TypeError, {}, {name: value}, f"{name}: {message}")
      for name in ("grad_output", "grad_h_n", "grad_c_n") for value, message in (
        (ones(3, dtype=np.float64), "expected float32 (the dtype of weight_ih), got float64"),
        (ones(3, dtype=">f4"), "expected float32 (the dtype of weight_ih), got >f4"),
        (ones(3, dtype=object), "expected float32 (the dtype of weight_ih), got object"),
        (torch.ones(3, dtype=torch.bfloat16), "expected float32 (the dtype of weight_ih), got bfloat16"),
        (RAGGED, f"expected an array, got list: {why_numpy_refuses(RAGGED)}"),
        (torch.ones(3, device="meta"),
         f"expected an array in the processor's memory, got a Tensor on device meta; pass {name}.cpu()"),
        (torch.ones(3, requires_grad=True),
         "expected an array without gradient tracking, got a tensor that requires grad; "
         f"pass {name}.detach()"),
        (np.ma.masked_array(ones(3), False),
         f"expected an array without a mask, got a masked array; pass {name}.filled(...)"),
      )),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "options", "upstream", "message"),
    BAD_UPSTREAM,
    ids=[f"{number}-{message[:70]}" for number, (_, _, _, message) in enumerate(BAD_UPSTREAM)],
)
def test_bad_upstream(error, options, upstream, message, variant):
    """Refused, and the next call gets its gradients all the same."""
    case = Case(**{"cell": "lstm", "dtype": "float32"} | options)
    vjp = vjp_of(case)
    with raises(error, message):
        vjp(**upstream)
    assert np.isfinite(vjp(grad_h_n=ones(*([6] if case.layout == "unbatched" else [3, 6]))).x).all()


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "gru"])
def test_cells_without_c_have_no_gradient_of_it(cell, variant):
    with pytest.raises(TypeError, match="grad_c_n"):
        vjp_of(Case(cell, "float32"))(grad_c_n=ones(3, 6))


def test_the_output_of_training_is_read_only(variant):
    """backward reads it; a write in between would silently give wrong gradients."""
    results, _ = start_training(CASE)
    with pytest.raises(ValueError, match="read-only"):
        results["output"][0, 0, 0] = 1


# What may be passed


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_taken_without_a_copy(dtype, variant):
    case = Case("lstm", dtype)
    data = case.data()
    tensors = {name: torch.tensor(array) for name, array in data.items()}
    weights = checks.check_weights(case.constants, *(tensors[name] for name in PARAMETERS))
    for name in PARAMETERS:
        assert weights.named[name].ctypes.data == tensors[name].data_ptr(), name
    args = make_forward(weights, tensors["x"], tensors["h0"], tensors["c0"], training=False)
    for name in ("x", "h0", "c0"):
        assert getattr(args, name).ctypes.data == tensors[name].data_ptr(), name
    inputs = [n for n in tensors if not n.startswith("grad_")]
    output, _ = hotloop.lstm(**{name: tensors[name] for name in inputs})
    want, _ = hotloop.lstm(**{name: data[name] for name in inputs})
    assert type(output) is np.ndarray
    assert np.array_equal(output, want)
    with torch.no_grad():  # a parameter's detached view shares its memory too
        parameter = torch.nn.Parameter(tensors["weight_ih"])
    assert arrays.as_array("weight_ih", parameter.detach()).ctypes.data == parameter.data_ptr()


def test_time_and_batch_strides_are_taken_without_a_copy():
    weights = checks.check_weights(CASE.constants, *(CASE.data()[name] for name in PARAMETERS))
    x = ones(3, 10, 4)[:, ::-2]
    taken, _ = checks.check_sequence(x, weights.input_size, weights.dtype, batch_first=True, flat=False)
    assert np.shares_memory(taken, x)


def test_sequences_and_array_interfaces_are_taken(variant):
    """Nested lists are float64 in NumPy, so they are welcome where the call is in float64."""
    case = Case("gru")
    (x, weight_ih, weight_hh), _ = arguments(case, case.data())
    want, _ = hotloop.gru(x, weight_ih, weight_hh)
    for kind in (np.ndarray.tolist, memoryview):
        got, _ = hotloop.gru(kind(x), kind(weight_ih), kind(weight_hh))
        assert type(got) is np.ndarray
        assert np.array_equal(got, want)


# Environment variables, in fresh interpreters


def last_line(done):
    return done.stderr.strip().splitlines()[-1]


def test_unknown_backend(run_python):
    for value in ("cuda", "Native", " native"):
        done = run_python("import hotloop", check=False, HOTLOOP_BACKEND=value)
        assert done.returncode == 1
        expected = ", ".join(hotloop._backends.choice.ORDER)
        assert last_line(done) == f"ValueError: HOTLOOP_BACKEND: expected one of {expected}, got {value!r}"


def test_backend_by_name(run_python, best_isa):
    code = "import hotloop; i = hotloop.info(); print(i.backend, i.not_in_use)"
    for value, output in [
        ("native", "native {}"),
        ("", "native {}"),
        ("numpy", "numpy {'native': 'HOTLOOP_BACKEND=numpy', 'numba': 'HOTLOOP_BACKEND=numpy'}"),
    ]:
        done = run_python(code, HOTLOOP_BACKEND=value)
        assert done.stdout.strip() == output
        assert done.stderr == ""  # what was asked for is no reason to warn


def test_unknown_isa(run_python, best_isa):
    known = ", ".join(hotloop.info().isas)
    for value in ("sse9", "AVX2", "avx2 ", "neon"):
        done = run_python("import hotloop", check=False, HOTLOOP_ISA=value)
        assert done.returncode == 1
        assert last_line(done) == f"ValueError: HOTLOOP_ISA: expected one of {known}, got {value!r}"


def test_isa_that_is_unknown_to_the_switch(best_isa):
    from hotloop._backends import native as _native

    with raises(ValueError, f"isa: expected one of {', '.join(_native.isas())}, got 'sse9'"):
        _native.use_isa("sse9")
    assert _native.description() == best_isa


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "00", "\N{ARABIC-INDIC DIGIT TWO}", " 2"])
def test_bad_number_of_threads(run_python, value):
    code = "import hotloop; hotloop.get_num_threads()"
    done = run_python(code, check=False, HOTLOOP_NUM_THREADS=value, HOTLOOP_BACKEND="numpy", PYTHONIOENCODING="utf-8")
    assert done.returncode == 1
    assert last_line(done) == f"ValueError: HOTLOOP_NUM_THREADS: expected an integer >= 1, got {value!r}"


def test_number_of_threads(run_python):
    code = "import hotloop; print(hotloop.get_num_threads(), hotloop.info().threads)"
    assert run_python(code, HOTLOOP_NUM_THREADS="3", HOTLOOP_BACKEND="numpy").stdout.split() == ["3", "3"]
    everything = str(hotloop._core.settings.processors())
    for value in ({}, {"HOTLOOP_NUM_THREADS": ""}):
        assert run_python(code, HOTLOOP_BACKEND="numpy", **value).stdout.split() == [everything] * 2


SCRIPT = """
import sys
sys.argv = ["/somewhere/bin/hotloop", *sys.argv[1:]]
from hotloop.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("HOTLOOP_BACKEND", "cuda", f"expected one of {', '.join(hotloop._backends.choice.ORDER)}"),
        ("HOTLOOP_ISA", "sse9", "expected one of {isas}"),
        ("HOTLOOP_NUM_THREADS", "none", "expected an integer >= 1"),
        ("HOTLOOP_RECYCLE_MIB", "-1", "expected an integer >= 0"),
    ],
)
def test_the_command_says_it_in_one_line(run_python, best_isa, variable, value, rule):
    """No traceback above the message, and the exit status of a wrong use; so does `python -m hotloop.cli`."""
    rule = rule.format(isas=", ".join(hotloop.info().isas))
    expected = (2, "", f"hotloop: {variable}: {rule}, got {value!r}\n")
    done = run_python(SCRIPT, "info", check=False, **{variable: value})
    assert (done.returncode, done.stdout, done.stderr) == expected
    env = {name: text for name, text in os.environ.items() if not name.startswith("HOTLOOP_")}
    command = [sys.executable, "-m", "hotloop.cli", "info"]
    done = subprocess.run(command, env=env | {variable: value}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == expected


def test_the_command_without_the_backend_asked_for(run_python):
    code = "import sys; sys.modules['hotloop._ffi'] = None\n" + SCRIPT
    done = run_python(code, "info", check=False, HOTLOOP_BACKEND="native")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"hotloop: HOTLOOP_BACKEND=native: there is no native module in .*\n", done.stderr)
