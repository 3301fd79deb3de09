"""The specification itself: against central differences, against torch, and against numbers on record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    BIASES,
    CELLS,
    INPUTS,
    LAYOUTS,
    PARAMETERS,
    UPSTREAM,
    Case,
    distance,
    infer,
    lay_out,
    subsets,
    time_major,
    train,
)

import hotloop
from hotloop._backends import cells as _cells
from hotloop._backends import numpy as _numpy

pytestmark = pytest.mark.usefixtures("numpy_backend")


def loss(case, data):
    """A scalar whose gradient with respect to each result is that result's upstream gradient."""
    results = infer(case, data)
    return sum(np.vdot(data[f"grad_{name}"], result) for name, result in results.items() if f"grad_{name}" in data)


def central_differences(case, data, name, step=1e-5):
    gradient = np.empty_like(data[name])
    for index in np.ndindex(gradient.shape):
        losses = []
        for sign in (1, -1):
            moved = data[name].copy()
            moved[index] += sign * step
            losses.append(loss(case, data | {name: moved}))
        gradient[index] = (losses[0] - losses[1]) / (2 * step)
    return gradient


def upstream_cases():
    """Every cell with every combination of upstream gradients but none, each in one direction of time."""
    for cell in CELLS:
        names = UPSTREAM if cell == "lstm" else UPSTREAM[:2]
        for number, upstream in enumerate(subsets(names)[1:]):
            yield Case(cell, seq_len=4, batch_size=2, input_size=3, hidden_size=4, upstream=upstream,
                       reverse=bool(number % 2))  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        *upstream_cases(),
        *(Case(cell, seq_len=3, input_size=2, hidden_size=3, biases=b) for cell in CELLS for b in BIASES[1:]),
        *(Case(cell, seq_len=1, batch_size=1, input_size=1, hidden_size=1) for cell in CELLS),
    ],
    ids=str,
)
def test_gradients_are_central_differences(case):
    data = case.data()
    gradients = train(case, data)
    for name in INPUTS:
        if name in data:
            assert distance(gradients[f"grad_{name}"], central_differences(case, data, name)) <= 1e-6, name
    # An absent bias has no gradient; an absent state has one all the same, that of a state of zeros.
    assert {name for name in PARAMETERS if gradients[f"grad_{name}"] is None} == set(PARAMETERS) - set(data)


@pytest.mark.parametrize("cell", CELLS)
def test_absent_state_is_a_state_of_zeros(cell):
    case = Case(cell, states=())
    data = case.data()
    zeros = np.zeros((case.batch_size, case.hidden_size))
    given = data | {"h0": zeros} | ({"c0": zeros} if cell == "lstm" else {})
    absent, present = train(case, data), train(case, given)
    for name in absent:
        np.testing.assert_array_equal(absent[name], present[name], err_msg=name)


def torch_module(case, data, bidirectional=False):
    """torch's module of the same cell with the weights of `data`; the second direction has them in reverse order."""
    options = {"nonlinearity": case.cell.removeprefix("rnn_")} if case.cell.startswith("rnn") else {}
    module = getattr(torch.nn, case.cell.split("_")[0].upper())(
        case.input_size, case.hidden_size, batch_first=case.layout == "batch_first", bidirectional=bidirectional,
        dtype=torch.float64, **options,
    )  # fmt: skip
    with torch.no_grad():
        for name in PARAMETERS:
            value = torch.tensor(data.get(name, np.zeros(case.rows)))
            getattr(module, f"{name}_l0").copy_(value)
            if bidirectional:
                getattr(module, f"{name}_l0_reverse").copy_(value.flip(-1))
    return module


def torch_train(case, data):
    """What `train` returns, by torch's module and autograd."""
    module = torch_module(case, data)
    steps = [0] if case.layout == "unbatched" else [1] if case.layout == "batch_first" else [0]

    def in_time(tensor):  # torch has no single reverse direction: turn the sequences around
        return tensor.flip(steps) if case.reverse else tensor

    inputs = {n: torch.tensor(lay_out(n, data[n], case.layout), requires_grad=True) for n in ("x", "h0", "c0")
              if n in data}  # fmt: skip
    state = tuple(inputs[name].unsqueeze(0) for name in ("h0", "c0") if name in inputs)
    output, state = module(in_time(inputs["x"]), *([state if case.cell == "lstm" else state[0]] if state else []))
    output = in_time(output)
    states = state if case.cell == "lstm" else (state,)
    results = dict(zip(("output", "h_n", "c_n"), (output, *(s.squeeze(0) for s in states)), strict=False))
    upstream = {n: torch.tensor(lay_out(n, data[n], case.layout)) for n in UPSTREAM if n in data}
    loss = sum((results[name.removeprefix("grad_")] * gradient).sum() for name, gradient in upstream.items())
    loss.backward()
    gradients = inputs | {name: getattr(module, f"{name}_l0") for name in PARAMETERS if name in data}
    results |= {f"grad_{name}": tensor.grad for name, tensor in gradients.items()}
    return {name: time_major(name, tensor.detach().numpy(), case.layout) for name, tensor in results.items()}


