"""hotloop.torch's layers and cells: torch's own results, gradients, shapes, errors; what the kernels add."""

from __future__ import annotations

import contextlib
from types import MappingProxyType

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from cases import DTYPES, LAYOUTS, assert_same_bits, raises
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torched import CELLS, COVERING, KINDS, OPTIONS, assert_near, make, pack, run, states_of, twins, variables, wide

import hotloop
import hotloop.torch

NONE = MappingProxyType({})


def check(module, leaves, dtype, lengths=None, enforce_sorted=False):
    results, gradients = run(module, leaves, lengths, enforce_sorted)
    expected, expected_gradients = run(*wide(module, leaves), lengths, enforce_sorted)
    assert_near(results, expected, dtype, "forward")
    assert_near(gradients, expected_gradients, dtype, "gradient")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind, dtype, layout):
    """Outputs, states and every gradient, over layers, directions and biases."""
    for layers, bidirectional, bias in OPTIONS:
        module = make(
            kind, 5, 6, layers, bias=bias, bidirectional=bidirectional, batch_first=layout == "batch_first",
            dtype=getattr(torch, dtype),
        )  # fmt: skip
        check(module, variables(module, layout), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_on_every_backend(kind, variant):
    for layers, bidirectional, bias in COVERING:
        module = make(kind, 5, 6, layers, bias=bias, bidirectional=bidirectional, dtype=torch.float64)
        leaves = variables(module)
        check(module, leaves, "float64")
        check(module, leaves, "float64", [3, 7, 1, 7])
        with torch.no_grad():
            output, _ = module(leaves[0], tuple(leaves[1:]) if len(leaves) == 3 else leaves[1])
        assert_near({"output": output}, {"output": run(*wide(module, leaves))[0]["output"]}, "float64", "forward")


@pytest.mark.parametrize("lengths", [(7, 5, 5, 1), (3, 7, 1, 6)], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_packed(kind, dtype, lengths):
    for layers, bidirectional, bias in OPTIONS:
        module = make(
            kind, 5, 6, layers, bias=bias, bidirectional=bidirectional, batch_first=layers == 2,
            dtype=getattr(torch, dtype),
        )  # fmt: skip
        leaves = variables(module, "batch_first" if layers == 2 else "time_major")
        check(module, leaves, dtype, lengths, enforce_sorted=lengths[0] == 7)


@pytest.mark.parametrize("batch", [[4], [2, 2, 2], [1, 6, 3]])
def test_packed_comes_back_packed(batch):
    """The same sizes and indices, and without a state too."""
    ours, theirs = twins("GRU", 5, 6, 2, bidirectional=True, dtype=torch.float64)
    given = pack_sequence([torch.randn(n, 5, dtype=torch.float64) for n in batch], enforce_sorted=False)
    (output, h_n), (expected, expected_h_n) = ours(given), theirs(given)
    assert type(output) is PackedSequence
    assert torch.equal(output.batch_sizes, expected.batch_sizes)
    assert torch.equal(output.sorted_indices, expected.sorted_indices)
    assert torch.equal(output.unsorted_indices, expected.unsorted_indices)
    torch.testing.assert_close(pad_packed_sequence(output), pad_packed_sequence(expected))
    torch.testing.assert_close(h_n, expected_h_n)


@pytest.mark.parametrize("size", ["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_of_a_short_call(kind, dtype, size):
    """Of one layer and direction, with and without grad, states and biases: calls of few rows, and of many."""
    steps, rows = (2, 3) if size == "few" else (90, 5)
    for bias, batch_first in ((True, False), (False, False), (True, True)):
        module = make(kind, 5, 6, bias=bias, batch_first=batch_first, dtype=getattr(torch, dtype))
        leaves = variables(module, "batch_first" if batch_first else "time_major", steps=steps, rows=rows)
        for given in (leaves, leaves[:1]):
            check(module, given, dtype)
            expected, _ = run(*wide(module, given))
            with torch.no_grad():
                for _ in range(2):  # with what was kept of the weights
                    states = given[1:]
                    output, state = module(given[0], None if not states else tuple(states) if states[1:] else states[0])
                    got = dict(zip(("output", "h_n", "c_n"), (output, *states_of(state)), strict=False))
                    assert_near(got, expected, dtype, "forward")


@pytest.mark.parametrize("options", [{}, {"threads": 1}])  # with `threads`, an RNNCell is not left to torch in training
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind, dtype, bias, options):
    ours, theirs = twins(kind, 5, 6, bias=bias, dtype=getattr(torch, dtype))
    theirs.double()
    for rows, state in ((3, True), (3, False), (400, True), (None, True), (None, False)):
        outer = () if rows is None else (rows,)
        x = torch.randn(*outer, 5, dtype=getattr(torch, dtype))
        count = (2 if kind == "LSTMCell" else 1) * state
        leaves = [x, *(torch.rand(*outer, 6, dtype=x.dtype) for _ in range(count))]
        found = []
        for cell, scale in ((ours, leaves), (theirs, [leaf.double() for leaf in leaves])):
            x, *states = (leaf.clone().requires_grad_() for leaf in scale)
            cell.zero_grad()
            hx = None if not states else tuple(states) if count == 2 else states[0]
            results = states_of(cell(x, hx, **(options if cell is ours else {})))
            torch.autograd.backward(
                results, [torch.cos(torch.arange(r.numel())).reshape(r.shape).to(r) for r in results]
            )
            with torch.no_grad():
                again = states_of(cell(x, hx))
            assert all(a.shape == b.shape for a, b in zip(results, again, strict=True))
            gradients = [x.grad, *(s.grad for s in states), *(p.grad for p in cell.parameters())]
            found.append((dict(enumerate([*results, *again])), dict(enumerate(gradients))))
        assert_near(found[0][0], found[1][0], dtype, "forward")
        assert_near(found[0][1], found[1][1], dtype, "gradient")


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_same_initialisation_and_state_dict(kind):
    """Under one seed the parameters are torch's bits; a state_dict goes both ways."""
    ours, theirs = twins(kind, 5, 6)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same_bits(
        {n: p.detach().numpy() for n, p in ours.named_parameters()},
        {n: p.detach().numpy() for n, p in theirs.named_parameters()},
    )
    assert repr(ours) == repr(theirs)
    for source, target in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            next(source.parameters()).add_(1)
        target.load_state_dict(source.state_dict())
        assert torch.equal(*(next(m.parameters()) for m in (source, target)))


@pytest.mark.parametrize("wanted", [(), ("weight_ih_l0",), ("bias_hh_l1",), ("weight_hh_l1", "weight_hh_l0")])
@pytest.mark.parametrize("inputs", [(), (0,), (1,), (2,)])
def test_gradients_only_for_what_requires_them(wanted, inputs):
    module = make("LSTM", 5, 6, 2, dtype=torch.float64)
    leaves = variables(module)
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index in inputs)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in wanted)
    if not wanted and not inputs:
        assert not module(leaves[0], tuple(leaves[1:]))[0].requires_grad
        return
    check(module, leaves, "float64")


@pytest.mark.parametrize("wanted", [("weight_hh_l0",), ("bias_ih_l0",), ()])
def test_gradients_of_one_layer(wanted):
    module = make("GRU", 5, 6, dtype=torch.float64)
    leaves = variables(module)
    leaves[0].requires_grad_(not wanted)
    leaves[1].requires_grad_(False)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in wanted)
    check(module, leaves, "float64")


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_results_may_be_written_to(kind, layers):
    """`output += x` and the like between forward and backward; torch's layers take it too, but for one."""
    ours, theirs = twins(kind, 6, 6, layers, dtype=torch.float64)
    x, h0, c0 = torch.randn(3, 5, 3, 6, dtype=torch.float64)
    hx = (h0[:layers], c0[:layers]) if kind == "LSTM" else h0[:layers]
    found = []
    for module in (ours, theirs):
        output, state = module(x, hx)
        for result in (output, *states_of(state)):
            result.mul_(2).add_(1)
        (output.square().sum() + sum(s.square().sum() for s in states_of(state))).backward()
        found.append({n: p.grad for n, p in module.named_parameters()})
    assert_near(*found, "float64", "gradient")


