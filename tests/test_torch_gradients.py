"""Gradients by difference, gradients of gradients, and torch's own checks of the ops."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch.autograd import gradcheck, gradgradcheck
from torched import CELLS, KINDS, assert_near, make, pack, states_of, twins, variables

import hotloop.torch
from hotloop.torch import _ops

FORMS = {
    "plain": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "no bias, batch first": {"bias": False, "batch_first": True},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}


def problem(kind, form, ways):
    """A module, a function of its inputs and parameters that gives all results, and those inputs."""
    torch.manual_seed(0)
    module = make(kind, 2, 3, dtype=torch.float64, **FORMS[form])
    if kind == "RNN_RELU":  # away from where its slope jumps
        for parameter in module.parameters():
            parameter.data.mul_(0.3).add_(0.2)
    leaves = variables(module, "batch_first" if module.batch_first else "time_major", steps=3, rows=2)
    if kind == "RNN_RELU":
        leaves = [leaf.detach().abs().requires_grad_() for leaf in leaves]
    names = list(dict(module.named_parameters()))
    count = len(leaves)

    def call(*tensors):
        torch.manual_seed(1)
        x, *states = tensors[:count]
        hx = tuple(states) if len(states) == 2 else states[0]
        extra = {}
        if ways == "packed":
            x = pack(x, [2, 3], module.batch_first)
        elif ways == "an empty row":
            extra = {"lengths": [0, 3]}
        elif ways == "resets":
            extra = {"resets": torch.tensor([[False, True], [True, False], [False, True]])}
        elif ways == "lengths, resets":
            flags = torch.tensor([[False, True], [True, False], [False, True]])
            extra = {"lengths": [3, 2], "resets": flags.T if module.batch_first else flags}
        elif ways == "return_states":
            extra = {"return_states": True}
        # Not torch.func.functional_call: the gradient is that of the tensors that stand where the parameters were.
        kept = {name: module._parameters[name] for name in names}
        try:
            for name, tensor in zip(names, tensors[count:], strict=True):
                module._parameters[name] = tensor
            output, state, *c = module(x, hx, **extra)
        finally:
            module._parameters.update(kept)
        return (output.data if ways == "packed" else output, *states_of(state), *c)

    return module, call, (*leaves, *module.parameters())


CASES = [(kind, form, "dense") for kind in KINDS for form in FORMS]
CASES += [(kind, "two layers, both directions", way) for kind in KINDS for way in ("packed", "lengths, resets")]
CASES += [("LSTM", "two layers, both directions", "return_states"), ("GRU", "dropout", "packed")]
CASES += [("LSTM", "dropout", ways) for ways in ("an empty row", "resets")]


@pytest.mark.parametrize(("kind", "form", "ways"), CASES)
def test_gradients(kind, form, ways):
    """By difference, and the gradients of gradients too."""
    _, call, inputs = problem(kind, form, ways)
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "form", "ways"), CASES)
def test_gradients_in_full(kind, form, ways):
    _, call, inputs = problem(kind, form, ways)
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@pytest.mark.parametrize("kind", CELLS)
def test_gradients_of_cells(kind):
    cell = make(kind, 2, 3, dtype=torch.float64)
    for rows in ((2,), ()):
        x = torch.rand(*rows, 2, dtype=torch.float64, requires_grad=True)
        states = [
            torch.rand(*rows, 3, dtype=torch.float64, requires_grad=True) for _ in range(1 + (kind == "LSTMCell"))
        ]

        def call(x, *states):
            return states_of(cell(x, states if len(states) == 2 else states[0]))

        assert gradcheck(call, (x, *states))
        assert gradgradcheck(call, (x, *states))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_penalty(kind):
    """The gradient of a norm of a gradient, as torch has it; and once more."""
    ours, theirs = twins(kind, 3, 4, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    found = []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(module(given)[0].square().sum(), given, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), given, create_graph=True)
        second.square().sum().backward()
        found.append(
            {"first": first, "second": second, "x": given.grad} | {n: p.grad for n, p in module.named_parameters()}
        )
    assert_near(*found, "float64", "gradient")


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_many_gradients_at_once(kind):
    """torch.func.vmap over gradients, `is_grads_batched` and the vectorised Jacobian give what one by one gives."""
    options = {} if "Cell" in kind else {"num_layers": 2, "bidirectional": True}
    ours, theirs = twins(kind, 3, 4, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(2)
    shape = (2, 3) if "Cell" in kind else (5, 2, 3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    states = [
        torch.rand(*(() if "Cell" in kind else (4,)), *shape[-2:-1], 4, generator=generator, dtype=torch.float64)
        for _ in range(2)
    ]  # fmt: skip
    for state in states:
        state.requires_grad_()
    states = states if "LSTM" in kind else states[:1]
    hx = tuple(states) if len(states) == 2 else states[0]
    result = states_of(ours(x, hx))[0]
    many = torch.randn(6, *result.shape, generator=generator, dtype=torch.float64)
    leaves = [x, *ours.parameters(), *states]

    def gradients(grad):
        return torch.autograd.grad(result, leaves, grad, retain_graph=True)

    one_by_one = [torch.stack(grads) for grads in zip(*map(gradients, many), strict=True)]
    batched = torch.autograd.grad(result, leaves, many, is_grads_batched=True, retain_graph=True)
    for grads in (batched, torch.func.vmap(gradients)(many)):
        for grad, expected in zip(grads, one_by_one, strict=True):
            torch.testing.assert_close(grad, expected)
    leaves[1].requires_grad_(False)
    result, some = states_of(ours(x.detach(), hx))[0], leaves[2:]
    batched = torch.autograd.grad(result, some, many, is_grads_batched=True)
    assert all(map(torch.allclose, batched, one_by_one[2:]))
    jacobians = [
        torch.autograd.functional.jacobian(lambda x, module=module: states_of(module(x))[0].sum(0), x, vectorize=True)
        for module in (ours, theirs)
    ]
    torch.testing.assert_close(*jacobians)
    seconds = []
    for module in (ours, theirs):
        (first,) = torch.autograd.grad(states_of(module(x))[0].square().sum(), x, create_graph=True)
        twice = torch.func.vmap(lambda u, g=first: torch.autograd.grad(g, x, u, retain_graph=True)[0])
        seconds.append(twice(torch.arange(3.0).reshape(3, *[1] * x.ndim) * torch.ones(3, *x.shape, dtype=x.dtype)))
    torch.testing.assert_close(*seconds)
    if kind == "LSTM":
        hessians = [
            torch.autograd.functional.hessian(lambda x, m=module: m(x)[0].pow(2).sum(), x[:2, :1], vectorize=True)
            for module in (ours, theirs)
        ]
        torch.testing.assert_close(*hessians)


def _second(module, kind, keep, view):
    """Gradients of a gradient's norm, with respect to everything, of a call with tensors that are views."""
    cell = "Cell" in kind
    generator = torch.Generator().manual_seed(3)
    layers = () if cell else (module.num_layers * (1 + module.bidirectional),)
    x = torch.randn(*(() if cell else (5,)), 2, 3, generator=generator, dtype=torch.float64)
    wide = [torch.rand(*layers, 2, 7, generator=generator, dtype=torch.float64) for _ in range(2)]
    row = [torch.rand(*layers, 1, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    leaves = [x, *(wide if view == "slice" else row)]
    for leaf in leaves:
        leaf.requires_grad_()
    h, c = (one[..., 1:5] if view == "slice" else one.expand(*layers, 2, 4) for one in leaves[1:])
    given = torch._neg_view(x) if view == "neg" else x
    hx = (h, c) if "LSTM" in kind else h
    leaves = leaves if "LSTM" in kind else leaves[:2]

    def call(given, hx):
        if view != "packed":
            return states_of(module(given, hx))[0]
        packed = torch.nn.utils.rnn.pack_padded_sequence(given, torch.tensor([5, 3]))
        return states_of(module(packed, hx)[0].data)[0]

    hooks = {
        "hooks": torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: one),
        "on cpu": torch.autograd.graph.save_on_cpu(),
    }
    with hooks.get(keep, contextlib.nullcontext()):
        if keep == "checkpoint":
            result = torch.utils.checkpoint.checkpoint(call, given, hx, use_reentrant=False)
        else:
            result = call(given, hx)
    leaves += module.parameters()
    firsts = torch.autograd.grad(result.pow(3).sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(first.pow(2).sum() for first in firsts), leaves)


@pytest.mark.parametrize("keep", ["itself", "hooks", "on cpu", "checkpoint"])
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_second_gradient_passes_what_was_saved(kind, keep):
    """Also where kernels read a copy of it: through states that are views, and what hooks gave back."""
    cell = "Cell" in kind
    for options in [{}] if cell else [{}, {"num_layers": 2, "bidirectional": True}]:
        ours, theirs = twins(kind, 3, 4, dtype=torch.float64, **options)
        for view in ("expand", "slice", "neg", *(() if cell else ("packed",))):
            found, expected = (_second(module, kind, keep, view) for module in (ours, theirs))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, msg=lambda text, view=view: f"{view}: {text}")