TORCH_CELLS = [cell for cell in CELLS if cell != "gru_reset_before"]


@pytest.mark.parametrize(
    "case",
    [
        *(Case(c, layout=a, reverse=r, seq_len=7, hidden_size=5) for c in TORCH_CELLS for a in LAYOUTS for r in (0, 1)),
        *(Case(c, biases="none", states=(), seq_len=7) for c in TORCH_CELLS),
        *(Case(c, upstream=("grad_h_n",), seq_len=7, batch_size=1) for c in TORCH_CELLS),
        *(Case(c, seq_len=100, batch_size=5, input_size=11, hidden_size=32) for c in TORCH_CELLS),
    ],
    ids=str,
)
def test_torch_agrees(case):
    data = case.data()
    ours, theirs = train(case, data), torch_train(case, data)
    assert {name for name, array in ours.items() if array is not None} >= set(theirs)
    for name, array in theirs.items():
        kind = 1e-10 if name.startswith("grad_") else 1e-12
        assert distance(ours[name], array) <= kind, name


@pytest.mark.parametrize("cell", TORCH_CELLS)
def test_torch_agrees_on_both_directions_at_once(cell):
    """reverse=True is the second direction of torch's bidirectional module: same alignment, same last state."""
    case = Case(cell, seq_len=6, upstream=("grad_output",))
    data = case.data()
    turned = data | {name: np.flip(data[name], -1).copy() for name in PARAMETERS}
    module = torch_module(case, data, bidirectional=True)
    x = torch.tensor(data["x"], requires_grad=True)
    states = [torch.stack([torch.tensor(data[name])] * 2) for name in case.states]
    output, state = module(x, tuple(states) if cell == "lstm" else states[0])
    forward, backward = train(case, data), train(replace(case, reverse=True), turned)
    np.testing.assert_allclose(np.dstack((forward["output"], backward["output"])), output.detach(), rtol=1e-12)
    for name, tensor in zip(("h_n", "c_n"), state if cell == "lstm" else (state,), strict=False):
        np.testing.assert_allclose((forward[name], backward[name]), tensor.detach(), rtol=1e-11)
    upstream = torch.tensor(data["grad_output"])
    output.backward(torch.cat((upstream, upstream), -1))
    assert distance(forward["grad_x"] + backward["grad_x"], x.grad) <= 1e-10
    for name in PARAMETERS:
        assert distance(backward[f"grad_{name}"], getattr(module, f"{name}_l0_reverse").grad) <= 1e-10, name


# The GRU that resets before the product, which torch does not have: ONNX Runtime's forward, and a loop for autograd.