def test_inputs_may_not_be_written_to():
    """As in torch: the gradient would be another one."""
    module = make("GRU", 6, 6, dtype=torch.float64)
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    output, _ = module(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    output, _ = module(x)
    output.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


def test_backward_twice():
    module = make("LSTM", 5, 6, 2, dtype=torch.float64)
    output, _ = module(variables(module)[0])
    output.sum().backward(retain_graph=True)
    first = [p.grad.clone() for p in module.parameters()]
    output.sum().backward()
    for parameter, grad in zip(module.parameters(), first, strict=True):
        assert torch.equal(parameter.grad, 2 * grad)


def test_checkpoint_and_saved_tensor_hooks():
    from torch.utils.checkpoint import checkpoint

    module = make("GRU", 5, 6, 2, dropout=0.5, dtype=torch.float64)
    leaves, found = variables(module), []
    for call in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
        torch.manual_seed(3)
        module.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
            call(leaves[0])[0].square().sum().backward()
        found.append([p.grad.clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("layers", [1, 2])
def test_hooks_that_give_back_something_else(layers):
    """Other strides are read as they lie; another type would be other numbers."""
    module = make("LSTM", 5, 6, layers, dtype=torch.float64)
    leaves, found = variables(module), []
    turned = lambda tensor: tensor.transpose(0, -1).contiguous().transpose(0, -1)  # noqa: E731
    for unpack in (lambda tensor: tensor, turned):
        module.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            module(leaves[0])[0].square().sum().backward()
        found.append([p.grad for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.half, lambda tensor: tensor):
        output, _ = module(leaves[0])
    with raises(RuntimeError, "saved tensors: expected what forward saved, torch.float64 of shape (7, 4, 5) on the "
                "CPU, got torch.float16 of shape (7, 4, 5) on cpu; has a hook or an assignment to .data changed "
                "it?"):  # fmt: skip
        output.sum().backward()


def test_a_packed_sequence_whose_sizes_do_not_fit():
    ours, theirs = twins("GRU", 5, 6)
    for sizes in ([3, 2], [3, 2, 2]):
        given = PackedSequence(torch.randn(6, 5), torch.tensor(sizes))
        got, want = outcome(ours, given), outcome(theirs, given)
        if isinstance(want, tuple):
            assert got == want
        else:
            torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_strides_and_expanded_tensors():
    ours, theirs = twins("LSTM", 5, 6, dtype=torch.float64)
    x = torch.randn(5, 4, 7, dtype=torch.float64).permute(2, 1, 0)
    state = torch.randn(1, 1, 6, dtype=torch.float64).expand(1, 4, 6)
    for given in (x, x[::2], x[:, ::2], x.contiguous().flip(0), x[:1].expand(7, 4, 5)):
        states = state[:, : given.shape[1]]
        (a, (b, c)), (d, (e, f)) = ours(given, (states, states)), theirs(given, (states, states))
        for got, want in ((a, d), (b, e), (c, f)):
            torch.testing.assert_close(got, want)
    negated = torch._neg_view(x.contiguous())
    with torch.no_grad():
        torch.testing.assert_close(ours(negated)[0], theirs(-x)[0])


def test_dropout():
    """By torch's seed, in training mode only, over the probability to keep; not torch's own masks."""
    module = make("GRU", 5, 64, 2, dropout=0.25, dtype=torch.float64)
    x = torch.randn(30, 8, 5, dtype=torch.float64)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(module(x)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    lower = hotloop.torch.GRU(5, 64, dtype=torch.float64)
    upper = hotloop.torch.GRU(64, 64, dtype=torch.float64)
    for layer, one in enumerate((lower, upper)):
        one.load_state_dict({n[:-1] + "0": p for n, p in module.state_dict().items() if n.endswith(str(layer))})
    upper.weight_ih_l0.data.mul_(1e-6)  # nearly linear in what it is given
    module.weight_ih_l1.data.mul_(1e-6)
    kept = lower(x)[0]
    torch.manual_seed(1)
    changed = module(x)[0] - upper(kept)[0]
    torch.manual_seed(1)
    seed, ones = int(torch.randint(0, 2**63 - 1, ())), np.ones(kept.shape)
    mask = torch.from_numpy(hotloop._core.dropout.drop(0.25, seed, 0, ones, np.ones(kept.shape)))
    assert abs(float((mask == 0).double().mean()) - 0.25) < 0.02
    torch.testing.assert_close(module(x)[0].shape, changed.shape)
    torch.manual_seed(1)
    torch.testing.assert_close(module(x)[0], upper(kept * mask)[0], rtol=0, atol=1e-15)
    module.eval()
    torch.testing.assert_close(module(x)[0], upper(kept)[0], rtol=0, atol=1e-15)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], upper(kept)[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", CELLS)
def test_one_row_and_large_weights(kind):
    """Without gradients torch runs such a cell, unless it is given `threads`: it is faster there."""
    ours, theirs = twins(kind, 700, 512)
    for rows in (1, 2):
        x, h = torch.randn(rows, 700), torch.randn(rows, 512)
        hx = (h, h) if kind == "LSTMCell" else h
        with torch.no_grad():
            first = ours(x, hx)  # the weights are not known yet
            got, asked, want = ours(x, hx), ours(x, hx, threads=1), theirs(x, hx)
        if rows == 1:
            assert all(map(torch.equal, states_of(got), states_of(want)))
        for results in (first, got, asked):
            for one, expected in zip(states_of(results), states_of(want), strict=True):
                torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_resets_without_gradients(kind, batch_first):
    """One layer goes the short way: the bits are those of the way that is differentiated, whatever resets are like."""
    module = make(kind, 5, 6, batch_first=batch_first)
    for steps, rows in ((1, 3), (1, 1), (4, 1), (7, 3), (90, 5)):
        x, *states = (leaf.detach() for leaf in variables(module, steps=steps, rows=rows))
        hx = tuple(states) if len(states) == 2 else states[0]
        resets = torch.rand(steps, rows) < 0.4
        if batch_first:
            x, resets = x.transpose(0, 1).contiguous(), resets.T.contiguous()
        output, state = module(x, hx, resets=resets)
        strided = torch.stack([resets, ~resets], -1)[..., 0]
        for flags in (resets, strided, resets.numpy()):
            with torch.no_grad():
                got, last = module(x, hx, resets=flags)
            assert torch.equal(got, output)
            assert all(map(torch.equal, states_of(last), states_of(state)))
    names, shape = ("(batch_size, seq_len)", (5, 90)) if batch_first else ("(seq_len, batch_size)", (90, 5))
    less = shape[0] - 1, shape[1]
    with torch.no_grad(), raises(ValueError, f"resets: expected shape {names} = {shape}, got {less}"):
        module(x, hx, resets=resets[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_resets(kind):
    """As hotloop's own layers have them; `lengths` as a PackedSequence, with gradients."""
    module = make(kind, 5, 6, 2, bidirectional=True, batch_first=True, dtype=torch.float64)
    leaves = variables(module, "batch_first")
    lengths = torch.tensor([3, 7, 1, 6])
    padded, gradients = run(module, leaves, lengths=None)[0], None
    mask = (torch.arange(7) < lengths[:, None])[..., None]
    x = torch.where(mask, leaves[0].detach(), torch.nan).requires_grad_()
    hx = tuple(leaves[1:]) if len(leaves) == 3 else leaves[1]
    output, state = module(x, hx, lengths=lengths)
    assert not torch.isnan(output).any()
    packed, packed_state = module(pack(leaves[0], lengths, batch_first=True), hx)
    want, _ = pad_packed_sequence(packed, batch_first=True)
    torch.testing.assert_close(output, want)
    for got, one in zip(states_of(state), states_of(packed_state), strict=True):
        torch.testing.assert_close(got, one)
    gradients = [torch.autograd.grad(o.square().sum(), list(module.parameters())) for o in (output, want)]
    for got, one in zip(*gradients, strict=True):
        torch.testing.assert_close(got, one)
    resets = torch.zeros(4, 7, dtype=torch.bool)
    resets[:, 3] = True
    whole = module(leaves[0], resets=resets)[0]
    parts = torch.cat([module(leaves[0][:, :3])[0], module(leaves[0][:, 3:])[0]], 1)
    torch.testing.assert_close(whole, parts)
    flags = resets.clone()
    whole = module(leaves[0], resets=flags)[0]
    flags.fill_(True)  # as callers do with a buffer
    gradients = [torch.autograd.grad(o.square().sum(), list(module.parameters())) for o in (whole, parts)]
    for got, one in zip(*gradients, strict=True):
        torch.testing.assert_close(got, one)
    assert padded["output"].shape == output.shape
    marks = torch.rand(4, 7, generator=torch.Generator().manual_seed(1)) > 0.6
    found = []
    for resets in (marks & mask[..., 0], marks | ~mask[..., 0]):  # a mark in the padding says nothing
        output, state = module(leaves[0], hx, lengths=lengths, resets=resets)
        found.append([output, *states_of(state)])
    for got, one in zip(*found, strict=True):
        assert torch.equal(got, one)


def test_return_states():
    module = make("LSTM", 5, 6, bidirectional=True, dtype=torch.float64)
    leaves = variables(module)
    output, (_, c_n), c = module(leaves[0], tuple(leaves[1:]), return_states=True)
    assert torch.equal(c[-1, :, :6], c_n[0])
    assert torch.equal(c[0, :, 6:], c_n[1])
    assert c.shape == output.shape
    got = torch.autograd.grad(c[2, 1, 3] + c[2, 1, 9], leaves)
    # by difference
    with torch.no_grad():
        for leaf, grad in zip(leaves, got, strict=True):
            step = 1e-6 * torch.sign(grad)
            up, down = (
                module(*((a, (b, d))), return_states=True)[2]
                for a, b, d in (
                    [one + sign * step if one is leaf else one for one in leaves] for sign in (1, -1)
                )
            )  # fmt: skip
            slope = (up - down)[2, 1, [3, 9]].sum() / 2e-6
            torch.testing.assert_close(slope, grad.abs().sum(), rtol=1e-6, atol=1e-9)
    lengths = [3, 7, 1, 6]
    packed, (_, c_n), c = module(pack(leaves[0], lengths), return_states=True)
    assert type(c) is PackedSequence
    assert c.data.shape == packed.data.shape
    padded, found = pad_packed_sequence(c)
    assert found.tolist() == lengths
    for row, length in enumerate(lengths):
        assert torch.equal(padded[length - 1, row, :6], c_n[0, row])
        assert torch.equal(padded[0, row, 6:], c_n[1, row])


def test_threads():
    module = make("LSTM", 5, 6)
    x = torch.randn(7, 3, 5)
    assert torch.equal(module(x, threads=1)[0], module(x, threads=2)[0])
    with raises(ValueError, "threads: expected an integer >= 1, got 0"):
        module(x, threads=0)
    cell = make("GRUCell", 5, 6)
    assert torch.equal(cell(x[0], threads=1), cell(x[0]))


def test_errors_of_what_torch_does_not_have():
    module, x = make("LSTM", 5, 6), torch.randn(7, 3, 5)
    with raises(ValueError, "lengths: expected integers from 0 to seq_len = 7, got 8 at 1"):
        module(x, lengths=[1, 8, 3])
    with raises(ValueError, "lengths: expected shape (batch_size,) = (3,), got (2,)"):
        module(x, lengths=torch.tensor([1, 2]))
    with raises(ValueError, "resets: expected True and False, or 1 and 0, got 2.0 in a tensor of torch.float32"):
        module(x, resets=torch.full((7, 3), 2.0))
    with raises(ValueError, "lengths, resets: expected padded input, got a PackedSequence"):
        module(pack(x, [7, 2, 1]), lengths=[7, 2, 1])
    with raises(TypeError, "return_states: expected False, since the output of a GRU holds every state, got True"):
        make("GRU", 5, 6)(x, return_states=True)
    for given, reason in (
        (x.half(), "input of torch.float16"),
        (x.to("meta"), "input on meta"),
        (x[..., :4], "input of shape (7, 3, 4)"),
        (x.to_sparse(), "input of layout torch.sparse_coo"),
    ):
        with raises(TypeError, "lengths, resets, return_states, threads: expected a call that hotloop runs (dense "
                    "tensors of float32 or float64 on the CPU, of the shapes that torch documents), "
                    f"got {reason}"):  # fmt: skip
            module(given, lengths=[1, 2, 3])
    with raises(TypeError, "threads: expected a call that hotloop runs (dense tensors of float32 or float64 on the "
                "CPU, of the shapes that torch documents), got h of torch.float64"):  # fmt: skip
        make("GRUCell", 5, 6)(x[0], torch.zeros(3, 6, dtype=torch.float64), threads=1)


class Other(torch.Tensor):
    """A subclass, for which torch's dispatch has to run."""


# Inputs that are torch's to answer, right or wrong.
FOREIGN = {
    "bfloat16": lambda x: x.bfloat16(),
    "half": lambda x: x.half(),
    "double": lambda x: x.double(),
    "integers": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "subclass": lambda x: x.as_subclass(Other),
    "four dimensions": lambda x: x.expand(2, 7, 3, 5),
    "one dimension": lambda x: x[(0,) * (x.dim() - 1)],
    "features": lambda x: x[..., :3],
    "no steps": lambda x: x[:0],
    "no rows": lambda x: x[:, :0],
    "an array": lambda x: x.numpy(),
    "none": lambda x: None,
}


def outcome(call, *args):
    """The results, or the error."""
    try:
        results = call(*args)
    except Exception as error:
        return type(error), str(error)
    return torch.utils._pytree.tree_leaves(results)


@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning", "ignore:.*quantiz.*:DeprecationWarning")
@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTMCell", "RNNCell_TANH"])
def test_what_is_not_ours_is_torchs(kind, what):
    ours, theirs = twins(kind, 5, 6)
    x = torch.randn(7, 3, 5)
    given = FOREIGN[what](x[0] if "Cell" in kind else x)
    got, want = outcome(ours, given), outcome(theirs, given)
    if what == "one dimension" and "Cell" in kind:  # which is ours
        torch.testing.assert_close(got, want)
        return
    if isinstance(want, tuple):
        name = type(theirs).__name__
        assert got == want or (want[0] is got[0] and name in want[1])
        return
    assert [g.shape for g in got] == [w.shape for w in want]
    assert [type(g) for g in got] == [type(w) for w in want]
    if what != "meta":
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize(
    "hx",
    [
        lambda h: h,
        lambda h: (h, h[:, :2]),
        lambda h: (h[0], h[0]),
        lambda h: (h.double(), h),
        lambda h: (h, h, h),
        lambda h: [h, h],
        lambda h: (h, None),
        lambda h: h[..., :3],
    ],
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTMCell", "GRUCell"])
def test_wrong_states_are_torchs_errors(kind, hx):
    ours, theirs = twins(kind, 5, 6)
    x, h = torch.randn(7, 3, 5), torch.zeros(1, 3, 6)
    if kind.endswith("Cell"):
        x, h = x[0], h[0]
    got, want = outcome(ours, x, hx(h)), outcome(theirs, x, hx(h))
    if isinstance(want, tuple):
        assert got == want
    else:
        torch.testing.assert_close(got, want)


def test_packed_with_wrong_states():
    ours, theirs = twins("GRU", 5, 6)
    given = pack(torch.randn(7, 3, 5), [7, 2, 4])
    for hx in (torch.zeros(1, 2, 6), torch.zeros(3, 6), torch.zeros(1, 3, 5)):
        got, want = outcome(ours, given, hx), outcome(theirs, given, hx)
        assert got == want
        assert isinstance(want, tuple)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_autocast_and_transforms_are_torchs():
    x = torch.randn(7, 3, 5)
    ours, theirs = twins("LSTM", 5, 6)
    for grad in (True, False):
        for _ in range(2):  # it has run before, too
            with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
                got, want = ours(x)[0], theirs(x)[0]
            assert got.dtype == want.dtype
            assert torch.equal(got, want)
            with torch.set_grad_enabled(grad):
                ours(x)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"got a call under autocast$"):
        ours(x, threads=1)
    ours, theirs = twins("GRU", 5, 6, dtype=torch.float64)
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    grads = [torch.func.grad(lambda x, m=m: m(x)[0].square().sum())(x) for m in (ours, theirs)]
    assert torch.equal(*grads)
    with pytest.raises(TypeError, match=r"got a call inside a transform of torch\.func$"):
        torch.func.grad(lambda x: ours(torch.ones(7, 3, 5).double(), threads=1)[0].sum() + x.sum())(x)
    tangents = [torch.func.jvp(lambda x, m=m: m(x)[0], (x,), (torch.ones_like(x),))[1] for m in (ours, theirs)]
    assert torch.equal(*tangents)
    found = []
    for module in (ours, theirs):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            found.append(torch.autograd.forward_ad.unpack_dual(module(dual)[0]).tangent)
    assert torch.equal(*found)


def test_torchs_constructor_errors():
    for options in ({"proj_size": 7}, {"num_layers": 0}, {"dropout": 2}, {"bias": 1}, {"hidden": 2}):
        got, want = (
            outcome(lambda o=options: hotloop.torch.LSTM(5, 6, **o)),
            outcome(lambda o=options: torch.nn.LSTM(5, 6, **o)),
        )
        assert got == want


def test_modes_that_look_at_operations():
    """A dispatch mode sees one op, and fake tensors pass through."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=NONE):
            seen.append(str(function))
            return function(*args, **kwargs)

    ours, theirs = twins("LSTM", 5, 6, 2, bidirectional=True, batch_first=True)
    x = torch.randn(3, 7, 5)
    with Mode():
        output, _ = ours(x)
    assert seen.count("hotloop.forward.default") == 1
    assert torch.equal(output, ours(x)[0])
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        got = torch.utils._pytree.tree_leaves(ours(fake.from_tensor(x)))
    want = torch.utils._pytree.tree_leaves(ours(x))
    assert [(g.shape, g.stride()) for g in got] == [(w.shape, w.stride()) for w in want]
    assert [w.shape for w in want] == [w.shape for w in torch.utils._pytree.tree_leaves(theirs(x))]


def test_modules_made_by_hooks_and_properties():
    """weight_norm, parametrizations and pruning put tensors where parameters were."""
    for change in (
        lambda m: torch.nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: torch.nn.utils.parametrizations.orthogonal(m, "weight_hh_l0"),
        lambda m: torch.nn.utils.prune.l1_unstructured(m, "weight_ih_l0", 0.5),
    ):
        ours, theirs = twins("RNN_TANH", 6, 6, dtype=torch.float64)
        x = torch.randn(7, 3, 6, dtype=torch.float64)
        found = []
        for module in (ours, theirs):
            torch.manual_seed(0)
            change(module)
            for _ in range(2):
                module.zero_grad()
                output, _ = module(x)
                output.square().sum().backward()
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter.sub_(0.1 * parameter.grad)
            found.append({"output": module(x)[0]} | dict(module.named_parameters()))
        assert_near(*found, "float64", "gradient")


def test_import_is_lazy(run_python):
    """`import hotloop` does not load torch; hotloop.torch does not load dynamo."""
    run_python("import sys, hotloop; assert 'torch' not in sys.modules")
    run_python("import sys, hotloop.torch; assert 'torch._dynamo' not in sys.modules")


def test_layers_of_hotloop_agree():
    """The same bits as hotloop.LSTM: one contract."""
    layer = hotloop.LSTM(5, 6, 2, bidirectional=True, rng=0)
    module = make("LSTM", 5, 6, 2, bidirectional=True)
    module.load_state_dict({name: torch.tensor(array) for name, array in layer.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((7, 3, 5), np.float32)
    (output, (h_n, c_n)), vjp = layer.vjp(x)
    got, (got_h, got_c) = module(torch.from_numpy(x))
    assert_same_bits(
        {"o": got.detach().numpy(), "h": got_h.detach().numpy(), "c": got_c.detach().numpy()},
        {"o": output, "h": h_n, "c": c_n},
    )
    got.backward(torch.ones_like(got))
    assert_same_bits({n: p.grad.numpy() for n, p in module.named_parameters()}, vjp(np.ones_like(output)).parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8])
def test_resets_of_zeros_and_ones(dtype):
    """As code of reinforcement learning has them."""
    module = make("GRU", 5, 6)
    x, flags = torch.randn(7, 3, 5), torch.rand(7, 3) < 0.3
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert torch.equal(module(x, resets=flags.to(dtype))[0], module(x, resets=flags)[0])
    for wrong in (torch.nan, 0.5, -1) if dtype.is_floating_point else (2,):
        resets = flags.to(dtype)
        resets[3, 1] = wrong
        with pytest.raises(ValueError, match="resets: expected True and False, or 1 and 0, got"):
            module(x, resets=resets)


@pytest.mark.parametrize("sizes", [(4, 0), (0, 4), (0, 0)])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", *CELLS])
def test_sizes_of_zero(kind, sizes):
    if "Cell" not in kind:
        with pytest.raises(ValueError, match="size must be greater than zero"):
            make(kind, *sizes)
        return
    ours, theirs = twins(kind, *sizes)
    x = torch.ones(*((3,) if "Cell" in kind else (5, 3)), sizes[0])
    for _ in range(2):
        got, want = (torch.utils._pytree.tree_leaves(module(x)) for module in (ours, theirs))
        torch.testing.assert_close(got, want)
        sum(one.sum() for one in got).backward()


@pytest.mark.parametrize("state", [(3, 3), (2, 3, 3), (1, 3)])
def test_states_on_which_torchs_cell_crashes(state):
    """Without a batch torch's LSTMCell takes states with one for right."""
    cell = make("LSTMCell", 3, 3)
    for hx in ((torch.zeros(state), torch.zeros(state)), (torch.zeros(3), torch.zeros(state)), torch.zeros(state)):
        if isinstance(hx, torch.Tensor) and len(state) == 2:
            continue  # two states of one dimension, to torch
        with pytest.raises((RuntimeError, ValueError)):
            cell(torch.ones(3), hx)
    big = make("LSTMCell", 512, 512)
    big(torch.ones(1, 512))
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
        big(torch.ones(512), (torch.zeros(512, 512), torch.zeros(512, 512)))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("fails", [False, True])
def test_parametrizations_are_evaluated_as_torch_does(kind, fails):
    """Some change with each evaluation, as spectral_norm in training does."""

    class Counted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.count = 0

        def forward(self, weight):
            self.count += 1
            return weight * 0.5

    counts = []
    for module in twins(kind, 5, 6):
        x = torch.randn(*((3,) if "Cell" in kind else (7, 3)), 5)
        module(x)
        names = [name for name, _ in module.named_parameters() if "weight" in name]
        counted = [Counted() for _ in names]
        for name, one in zip(names, counted, strict=True):
            torch.nn.utils.parametrize.register_parametrization(module, name, one)
        before = [one.count for one in counted]
        for _ in range(2):
            with contextlib.suppress(RuntimeError):
                module(x[..., :2] if fails else x)
        counts.append([one.count - first for one, first in zip(counted, before, strict=True)])
    assert fails or counts[0] == counts[1]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_assigned_flat_weights(kind):
    """Code for quantization and LoRA puts other tensors in the place of the parameters."""
    ours, theirs = twins(kind, 5, 6, 2)
    x = torch.randn(7, 3, 5)
    ours(x)
    for module in (ours, theirs):
        torch.manual_seed(3)
        module._flat_weights = [torch.randn_like(weight) for weight in module._flat_weights]
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    for module in (ours, theirs):
        module._flat_weights[1] = torch.zeros_like(module._flat_weights[1])
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    for module in (ours, theirs):
        module.weight_hh_l0 = torch.nn.Parameter(torch.ones_like(module.weight_hh_l0))
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_attributes_that_change_the_equations():
    ours, theirs = twins("RNN_TANH", 5, 6)
    x = torch.randn(7, 3, 5)
    for module in (ours, theirs):
        module(x)
        module.mode = "RNN_RELU"
    torch.testing.assert_close(ours(x), theirs(x))
    for grad in (True, False):
        ours, theirs = twins("RNNCell_TANH", 5, 6)
        with torch.set_grad_enabled(grad):
            for module in (ours, theirs):
                module(x[0])
                module(x[0])
                module.nonlinearity = "relu"
            torch.testing.assert_close(ours(x[0]), theirs(x[0]))


@pytest.mark.parametrize("kind", CELLS)
def test_errors_of_a_cell_whose_bias_is_no_flag(kind):
    """As torch's: it takes anything for True, such as the nonlinearity by place."""
    ours, theirs = twins(kind, 5, 6, bias="tanh")
    assert torch.allclose(states_of(ours(torch.ones(3, 5)))[0], states_of(theirs(torch.ones(3, 5)))[0], atol=1e-6)
    for cell in (ours, theirs):
        with pytest.raises(RuntimeError):
            cell(torch.ones(3, 4))


def test_zero_tensors():
    """Of no memory, as torch makes them for gradients that are zero."""
    for kind in ("GRU", "LSTM"):
        module = make(kind, 5, 6)
        x, state = torch._efficientzerotensor(7, 3, 5), torch._efficientzerotensor(1, 3, 6)
        hx = (state, state) if kind == "LSTM" else state
        ones = torch.ones(7, 3, 5)
        for gradients in (False, True, False):
            with torch.set_grad_enabled(gradients):
                assert torch.equal(module(x)[0], module(torch.zeros(7, 3, 5))[0])
                assert torch.equal(module(ones, hx)[0], module(ones)[0])
        module(x, hx)[0].sum().backward()


@pytest.mark.parametrize("kind", ["GRU", "GRUCell", "LSTMCell"])
def test_weights_made_in_inference_mode(kind):
    with torch.inference_mode():
        ours, theirs = twins(kind, 5, 6)
    x = torch.randn(*((3,) if "Cell" in kind else (7, 3)), 5)
    for mode in (torch.no_grad, torch.inference_mode):
        for _ in range(2):
            with mode():
                torch.testing.assert_close(ours(x), theirs(x))
    got, want = (outcome(lambda m=module: m(x.clone().requires_grad_())) for module in (ours, theirs))
    assert type(got) is type(want)
