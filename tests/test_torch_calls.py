"""Modules that have been called before: whatever is given to the next call, it ends as that of torch's module does.

Each argument in its turn has another dtype, shape, class or device than in the calls before, or lies in memory in
another way.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torched import CELLS, KINDS, AsOps, assert_near, make, states_of

import hotloop.torch

N, H = 5, 6  # input_size, hidden_size


def warm(kind, sizes, **options):
    """A module that has been called with and without gradients, and with and without a state; and torch's."""
    torch.manual_seed(0)
    module = make(kind, N, H, **options)
    x, hx = given(module, sizes)
    for _ in range(2):
        with torch.no_grad():
            module(x)
            module(x, hx)
        module(x)
        module(x, hx)
    return module, module._as_torchs()


def given(module, sizes):
    """x of (seq_len, batch_size), for a cell of (batch_size,), and states."""
    generator = torch.Generator().manual_seed(1)
    first = () if isinstance(module, torch.nn.RNNCellBase) else (1,)
    x = torch.randn(*sizes, N, generator=generator)
    states = [torch.rand(*first, sizes[-1], H, generator=generator) for _ in range(2)]
    return x, (tuple(states) if isinstance(module, (torch.nn.LSTM, torch.nn.LSTMCell)) else states[0])


def every_second(one, axis):
    wide = torch.full([size * (1 + (index == axis)) for index, size in enumerate(one.shape)], torch.nan)
    view = wide[tuple(slice(None, None, 2) if index == axis else slice(None) for index in range(one.dim()))]
    return view.copy_(one)


def negated(one):
    return torch._neg_view(-one)


def outlived(one):
    """What a transform of torch.func gave to a function that kept it."""
    kept = []

    def function(tensor):
        kept.append(tensor)
        return tensor.sum()

    torch.func.grad(function)(one)
    return kept[0]


class Other(torch.Tensor):
    """A subclass."""


LYING = {
    "features apart": lambda one: every_second(one, one.dim() - 1),
    "rows apart": lambda one: every_second(one, one.dim() - 2),
    "first axis apart": lambda one: every_second(one, 0), "columns first": lambda one: one.mT.contiguous().mT,
    "negated": negated, "one row for all": lambda one: one[..., :1, :].expand(one.shape),
    "at an odd place": lambda one: torch.cat([torch.zeros(3), one.flatten()])[3:].view(one.shape),
    "zero": lambda one: torch._efficientzerotensor(one.shape), "elsewhere": lambda one: one.clone(),
    "outlived a transform": outlived,
    "a parameter": torch.nn.Parameter, "a subclass": lambda one: one.as_subclass(Other),
    "of NumPy": lambda one: torch.from_numpy(np.asfortranarray(one.numpy())),
}  # fmt: skip
MISFIT = {
    "float64": torch.Tensor.double, "half": torch.Tensor.half, "integers": torch.Tensor.long,
    "the same bytes": lambda one: one.view(torch.int32), "meta": lambda one: one.to("meta"),
    "wider": lambda one: torch.cat([one, one[..., :1]], -1), "narrower": lambda one: one[..., 1:],
    "more rows": lambda one: torch.cat([one, one], -2), "no rows": lambda one: one[..., :0, :],
    "an axis more": lambda one: one.unsqueeze(0), "an axis less": lambda one: one[0],
    "two first": lambda one: torch.cat([one, one]), "none first": lambda one: one[:0],
    "an array": torch.Tensor.numpy, "a list": lambda one: [one], "None": lambda one: None,
}  # fmt: skip


def real(one):
    """Torch's LSTM reads memory of a zero tensor, which has none."""
    if isinstance(one, (tuple, list)):
        return type(one)(map(real, one))
    return torch.zeros(one.shape) if isinstance(one, torch.Tensor) and one._is_zerotensor() else one


def ended(module, x, hx):
    """Results, or the error."""
    try:
        result = module(x, hx)
    except Exception as error:  # whatever torch raises
        return error
    output, state = result if isinstance(result, tuple) else (result, ())
    return [output, *states_of(state)]


def compare(modules, x, hx):
    got, want = ended(modules[0], x, hx), ended(modules[1], real(x), real(hx))
    if isinstance(want, Exception):
        assert isinstance(got, Exception), f"numbers, where torch's raises {want}"
        return
    assert not isinstance(got, Exception), got
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        assert one.dtype is other.dtype
        assert one.device == other.device
        if not one.is_meta and one.numel():
            torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-5)


def one_by_one(x, hx, change):
    """The arguments with one of them changed."""
    yield change(x), hx
    yield change(x), None
    if isinstance(hx, tuple):
        h, c = hx
        yield x, (change(h), c)
        yield x, (h, change(c))
        yield x, [h, change(c)]
    else:
        yield x, change(hx)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
