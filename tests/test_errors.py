"""Every message, word for word: it names the argument, the rule and both values. And nothing is half-written."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from cases import CELLS, DTYPES, PARAMETERS, Case, arguments, functions, start_training

import hotloop
import hotloop._backend
from hotloop import _contract

CASE = Case("lstm", "float32", seq_len=5, batch_size=3, input_size=4, hidden_size=6)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def call(case, change, **options):
    """Call inference and training with some arguments changed; both must raise the same error, which is raised here."""
    (x, weight_ih, weight_hh), keywords = arguments(case, case.data())
    keywords |= {"x": x, "weight_ih": weight_ih, "weight_hh": weight_hh} | change | options
    infer, train, extra = functions(case.cell)
    errors = []
    for function in (infer, train):
        with pytest.raises((TypeError, ValueError, NotImplementedError)) as caught:
            function(**extra | keywords)
        errors.append(caught.value)
    assert (type(errors[0]), str(errors[0])) == (type(errors[1]), str(errors[1]))
    raise errors[0]


def raises(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture
def no_backend(monkeypatch):
    """What is wrong is found before a backend is called."""

    class Untouchable:
        NAME = "untouchable"

        @staticmethod
        def forward(*args):
            raise AssertionError("a backend was called")

        backward = pack = forward

    monkeypatch.setattr(hotloop._backend, "_active", Untouchable)


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
    ({"x": ones(5, 3, 7)}, "x: expected input_size = 4 (columns of weight_ih), got 7"),
    ({"x": ones(5, 7)}, "x: expected input_size = 4 (columns of weight_ih), got 7"),
    ({"x": ones(0, 3, 4)}, "x: expected seq_len >= 1, got 0"),
    ({"x": ones(0, 4)}, "x: expected seq_len >= 1, got 0"),
    ({"x": ones(3, 0, 4), "batch_first": True}, "x: expected seq_len >= 1, got 0"),
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
    ({"h0": ones(6)}, "h0: expected shape (batch_size, hidden_size) = (3, 6), got (6,)"),
    ({"h0": ones(1, 3, 6)}, "h0: expected shape (batch_size, hidden_size) = (3, 6), got (1, 3, 6)"),
    ({"h0": ones(1, 6)}, "h0: expected shape (batch_size, hidden_size) = (3, 6), got (1, 6)"),
    ({"c0": ones(3, 5)}, "c0: expected shape (batch_size, hidden_size) = (3, 6), got (3, 5)"),
    ({"x": ones(5, 4), "h0": ones(1, 6)}, "h0: expected shape (hidden_size,) = (6,), got (1, 6)"),
    ({"x": ones(5, 4), "h0": ones(6), "c0": ones(5)}, "c0: expected shape (hidden_size,) = (6,), got (5,)"),
]


@pytest.mark.parametrize(("change", "message"), SHAPES, ids=[message for _, message in SHAPES])
@pytest.mark.usefixtures("no_backend")
def test_shapes(change, message):
    with raises(ValueError, message):
        call(CASE, change)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("rnn_tanh", "weight_hh: expected shape (hidden_size, hidden_size) = (6, 6), got (6, 5)"),
        ("gru", "weight_hh: expected shape (3*hidden_size, hidden_size) = (18, 6), got (18, 5)"),
    ],
)
@pytest.mark.usefixtures("no_backend")
def test_shapes_by_gates(cell, message):
    case = Case(cell, "float32")
    with raises(ValueError, message):
        call(case, {"weight_hh": ones(case.rows, 5)})


DTYPE_ERRORS = [
    ({"weight_ih": ones(24, 4, dtype=np.float16)}, "weight_ih: expected float32 or float64, got float16"),
    ({"weight_ih": ones(24, 4, dtype=np.int64)}, "weight_ih: expected float32 or float64, got int64"),
    ({"weight_ih": ones(24, 4, dtype=np.complex64)}, "weight_ih: expected float32 or float64, got complex64"),
    ({"weight_ih": ones(24, 4, dtype=object)}, "weight_ih: expected float32 or float64, got object"),
    ({"weight_ih": ones(24, 4, dtype=">f4")}, "weight_ih: expected float32 or float64, got >f4"),
    ({"weight_ih": "weights"}, "weight_ih: expected float32 or float64, got <U7"),
    ({"weight_ih": None}, "weight_ih: expected an array, got None"),
    *(
        ({name: ones(3, dtype=np.float64)}, f"{name}: expected float32 (the dtype of weight_ih), got float64")
        for name in ("x", "weight_hh", "bias_ih", "bias_hh", "h0", "c0")
    ),
    ({"x": ones(5, 3, 4, dtype=">f4")}, "x: expected float32 (the dtype of weight_ih), got >f4"),
    ({"x": ones(5, 3, 4, dtype=object)}, "x: expected float32 (the dtype of weight_ih), got object"),
    ({"x": [[[1.0] * 4] * 3] * 5}, "x: expected float32 (the dtype of weight_ih), got float64"),
    ({"x": None}, "x: expected an array, got None"),
    *(
        (
            {name: np.ma.masked_array(np.ones(shape, np.float32), False)},
            f"{name}: expected an array without a mask, got a masked array; pass {name}.filled(...)",
        )
        for name, shape in (("x", (5, 3, 4)), ("weight_hh", (24, 6)), ("bias_ih", 24), ("c0", (3, 6)))
    ),
]


@pytest.mark.parametrize(("change", "message"), DTYPE_ERRORS, ids=[message for _, message in DTYPE_ERRORS])
@pytest.mark.usefixtures("no_backend")
def test_dtypes(change, message):
    with raises(TypeError, message):
        call(CASE, change)


@pytest.mark.usefixtures("no_backend")
def test_what_is_no_array():
    with pytest.raises(TypeError, match=r"^x: expected an array, got list: .*inhomogeneous"):
        call(CASE, {"x": [[1.0], [1.0, 2.0]]})
    with pytest.raises(TypeError, match=r"^x: expected an array, got Tensor: .*BFloat16"):
        call(CASE, {"x": torch.ones(5, 3, 4, dtype=torch.bfloat16)})
    with pytest.raises(TypeError, match=r"^x: expected an array, got Tensor: .*meta"):
        call(CASE, {"x": torch.ones(5, 3, 4, device="meta")})


@pytest.mark.parametrize("name", ["x", *PARAMETERS, "h0", "c0"])
@pytest.mark.usefixtures("no_backend")
def test_tensors_that_require_grad(name):
    shape = CASE.data()[name].shape
    message = (
        f"{name}: expected an array without gradient tracking, got a tensor that requires grad; pass {name}.detach()"
    )
    with raises(TypeError, message):
        call(CASE, {name: torch.ones(shape, requires_grad=True)})


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("no_backend")
def test_what_does_not_exist_yet(cell):
    case = Case(cell, "float32")
    with raises(NotImplementedError, "lengths: ragged batches are not implemented yet; pass sequences of one length"):
        call(case, {}, lengths=[5, 5, 5])
    with raises(NotImplementedError, "resets: resets are not implemented yet; cut the sequence and pass the state"):
        call(case, {}, resets=np.zeros((5, 3), bool))


@pytest.mark.usefixtures("no_backend")
def test_options():
    for value in (None, 1, "after"):
        with raises(TypeError, f"reset_after: expected True or False, got {value!r}"):
            call(Case("gru", "float32"), {}, reset_after=value)
    for value in ("sigmoid", "TANH", None, ["tanh"]):
        with raises(ValueError, f"nonlinearity: expected 'tanh' or 'relu', got {value!r}"):
            call(Case("rnn_tanh", "float32"), {}, nonlinearity=value)


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


LSTM_FIELDS = "('x', 'weight_ih', 'weight_hh', 'bias_ih', 'bias_hh', 'h0', 'c0')"
GRU_FIELDS = "('x', 'weight_ih', 'weight_hh', 'bias_ih', 'bias_hh', 'h0')"


@pytest.mark.parametrize(
    ("options", "upstream", "message"),
    [
        (
            {},
            {"grad_output": ones(5, 3, 4)},
            "grad_output: expected shape (seq_len, batch_size, hidden_size) = (5, 3, 6), got (5, 3, 4)",
        ),
        (
            {"layout": "batch_first"},
            {"grad_output": ones(5, 3, 6)},
            "grad_output: expected shape (batch_size, seq_len, hidden_size) = (3, 5, 6), got (5, 3, 6)",
        ),
        (
            {"layout": "unbatched"},
            {"grad_output": ones(5, 1, 6)},
            "grad_output: expected shape (seq_len, hidden_size) = (5, 6), got (5, 1, 6)",
        ),
        ({}, {"grad_h_n": ones(6)}, "grad_h_n: expected shape (batch_size, hidden_size) = (3, 6), got (6,)"),
        ({}, {"grad_c_n": ones(3, 1)}, "grad_c_n: expected shape (batch_size, hidden_size) = (3, 6), got (3, 1)"),
        ({"layout": "unbatched"}, {"grad_h_n": ones(5)}, "grad_h_n: expected shape (hidden_size,) = (6,), got (5,)"),
        ({"layout": "unbatched"}, {"grad_c_n": ones(3)}, "grad_c_n: expected shape (hidden_size,) = (6,), got (3,)"),
        ({}, {"wrt": ["x", "weights"]}, f"wrt: expected names among {LSTM_FIELDS}, got ['weights']"),
        ({}, {"wrt": "h_0"}, f"wrt: expected names among {LSTM_FIELDS}, got ['h_0']"),
        ({"cell": "gru"}, {"wrt": ["c0"]}, f"wrt: expected names among {GRU_FIELDS}, got ['c0']"),
    ],
)  # fmt: skip
def test_upstream_gradients(options, upstream, message, variant):
    case = Case(**{"cell": "lstm", "dtype": "float32"} | options)
    vjp = vjp_of(case)
    with raises(ValueError, message):
        vjp(**upstream)
    assert np.isfinite(vjp(grad_h_n=ones(*([6] if case.layout == "unbatched" else [3, 6]))).x).all()


@pytest.mark.parametrize("value", [1, True, np.float32(1)])
def test_wrt_of_a_wrong_type(value, variant):
    with raises(TypeError, f"wrt: expected a name or an iterable of names, got {value!r}"):
        vjp_of(CASE)(wrt=value)


@pytest.mark.parametrize("name", ["grad_output", "grad_h_n", "grad_c_n"])
def test_dtypes_of_upstream_gradients(name, variant):
    vjp = vjp_of(CASE)
    with raises(TypeError, f"{name}: expected float32 (the dtype of weight_ih), got float64"):
        vjp(**{name: ones(3, dtype=np.float64)})
    message = (
        f"{name}: expected an array without gradient tracking, got a tensor that requires grad; pass {name}.detach()"
    )
    with raises(TypeError, message):
        vjp(**{name: torch.ones(3, requires_grad=True)})


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
    weights = _contract.check_weights(case.constants, *(tensors[name] for name in PARAMETERS))
    for name in PARAMETERS:
        assert getattr(weights, name).ctypes.data == tensors[name].data_ptr(), name
    args, _, _ = _contract.check_forward(
        weights, tensors["x"], tensors["h0"], tensors["c0"], batch_first=False, reverse=False, lengths=None,
        resets=None, training=False,
    )  # fmt: skip
    for name in ("x", "h0", "c0"):
        assert getattr(args, name).ctypes.data == tensors[name].data_ptr(), name
    inputs = [n for n in tensors if not n.startswith("grad_")]
    output, _ = hotloop.lstm(**{name: tensors[name] for name in inputs})
    want, _ = hotloop.lstm(**{name: data[name] for name in inputs})
    assert type(output) is np.ndarray
    assert np.array_equal(output, want)
    with torch.no_grad():  # a parameter's detached view shares its memory too
        parameter = torch.nn.Parameter(tensors["weight_ih"])
    assert _contract.as_array("weight_ih", parameter.detach()).ctypes.data == parameter.data_ptr()


def test_time_and_batch_strides_are_taken_without_a_copy():
    weights = _contract.check_weights(CASE.constants, *(CASE.data()[name] for name in PARAMETERS))
    x = ones(3, 10, 4)[:, ::-2]
    args, _, _ = _contract.check_forward(
        weights, x, None, None, batch_first=True, reverse=False, lengths=None, resets=None, training=True
    )
    assert np.shares_memory(args.x, x)


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
        expected = ", ".join(hotloop._backend.ORDER)
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
    from hotloop import _native

    with raises(ValueError, f"isa: expected one of {', '.join(_native.isas())}, got 'sse9'"):
        _native.use_isa("sse9")
    assert _native.description() == best_isa


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "00", "\N{ARABIC-INDIC DIGIT TWO}", " 2"])
def test_bad_number_of_threads(run_python, value):
    code = "import hotloop; hotloop.get_num_threads()"
    done = run_python(code, check=False, HOTLOOP_NUM_THREADS=value, HOTLOOP_BACKEND="numpy", PYTHONIOENCODING="utf-8")
    shown = "0" if value == "00" else value if value == "0" else repr(value)
    assert done.returncode == 1
    assert last_line(done) == f"ValueError: HOTLOOP_NUM_THREADS: expected an integer >= 1, got {shown}"


def test_number_of_threads(run_python):
    code = "import hotloop; print(hotloop.get_num_threads(), hotloop.info().threads)"
    assert run_python(code, HOTLOOP_NUM_THREADS="3", HOTLOOP_BACKEND="numpy").stdout.split() == ["3", "3"]
    everything = str(hotloop._backend.processors())
    for value in ({}, {"HOTLOOP_NUM_THREADS": ""}):
        assert run_python(code, HOTLOOP_BACKEND="numpy", **value).stdout.split() == [everything] * 2