def test_second_gradient_reads_copies_of_flags():
    """Callers overwrite lengths and resets in the next step."""
    module = make("GRU", 3, 4, 2, dtype=torch.float64)
    x, found = torch.randn(5, 2, 3, dtype=torch.float64), []
    for overwrite in (False, True):
        lengths, resets = torch.tensor([5, 3]), torch.tensor([[False, False], [False, True]] * 2 + [[True, False]])
        given = x.clone().requires_grad_()
        output, _ = module(given, lengths=lengths, resets=resets)
        if overwrite:
            lengths.fill_(1)
            resets.fill_(True)
        (first,) = torch.autograd.grad(output.square().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), given)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_TANH"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_second_gradient_of_a_row_without_steps(kind, bidirectional):
    """It adds nothing to that of the weights, whatever its padding holds."""
    module = make(kind, 3, 4, 2, bidirectional=bidirectional, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 3, dtype=torch.float64, generator=generator)
    state = torch.rand(2 * (1 + bidirectional), 3, 4, dtype=torch.float64, generator=generator)
    found = []
    for rows, lengths in (([0, 1, 2], [5, 0, 2]), ([0, 2], [5, 2])):
        given = x[:, rows].clone().requires_grad_()
        hx = state[:, rows].clone().requires_grad_()
        output, end = module(given, (hx, hx) if kind == "LSTM" else hx, lengths=lengths)
        ends = end if isinstance(end, tuple) else (end,)
        loss = output.square().sum() + sum(one.pow(3).sum() for one in ends)
        parameters = list(module.parameters())
        first, of_state, *others = torch.autograd.grad(loss, (given, hx, *parameters), create_graph=True)
        kept = of_state[:, [0, 2]] if len(rows) == 3 else of_state
        penalty = sum(one.square().sum() for one in (first, kept, *others))
        found.append(torch.autograd.grad(penalty, parameters))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


