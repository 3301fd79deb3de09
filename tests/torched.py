"""Pairs of modules, torch's and hotloop's, with the same parameters, and how the tests run them."""

from __future__ import annotations

import itertools

import torch
from cases import TOLERANCE, distance
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import hotloop.torch

torch.set_num_threads(1)  # torch's threads wait for each other by turning, which takes the tests of others their time

KINDS = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
CELLS = ("LSTMCell", "GRUCell", "RNNCell_TANH", "RNNCell_RELU")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class AsOps(TorchDispatchMode):
    """Under which a call is one of the ops."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def make(kind, *sizes, where=hotloop.torch, **options):
    """A module by its kind, of hotloop's or of torch's."""
    name, _, nonlinearity = kind.partition("_")
    if nonlinearity:
        options["nonlinearity"] = nonlinearity.lower()
    return getattr(where, name)(*sizes, **options)


def twins(kind, *sizes, seed=0, **options):
    """hotloop's and torch's, initialised under one seed."""
    made = []
    for where in (hotloop.torch, torch.nn):
        torch.manual_seed(seed)
        made.append(make(kind, *sizes, where=where, **options))
    return made


def states_of(state):
    return state if isinstance(state, tuple) else (state,)


def variables(module, layout="time_major", seed=1, steps=7, rows=4, packed=None):
    """x and the states of a call, [1:] of the list; leaves that require grad. `packed`: x is that of pack_padded."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(module.parameters()).dtype
    count = 2 if isinstance(module, torch.nn.LSTM) else 1
    first = module.num_layers * (1 + module.bidirectional)
    shapes = {"time_major": (steps, rows), "batch_first": (rows, steps), "unbatched": (steps,)}
    x = torch.randn(*shapes[layout], module.input_size, generator=generator, dtype=torch.float64)
    middle = () if layout == "unbatched" else (rows,)
    states = [
        torch.rand(first, *middle, module.hidden_size, generator=generator, dtype=torch.float64)
        for _ in range(count)
    ]  # fmt: skip
    return [tensor.to(dtype).requires_grad_() for tensor in (x, *states)]


def pack(x, lengths, batch_first=False, enforce_sorted=False):
    return pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=enforce_sorted)


def run(module, leaves, lengths=None, enforce_sorted=False, **extra):
    """Results by name and gradients by name, of a call and a backward pass with fixed upstream gradients."""
    x, *states = leaves
    for leaf in (*leaves, *module.parameters()):
        leaf.grad = None
    given = x if lengths is None else pack(x, lengths, module.batch_first, enforce_sorted)
    hx = None if not states else tuple(states) if len(states) == 2 else states[0]
    output, state, *c = module(given, hx, **extra)
    if isinstance(output, PackedSequence):
        c = [one.data for one in c]
        output = output.data
    results = [output, *states_of(state), *c]
    generator = torch.Generator().manual_seed(5)
    upstream = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one.dtype) for one in results]
    torch.autograd.backward(results, upstream)
    names = ["output", "h_n", "c_n"][: 1 + len(states_of(state))] + ["c"] * len(c)
    gradients = {"x": x.grad} | {f"state{i}": state.grad for i, state in enumerate(states)}
    gradients |= {name: parameter.grad for name, parameter in module.named_parameters()}
    return {n: r.detach() for n, r in zip(names, results, strict=True)}, gradients


def assert_near(got, want, dtype, kind):
    """Within the table of tolerances; absent where absent."""
    for name, expected in want.items():
        if expected is None:
            assert got[name] is None, name
            continue
        assert got[name].dtype == DTYPES[dtype], name
        assert got[name].shape == expected.shape, name
        far = distance(got[name].detach().numpy(), expected.detach().numpy())
        assert far <= TOLERANCE[dtype][kind], f"{name}: {far:.3g}"


def wide(module, leaves):
    """torch's twin of a module in float64 and the leaves in float64: what results are compared with."""
    kind = {hotloop.torch.LSTM: torch.nn.LSTM, hotloop.torch.GRU: torch.nn.GRU, hotloop.torch.RNN: torch.nn.RNN}
    options = {"nonlinearity": module.nonlinearity} if isinstance(module, torch.nn.RNN) else {}
    twin = kind[type(module)](
        module.input_size, module.hidden_size, module.num_layers, bias=module.bias, batch_first=module.batch_first,
        bidirectional=module.bidirectional, dtype=torch.float64, **options,
    )  # fmt: skip
    twin.load_state_dict(module.state_dict())
    for mine, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        theirs.requires_grad_(mine.requires_grad)
    return twin, [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]


OPTIONS = list(itertools.product((1, 2, 3), (False, True), (False, True)))  # layers, bidirectional, bias
COVERING = [(1, False, True), (2, True, True), (3, False, False)]
