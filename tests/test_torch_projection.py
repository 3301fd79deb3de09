"""LSTM with projection: torch's own, to the tolerances of float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torched import pack, twins

import hotloop
import hotloop.torch

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


def results(module, given, hx, grads):
    """Outputs, states, and the gradients of everything."""
    leaves = [given.data if isinstance(given, torch.nn.utils.rnn.PackedSequence) else given, *hx]
    output, state = module(given, hx)
    output = output.data if isinstance(output, torch.nn.utils.rnn.PackedSequence) else output
    found = torch.autograd.grad([output, *state], [*leaves, *module.parameters()], grads)
    return [output, *state], found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_equal_to_torch(layers, bidirectional, packed, bias, isa):
    for hidden, proj in ((9, 4), (40, 33), (3, 1)):
        pair = twins(
            "LSTM", 5, hidden, layers, bidirectional=bidirectional, proj_size=proj, bias=bias, dtype=torch.float64
        )
        first = layers * (1 + bidirectional)
        x = torch.randn(13, 6, 5, dtype=torch.float64, requires_grad=True)
        hx = [torch.randn(first, 6, size, dtype=torch.float64, requires_grad=True) for size in (proj, hidden)]
        given = pack(x, [13, 2, 7, 13, 1, 6]) if packed else x
        sizes = given.data.shape[:1] if packed else x.shape[:2]
        grads = [torch.randn(*sizes, (1 + bidirectional) * proj, dtype=torch.float64), *map(torch.randn_like, hx)]
        (ours, of_ours), (theirs, of_theirs) = (results(module, given, tuple(hx), grads) for module in pair)

        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        for one, other in zip(of_ours, of_theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_runs_on_the_kernels():
    """With an argument that torch's own does not take; states, c of every step."""
    ours, theirs = twins("LSTM", 5, 6, proj_size=3)
    x = torch.randn(7, 3, 5)
    output, (h_n, c_n), c = ours(x, lengths=torch.tensor([7, 2, 4]), return_states=True, threads=1)
    assert (output.shape, h_n.shape, c_n.shape, c.shape) == ((7, 3, 3), (1, 3, 3), (1, 3, 6), (7, 3, 6))
    torch.testing.assert_close(output[:, 0], theirs(x)[0][:, 0])
    with torch.no_grad():
        torch.testing.assert_close(ours(x[:1, :1])[0], theirs(x[:1, :1])[0])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_second_gradients(options):
    pair = twins("LSTM", 3, 5, proj_size=2, dtype=torch.float64, **options)
    first = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    hx = [
        torch.randn(first, 2, size, generator=generator, dtype=torch.float64, requires_grad=True) for size in (2, 5)
    ]  # fmt: skip
    found = []
    for module in pair:
        leaves = [x, *hx, *module.parameters()]
        output, (h_n, c_n) = module(x, tuple(hx))
        grads = torch.autograd.grad(output.pow(3).sum() + h_n.sum() + c_n.pow(2).sum(), leaves, create_graph=True)
        seconds = torch.autograd.grad(sum(grad.pow(2).sum() for grad in grads), leaves, create_graph=True)
        thirds = torch.autograd.grad(sum(grad.pow(2).sum() for grad in seconds), leaves)
        found.append([*grads, *seconds, *thirds])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_second_gradients_of_ragged_batches_and_resets():
    """By difference."""
    module = hotloop.torch.LSTM(2, 3, proj_size=2, dtype=torch.float64)
    lengths, resets = torch.tensor([5, 3]), torch.tensor([[False, True], [False, False]] * 2 + [[True, False]])
    x = torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def function(x, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, given, (x,), {"lengths": lengths, "resets": resets})[0]

    assert torch.autograd.gradgradcheck(function, (x, *module.parameters()), atol=1e-6)


def test_swapped_copied_compiled():
    model = torch.nn.Sequential(torch.nn.LSTM(4, 8, proj_size=3, dtype=torch.float64))
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    want = model(x)[0]
    report = hotloop.torch.replace_modules(model)
    assert "replaced 0: LSTM" in str(report)
    for module in (model, copy.deepcopy(model)):
        torch.testing.assert_close(module(x)[0], want, rtol=1e-12, atol=1e-12)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x)[0], want, rtol=1e-12, atol=1e-12)


def test_state_dict_to_a_layer():
    module = torch.nn.LSTM(4, 8, 2, proj_size=3, bidirectional=True)
    layer = hotloop.LSTM.from_state_dict({name: tensor.numpy() for name, tensor in module.state_dict().items()})
    assert (layer.hidden_size, layer.proj_size, layer.num_layers) == (8, 3, 2)
    x = torch.randn(6, 2, 4)
    np.testing.assert_allclose(layer(x.numpy())[0], module(x)[0].detach().numpy(), atol=1e-6)
    for other in (hotloop.GRU, hotloop.RNN):
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
            other.from_state_dict(layer.state_dict())
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
            other(4, 8, proj_size=3)
    with pytest.raises(ValueError, match="proj_size has to be smaller than hidden_size"):
        hotloop.LSTM(4, 8, proj_size=8)