def test_second_gradient_after_output_was_written_to():
    ours, theirs = twins("GRU", 3, 4, dtype=torch.float64)
    x, found = torch.randn(5, 2, 3, dtype=torch.float64), []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        output, _ = module(given)
        output.mul_(3)
        (first,) = torch.autograd.grad(output.square().sum(), given, create_graph=True)
        first.square().sum().backward()
        found.append({"x": given.grad})
    assert_near(*found, "float64", "gradient")


def op_arguments(kind, ways, training, requires_grad):
    """Arguments of torch.ops.hotloop.forward."""
    layers, dropout = 1 if ways == "step" else 2, 0.5 if ways == "dropout" else 0
    module = make(kind, 2, 3, layers, bidirectional=ways == "packed", dropout=dropout, dtype=torch.float64)
    layout = "unbatched" if ways == "unbatched" else "batch_first" if ways == "batch_first" else "time_major"
    x, *states = (leaf.detach() for leaf in variables(module, layout, steps=3, rows=2))
    call = module._call(layout)
    if ways == "packed":
        packed = pack(x, [2, 3])
        x, call.layout, call.batch_sizes, call.batch_size = packed.data, "packed", packed.batch_sizes, 2
        call.unsorted = packed.unsorted_indices
    elif ways == "step":
        x, states, call.layout = x[0], [state[0] for state in states], "step"
    elif ways == "lengths, resets":
        call.lengths, call.resets = torch.tensor([3, 1]), torch.tensor([[False, True], [True, False], [False, False]])
    elif ways == "dropout":
        call.seed = 5
    call.return_states = kind == "LSTM" and ways in ("lengths, resets", "packed")
    tensors = [tensor.clone().requires_grad_(requires_grad) for tensor in (x, *states)]
    weights = [weight.detach().clone().requires_grad_(requires_grad) for weight in module.parameters()]
    h0, c0 = (*tensors[1:], None)[:2]
    return tensors[0], h0, c0, weights, *_ops.arguments(call), training