def onnx_gru(case, weights, direction, x, h0):
    """output [T, D, B, H] and h_n [D, B, H] of ONNX's GRU with linear_before_reset=0; `weights` of each direction."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")

    def reorder(array):  # ONNX has the gates in the order z r h
        r, z, n = np.split(array, 3)
        return np.concatenate((z, r, n))

    def stacked(name):
        return np.stack([reorder(data[name]) for data in weights])

    feeds = {"x": x, "w": stacked("weight_ih"), "r": stacked("weight_hh")}
    feeds["b"] = np.concatenate((stacked("bias_ih"), stacked("bias_hh")), 1)
    if h0 is not None:
        feeds["h0"] = h0
    inputs = ["x", "w", "r", "b", "", "h0" if h0 is not None else ""]
    node = onnx.helper.make_node("GRU", inputs, ["output", "h_n"], hidden_size=case.hidden_size, direction=direction,
                                 linear_before_reset=0)  # fmt: skip
    element = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node], "gru",
        [onnx.helper.make_tensor_value_info(name, element, array.shape) for name, array in feeds.items()],
        [onnx.helper.make_tensor_value_info(name, element, None) for name in ("output", "h_n")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(["output", "h_n"], feeds)


RESET_BEFORE = [
    Case("gru_reset_before", seq_len=1),
    Case("gru_reset_before", seq_len=1, batch_size=1, input_size=1, hidden_size=1),
    Case("gru_reset_before", seq_len=7, hidden_size=5, reverse=True),
    Case("gru_reset_before", seq_len=7, states=()),
    Case("gru_reset_before", seq_len=60, batch_size=5, input_size=11, hidden_size=32),
]


@pytest.mark.parametrize("case", RESET_BEFORE, ids=str)
def test_onnxruntime_agrees_on_the_reset(case):
    """In float32, the one type its GRU has; a GRU that resets after the product is a thousand times as far away."""
    case = replace(case, dtype="float32")
    data = case.data()
    direction = "reverse" if case.reverse else "forward"
    output, h_n = onnx_gru(case, [data], direction, data["x"], data["h0"][None] if case.states else None)
    ours, other = infer(case, data), infer(replace(case, cell="gru"), data)
    assert distance(ours["output"], output[:, 0]) <= 2e-6
    assert distance(ours["h_n"], h_n[0]) <= 2e-6
    assert distance(other["output"], output[:, 0]) > 2e-3


def test_onnxruntime_agrees_on_both_directions_of_the_reset():
    case = Case("gru_reset_before", "float32", seq_len=9)
    first, second = case.data(), replace(case, reverse=True).data()
    second["x"] = first["x"]
    h0 = np.stack((first["h0"], second["h0"]))
    output, h_n = onnx_gru(case, [first, second], "bidirectional", first["x"], h0)
    for index, (data, reverse) in enumerate(((first, False), (second, True))):
        ours = infer(replace(case, reverse=reverse), data)
        assert distance(ours["output"], output[:, index]) <= 2e-6
        assert distance(ours["h_n"], h_n[index]) <= 2e-6


def torch_loop(case, data):
    """What `train` returns for a GRU that resets before the product, step by step in torch and by its autograd."""
    zeros = {"bias_ih": np.zeros(case.rows), "bias_hh": np.zeros(case.rows)}
    zeros["h0"] = np.zeros((case.batch_size, case.hidden_size))
    tensors = {name: torch.tensor({**zeros, **data}[name], requires_grad=True) for name in INPUTS if name != "c0"}
    w_r, w_z, w_n = tensors["weight_ih"].chunk(3)
    u_r, u_z, u_n = tensors["weight_hh"].chunk(3)
    b_r, b_z, b_n = tensors["bias_ih"].chunk(3)
    d_r, d_z, d_n = tensors["bias_hh"].chunk(3)
    h, outputs = tensors["h0"], [None] * case.seq_len
    for t in reversed(range(case.seq_len)) if case.reverse else range(case.seq_len):
        x = tensors["x"][t]
        r = torch.sigmoid(x @ w_r.T + b_r + h @ u_r.T + d_r)
        z = torch.sigmoid(x @ w_z.T + b_z + h @ u_z.T + d_z)
        n = torch.tanh(x @ w_n.T + b_n + (r * h) @ u_n.T + d_n)
        outputs[t] = h = (1 - z) * n + z * h
    results = {"output": torch.stack(outputs), "h_n": h}
    sum((results[name.removeprefix("grad_")] * torch.tensor(data[name])).sum() for name in UPSTREAM[:2]
        if name in data).backward()  # fmt: skip
    results = {name: tensor.detach().numpy() for name, tensor in results.items()}
    return results | {f"grad_{name}": tensors[name].grad.numpy() for name in tensors if name in data or name == "h0"}


@pytest.mark.parametrize(
    "case",
    [
        *RESET_BEFORE,
        *(Case("gru_reset_before", seq_len=7, biases=biases, reverse=True) for biases in BIASES[1:]),
        *(Case("gru_reset_before", seq_len=7, upstream=upstream) for upstream in subsets(UPSTREAM[:2])[1:]),
    ],
    ids=str,
)
def test_autograd_agrees_on_the_reset(case):
    data = case.data()
    ours, theirs = train(case, data), torch_loop(case, data)
    assert {name for name, array in ours.items() if array is not None} == set(theirs)
    for name, array in theirs.items():
        assert distance(ours[name], array) <= (1e-10 if name.startswith("grad_") else 1e-12), name


# Two steps of one unit, recorded from torch 2.13 in float64. x = 0.5, -1.5; h0 = 0.25, c0 = -0.75; gate k (from 0)
# has weight_ih 0.4 - 0.3 k, weight_hh 0.2 + 0.1 k, bias_ih 0.1 k - 0.05, bias_hh 0.3 - 0.2 k.
# The loss is output[0] + 2 output[1] + 3 h_n + 5 c_n.
RECORD = {
    "rnn_tanh": {
        "output": [0.46211715726000974, -0.2520274219974525],
        "h_n": [-0.2520274219974525],
        "grad_x": [0.6091768077033876, 1.8729643571226362],
        "grad_h0": [0.3045884038516938],
        "grad_weight_ih": [-6.262145329580651],
        "grad_weight_hh": [2.544557915721703],
        "grad_bias_ih": [6.2053529120650595],
        "grad_bias_hh": [6.2053529120650595],
    },
    "rnn_relu": {
        "output": [0.5, 0.0],
        "h_n": [0.0],
        "grad_x": [0.4, 0.0],
        "grad_h0": [0.2],
        "grad_weight_ih": [0.5],
        "grad_weight_hh": [0.25],
        "grad_bias_ih": [1.0],
        "grad_bias_hh": [1.0],
    },
    "lstm": {
        "output": [-0.17149392519488227, -0.0527135771752905],
        "h_n": [-0.0527135771752905],
        "c_n": [-0.08141338593726145],
        "grad_x": [-0.5675708383522019, -0.43368682239864775],
        "grad_h0": [0.8447331720523881],
        "grad_c0": [2.733449486649419],
        "grad_weight_ih": [-0.786852167144605, 0.7751967607037151, -3.127803652547356, 0.04318945060025957],
        "grad_weight_hh": [-0.07907124890895126, -0.0820280613521433, 0.21827845561464632, -0.03193788542422703],
        "grad_bias_ih": [0.5998585605809844, -1.696773360027339, 6.067031018028793, -0.28376490925049763],
        "grad_bias_hh": [0.5998585605809844, -1.696773360027339, 6.067031018028793, -0.28376490925049763],
    },
    "gru": {
        "output": [0.16364602799677955, 0.28373305088915923],
        "h_n": [0.28373305088915923],
        "grad_x": [-0.30922763405101034, -0.4433901890107958],
        "grad_h0": [2.6282322437024286],
        "grad_weight_ih": [0.02563117297126556, 0.5548109071276581, -2.223689532947083],
        "grad_weight_hh": [-0.002796293099764019, -0.0036188067820005707, 0.39504153285129495],
        "grad_bias_ih": [-0.01708744864751039, -0.12072014197029632, 3.6685541470288627],
        "grad_bias_hh": [-0.01708744864751039, -0.12072014197029632, 1.8754600649945758],
    },
    "gru_reset_before": {
        "output": [0.14736605624624055, 0.25044053387063947],
        "h_n": [0.25044053387063947],
        "grad_x": [-0.29356775057329954, -0.4403158548849348],
        "grad_h0": [2.6705943477299714],
        "grad_weight_ih": [-0.02643941889116718, 0.5070885576151065, -2.367784094178544],
        "grad_weight_hh": [0.014250785876473902, 0.017194754005016036, 0.3900483528667327],
        "grad_bias_ih": [0.06957061361309255, -0.039348469596151486, 3.788885019719282],
        "grad_bias_hh": [0.06957061361309255, -0.039348469596151486, 3.788885019719282],
    },
}


def recorded_problem(cell):
    gates = np.arange(Case(cell).constants.gates, dtype=np.float64)
    case = Case(cell, seq_len=2, batch_size=1, input_size=1, hidden_size=1)
    data = {
        "x": np.array([0.5, -1.5]).reshape(2, 1, 1),
        "weight_ih": (0.4 - 0.3 * gates)[:, None],
        "weight_hh": (0.2 + 0.1 * gates)[:, None],
        "bias_ih": 0.1 * gates - 0.05,
        "bias_hh": 0.3 - 0.2 * gates,
        "h0": np.array([[0.25]]),
        "c0": np.array([[-0.75]]),
        "grad_output": np.array([1.0, 2.0]).reshape(2, 1, 1),
        "grad_h_n": np.array([[3.0]]),
        "grad_c_n": np.array([[5.0]]),
    }
    return case, {n: a for n, a in data.items() if cell == "lstm" or n not in ("c0", "grad_c_n")}


@pytest.mark.parametrize("cell", CELLS)
def test_numbers_on_record(cell):
    results = train(*recorded_problem(cell))
    assert set(results) == set(RECORD[cell])
    for name, numbers in RECORD[cell].items():
        np.testing.assert_allclose(results[name].ravel(), numbers, rtol=1e-12, atol=1e-14, err_msg=name)


def test_one_lstm_step_by_hand():
    """With weights of zero the biases alone decide: every gate is a sigmoid or tanh of a number one can look up."""
    case = Case("lstm", seq_len=1, batch_size=1, input_size=1, hidden_size=1)
    log3 = np.log(3.0)  # sigmoid(log 3) = 3/4, tanh(log 3) = 4/5
    data = {
        "x": np.ones((1, 1, 1)),
        "weight_ih": np.zeros((4, 1)),
        "weight_hh": np.zeros((4, 1)),
        "bias_ih": np.array([log3, -log3, log3, 0.0]),  # i = 3/4, f = 1/4, g = 4/5, o = 1/2
        "c0": np.array([[2.0]]),
    }
    results = infer(case, data)
    assert results["c_n"].item() == pytest.approx(0.25 * 2 + 0.75 * 0.8, rel=1e-15)
    assert results["h_n"].item() == pytest.approx(0.5 * np.tanh(1.1), rel=1e-15)


def test_one_gru_step_by_hand():
    """r multiplies h's share of gate n, its bias included, and z keeps the old state."""
    case = Case("gru", seq_len=1, batch_size=1, input_size=1, hidden_size=1)
    log3 = np.log(3.0)
    data = {
        "x": np.ones((1, 1, 1)),
        "weight_ih": np.array([[log3], [-log3], [0.0]]),  # r = 3/4, z = 1/4
        "weight_hh": np.zeros((3, 1)),
        "bias_hh": np.array([0.0, 0.0, log3 * 4 / 3]),  # n = tanh(3/4 * 4/3 log 3) = 4/5
        "h0": np.array([[2.0]]),
    }
    assert infer(case, data)["h_n"].item() == pytest.approx(0.75 * 0.8 + 0.25 * 2, rel=1e-15)


