"""The ops check what they are given, whoever calls them; backward, what has changed since forward."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys

import pytest
import torch
from cases import raises
from torch.utils.checkpoint import checkpoint
from torched import AsOps, assert_near, make, states_of, twins

import hotloop.torch
from hotloop.torch import _ops

N, H, T, B = 3, 5, 4, 2  # input_size, hidden_size, seq_len, batch_size


def given(changed, kind="LSTM", layout="time_major", layers=1):
    """Arguments of `infer`, by name, in its order."""
    module = make(kind, N, H, layers)
    call = module._call(layout)
    shape = {"packed": (6, N), "step": (B, N), "unbatched": (T, N), "batch_first": (B, T, N)}.get(layout, (T, B, N))
    if layout == "packed":
        call.batch_sizes, call.unsorted, call.batch_size = torch.tensor([2, 2, 1, 1]), torch.tensor([1, 0]), 2
    names = ("lengths", "resets", "batch_sizes", "unsorted", "seed", "cell", "layers", "directions", "bias", "layout",
             "batch_size", "dropout", "return_states", "threads")  # fmt: skip
    arguments = {
        "x": torch.randn(*shape), "h0": None, "c0": None,
        "weights": [weight.detach() for weight in module.parameters()],
        **dict(zip(names, _ops.arguments(call), strict=True)),
    }  # fmt: skip
    for name, value in changed.items():
        arguments[name] = value(arguments[name]) if callable(value) else value
    return arguments


def double(tensors):
    return [tensor.double() for tensor in tensors] if isinstance(tensors, list) else tensors.double()


WRONG = {  # the kind of call, what is changed, and the error
    "features": ({}, {"x": torch.ones(T, B, 7)}, "weight_ih: expected shape (20, 7), got (20, 3)"),
    "dimensions": ({}, {"x": torch.ones(T, N)}, "x: expected (seq_len, batch_size, input_size) with layout "
                   "'time_major', got (4, 3)"),
    "x of float64": ({}, {"x": double}, "x: expected torch.float32 (the dtype of weight_ih), got torch.float64"),
    "weights of float64": ({}, {"weights": double}, "x: expected torch.float64 (the dtype of weight_ih), got "
                           "torch.float32"),
    "half": ({}, {"x": torch.Tensor.half, "weights": lambda ws: [w.half() for w in ws]},
             "weight_ih: expected float32 or float64, got torch.float16"),
    "one bias of float64": ({}, {"weights": lambda ws: [*ws[:3], ws[3].double()]},
                            "bias_hh: expected torch.float32 (the dtype of weight_ih), got torch.float64"),
    "no weights": ({}, {"weights": []}, "weights: expected 4 tensors (layers = 1, directions = 1, bias = True), got 0"),
    "layers": ({}, {"layers": 2}, "weights: expected 8 tensors (layers = 2, directions = 1, bias = True), got 4"),
    "no layers": ({}, {"layers": 0, "weights": []}, "layers: expected at least 1, got 0"),
    "directions": ({}, {"directions": 3}, "directions: expected 1 or 2, got 3"),
    "bias": ({}, {"bias": False}, "weights: expected 2 tensors (layers = 1, directions = 1, bias = False), got 4"),
    "cell": ({}, {"cell": "abc"}, "cell: expected one of rnn_tanh, rnn_relu, lstm, gru, gru_reset_before, "
             "lstm_projected, got 'abc'"),
    "cell of other gates": ({}, {"cell": "gru"}, "weight_ih: expected shape (15, 3), got (20, 3)"),
    "layout": ({}, {"layout": "abc"}, "layout: expected one of time_major, batch_first, unbatched, packed, step, got "
               "'abc'"),
    "step of two layers": ({"layers": 2}, {"layout": "step"},
                           "layers, directions: expected 1 and 1 with layout 'step', got 2 and 1"),
    "step of two directions": ({}, {"layout": "step", "directions": 2, "weights": lambda ws: [*ws, *ws]},
                               "layers, directions: expected 1 and 1 with layout 'step', got 1 and 2"),
    "weight_hh": ({}, {"weights": lambda ws: [ws[0], ws[1][:4], *ws[2:]]},
                  "weight_hh: expected shape (20, 5), got (4, 5)"),
    "weight_hh of no columns": ({}, {"weights": lambda ws: [ws[0], ws[1][:, 0], *ws[2:]]},
                                "weight_hh: expected 2 dimensions, got 1"),
    "hidden_size 0": ({}, {"weights": [torch.ones(0, N), torch.ones(0, 0), torch.ones(0), torch.ones(0)]},
                      "x, weight_hh: expected input_size >= 1 and hidden_size >= 1, got 3 and 0"),
    "bias_ih": ({}, {"weights": lambda ws: [*ws[:2], ws[2][:1], ws[3]]}, "bias_ih: expected shape (20,), got (1,)"),
    "second layer": ({"layers": 2}, {"weights": lambda ws: [*ws[:4], ws[0], *ws[5:]]},
                     "weight_ih: expected shape (20, 5), got (20, 3)"),
    "h0": ({}, {"h0": torch.ones(1, 1, 1)}, "h0: expected shape (1, 2, 5), got (1, 1, 1)"),
    "c0": ({}, {"c0": torch.ones(1, 2, 6)}, "c0: expected shape (1, 2, 5), got (1, 2, 6)"),
    "c0 of float64": ({}, {"c0": torch.ones(1, 2, 5).double()},
                      "c0: expected torch.float32 (the dtype of weight_ih), got torch.float64"),
    "c0 of a GRU": ({"kind": "GRU"}, {"c0": torch.ones(1, 2, 5)}, "c0: expected None (only an LSTM has c), got "
                    "(1, 2, 5)"),
    "c0 of an RNN": ({"kind": "RNN_TANH"}, {"c0": torch.ones(1, 2, 5)}, "c0: expected None (only an LSTM has c), got "
                     "(1, 2, 5)"),
    "resets of packed": ({"layout": "packed"}, {"resets": torch.zeros(4, 2, dtype=torch.bool)},
                         "lengths, resets: expected None with layout 'packed', got a tensor"),
    "h0 of packed": ({"layout": "packed"}, {"h0": torch.ones(1, 1, 5)},
                     "h0: expected shape (num_layers*num_directions, batch_size, hidden_size) = (1, 2, 5), got "
                     "(1, 1, 5)"),
    "dropout": ({}, {"dropout": 1.5}, "dropout: expected a number from 0 to 1, got 1.5"),
    "threads": ({}, {"threads": -1}, "threads: expected an integer >= 1, got -1"),
    "seed": ({}, {"seed": torch.tensor([1, 2])}, "seed: expected an int64 of one element, got torch.int64 of shape "
             "(2,)"),
    "return_states": ({"kind": "GRU"}, {"return_states": True},
                      "return_states: expected False, since the output of a GRU holds every state, got True"),
    "lengths": ({}, {"lengths": torch.tensor([9, 1])}, "lengths: expected integers from 0 to seq_len = 4, got 9 at 0"),
    "lengths of packed": ({"layout": "packed"}, {"lengths": torch.tensor([1, 1])},
                          "lengths, resets: expected None with layout 'packed', got a tensor"),
    "indices on another device": ({"layout": "packed"}, {"unsorted": lambda one: one.to("meta")},
                                  "unsorted: expected a tensor on cpu, where weight_ih is, got one on meta"),
    "a seed on another device": ({}, {"seed": torch.tensor(1, device="meta")},
                                 "seed: expected a tensor on cpu, where weight_ih is, got one on meta"),
    "sizes without packed": ({}, {"batch_sizes": torch.tensor([2])},
                             "batch_sizes: expected a tensor with layout 'packed' and None elsewhere, got tensor([2]) "
                             "with layout 'time_major'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit(name):
    """Whatever the op: no memory is read before everything fits."""
    kind, changed, message = WRONG[name]
    arguments = given(changed, **kind)
    error = TypeError if "the dtype of" in message or "float32 or" in message or "None (only" in message else ValueError
    error = TypeError if "every state" in message else error
    with raises(error, message):
        torch.ops.hotloop.infer(*arguments.values())
    for training in (False, True):
        with raises(error, message):
            torch.ops.hotloop.forward(*arguments.values(), training)


def test_a_seed_of_zero_drops():
    """As any other."""
    arguments = given({"dropout": 0.5, "seed": torch.tensor(0)}, layers=2)
    dropped, whole = (torch.ops.hotloop.infer(*(arguments | {"seed": seed}).values())[0]
                      for seed in (arguments["seed"], None))  # fmt: skip
    assert not torch.equal(dropped, whole)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_TANH"])
def test_weights_that_a_hook_gives_back(kind, layers):
    """They count, not those that the module has."""
    module = make(kind, N, H, layers)
    x = torch.randn(T, B, N, requires_grad=True)
    module(x)
    found = []
    for factor in (1, 2):

        def unpack(tensor, factor=factor):
            return tensor * factor if tensor.shape == module.weight_hh_l0.shape else tensor

        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            output, _ = module(x)
        found.append(torch.autograd.grad(output.sum(), x)[0])
    assert torch.equal(found[0][-1], found[1][-1]) or layers == 2  # the last step's gradient has no weight_hh in it
    assert not torch.allclose(found[0][0], found[1][0])


RULE = "int64 of 1 dimension, at least 1, none larger than the one before, 6 (rows of the data) in sum"
SIZES = {
    "too large": ([1000000, 2], None), "negative": ([2, 5, -1], None), "increasing": ([2, 3, 1], None),
    "of another sum": ([2, 2, 1], None), "none": ([], None), "zero": ([2, 2, 2, 0], None),
    "beyond int64": ([2**62, 2**62, 2**62, 2**62, 6], None), "two dimensions": ([[2], [2], [2]], None),
    "indices outside": ([2, 2, 2], [7, -9]), "indices twice": ([2, 2, 2], [1, 1]), "too many": ([2, 2, 2], [1, 0, 2]),
    "from the end": ([2, 2, 2], [-1, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("training", [False, True])
def test_sizes_of_packed_sequences(name, training):
    """Of an op, and of a PackedSequence, whose constructor takes anything."""
    sizes, indices = SIZES[name]
    sizes, unsorted = torch.tensor(sizes, dtype=torch.int64), None if indices is None else torch.tensor(indices)
    rule = RULE if indices is None else "a permutation of 0 to 1 (the first of batch_sizes, less 1)"
    arguments = given({"batch_sizes": sizes, "unsorted": unsorted}, layout="packed")
    with pytest.raises(ValueError, match="expected " + rule.replace("(", r"\(").replace(")", r"\)")):
        torch.ops.hotloop.forward(*arguments.values(), training)
    if name == "of another sum":
        return  # torch's layers take it, and run it
    module = make("LSTM", N, H)
    packed = torch.nn.utils.rnn.PackedSequence(arguments["x"], sizes, None if unsorted is None else unsorted, unsorted)
    with torch.set_grad_enabled(training), pytest.raises((ValueError, RuntimeError, IndexError)):
        module(packed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.float32, torch.bool], ids=str)
@pytest.mark.parametrize("name", ["batch_sizes", "unsorted"])
def test_dtypes_of_indices(name, dtype):
    """No memory is read as that of another type."""
    arguments = given({name: lambda one: one.to(dtype)}, layout="packed")
    with raises(TypeError, f"{name}: expected torch.int64, got {dtype}"):
        torch.ops.hotloop.infer(*arguments.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.int32, torch.float32], ids=str)
def test_dtypes_of_indices_of_a_packed_sequence(dtype):
    """The end is torch's."""
    ours, theirs = twins("GRU", N, H)
    x, sizes, order = torch.randn(6, N), torch.tensor([2, 2, 2]), torch.tensor([1, 0])
    for given_sizes, indices in ((sizes.to(dtype), order), (sizes, order.to(dtype))):
        packed = torch.nn.utils.rnn.PackedSequence(x, given_sizes, indices, indices)
        ends = []
        for module in (ours, theirs):
            try:
                ends.append(module(packed)[0].data)
            except (RuntimeError, IndexError, TypeError) as error:
                ends.append(type(error))
        if isinstance(ends[0], type) or isinstance(ends[1], type):
            assert ends[0] == ends[1]
        else:
            torch.testing.assert_close(*ends)