WAYS = ["dense", "batch_first", "unbatched", "packed", "step", "lengths, resets", "dropout"]
COVERING = ("batch_first", "packed", "lengths, resets")  # of the LSTM; the others of the RNN


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        pytest.param(kind, ways, marks=[pytest.mark.long] * ((kind == "LSTM") != (ways in COVERING)))
        for kind in ("LSTM", "RNN_TANH")
        for ways in WAYS
    ],
)
def test_opcheck(kind, ways):
    """All of torch's checks of an op: its schema, its fake kernel, its autograd, with dynamic shapes too."""
    every = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static",
             "test_aot_dispatch_dynamic")  # fmt: skip
    arguments = op_arguments(kind, ways, True, True)
    torch.library.opcheck(torch.ops.hotloop.forward.default, arguments, test_utils=every)
    torch.library.opcheck(torch.ops.hotloop.infer.default, arguments[:-1], test_utils=every)
    arguments = op_arguments(kind, ways, False, False)
    torch.library.opcheck(torch.ops.hotloop.forward.default, arguments, test_utils=every)
    torch.library.opcheck(torch.ops.hotloop.infer.default, arguments[:-1], test_utils=every)
    arguments = op_arguments(kind, ways, True, False)
    results = torch.ops.hotloop.forward(*arguments)
    grads = [torch.randn_like(result) if result.numel() else None for result in results[:4]]
    count = 3 + len(arguments[3])
    for wanted in ([True] * count, [False] * 3 + [True] * (count - 3), [True] + [False] * (count - 1)):
        wanted = [flag and not (i == 2 and kind != "LSTM") for i, flag in enumerate(wanted)]
        given = (*arguments[:-1], *grads, results[0], results[3], results[4], wanted)
        torch.library.opcheck(torch.ops.hotloop.backward.default, given, test_utils=every)


def test_the_op_is_the_eager_call():
    """The same bits, forward and backward."""
    for kind in ("LSTM", "GRU"):
        for ways in WAYS:
            arguments = op_arguments(kind, ways, True, True)
            call = _ops._call(arguments[3], arguments[4:])
            x, h0, c0, weights = arguments[:4]
            kept = hotloop.torch._packed.Kept(call, [weight.detach() for weight in weights])
            leaves = [tensor for tensor in (x, h0, c0, *weights) if tensor is not None]
            results = _ops.Recurrence.apply(call, kept, None, x, h0, c0, *weights)
            others = [result for result in torch.ops.hotloop.forward(*arguments)[:4] if result.numel()]
            assert len(results) == len(others)
            for one, other in zip(results, others, strict=True):
                assert torch.equal(one, other)
            grads = [torch.autograd.grad(sum(r.square().sum() for r in rs), leaves) for rs in (results, others)]
            assert all(np.array_equal(a, b) for a, b in zip(*grads, strict=True))


def test_an_op_for_inference_can_be_differentiated():
    """As in an exported program that somebody trains on."""
    for ways in ("dense", "dropout"):
        arguments = op_arguments("GRU", ways, True, True)
        leaves = [arguments[0], *arguments[3]]
        grads = []
        for op, given in (("forward", (True,)), ("forward", (False,)), ("infer", ())):
            output = getattr(torch.ops.hotloop, op)(*arguments[:-1], *given)[0]
            grads.append(torch.autograd.grad(output.square().sum(), leaves))
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*grads, strict=True))