def test_one_step_of_a_gru_that_resets_before_the_product():
    """r multiplies h before weight_hn does, and the bias stays outside."""
    case = Case("gru_reset_before", seq_len=1, batch_size=1, input_size=1, hidden_size=2)
    log3 = np.log(3.0)
    data = {
        "x": np.ones((1, 1, 1)),
        "weight_ih": np.array([[log3], [-log3], [-log3], [-log3], [0.0], [0.0]]),  # r = 3/4 and 1/4, z = 1/4
        "weight_hh": np.zeros((6, 2)),
        "bias_hh": np.array([0.0, 0.0, 0.0, 0.0, log3 / 4, 0.0]),
        "h0": np.array([[2.0, 4.0]]),
    }
    data["weight_hh"][4] = [0.0, log3 * 3 / 4]  # n = tanh(1/4 * 4 * 3/4 log 3 + 1/4 log 3) = 4/5, and tanh(0)
    expected = [[0.75 * 0.8 + 0.25 * 2, 0.25 * 4]]
    np.testing.assert_allclose(infer(case, data)["h_n"], expected, rtol=1e-15)


def test_sigmoid_keeps_relative_accuracy_in_both_tails():
    a = np.array([-700.0, -40.0, -1.0, 0.0, 1.0, 40.0, 700.0])
    np.testing.assert_allclose(_numpy.sigmoid(a), torch.sigmoid(torch.tensor(a)), rtol=1e-15)
    assert _numpy.sigmoid(np.array([-np.inf, np.inf])).tolist() == [0, 1]
    assert np.isnan(_numpy.sigmoid(np.array([np.nan]))).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_relu_on_special_values(dtype):
    """-inf gives 0, and neither NaN nor a number above half of the largest one is lost; as torch does."""
    a = np.array([-np.inf, -1.0, -0.0, 0.0, 1.0, np.finfo(dtype).max, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(_cells.rnn_relu_forward(a, _numpy.relu), torch.relu(torch.tensor(a)))


@pytest.mark.parametrize("cell", CELLS)
def test_overflow_saturates(cell):
    """Large inputs drive gates to their limits; no warning (they are errors here), no NaN."""
    case = Case(cell, dtype="float32", seq_len=3)
    data = case.data()
    for scale in (1e3, 1e30):
        results = infer(case, data | {"x": (data["x"] * scale).astype(np.float32)})
        assert np.isfinite(results["output"]).all()


def test_info_names_the_specification():
    assert hotloop.info().backend == "numpy"
    assert hotloop.info().variant == f"numpy {np.__version__}"
