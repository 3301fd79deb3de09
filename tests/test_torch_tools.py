"""Tools that know torch's layers by their type take hotloop's for them, and the model stays what it was."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torched import make

import hotloop.torch

pytestmark = pytest.mark.filterwarnings("ignore")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = torch.nn.LSTM(5, 6, 2), torch.nn.GRU(6, 4)
        self.linear, self.cell = torch.nn.Linear(4, 3), torch.nn.LSTMCell(3, 2)

    def forward(self, x):
        return self.cell(self.linear(self.gru(self.lstm(x)[0])[0][-1]))[0]


@pytest.fixture
def models():
    """torch's, and the same with layers replaced."""
    torch.manual_seed(0)
    theirs = Model().eval()
    ours = copy.deepcopy(theirs)
    hotloop.torch.replace_modules(ours)
    return ours, theirs


@pytest.fixture
def x():
    return torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(1))


def types(model):
    return {name: type(module) for name, module in model.named_modules()}


def test_jit_script(models, x):
    ours, theirs = models
    before = types(ours)
    scripted = torch.jit.script(ours)
    assert types(ours) == before
    torch.testing.assert_close(scripted(x), theirs(x))
    assert isinstance(torch.jit.script(ours.lstm), torch.jit.ScriptModule)
    assert type(ours.lstm) is hotloop.torch.LSTM
    stored = io.BytesIO()
    torch.jit.save(scripted, stored)
    stored.seek(0)
    torch.testing.assert_close(torch.jit.load(stored)(x), theirs(x))
    with pytest.raises(Exception, match="nothing_there"):
        torch.jit.script(Broken(ours.lstm))
    assert type(ours.lstm) is hotloop.torch.LSTM


class Broken(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return nothing_there(x)  # noqa: F821


def test_what_scripting_takes_where_it_was_imported_before(x):
    """torch's protocol: another module, on the same parameters."""
    layer = hotloop.torch.LSTM(5, 6)
    layer(x)
    theirs = layer.__prepare_scriptable__()
    assert type(theirs) is torch.nn.LSTM
    assert all(one is other for one, other in zip(theirs.parameters(), layer.parameters(), strict=True))
    torch.testing.assert_close(theirs(x), layer(x))


def test_quantize_dynamic(models, x):
    ours, _ = models
    before = types(ours)
    made = [torch.ao.quantization.quantize_dynamic(model) for model in models]
    assert types(made[0]) == types(made[1])
    assert "quantized" in type(made[0].lstm).__module__
    assert torch.equal(made[0](x), made[1](x))
    assert types(ours) == before
    only = [torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}) for model in models]
    assert type(only[0].lstm) is hotloop.torch.LSTM
    torch.testing.assert_close(only[0](x), only[1](x))


@pytest.mark.filterwarnings("ignore")
def test_numeric_suite():
    """It compares a quantized layer with the layer it was made of, whose exact type it is told."""
    from torch.ao.ns._numeric_suite import compare_model_stub

    model = torch.nn.ModuleDict({"layer": torch.nn.LSTM(3, 4)})
    model.forward = lambda x, hx: model["layer"](x, hx)
    hotloop.torch.replace_modules(model)
    quantized = torch.ao.quantization.quantize_dynamic(model)
    quantized.forward = lambda x, hx: quantized["layer"](x, hx)
    state = torch.zeros(1, 2, 4)
    compared = compare_model_stub(model, quantized, [torch.nn.LSTM], torch.ones(5, 2, 3), (state, state))
    assert list(compared) == ["layer.stats"]
    assert type(model["layer"]) is hotloop.torch.LSTM


def test_fx(models, x):
    _, theirs = models
    graphs = [torch.fx.symbolic_trace(model) for model in models]
    assert [node.op for node in graphs[0].graph.nodes] == [node.op for node in graphs[1].graph.nodes]
    torch.testing.assert_close(graphs[0](x), theirs(x))


@pytest.mark.parametrize("of_x", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["GRU", "RNN_TANH", "GRUCell", "LSTMCell"])
def test_flops_are_torchs(kind, layers, of_x):
    counts = []
    for where in (hotloop.torch, torch.nn):
        cell = kind.endswith("Cell")
        module = make(
            kind, 12, 8, where=where, **({} if cell else {"num_layers": layers, "bidirectional": layers == 2})
        )
        x = torch.randn(*((3,) if cell else (5, 3)), 12, requires_grad=of_x)
        counter = FlopCounterMode(display=False)
        with counter:
            result = module(x)
            (result[0] if isinstance(result, tuple) else result).sum().backward()
        inference = FlopCounterMode(display=False)
        with inference, torch.no_grad():
            module(x)
        counts.append((counter.get_total_flops(), inference.get_total_flops()))
    assert counts[0] == counts[1]
    assert counts[0][1] > 0


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_TANH"])
def test_onnx(kind):
    """ONNX has operators for these layers."""
    onnx = pytest.importorskip("onnx")
    model = torch.nn.Sequential(make(kind, 5, 6)).eval()
    stored = io.BytesIO()
    torch.onnx.export(model, (torch.randn(4, 3, 5),), stored, dynamo=False)
    operators = [node.op_type for node in onnx.load_from_string(stored.getvalue()).graph.node]
    assert kind.partition("_")[0] in operators


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_TANH"])
def test_onnx_by_torch_export(kind):
    pytest.importorskip("onnxscript")
    import onnxruntime

    x, found = torch.randn(4, 3, 5), []
    for where in (torch.nn, hotloop.torch):
        model = torch.nn.Sequential(make(kind, 5, 6, where=where)).eval()
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
        found.append([node.op_type for node in program.model_proto.graph.node])
    assert found[0] == found[1]
    assert kind in found[1] or kind == "RNN_TANH"  # which torch takes apart
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (output, *_) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(x)[0].detach())


def test_tools_loaded_before_or_after(run_python):
    """No tool is loaded for its sake."""
    run_python(
        "import hotloop.torch, sys\n"
        "assert 'torch.utils.flop_counter' not in sys.modules\n"
        "assert 'torch.onnx' not in sys.modules\n"
        "from torch.utils.flop_counter import flop_registry\n"
        "import torch\n"
        "assert torch.ops.hotloop.infer in flop_registry"
    )
    run_python(
        "from torch.utils.flop_counter import flop_registry\n"
        "import torch, hotloop.torch\n"
        "assert torch.ops.hotloop.backward in flop_registry"
    )
