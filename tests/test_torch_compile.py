"""torch.compile, torch.export, torch.jit."""

from __future__ import annotations

import io
import re
import textwrap

import pytest
import torch
from torch.nn.utils.rnn import pad_packed_sequence
from torched import CELLS, assert_near, make, pack, states_of, twins, variables

import hotloop.torch

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",  # dynamo looks at it
    "ignore::torch.jit.TracerWarning",
    "ignore:.*isinstance\\(treespec, LeafSpec\\).*",
    "ignore:.*torch\\._prims_common\\.check.*",
)


class Model(torch.nn.Module):
    """A layer between others, as in any model."""

    def __init__(self, kind, **options):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(4, 5)
        self.layer = make(kind, 5, 6, where=torch.nn, **options)
        self.last = torch.nn.Linear(6 * (1 + options.get("bidirectional", False)), 2)
        hotloop.torch.replace_modules(self)

    def forward(self, x):
        output = self.layer(self.first(x))
        return self.last(torch.tanh(output[0] if isinstance(output, tuple) else output))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(model, call, x):
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(3)
    output = call(x)
    output.square().sum().backward()
    return {"output": output, "x": x.grad} | {name: p.grad.clone() for name, p in model.named_parameters()}


FORMS = [
    ("LSTM", {}),
    ("GRU", {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5}),
    ("RNN_TANH", {"bias": False}),
    *((cell, {}) for cell in CELLS),
]


@pytest.mark.parametrize(("kind", "options"), FORMS, ids=[kind for kind, _ in FORMS])
def test_compile(kind, options):
    """Forward and backward in one graph each: the same results; dynamic shapes; inference."""
    model = Model(kind, **options, dtype=torch.float32).double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for steps in (3, 5, 6):
        x = torch.randn(*((3,) if kind in CELLS else (steps, 3)), 4, dtype=torch.float64)
        assert_near(gradients(model, compiled, x), gradients(model, model, x), "float64", "gradient")
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.long
def test_compile_with_the_default_backend():
    """It needs a C++ compiler."""
    model = Model("LSTM", num_layers=2)
    x = torch.randn(5, 3, 4)
    for name, got in gradients(model, torch.compile(model, fullgraph=True), x).items():
        torch.testing.assert_close(got, gradients(model, model, x)[name])


def test_compile_what_the_kernels_add():
    module = make("LSTM", 5, 6, 2, bidirectional=True, dtype=torch.float64)
    x, *states = (leaf.detach() for leaf in variables(module))
    lengths, resets = torch.tensor([3, 7, 1, 6]), torch.rand(7, 4) < 0.2

    def call(x, lengths, resets):
        return module(x, tuple(states), lengths=lengths, resets=resets, return_states=True, threads=1)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got, want = compiled(x, lengths, resets), call(x, lengths, resets)
    for a, b in zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want), strict=True):
        assert torch.equal(a, b)


def test_compile_packed():
    """A PackedSequence made inside, with unsorted lengths or without fullgraph."""
    module = make("GRU", 5, 6, dtype=torch.float64)
    x, lengths = torch.randn(7, 3, 5, dtype=torch.float64), torch.tensor([3, 7, 1])

    def call(x):
        output, h_n = module(pack(x, lengths))
        return pad_packed_sequence(output)[0].square().sum() + h_n.sum()

    compiled = torch.compile(call, backend="aot_eager")
    grads = []
    for one in (compiled, call):
        module.zero_grad()
        one(x).backward()
        grads.append({name: p.grad.clone() for name, p in module.named_parameters()})
    assert_near(*grads, "float64", "gradient")


def test_compile_leaves_torchs_layers_alone():
    """Dynamo breaks the graph at them as ever; and at ours where it is told to."""
    ours, theirs = twins("GRU", 5, 6)
    x = torch.randn(4, 3, 5)
    assert torch.compile(lambda x: ours(x)[0], fullgraph=True, backend="eager")(x).shape == (4, 3, 6)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(lambda x: theirs(x)[0], fullgraph=True, backend="eager")(x)
    assert not torch._dynamo.config.allow_rnn
    torch._dynamo.reset()
    hotloop.torch.allow_in_compile(False)
    try:
        with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
            torch.compile(lambda x: ours(x)[0], fullgraph=True, backend="eager")(x)
        torch._dynamo.reset()
        assert torch.equal(torch.compile(lambda x: ours(x)[0], backend="eager")(x), ours(x)[0])
    finally:
        hotloop.torch.allow_in_compile()
    with pytest.raises(TypeError, match=re.escape("allow: expected True or False, got 'no'")):
        hotloop.torch.allow_in_compile("no")