@pytest.mark.parametrize("change", [*LYING, *MISFIT])
def test_an_argument_that_is_another(kind, change):
    layer = kind in KINDS
    for sizes in [(1, 1), (1, 3), (4, 1), (4, 3)] if layer else [(1,), (3,)]:
        modules = warm(kind, sizes)
        x, hx = given(modules[0], sizes)
        with torch.no_grad():
            want = ended(modules[0], x, hx)
        for grad in (False, True):
            for arguments in one_by_one(x, hx, {**LYING, **MISFIT}[change]):
                with torch.set_grad_enabled(grad):
                    compare(modules, *arguments)
        with torch.no_grad():  # and it is what it was
            for one, other in zip(ended(modules[0], x, hx), want, strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
@pytest.mark.parametrize("change", [*LYING, *MISFIT])
def test_a_weight_that_is_another(kind, change):
    """By torch.func.functional_call, one after the other."""
    sizes = (4, 3) if kind in KINDS else (3,)
    modules = warm(kind, sizes)
    x, hx = given(modules[0], sizes)
    for name, parameter in modules[0].named_parameters():
        if parameter.dim() == 1 and change in (
            "rows apart",
            "columns first",
            "one row for all",
            "more rows",
            "no rows",
        ):
            continue
        other = {**LYING, **MISFIT}[change](parameter.detach())
        for grad in (False, True):
            called = [Called(each, {name: other}) for each in modules]
            with torch.set_grad_enabled(grad):
                # What torch makes of these is memory beside that of the weight, and it may end the process.
                if (kind == "LSTM" and change in MISFIT and change != "None") or change == "meta":
                    assert isinstance(ended(called[0], x, hx), Exception)
                else:
                    compare(called, x, hx)
        with torch.no_grad():  # and it is what it was
            compare(modules, x, hx)


class Called:
    """A module with other parameters; torch's with real zeros."""

    def __init__(self, module, parameters):
        self.module = module
        ours = type(module).__module__ == "hotloop.torch"
        self.parameters = parameters if ours else {name: real(one) for name, one in parameters.items()}

    def __call__(self, x, hx):
        return torch.func.functional_call(self.module, self.parameters, (x, hx))


OF_ONE = ["LSTM", "GRU", "RNN_TANH", "LSTMCell", "GRUCell", "RNNCell_TANH"]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", OF_ONE)
@pytest.mark.parametrize("batch_first", [False, True])
def test_upstream_gradients_that_lie_otherwise(kind, layers, batch_first):
    """Those of every result, among them ones that backward has to read with strides, and ones that are one number."""
    if kind not in KINDS and (batch_first or layers == 2):
        pytest.skip("a cell has neither")
    options = {"num_layers": layers, "batch_first": batch_first} if kind in KINDS else {}
    module = make(kind, N, H, dtype=torch.float64, **options)
    pair = module, module._as_torchs()
    sizes = (4, 3, N) if kind in KINDS else (3, N)
    ways = [
        *(value for name, value in LYING.items() if name in ("columns first", "negated", "one row for all")),
        lambda one: torch.ones((), dtype=one.dtype).expand(one.shape),
        lambda one: one.flip(-1), lambda one: every_second(one.float(), one.dim() - 1).double().mT.contiguous().mT,
    ]  # fmt: skip
    for way in ways:
        found = []
        for each in pair:
            x = torch.randn(*sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
            output, state = each(x) if kind in KINDS else (lambda r: r if isinstance(r, tuple) else (r, ()))(each(x))
            results = [output, *states_of(state)]
            generator = torch.Generator().manual_seed(3)
            upstream = [way(torch.randn(*one.shape, dtype=torch.float64, generator=generator)) for one in results]
            for parameter in each.parameters():
                parameter.grad = None
            torch.autograd.backward(results, upstream)
            found.append({"x": x.grad, **{name: one.grad for name, one in each.named_parameters()}})
        assert_near(*found, "float64", "gradient")


@pytest.mark.parametrize("mode", [contextlib.nullcontext, AsOps])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", OF_ONE)
def test_gradients_of_one_argument_alone(kind, layers, mode):
    """Whatever needs a gradient, a call that has run without one is differentiated."""
    if kind not in KINDS and layers == 2:
        pytest.skip("a cell has one")
    module = make(kind, N, H, dtype=torch.float64, **({"num_layers": layers} if kind in KINDS else {}))
    pair = module, module._as_torchs()
    sizes, first = ((4, 3), (layers, 3)) if kind in KINDS else ((3,), (3,))
    names = ["x", "h0", *(["c0"] if kind.startswith("LSTM") else []), *dict(module.named_parameters())]
    for name in names:
        found = []
        for each in pair:
            each.requires_grad_(False)
            generator = torch.Generator().manual_seed(4)
            given = {"x": torch.randn(*sizes, N, generator=generator, dtype=torch.float64)}
            for state in ("h0", "c0"):
                given[state] = torch.randn(*first, H, generator=generator, dtype=torch.float64)
            hx = (given["h0"], given["c0"]) if kind.startswith("LSTM") else given["h0"]
            each(given["x"], hx)
            leaf = given[name] if name in given else each.get_parameter(name)
            leaf.requires_grad_()
            with mode() if each is module else contextlib.nullcontext():
                output, *_ = ended(each, given["x"], hx)
            assert output.requires_grad
            found.append({name: torch.autograd.grad(output.square().sum(), leaf)[0]})
        assert_near(*found, "float64", "gradient")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("layout", ["time_major", "batch_first", "unbatched", "sorted", "unsorted"])
def test_calls_that_are_not_torchs(kind, layers, layout):
    """With `threads`, a call that would go to torch is an error; so none of these does."""
    module = make(kind, N, H, num_layers=layers, bidirectional=layers == 2, batch_first=layout == "batch_first")
    count, lengths = layers * (1 + (layers == 2)), [4, 2, 1]
    x = torch.randn(*{"batch_first": (3, 4), "unbatched": (4,)}.get(layout, (4, 3)), N)
    if "sorted" in layout:
        order = slice(None) if layout == "sorted" else [2, 0, 1]
        lengths = torch.tensor(lengths)[order]
        x = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=layout == "sorted")
    h0, c0 = (torch.randn(*((count, H) if layout == "unbatched" else (count, 3, H))) for _ in range(2))
    for hx in (None, (h0, c0) if kind == "LSTM" else h0):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                module(x, hx, threads=1)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_TANH"])
@pytest.mark.parametrize("way", ["output", "hooked"])
def test_dropout_of_a_result_computed_again(kind, way):
    """Where a result was written to, backward computes it again: with what was dropped then."""
    gradients = []
    for written in (False, True):
        torch.manual_seed(5)
        module = make(kind, N, H, num_layers=3, dropout=0.5, dtype=torch.float64)
        x = torch.randn(4, 3, N, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(6)
        if way == "hooked":
            with torch.autograd.graph.save_on_cpu():
                output, _ = module(x)
        else:
            output, _ = module(x)
        torch.rand(3)  # the generator is elsewhere by then
        result = output.mul_(2) if written else output * 2
        result.square().sum().backward()
        gradients.append({"x": x.grad, **{name: one.grad for name, one in module.named_parameters()}})
    assert_near(*gradients, "float64", "gradient")
    assert gradients[0]["x"].abs().max() > 0


THREADS = """
import os, sys, torch, hotloop.torch
hotloop.torch.share_threads(False)  # so that each that works is one more
module, x = hotloop.torch.LSTM(64, 256), torch.ones(64, 32, 64)
torch.set_num_threads(int(sys.argv[1]))
torch.ones(1 << 20).add_(1)  # torch's own
before = len(os.listdir("/proc/self/task"))
with torch.no_grad():
    for _ in range(3):
        module(x)
output = module(x)[0]
if len(sys.argv) > 2:
    module.zero_grad()
    output.backward(output.detach())
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize("backward", [(), ("backward",)])
def test_threads_are_torchs(run_python, backward):
    """torch.set_num_threads(1) holds for these layers too: no other thread works for them."""
    env = {"HOTLOOP_NUM_THREADS": "4", "OMP_NUM_THREADS": "4"}
    one = run_python(THREADS, "1", *backward, **env)
    assert int(one.stdout) == 0
    more = run_python(THREADS, "3", *backward, **env)
    assert int(more.stdout) > int(one.stdout), more.stderr
    ours = run_python(THREADS, "3", *backward, **env | {"HOTLOOP_NUM_THREADS": "1"})
    assert int(ours.stdout) == 0, "hotloop.set_num_threads(1) holds too"


def test_arguments_that_a_kind_does_not_take():
    """A GRU and an RNN have no c; a cell has no lengths."""
    x = torch.ones(4, 3, N)
    state = torch.zeros(1, 3, H)
    for kind in ("GRU", "RNN_TANH", "RNN_RELU"):
        for options in ({}, {"num_layers": 2}):
            module = make(kind, N, H, **options)
            module(x)
            with pytest.raises((TypeError, RuntimeError, AttributeError)):
                module(x, (state, state))
            with pytest.raises(TypeError, match="return_states: expected False"):
                module(x, return_states=True)
    for kind in CELLS:
        cell = make(kind, N, H)
        cell(x[0])
        for name in ("lengths", "resets", "return_states"):
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
                cell(x[0], **{name: None})
    cell = hotloop.torch.LSTMCell(N, H)
    with pytest.raises((TypeError, ValueError, RuntimeError, AttributeError)):
        cell(x[0], state[0])