@pytest.mark.parametrize("layout", ["time_major", "packed"])
def test_backward_of_the_op(layout):
    """What forward left has its shapes, or nothing is read."""
    arguments = list(given({}, layout=layout).values())
    output, h_n, c_n, c, saved = torch.ops.hotloop.forward(*arguments, True)
    grads = [torch.ones_like(output), torch.ones_like(h_n), torch.ones_like(c_n), None]
    right = {"grads": grads, "output": output, "c": c, "saved": saved, "wanted": [True] * 7}

    def run(**changed):
        parts = {**right, **changed}
        return torch.ops.hotloop.backward(
            *arguments, *parts["grads"], parts["output"], parts["c"], parts["saved"], parts["wanted"]
        )

    run()
    wrong = [
        {"grads": [grads[0][:1], *grads[1:]]}, {"grads": [grads[0].double(), *grads[1:]]},
        {"grads": [grads[0], grads[1][..., :1], *grads[2:]]}, {"grads": [*grads[:2], grads[2][..., :1], None]},
        {"grads": [*grads[:3], output]}, {"saved": saved[:1]}, {"saved": []}, {"saved": [*saved, output]},
        {"saved": [saved[0][:1], *saved[1:]]}, {"saved": [saved[0].double(), *saved[1:]]}, {"wanted": [True] * 6},
        {"wanted": [True] * 8},
    ]  # fmt: skip
    if layout == "time_major":
        wrong += [{"output": output[:1]}, {"output": output.double()}, {"output": torch.ones(0)}]
    for changed in wrong:
        with pytest.raises((ValueError, TypeError), match="expected"):
            run(**changed)

    def turned(one):
        return one.transpose(0, -1).contiguous().transpose(0, -1)

    for changed in ({"saved": list(map(turned, saved))}, {"output": turned(output)},
                    {"grads": [turned(grads[0]), *grads[1:]]}):  # fmt: skip
        assert all(map(torch.equal, run()[3], run(**changed)[3]))


