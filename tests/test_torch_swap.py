"""replace_modules and restore_modules; and what else is done with modules: pickling, copying, moving."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch
import torch.nn.utils.prune
from torched import CELLS, KINDS, make, states_of, twins

import hotloop.torch


class Own(torch.nn.LSTM):
    """Somebody's subclass."""


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(5, 5)
        self.layers = torch.nn.ModuleList([torch.nn.GRU(5, 6), torch.nn.RNN(6, 6, nonlinearity="relu")])
        self.cell = torch.nn.LSTMCell(6, 6)
        self.again = self.layers[0]  # shared
        self.own = Own(6, 6)

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x)
        h, _ = self.cell(x[-1])
        return h


def test_replace_and_restore():
    torch.manual_seed(0)
    model, x = Model(), torch.randn(4, 3, 5)
    seen = []
    model.layers[0].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before, parameters, names = model(x), list(model.parameters()), list(model.state_dict())
    report = hotloop.torch.replace_modules(model)
    assert report.replaced == {"layers.0": "GRU", "layers.1": "RNN", "cell": "LSTMCell"}
    assert report.left == {"own": "a subclass, test_torch_swap.Own"}
    assert str(report).splitlines() == [
        "replaced layers.0: GRU", "replaced layers.1: RNN", "replaced cell: LSTMCell",
        "left own: a subclass, test_torch_swap.Own",
    ]  # fmt: skip
    assert type(model.again) is type(model.layers[0]) is hotloop.torch.GRU
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), before)
    model(x).sum().backward()
    optimizer.step()
    assert not torch.equal(model(x), before)
    again = hotloop.torch.replace_modules(model)
    assert again == hotloop.torch.Replaced({}, report.left, report.replaced)
    assert "already hotloop's layers.0: GRU" in str(again)
    after = model(x)
    assert hotloop.torch.restore_modules(model) == ["layers.0", "layers.1", "cell"]
    assert type(model.again) is type(model.layers[0]) is torch.nn.GRU
    assert not any("_hotloop" in vars(module) for module in model.modules())
    torch.testing.assert_close(model(x), after)
    assert set(seen) == {torch.nn.GRU, hotloop.torch.GRU}
    assert hotloop.torch.restore_modules(model) == []


def test_a_model_that_is_a_layer():
    model = torch.nn.GRUCell(5, 6)
    assert str(hotloop.torch.replace_modules(model)) == "replaced (model): GRUCell"
    assert type(model) is hotloop.torch.GRUCell
    assert str(hotloop.torch.replace_modules(torch.nn.Linear(2, 2))) == "no recurrent layers"
    for function in (hotloop.torch.replace_modules, hotloop.torch.restore_modules):
        with pytest.raises(TypeError, match=re.escape("model: expected a torch.nn.Module, got list")):
            function([model])


def with_forward(module):
    module.forward = lambda *args: args
    return module


def quantized():
    with torch.no_grad():
        return torch.ao.nn.quantized.dynamic.GRU(5, 6)


LEFT = {
    "parameters of torch.float16": lambda: torch.nn.GRU(5, 6).half(),
    "parameters of torch.bfloat16": lambda: torch.nn.LSTMCell(5, 6, dtype=torch.bfloat16),
    "parameters on meta": lambda: torch.nn.GRU(5, 6, device="meta"),
    "a forward of its own": lambda: with_forward(torch.nn.GRU(5, 6)),
    "no parameter weight_hh_l0, as in a weight-normed or pruned layer": lambda: torch.nn.utils.weight_norm(
        torch.nn.GRU(5, 6), "weight_hh_l0"
    ),
    "no parameter weight_ih, as in a weight-normed or pruned layer": lambda: torch.nn.utils.prune.l1_unstructured(
        torch.nn.GRUCell(5, 6), "weight_ih", 0.5
    ),
    "parametrized": lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.GRU(5, 6), "weight_hh_l0"),
    "quantized, torch.ao.nn.quantized.dynamic.modules.rnn.GRU": quantized,
    "a TorchScript module of LSTM": lambda: torch.jit.script(torch.nn.LSTM(5, 6)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*quantiz.*:UserWarning")
@pytest.mark.parametrize("reason", LEFT)
def test_what_is_left_and_why(reason):
    model = torch.nn.ModuleDict({"layer": LEFT[reason]()})
    kind = type(model["layer"])
    assert hotloop.torch.replace_modules(model) == hotloop.torch.Replaced({}, {"layer": reason})
    assert type(model["layer"]) is kind


def test_what_changes_its_kind_afterwards():
    """A layer that is ours and is made half, and float again."""
    ours, theirs = twins("GRU", 5, 6)
    x = torch.randn(4, 3, 5)
    for module in (ours, theirs):
        module.bfloat16()
    assert torch.equal(ours(x.bfloat16())[0], theirs(x.bfloat16())[0])
    for module in (ours, theirs):
        module.double()
    torch.testing.assert_close(ours(x.double()), theirs(x.double()))
    got = ours.to("meta")(x.double().to("meta"))[0]
    assert got.device.type == "meta"
    assert got.shape == (4, 3, 6)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_pickle_and_copy(kind, used):
    module = make(kind, 5, 6)
    x = torch.randn(*((3,) if kind in CELLS else (4, 3)), 5)
    if used:
        with torch.no_grad():
            module(x)
    stored = io.BytesIO()
    torch.save(module, stored)
    size = stored.tell()
    stored.seek(0)
    copies = [copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))]
    copies.append(torch.load(stored, weights_only=False))
    with torch.no_grad():
        expected = states_of(module(x))[0]
        for one in copies:
            assert type(one) is type(module)
            assert torch.equal(states_of(one(x))[0], expected)
        next(copies[0].parameters()).data.add_(1)
        assert torch.equal(states_of(module(x))[0], expected)
        assert not torch.equal(states_of(copies[0](x))[0], expected)
    assert size < 2 * sum(p.nbytes for p in module.parameters()) + 8000, "what was packed is not stored"


def test_public_names():
    for name in hotloop.torch.__all__:
        one = getattr(hotloop.torch, name)
        assert one.__doc__
        if isinstance(one, type) and issubclass(one, torch.nn.Module):
            assert one.__module__ == "hotloop.torch"


def test_other_things_that_modules_do():
    module = make("LSTM", 5, 6, 2)
    module.flatten_parameters()
    assert len(module.all_weights) == 2
    module.requires_grad_(False)
    assert not module(torch.randn(4, 3, 5))[0].requires_grad
    module.share_memory()
    theirs = torch.nn.LSTM(5, 6, 2)
    theirs.load_state_dict(module.state_dict())
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(module(x), theirs(x))
    assert isinstance(module, torch.nn.LSTM)
    assert module.extra_repr() == theirs.extra_repr()


@pytest.mark.parametrize("kind", ["GRU", "LSTMCell"])
def test_restored_after_a_parametrization(kind):
    layer = getattr(hotloop.torch, kind)(5, 6)
    torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh" if "Cell" in kind else "weight_hh_l0")
    x = torch.ones(3, 5) if "Cell" in kind else torch.ones(7, 3, 5)
    want = layer(x)
    assert hotloop.torch.restore_modules(layer) == [""]
    assert isinstance(layer, getattr(torch.nn, kind))
    assert not isinstance(layer, getattr(hotloop.torch, kind))
    torch.testing.assert_close(layer(x), want)
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight_hh" if "Cell" in kind else "weight_hh_l0")
    assert type(layer) is getattr(torch.nn, kind)
    torch.testing.assert_close(layer(x), want)