def test_compile_what_is_torchs():
    """Transforms and autocast inside compiled code."""
    ours, theirs = twins("GRU", 5, 6)
    x = torch.randn(4, 3, 5)
    got = torch.compile(torch.func.grad(lambda x: ours(x)[0].square().sum()), backend="aot_eager")(x)
    torch.testing.assert_close(got, torch.func.grad(lambda x: theirs(x)[0].square().sum())(x))

    @torch.compile(backend="eager")
    def call(x):
        with torch.autocast("cpu", torch.bfloat16):
            return ours(x)[0]

    with torch.autocast("cpu", torch.bfloat16):
        assert call(x).dtype == theirs(x)[0].dtype


@pytest.mark.parametrize("order", [pytest.param("before", marks=pytest.mark.long), "after"])
def test_dynamo_may_be_loaded_before_or_after(order, run_python):
    lines = ["import torch", "import hotloop.torch", "import torch._dynamo"]
    lines = [lines[0], *lines[:0:-1]] if order == "before" else lines
    run_python("\n".join([*lines, (
        "m = hotloop.torch.RNN(2, 3)\n"
        "f = torch.compile(lambda x: m(x)[0], fullgraph=True, backend='eager')\n"
        "assert torch.equal(f(torch.ones(2, 1, 2)), m(torch.ones(2, 1, 2))[0])\n"
        "import sys, torch._dynamo.variables.builder as b\n"
        "assert type(b.__spec__.loader).__module__.startswith('_frozen_importlib')\n"
        "waiting = [f._name for f in sys.meta_path if type(f).__module__.startswith('hotloop')]\n"
        "assert not [name for name in waiting if name in sys.modules], waiting"
    )]))  # fmt: skip


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "GRUCell"])
def test_export(kind, strict):
    """With a dynamic length; the program calls the op, runs elsewhere, and can be differentiated."""
    model = Model(kind).double()
    x = torch.randn(*((3,) if kind in CELLS else (5, 3)), 4, dtype=torch.float64)
    dynamic = {0: torch.export.Dim("first", min=2, max=100)}
    for training in (True, False):
        model.train(training)
        program = torch.export.export(model, (x,), dynamic_shapes=(dynamic,), strict=strict)
        assert ("hotloop.forward" if training else "hotloop.infer") in str(program.graph)
        stored = io.BytesIO()
        torch.export.save(program, stored)
        stored.seek(0)
        loaded = torch.export.load(stored).module()
        longer = torch.cat([x, x])
        torch.testing.assert_close(loaded(longer), model(longer))
        grads = [torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (loaded, model)]
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", ["LSTM", "RNN_RELU", "LSTMCell"])
def test_jit_trace(kind):
    model = Model(kind).double().eval()
    x = torch.randn(*((3,) if kind in CELLS else (5, 3)), 4, dtype=torch.float64)
    traced = torch.jit.trace(model, (x,))
    assert "hotloop::infer" in str(traced.inlined_graph)
    stored = io.BytesIO()
    torch.jit.save(traced, stored)
    stored.seek(0)
    for one in (traced, torch.jit.load(stored)):
        other = torch.randn_like(x)
        torch.testing.assert_close(one(other), model(other))
        with torch.no_grad():
            torch.testing.assert_close(one(x[:2]), model(x[:2]))
    traced(x).sum().backward()
    assert model.first.weight.grad is not None


def test_jit_trace_of_states_and_packed():
    module = make("LSTM", 5, 6, 2)
    x, *states = (leaf.detach() for leaf in variables(module))
    traced = torch.jit.trace(module, (x, tuple(states)))
    got, want = traced(x * 2, tuple(states)), module(x * 2, tuple(states))
    torch.testing.assert_close(got, want)
    assert len(states_of(got[1])) == 2


def test_jit_trace_warns_of_nothing_that_torchs_layers_do_not_warn_of(run_python):
    code = """
        import warnings
        import torch
        import hotloop.torch

        with warnings.catch_warnings(record=True) as caught:
            torch.jit.trace(hotloop.torch.GRU(5, 6), (torch.randn(7, 2, 5),))
            torch.jit.trace(hotloop.torch.LSTMCell(5, 6), (torch.randn(2, 5),))
        print([str(each.message) for each in caught if "hotloop" in each.filename])
    """
    assert run_python(textwrap.dedent(code)).stdout == "[]\n"