@pytest.mark.parametrize("layers", [1, 2])
def test_backward_of_the_op_with_every_c(layers):
    """Which is one more of the results, and of the lower layers none."""
    arguments = list(given({"return_states": True}, layers=layers).values())
    output, _, _, c, saved = torch.ops.hotloop.forward(*arguments, True)
    upstream = torch.ones_like(output), None, None, torch.ones_like(c)
    wanted = [True] * (3 + 4 * layers)
    x, _, _, weights = torch.ops.hotloop.backward(*arguments, *upstream, output, c, saved, wanted)
    turned = c.transpose(0, -1).contiguous().transpose(0, -1)
    again = torch.ops.hotloop.backward(*arguments, *upstream, output, turned, saved, wanted)
    assert torch.equal(again[0], x)
    assert all(map(torch.equal, again[3], weights))
    for other in (c[:1], c[..., :1], c.double(), torch.ones(0)):
        with pytest.raises((ValueError, TypeError), match=r"^c: expected"):
            torch.ops.hotloop.backward(*arguments, *upstream, output, other, saved, wanted)
    x, h0, c0, weights, *others = arguments
    fake = torch.ops.hotloop.forward(x.to("meta"), h0, c0, [one.to("meta") for one in weights], *others, True)
    assert [one.shape for one in fake[4]] == [one.shape for one in saved]


def test_weights_packed_for_another_cell():
    """An op keeps what it packed by the weights and the cell."""
    arguments = given({}, kind="RNN_TANH")
    found = [
        torch.ops.hotloop.infer(*(arguments | {"cell": cell}).values())[0] for cell in ("rnn_tanh", "rnn_relu") * 2
    ]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_one_weight_that_moves(kind, layers):
    """Whichever: its storage is freed and filled again elsewhere between forward and backward."""
    ours, theirs = pairs(kind, layers)
    x = torch.randn(T, B, N)
    theirs(x)[0].square().sum().backward()
    for name, parameter in ours.named_parameters():
        ours.zero_grad()
        output, _ = ours(x)
        held, storage = parameter.detach().clone(), parameter.untyped_storage()
        storage.resize_(0)
        there = [torch.full_like(held, torch.nan) for _ in range(8)]  # one of them where it was
        storage.resize_(held.nbytes)
        parameter.data.copy_(held)
        output.square().sum().backward()
        assert len(there) == 8
        for (one, got), (_, want) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            torch.testing.assert_close(got.grad, want.grad, msg=f"{one}, after {name} moved")


def exported(module, *inputs):
    return torch.export.export(module, inputs).module()


def traced(module, *inputs):
    return torch.jit.trace(module, inputs, check_trace=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make_program", [exported, traced])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTMCell"])
def test_programs_with_other_inputs(make_program, kind):
    """A program keeps no check of the module's."""
    module = make(kind, N, H).eval()
    cell = kind.endswith("Cell")
    x, state = torch.randn(*((B,) if cell else (T, B)), N), torch.zeros(*((B,) if cell else (1, B)), H)
    hx = (state, state) if "LSTM" in kind else state
    program = make_program(module, x, hx)
    want, got = module(x, hx), program(x, hx)
    assert all(map(torch.equal, torch.utils._pytree.tree_leaves(want), torch.utils._pytree.tree_leaves(got)))
    others = [(x[..., :2].contiguous(), hx), (x.double(), hx), (x.half(), hx), (x[0], hx)]
    for other in (state.double(), state.half(), state[..., :1]):
        others.append((x, (other, other) if "LSTM" in kind else other))
    for one in others:
        with pytest.raises(Exception, match=r"expected|Expected|dtype|shape|size|Guard"):
            program(*one)


@pytest.mark.filterwarnings("ignore")
def test_exported_programs_with_other_parameters():
    module = make("LSTM", N, H).eval()
    x = torch.randn(T, B, N)
    program = exported(module, x)
    parameters = dict(program.named_parameters())
    small = {name: tensor[:1] for name, tensor in parameters.items()}
    with raises(ValueError, "weight_hh: expected shape (20, 5), got (1, 5)"):
        torch.func.functional_call(program, {**parameters, "weight_hh_l0": small["weight_hh_l0"]}, (x,))
    with raises(ValueError, "weight_ih: expected shape (20, 3), got (1, 3)"):
        torch.func.functional_call(program, small, (x,))
    with raises(TypeError, "x: expected torch.float64 (the dtype of weight_ih), got torch.float32"):
        program.double()(x)
    torch.testing.assert_close(program(x.double())[0], module.double()(x.double())[0])


def pairs(kind, layers=1, **options):
    return twins(kind, N, H, layers, **options)


def changes(module, x, state):
    """What can be done between forward and backward."""

    def assign(tensor, data):
        tensor.data = data

    return {
        "x smaller": lambda: assign(x, torch.ones(1, 1, N)),
        "x of another dtype": lambda: assign(x, x.double()),
        "state smaller": lambda: assign(state, torch.ones(1, 1, H)),
        "weight smaller": lambda: assign(module.weight_hh_l0, torch.ones(2, 1)),
        "storage freed": lambda: module.weight_hh_l0.untyped_storage().resize_(0),
    }


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("change", changes(None, None, None))
def test_changed_before_backward(change, layers):
    """No memory of another size is taken for what forward had: a RuntimeError, as torch's."""
    module = pairs("GRU", layers)[0]
    module(torch.randn(T, B, N))
    x, state = torch.randn(T, B, N, requires_grad=True), torch.randn(layers, B, H, requires_grad=True)
    output, _ = module(x, state)
    changes(module, x, state)[change]()
    with pytest.raises(RuntimeError):
        output.sum().backward()


MAY_LIE = {
    "columns first": lambda one: one.mT.contiguous().mT,
    "negated": lambda one: torch._neg_view(-one),
    "zero": lambda one: torch._efficientzerotensor(one.shape, dtype=one.dtype),
}


@pytest.mark.parametrize("way", MAY_LIE)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_x_lies_otherwise_before_backward(kind, layers, way):
    """Assigned to .data: numbers of the same shape, which backward reads anew, as torch's layers do."""
    module = pairs(kind, layers, dtype=torch.float64)[0]
    h0 = torch.rand(layers, B, H, dtype=torch.float64)
    found = []
    for place in (torch.clone, MAY_LIE[way]):
        h, c = h0.clone(), h0.clone()
        x = torch.linspace(-1, 1, T * B * N, dtype=torch.float64).view(T, B, N).requires_grad_()
        output, _ = module(x, (h, c) if kind == "LSTM" else h)
        other = torch.linspace(2, 1, T * B * N, dtype=torch.float64).view(T, B, N)
        x.data = place(other * 0 if way == "zero" else other)
        if way != "zero":
            h.data = place(h.data)
        found.append(dict(enumerate(torch.autograd.grad(output.square().sum(), [x, *module.parameters()]))))
    assert_near(*found, "float64", "gradient")


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_another_dtype_before_backward(kind, layers):
    """model.double() gives the parameters other memory; the gradients are those of the values that forward had."""
    x, found = torch.randn(T, B, N), []
    for move in (lambda module: module, torch.nn.Module.double):
        module = pairs(kind, layers)[0]
        leaf = x.clone().requires_grad_()
        output, _ = module(leaf)
        move(module)
        output.square().sum().backward()
        found.append([leaf.grad, *(parameter.grad for parameter in module.parameters())])
    assert all(torch.equal(one.float(), other.float()) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("unpack", [lambda t: t.flatten()[:1].clone(), lambda t: t.double(), lambda t: t.T.clone()])
@pytest.mark.filterwarnings("ignore:The use of `x.T`")
def test_hooks_that_give_back_other_shapes(layers, unpack):
    x = torch.randn(T, B, N, requires_grad=True)
    module = pairs("LSTM", layers)[0]
    module(x)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        output, _ = module(x)
    with pytest.raises(RuntimeError, match="saved tensors: expected what forward saved"):
        output.sum().backward()
    output, _ = module(x)
    output.grad_fn._raw_saved_tensors[0].register_hooks(lambda tensor: tensor, unpack)
    with pytest.raises(RuntimeError, match="saved tensors: expected what forward saved"):
        output.sum().backward()


def in_place(module, x):
    output, _ = module(x)
    output.mul_(2).add_(1)
    return output.square().sum()


def hooked(module, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        return in_place(module, x)


def on_cpu(module, x):
    with torch.autograd.graph.save_on_cpu():
        return in_place(module, x)


def dispatched(module, x):
    with AsOps():
        return in_place(module, x)


def both(module, x):
    return checkpoint(lambda x: dispatched(module, x), x, use_reentrant=False)


WAYS = {
    "checkpoint": lambda module, x: checkpoint(in_place, module, x, use_reentrant=False),
    "reentrant": lambda module, x: checkpoint(lambda x: in_place(module, x), x, use_reentrant=True),
    "hooks": hooked, "save_on_cpu": on_cpu, "dispatch mode": dispatched, "both": both,
    "compiled": lambda module, x: torch.compile(in_place, backend="aot_eager")(module, x),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["GRU", "RNN_TANH", "LSTM"])
def test_results_written_to_in_place(kind, layers, way):
    """Where saved tensors are hooked, and where a call is an op: the gradients are those of the call."""
    ours, theirs = pairs(kind, layers, dtype=torch.float64)
    found = []
    for module, run in ((ours, WAYS[way]), (theirs, lambda module, x: (module(x)[0] * 2 + 1).square().sum())):
        x = torch.randn(T, B, N, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        run(module, x).backward()
        found.append({"x": x.grad, **{name: parameter.grad for name, parameter in module.named_parameters()}})
    assert_near(*found, "float64", "gradient")


@pytest.mark.parametrize("around", ["nothing", "hooks", "dispatch mode"])
@pytest.mark.parametrize("layers", [1, 2])
def test_every_c_written_to_in_place(layers, around):
    module, found = pairs("LSTM", layers, dtype=torch.float64)[0], []
    for write in (False, True):
        x = torch.ones(T, B, N, dtype=torch.float64, requires_grad=True)
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        with {"nothing": contextlib.nullcontext(), "hooks": hooks, "dispatch mode": AsOps()}[around]:
            output, _, c = module(x, return_states=True)
            output, c = (output.mul_(2), c.mul_(3)) if write else (output * 2, c * 3)
            (output.square().sum() + c.square().sum()).backward()
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_weights_that_backward_does_not_read(kind, layers):
    """A bias may be written to before backward, and weight_ih where x needs no gradient; no weight that is read."""
    ours, theirs = pairs(kind, layers)
    x, found = torch.randn(T, B, N), []
    for module in (ours, theirs):
        output, _ = module(x)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "bias" in name or name == "weight_ih_l0":
                    parameter.add_(1)
        if module is ours or kind == "GRU":  # torch's LSTM reads all of them
            output.square().sum().backward()
            found.append({name: parameter.grad for name, parameter in module.named_parameters()})
    if len(found) > 1:
        assert_near(*found, "float32", "gradient")
    of_upper = [(f"weight_{gate}_l1", x) for gate in ("ih", "hh")][: 2 * (layers - 1)]
    for name, leaf in (("weight_hh_l0", x), ("weight_ih_l0", x.clone().requires_grad_()), *of_upper):
        output, _ = ours(leaf)
        with torch.no_grad():
            getattr(ours, name).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
    leaf = x.clone().requires_grad_()
    output, _ = ours(leaf)
    with torch.no_grad():
        ours.bias_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output.square().sum(), leaf, create_graph=True)
    output, _ = ours(leaf)
    with torch.no_grad():
        ours.bias_hh_l0.add_(1)
    output.mul_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("layers", [1, 2])
def test_storages_may_change_their_size(layers):
    """As FSDP does with those of weights, between forward and backward too, and `resize_` with an input's."""
    ours, theirs = pairs("GRU", layers)
    x = torch.randn(T, B, N)
    state = torch.zeros(layers, B, H)
    want, _ = theirs(x, state)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            got, _ = ours(x, state)
        held = [parameter.detach().clone() for parameter in ours.parameters()]
        for parameter in ours.parameters():
            parameter.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="storage"):
            ours(x, state)
        for parameter, values in zip(ours.parameters(), held, strict=True):
            parameter.untyped_storage().resize_(values.nbytes)
            parameter.data.copy_(values)
        torch.testing.assert_close(ours(x, state)[0], want)
    got.square().sum().backward()
    want.square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    with torch.no_grad():
        for tensor in (x, state):
            tensor.resize_(50, 20, 30).zero_()


FSDP = """
import sys
import torch
import torch.distributed as dist
import hotloop.torch
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
device = torch.device("cpu")
for wrap in (lambda model: FullyShardedDataParallel(model, device_id=device), fully_shard):
    found = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.LSTM(6, 7))
        if ours:
            hotloop.torch.replace_modules(model)
        x, wrapped = torch.randn(5, 3, 6), wrap(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            wrapped(x)[0].square().sum().backward()
            optimizer.step()
        with torch.no_grad():
            found.append(wrapped(x)[0].square().sum())
    torch.testing.assert_close(*found)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_fsdp(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", FSDP, str(tmp_path / "meet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_TANH"])
def test_cpp_wrapper(kind):
    """Inductor's C++ wrapper takes no op with a list of tensors among its results."""
    from torch._inductor import config

    module = make(kind, N, H, 2, bidirectional=True).eval()
    x = torch.randn(T, B, N)
    with config.patch(cpp_wrapper=True), torch.no_grad():
        got = torch.compile(module)(x)
    assert torch.equal(got[0], module(x)[0])
    assert all(map(torch.equal, states_of(got[1]), states_of(module(x)[1])))


def test_meta_and_devices():
    """No result is made of nothing: all tensors are on one device."""
    arguments = given({})
    arguments["weights"] = [weight.to("meta") for weight in arguments["weights"]]
    with raises(ValueError, "x: expected a tensor on meta, where weight_ih is, got one on cpu"):
        torch.ops.hotloop.infer(*arguments.values())
    arguments["x"] = arguments["x"].to("meta")
    output, *_ = torch.ops.hotloop.infer(*arguments.values())
    assert output.device.type == "meta"
    assert output.shape == (T, B, H)


def test_weights_swapped_while_a_copy_is_made():
    """What is checked is what is kept: `.data` may be assigned to by another thread in between."""
    module, _ = pairs("GRU")
    other = copy.deepcopy(module)
    check = hotloop.torch.GRU._unfit_weights

    def swapped(self, tensors, traced):
        found = check(self, tensors, traced)
        module.weight_hh_l0.data = torch.ones(1, 1)
        return found

    x = torch.randn(T, B, N)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(hotloop.torch.GRU, "_unfit_weights", swapped)
        assert torch.equal(module(x)[0], other(x)[0])


@pytest.mark.parametrize("change", ["x", "weight"])
def test_changed_before_the_gradient_of_a_gradient(change):
    module = pairs("GRU", 2)[0]
    x = torch.randn(T, B, N, requires_grad=True)
    output, _ = module(x)
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    changed = {"x": x, "weight": module.weight_hh_l0}[change]
    changed.data = torch.ones(*changed.shape[:-1], 2)
    with pytest.raises(ValueError, match=r"(weight_ih|weight_hh): expected shape"):
        grad.square().sum().backward()
