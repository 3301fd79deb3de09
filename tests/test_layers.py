"""RNN, LSTM and GRU layers: against torch, against the functions they are made of, and what an object has to do."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    CELLS,
    DTYPES,
    LAYOUTS,
    PARAMETERS,
    TOLERANCE,
    Case,
    assert_same_bits,
    bits,
    distance,
    lay_out,
    raises,
    time_major,
    train,
)
from conftest import ISAS

import hotloop
import hotloop._backends.choice
from hotloop._core import dropout as _dropout


def make(cell, *sizes, **options):
    """A layer by the name of its cell."""
    if cell.startswith("rnn"):
        return hotloop.RNN(*sizes, nonlinearity=cell.removeprefix("rnn_"), **options)
    if cell.startswith("gru"):
        return hotloop.GRU(*sizes, reset_after=cell == "gru", **options)
    return hotloop.LSTM(*sizes, **options)


def states_of(state):
    return state if isinstance(state, tuple) else (state,)


def problem(layer, layout, rng, batch_size=3, seq_len=7):
    """x, state, and upstream gradients of the results, in a layout."""
    directions = 1 + layer.bidirectional
    x = rng.standard_normal((seq_len, batch_size, layer.input_size)).astype(layer.dtype)
    shape = (layer.num_layers * directions, batch_size, layer.hidden_size)
    count = 2 if isinstance(layer, hotloop.LSTM) else 1
    states = [rng.uniform(-1, 1, shape).astype(layer.dtype) for _ in range(2 * count)]
    up = rng.standard_normal((seq_len, batch_size, directions * layer.hidden_size)).astype(layer.dtype)
    x, up = (lay_out(name, array, layout) for name, array in (("x", x), ("grad_output", up)))
    if layout == "unbatched":
        states = [array[:, 0] for array in states]
    state = tuple(states[:count]) if count == 2 else states[0]
    return x, state, (up, *states[count:])


def torch_twin(layer, **options):
    kind = getattr(torch.nn, type(layer).__name__)
    if isinstance(layer, hotloop.RNN):
        options["nonlinearity"] = layer.nonlinearity
    twin = kind(
        layer.input_size, layer.hidden_size, layer.num_layers, bias=layer.bias, batch_first=layer.batch_first,
        bidirectional=layer.bidirectional, dtype=getattr(torch, str(layer.dtype)), **options,
    )  # fmt: skip
    assert list(twin.state_dict()) == list(layer.state_dict())
    twin.load_state_dict({name: torch.tensor(array) for name, array in layer.state_dict().items()})
    return twin


def torch_train(twin, x, state, upstream):
    inputs = [torch.tensor(array, requires_grad=True) for array in (x, *states_of(state))]
    lstm = isinstance(twin, torch.nn.LSTM)
    output, last = twin(inputs[0], tuple(inputs[1:]) if lstm else inputs[1])
    results = (output, *(last if lstm else (last,)))
    torch.autograd.backward(results, [torch.tensor(array) for array in upstream])
    return (
        [tensor.detach().numpy() for tensor in results],
        [tensor.grad.numpy() for tensor in inputs],
        {name: parameter.grad.numpy() for name, parameter in twin.named_parameters()},
    )


OPTIONS = list(itertools.product((1, 2, 3), (False, True), (False, True)))  # layers, bidirectional, bias
COVERING = [(1, False, True), (2, True, True), (3, False, False)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru"])
def test_torch_agrees(cell, dtype, layout, variant, rng):
    """Outputs, states and every gradient of torch's module, for all numbers of layers, directions and biases."""
    for num_layers, bidirectional, bias in OPTIONS if variant.isa in (None, ISAS[0]) else COVERING:
        layer = make(cell, 5, 6, num_layers, bias=bias, bidirectional=bidirectional, dtype=dtype, rng=rng,
                     batch_first=layout == "batch_first")  # fmt: skip
        x, state, upstream = problem(layer, layout, rng)
        wide = make(cell, 5, 6, num_layers, bias=bias, bidirectional=bidirectional, dtype=np.float64,
                    batch_first=layout == "batch_first")  # fmt: skip
        wide.load_state_dict(layer.state_dict())
        results, grads, parameters = torch_train(
            torch_twin(wide), np.asarray(x, np.float64),
            tuple(np.asarray(array, np.float64) for array in states_of(state)),
            [np.asarray(array, np.float64) for array in upstream],
        )  # fmt: skip
        (output, last), vjp = layer.vjp(x, state)
        tolerance = TOLERANCE[dtype]
        for got, want in zip((output, *states_of(last)), results, strict=True):
            assert distance(got, want) <= tolerance["forward"]
        if cell == "rnn_relu" and dtype == "float32":
            continue  # the derivative jumps where rounding decides
        ours = vjp(*upstream)
        assert list(ours.parameters) == list(parameters)
        for got, want in zip((ours.x, *states_of(ours.state)), grads, strict=True):
            assert distance(got, want) <= tolerance["gradient"]
        for name, want in parameters.items():
            assert distance(ours.parameters[name], want) <= tolerance["gradient"], name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_are_the_functions_one_after_the_other(cell, layout, variant, rng):
    """Bit for bit on every backend: directions and layers in one call, and one by one."""
    layer = make(cell, 5, 19, 2, bidirectional=True, rng=rng, batch_first=layout == "batch_first")
    x, state, upstream = problem(layer, layout, rng, batch_size=1 if layout == "unbatched" else 4)
    (output, last), vjp = layer.vjp(x, state, threads=2)
    grads = vjp(*upstream)
    parameters = layer.state_dict()
    case = Case(cell, "float32", 7, output.size // 7 // 38, 5, 19, states=("h0", "c0"))
    states = [array.reshape(4, -1, 19) for array in states_of(state)]
    ups = [array.reshape(4, -1, 19) for array in upstream[1:]]
    sequences, names = [time_major("output", x, layout)], [n for n in ("h", "c")][: len(states)]

    def run(layer_index, direction, x, grad_output):
        index = 2 * layer_index + direction
        suffix = f"_l{layer_index}" + "_reverse" * direction
        data = {name: parameters[name + suffix] for name in PARAMETERS} | {"x": x, "grad_output": grad_output}
        data |= {f"{n}0": s[index] for n, s in zip(names, states, strict=True)}
        data |= {f"grad_{n}_n": u[index] for n, u in zip(names, ups, strict=True)}
        piece = replace(case, input_size=x.shape[2], reverse=bool(direction))
        return train(piece, data)

    for index in range(2):
        both = [run(index, d, sequences[-1], np.zeros((7, case.batch_size, 19), np.float32)) for d in (0, 1)]
        sequences.append(np.concatenate([results["output"] for results in both], 2))
        for d, results in enumerate(both):
            for name, array in zip(names, states_of(last), strict=True):
                assert_same_bits({"s": array.reshape(4, -1, 19)[2 * index + d]}, {"s": results[f"{name}_n"]})
    assert_same_bits({"o": time_major("output", output, layout)}, {"o": sequences[-1]})
    grad = time_major("output", upstream[0], layout)
    for index in (1, 0):
        both = [run(index, d, sequences[index], grad[:, :, 19 * d : 19 * (d + 1)]) for d in (0, 1)]
        for d, results in enumerate(both):
            suffix = f"_l{index}" + "_reverse" * d
            for name in PARAMETERS:
                assert_same_bits({"g": grads.parameters[name + suffix]}, {"g": results[f"grad_{name}"]})
            for name, array in zip(names, states_of(grads.state), strict=True):
                assert_same_bits({"s": array.reshape(4, -1, 19)[2 * index + d]}, {"s": results[f"grad_{name}0"]})
        grad = both[0]["grad_x"] + both[1]["grad_x"]
    assert_same_bits({"x": time_major("grad_x", grads.x, layout)}, {"x": grad})


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_weights_inference_and_threads(cell, dtype, variant, rng):
    """Inference has the bits of training, again and again, on any number of threads, whatever the shape before."""
    layer = make(cell, 5, 33, 2, bidirectional=True, dtype=dtype, dropout=0.5, rng=rng)
    plain = make(cell, 5, 33, 2, bidirectional=True, dtype=dtype)
    plain.load_state_dict(layer.state_dict())
    for seq_len, batch_size in ((1, 1), (40, 33), (9, 0), (60, 2)):
        x, state, _ = problem(layer, "time_major", rng, batch_size, seq_len)
        want, _ = plain.vjp(x, state)
        for threads in (1, 2, 3, 4):
            got = layer(x, state, threads=threads)  # never drops
            for a, b in zip((got[0], *states_of(got[1])), (want[0], *states_of(want[1])), strict=True):
                assert np.array_equal(bits(a), bits(b))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_absent_state_is_zero(layout, variant, rng):
    layer = make("lstm", 5, 6, 2, bidirectional=True, rng=rng, batch_first=layout == "batch_first")
    x, state, _ = problem(layer, layout, rng)
    zeros = tuple(np.zeros_like(array) for array in state)
    for got, want in ((layer(x), layer(x, zeros)), (layer.vjp(x)[0], layer.vjp(x, zeros)[0])):
        assert np.array_equal(got[0], want[0])
        assert got[1][0].shape == state[0].shape


def test_another_backend(best_isa, rng):
    """Weights that one backend packed are not given to another."""
    pytest.importorskip("numba")
    layer = make("lstm", 5, 6, rng=rng)
    x = rng.standard_normal((4, 2, 5), np.float32)
    want = layer(x)[0]
    for name in ("numpy", "numba"):
        restore = hotloop._backends.choice.use(name)
        try:
            assert distance(layer(x)[0], want.astype(np.float64)) <= 1e-6
        finally:
            restore()
        assert np.array_equal(layer(x)[0], want)


def test_directions_run_in_one_native_call(best_isa, monkeypatch, rng):
    layer = make("gru", 5, 6, 3, bidirectional=True, rng=rng)
    x, state, upstream = problem(layer, "time_major", rng)
    backend = hotloop._core.settings.active()
    calls = []
    for name in ("forward", "backward"):
        real = getattr(backend, name)

        def spy(recurrences, threads, executor, name=name, real=real):
            calls.append((name, len(recurrences)))
            real(recurrences, threads, executor)

        monkeypatch.setattr(backend, name, spy)
    _, vjp = layer.vjp(x, state)
    vjp(*upstream)
    assert calls == [("forward", 2)] * 3 + [("backward", 2)] * 3


# Dropout


def dropped_by_hand(layer, x, state, upstream, seed):
    """The same through torch autograd, with the masks of the seed multiplied in by hand."""
    directions, width = 1 + layer.bidirectional, (1 + layer.bidirectional) * layer.hidden_size
    leaf = torch.tensor(x, requires_grad=True)
    sequence, shape = leaf, (*x.shape[:2], width)
    twins = []
    for index in range(layer.num_layers):
        single = make("lstm", sequence.shape[2], layer.hidden_size, bidirectional=layer.bidirectional, dtype=np.float64)
        single.load_state_dict({
            name.replace(f"_l{index}", "_l0"): array
            for name, array in layer.state_dict().items() if re.search(rf"_l{index}(_|$)", name)
        })  # fmt: skip
        twins.append(torch_twin(single))
        part = slice(index * directions, (index + 1) * directions)
        sequence, _ = twins[-1](sequence, tuple(torch.tensor(array[part]) for array in state))
        if index < layer.num_layers - 1:
            mask = _dropout.drop(layer.dropout, seed, index, np.ones(shape), np.empty(shape))
            sequence = sequence * torch.tensor(mask)
    sequence.backward(torch.tensor(upstream))
    grads = {
        name.replace("_l0", f"_l{index}"): parameter.grad.numpy()
        for index, twin in enumerate(twins) for name, parameter in twin.named_parameters()
    }  # fmt: skip
    return sequence.detach().numpy(), leaf.grad.numpy(), grads


@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_gradients(bidirectional, variant, rng):
    layer = make("lstm", 5, 6, 3, bidirectional=bidirectional, dropout=0.4, dtype=np.float64, rng=rng)
    x, state, upstream = problem(layer, "time_major", rng)
    (output, _), vjp = layer.vjp(x, state, seed=7)
    want, grad_x, parameters = dropped_by_hand(layer, x, state, upstream[0], 7)
    assert distance(output, want) <= 1e-12
    for _ in range(2):  # the masks are made again each time
        grads = vjp(upstream[0])
        assert distance(grads.x, grad_x) <= 1e-10
        for name, array in parameters.items():
            assert distance(grads.parameters[name], array) <= 1e-10, name


def test_dropout_depends_on_the_seed_alone(best_isa, rng):
    layers = [make("gru", 5, 32, 2, dropout=0.3, rng=0, batch_first=first) for first in (False, True)]
    x = rng.standard_normal((9, 4, 5), np.float32)
    runs = [layers[0].vjp(x, seed=s, threads=t)[0][0] for s, t in ((1, 1), (1, 4), (2, 1), (0, 1), (0, 1))]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert np.array_equal(runs[3], runs[4])  # 0 is a seed
    turned = layers[1].vjp(x.transpose(1, 0, 2), seed=1)[0][0]
    assert np.array_equal(turned.transpose(1, 0, 2), runs[0])
    drawn = [make("gru", 5, 32, 2, dropout=0.3, rng=s).vjp(x)[0][0] for s in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])  # by the layer's rng where none is given
    assert not np.array_equal(drawn[0], drawn[2])
    again = layers[0].vjp(x)[0][0], layers[0].vjp(x)[0][0]
    assert not np.array_equal(*again)


def test_layers_made_of_state_dicts_drop_apart(best_isa):
    """Each has a generator of its own, unless it is given one."""
    parameters = make("gru", 5, 32, 2).state_dict()
    x = np.ones((9, 4, 5), np.float32)
    drawn = [hotloop.GRU.from_state_dict(parameters, dropout=0.5, rng=rng).vjp(x)[0][0] for rng in (None, None, 1, 1)]
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[2], drawn[3])


def test_masks_of_other_seeds_and_layers():
    shape = (30, 3, 50)
    seeds = [(5, 0), (5, 1), (5 + 2**32, 0), (5 + 2**64, 0), (6, 0)]
    masks = [_dropout.drop(0.5, *pair, np.ones(shape), np.empty(shape)).tobytes() for pair in seeds]
    assert len(set(masks)) == len(masks)


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.9, 1.0])
def test_masks(probability):
    """The share that is dropped, its scale, and that pieces are those of the whole."""
    shape = (300, 31, 57)
    mask = _dropout.drop(probability, 3, 0, np.ones(shape), np.empty(shape))
    kept = 1 - probability
    assert set(np.unique(mask)) <= {0.0, 1 / kept if kept else 0.0}
    assert abs((mask != 0).mean() - kept) < 5 * np.sqrt(0.25 / mask.size)
    other = _dropout.drop(probability, 3, 1, np.ones(shape), np.empty(shape))
    if 0 < probability < 1:
        assert abs(((mask != 0) & (other != 0)).mean() - kept**2) < 5 * np.sqrt(0.25 / mask.size)
        steps = (mask != 0)[:-1] & (mask != 0)[1:]
        assert abs(steps.mean() - kept**2) < 5 * np.sqrt(0.25 / steps.size)


def test_dropout_of_everything(best_isa, rng):
    layer = make("rnn_tanh", 5, 6, 2, dropout=1.0, rng=rng)
    x, state, upstream = problem(layer, "time_major", rng)
    (output, _), vjp = layer.vjp(x, state)
    grads = vjp(upstream[0])
    assert np.isfinite(output).all()
    assert not grads.x.any()


# The object


@pytest.mark.parametrize("cell", CELLS)
def test_initialisation(cell):
    """Uniform in +-1/sqrt(hidden_size), distinct, and the same for the same seed."""
    first, again, other = (make(cell, 8, 64, 2, bidirectional=True, rng=seed) for seed in (5, 5, 6))
    for name, array in first.state_dict().items():
        assert np.abs(array).max() <= 1 / 8
        assert np.abs(array).max() > 0.9 / 8
        assert array.dtype == np.float32
        assert np.array_equal(array, again.state_dict()[name])
        assert not np.array_equal(array, other.state_dict()[name])
    generator = np.random.default_rng(5)
    assert np.array_equal(make(cell, 8, 64, rng=generator).state_dict()["weight_ih_l0"],
                          first.state_dict()["weight_ih_l0"])  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_state_dict_to_and_from_torch(kind, dtype, rng):
    twin = getattr(torch.nn, kind)(5, 6, 2, bidirectional=True, batch_first=True, dtype=getattr(torch, dtype))
    model = {f"encoder.{name}": tensor for name, tensor in twin.state_dict().items()} | {"head.weight": torch.ones(3)}
    layer = getattr(hotloop, kind).from_state_dict(model, "encoder.", batch_first=True)
    assert (layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, layer.bidirectional, layer.dtype) == (
        5, 6, 2, True, True, np.dtype(dtype))  # fmt: skip
    x = rng.standard_normal((3, 7, 5)).astype(dtype)
    with torch.no_grad():
        assert distance(layer(x)[0], twin(torch.tensor(x))[0].numpy().astype(np.float64)) <= 1e-5
    back = getattr(torch.nn, kind)(5, 6, 2, bidirectional=True, batch_first=True, dtype=getattr(torch, dtype))
    back.load_state_dict({name: torch.tensor(array) for name, array in layer.state_dict().items()})
    for name, tensor in twin.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name])
    without = getattr(torch.nn, kind)(5, 6, bias=False)
    assert not getattr(hotloop, kind).from_state_dict(without.state_dict()).bias


def test_parameters_are_read_only_and_replaced(variant, rng):
    layer = make("lstm", 5, 6, rng=rng)
    x, state, upstream = problem(layer, "time_major", rng)
    before = layer.state_dict()
    kept = {name: array.copy() for name, array in before.items()}
    with pytest.raises(ValueError, match="read-only"):
        before["weight_ih_l0"][0] = 1
    for array in (before["weight_ih_l0"], before["weight_ih_l0"].base):
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
    first = layer(x, state)[0]
    (_, _), vjp = layer.vjp(x, state)
    want = vjp(*upstream)
    given = {"weight_hh_l0": 2 * before["weight_hh_l0"]}
    layer.update(given)
    assert not np.array_equal(layer(x, state)[0], first)  # packed anew
    assert_same_bits(before, kept)
    assert np.array_equal(layer.state_dict()["weight_hh_l0"], 2 * kept["weight_hh_l0"])
    for name, array in vjp(*upstream).parameters.items():  # at the parameters it was made with
        assert np.array_equal(array, want.parameters[name])
    given["weight_hh_l0"][...] = np.nan  # they were copied
    assert np.isfinite(layer(x, state)[0]).all()
    layer.update({"weight_hh_l0": kept["weight_hh_l0"]})
    assert np.array_equal(layer(x, state)[0], first)
    layer.load_state_dict({name: array.astype(np.float64) for name, array in kept.items()})
    assert layer.state_dict()["bias_ih_l0"].dtype == np.float32


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(cell, way, best_isa, rng):
    layer = make(cell, 5, 6, 2, bidirectional=True, dropout=0.25, batch_first=True, rng=rng)
    x, state, upstream = problem(layer, "batch_first", rng)
    output = layer(x, state)[0]
    other = way(layer)
    assert type(other) is type(layer)
    assert repr(other) == repr(layer)
    assert np.array_equal(other(x, state)[0], output)
    grads = other.vjp(x, state, seed=1)[1](*upstream)
    assert np.array_equal(grads.x, layer.vjp(x, state, seed=1)[1](*upstream).x)
    with pytest.raises(ValueError, match="read-only"):
        other.state_dict()["weight_ih_l0"][0] = 1
    other.update({name: 0 * array for name, array in other.state_dict().items()})
    assert np.array_equal(layer(x, state)[0], output)


def test_a_pickle_holds_nothing_of_this_machine(best_isa, rng):
    layer = make("lstm", 5, 64, rng=rng)
    size = len(pickle.dumps(layer))
    layer(np.ones((2, 1, 5), np.float32))  # packs
    assert len(pickle.dumps(layer)) == size


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (hotloop.LSTM(3, 4), "LSTM(3, 4, dtype=float32)"),
        (
            hotloop.RNN(3, 4, 2, "relu", False),
            "RNN(3, 4, num_layers=2, nonlinearity='relu', bias=False, dtype=float32)",
        ),
        (
            hotloop.GRU(3, 4, 2, batch_first=True, dropout=0.5, bidirectional=True, reset_after=False, dtype="f8"),
            "GRU(3, 4, num_layers=2, batch_first=True, dropout=0.5, bidirectional=True, reset_after=False, "
            "dtype=float64)",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text
    made = eval(text, {"LSTM": hotloop.LSTM, "RNN": hotloop.RNN, "GRU": hotloop.GRU, "float32": "f4", "float64": "f8"})
    assert repr(made) == text


def test_attributes_cannot_be_set():
    layer = hotloop.GRU(3, 4)
    for name in ("hidden_size", "batch_first", "dropout", "dtype", "reset_after"):
        with pytest.raises(AttributeError):
            setattr(layer, name, 1)


def test_vjp_may_be_called_again_and_wrt(variant, rng):
    layer = make("lstm", 5, 6, 3, bidirectional=True, rng=rng)
    x, state, upstream = problem(layer, "time_major", rng)
    (output, _), vjp = layer.vjp(x, state)
    assert not output.flags.writeable
    want = vjp(*upstream)
    for wrt in ("x", ["state"], ["weight_hh_l2"], ["weight_ih_l1_reverse", "bias_hh_l2"], ["x", "bias_ih_l0"],
                ["weight_hh_l0"], ["bias_hh_l0_reverse"], []):  # fmt: skip
        got = vjp(*upstream, wrt=wrt)
        names = [wrt] if isinstance(wrt, str) else wrt
        assert (got.x is not None) == ("x" in names)
        assert (got.state is not None) == ("state" in names)
        assert set(got.parameters) == set(names) - {"x", "state"}
        if got.x is not None:
            assert np.array_equal(got.x, want.x)
        if got.state is not None:
            assert all(np.array_equal(a, b) for a, b in zip(got.state, want.state, strict=True))
        for name, array in got.parameters.items():
            assert np.array_equal(array, want.parameters[name])
    nothing = vjp()
    assert not nothing.x.any()
    assert not any(array.any() for array in nothing.parameters.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_out(layout, bidirectional, variant, rng):
    layer = make("gru", 5, 6, 2, bidirectional=bidirectional, rng=rng, batch_first=layout == "batch_first")
    x, state, _ = problem(layer, layout, rng)
    want, last = layer(x, state)
    wide = np.full((*want.shape[:-1], 3 * want.shape[-1]), np.nan, np.float32)
    for out in (np.empty_like(want), wide[..., : want.shape[-1]], wide[..., want.shape[-1] :: 2], wide[::-1, ..., ::3]):
        got, state_too = layer(x, state, out=out)
        assert got is out
        assert np.array_equal(got, want)
        assert np.array_equal(state_too, last)


def test_a_layer_in_several_threads_at_once(best_isa, rng):
    """Packing at first use, calls, and updates in the middle of them: a result is never of some of each."""
    layer = make("lstm", 8, 48, 2, bidirectional=True, rng=rng)
    x = rng.standard_normal((20, 3, 8), np.float32)
    before = layer.state_dict()
    after = {name: 0.5 * array for name, array in before.items()}
    other = copy.deepcopy(layer)
    other.update(after)
    valid = [layer(x, threads=1)[0], other(x)[0]]
    layer = make("lstm", 8, 48, 2, bidirectional=True)
    layer.load_state_dict(before)
    failures = []

    def run():
        for _ in range(50):
            output = layer(x)[0]
            if not any(np.array_equal(output, want) for want in valid):
                failures.append(output)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        layer.update(after)
        layer.update(before)
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(("hidden_size", "batch_size"), [(37, 1), (150, 40)])
def test_steps_at_once(best_isa, rng, hidden_size, batch_size):
    """Threads that step one layer share its plan and its packed weights, and nothing else: no workspace either."""
    layer = make("lstm", 5, hidden_size, rng=rng)
    inputs = [rng.standard_normal((1, batch_size, 5), np.float32) for _ in range(4)]

    def steps(x):
        state = None
        for _ in range(200):
            output, state = layer(x, state)
        return output

    want = [steps(x) for x in inputs]
    with ThreadPoolExecutor(len(inputs)) as executor:
        for one, other in zip(executor.map(steps, inputs), want, strict=True):
            assert np.array_equal(bits(one), bits(other))


def the_general_way(layer, x, state=None, **options):
    """What is not prepared: that resets would put the initial state in place of a state."""
    return layer(x, state, reset_state="initial", **options)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_prepared_calls(cell, dtype, variant, rng):
    """A call that is prepared has the bits of one that is not, whatever its arguments and options are."""
    layer = make(cell, 5, 37, dtype=dtype, rng=rng)
    batch_first = copy.deepcopy(layer)
    batch_first._batch_first = True
    for seq_len, batch_size in [(1, 1), (1, 3), (4, 1), (3, 2), (200, 1), (1, 300), (3, 300), (1, 0)]:
        for given in (False, True):
            x, state, _ = problem(layer, "time_major", rng, batch_size, seq_len)
            state = state if given else None
            want, want_end = the_general_way(layer, x, state)

            def check(output, end, want=want, want_end=want_end):
                for one, other in zip((output, *states_of(end)), (want, *states_of(want_end)), strict=True):
                    assert np.array_equal(bits(one), bits(other))
                assert not np.shares_memory(output, states_of(end)[0])

            check(*layer(x, state))
            check(*layer(x, state))
            check(*layer(x, state, threads=1))
            resets = np.zeros((seq_len, batch_size), bool)
            check(*layer(x, state, resets=resets))
            if seq_len > 1:
                resets[1] = True
                for form, begin in (("zeros", None), ("initial", state)):
                    output, end = layer(x, state, resets=resets, reset_state=form)
                    rest, rest_end = layer(x[1:], begin)
                    for one, other in zip((output[1:], *states_of(end)), (rest, *states_of(rest_end)), strict=True):
                        assert np.array_equal(bits(one), bits(other))
            out = np.empty_like(want)
            output, end = layer(x, state, out=out)
            assert output is out
            check(output, end)
            swapped, end = batch_first(np.ascontiguousarray(x.swapaxes(0, 1)), state)
            check(swapped.swapaxes(0, 1), end)
            frozen = x.copy()
            frozen.flags.writeable = False
            wide = np.zeros((*x.shape[:2], 10), dtype)
            wide[..., ::2] = x
            strided = np.empty((batch_size, 2 * seq_len, 5), dtype)[:, ::2].swapaxes(0, 1)
            strided[...] = x
            unaligned = np.frombuffer(b"-" + x.tobytes(), np.uint8)[1:].view(dtype).reshape(x.shape)
            for other in (
                frozen,
                wide[..., ::2],
                strided,
                np.asfortranarray(x),
                unaligned,
                pickle.loads(pickle.dumps(x)),
            ):
                check(*layer(other, state))
    plan = layer._stack.plans[False]
    assert (plan.run is not None) == (variant.backend == "native")


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_of_zero_is_a_seed(seed, best_isa):
    layer = hotloop.LSTM(3, 8, 2, dropout=0.5, rng=0)
    x = np.ones((4, 2, 3), np.float32)
    (dropped, _), _ = layer.vjp(x, seed=seed)
    (again, _), _ = layer.vjp(x, seed=seed)
    assert np.array_equal(dropped, again)
    assert not np.array_equal(dropped, layer(x)[0])


def test_a_prepared_call_of_other_settings(best_isa, rng):
    """What a plan was made for has changed: threads, the backend, the parameters, the layer itself."""
    layer, x = make("gru", 5, 6, rng=rng), rng.standard_normal((3, 2, 5), np.float32)
    want = layer(x)[0]
    plan = layer._stack.plans[False]
    assert layer(x)[0] is not want
    assert layer._stack.plans[False] is plan
    before = hotloop.get_num_threads()
    hotloop.set_num_threads(before + 1)
    try:
        assert np.array_equal(layer(x)[0], want)
        assert layer._stack.plans[False] is not plan
    finally:
        hotloop.set_num_threads(before)
    with pytest.raises(ValueError, match="threads: expected an integer >= 1, got 0"):
        layer(x, threads=0)
    (trained, _), vjp = layer.vjp(x)  # which has a plan of its own
    assert np.array_equal(trained, want)
    assert np.array_equal(layer(x)[0], want)
    first = vjp(np.ones_like(trained)).x
    assert np.array_equal(vjp(np.ones_like(trained)).x, first)
    unbatched = x[:, 0].copy()
    one, flat = layer(unbatched)[0], layer(unbatched, offsets=[0, 1, 3])[0]  # the same shape, and not the same
    assert np.array_equal(one, layer(unbatched)[0])
    assert np.array_equal(flat[1:], layer(unbatched[1:])[0])
    layer(x)
    restore = hotloop._backends.choice.use("numpy")
    try:
        assert hotloop.get_num_threads() == before
        assert layer(x)[0] == pytest.approx(want, abs=1e-6)
        assert layer._stack.plans[False].run is None
    finally:
        restore()
    layer.update({"bias_ih_l0": np.ones(18, np.float32)})
    assert not np.array_equal(layer(x)[0], want)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert np.array_equal(bits(other(x)[0]), bits(layer(x)[0]))
    with pytest.raises(TypeError, match="x: expected"):
        layer(x.astype(x.dtype.newbyteorder()))


def test_updates_at_once(best_isa):
    """None is lost, and what is computed with is what state_dict shows."""
    layer = make("gru", 3, 4, 2)
    names = list(layer.state_dict())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for value in range(1, 40):
            threads = [
                threading.Thread(target=layer.update, args=({n: np.full_like(layer.state_dict()[n], value)},))
                for n in names
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all((array == value).all() for array in layer.state_dict().values())
    finally:
        sys.setswitchinterval(interval)


# Errors


LAYER = hotloop.LSTM(5, 6, 2, bidirectional=True, rng=0)
ONES = np.ones
NAMES = list(LAYER.state_dict())

BAD_LAYERS = [
    ((0, 6), {}, ValueError, "input_size: expected an integer >= 1, got 0"),
    ((5, -1), {}, ValueError, "hidden_size: expected an integer >= 1, got -1"),
    ((5, 6, 0), {}, ValueError, "num_layers: expected an integer >= 1, got 0"),
    ((5.0, 6), {}, TypeError, "input_size: expected an integer >= 1, got 5.0"),
    ((5, "6"), {}, TypeError, "hidden_size: expected an integer >= 1, got '6'"),
    ((5, 6, True), {}, TypeError, "num_layers: expected an integer >= 1, got True"),
    ((5, 6, 1, "relu"), {}, TypeError, "bias: expected True or False, got 'relu'"),
    ((5, 6), {"batch_first": 2}, TypeError, "batch_first: expected True or False, got 2"),
    ((5, 6), {"bidirectional": None}, TypeError, "bidirectional: expected True or False, got None"),
    ((5, 6, 2), {"dropout": 1.5}, ValueError, "dropout: expected a number from 0 to 1, got 1.5"),
    ((5, 6, 2), {"dropout": np.nan}, ValueError, "dropout: expected a number from 0 to 1, got nan"),
    ((5, 6, 2), {"dropout": "half"}, TypeError, "dropout: expected a number from 0 to 1, got 'half'"),
    ((5, 6, 2), {"dropout": True}, TypeError, "dropout: expected a number from 0 to 1, got True"),
    ((5, 6), {"dtype": np.float16}, TypeError, f"dtype: expected float32 or float64, got {np.float16!r}"),
    (
        (5, 6),
        {"dtype": "single precision"},
        TypeError,
        "dtype: expected NumPy's float32 or float64, got 'single precision'",
    ),
    ((5, 6), {"rng": "seed"}, TypeError, "rng: expected a seed or a numpy.random.Generator, got 'seed'"),
    ((5, 6), {"rng": True}, TypeError, "rng: expected a seed or a numpy.random.Generator, got True"),
    ((5, 6), {"dtype": None}, TypeError, "dtype: expected NumPy's float32 or float64, got None"),
    ((5, 6), {"rng": -1}, TypeError, "rng: expected a seed or a numpy.random.Generator, got -1"),
]


@pytest.mark.parametrize(("sizes", "options", "error", "message"), BAD_LAYERS)
def test_bad_layers(sizes, options, error, message):
    with raises(error, message):
        hotloop.LSTM(*sizes, **options)


def test_options_of_one_cell():
    with raises(ValueError, "nonlinearity: expected 'tanh' or 'relu', got 'elu'"):
        hotloop.RNN(5, 6, nonlinearity="elu")
    with raises(TypeError, "reset_after: expected True or False, got 'yes'"):
        hotloop.GRU(5, 6, reset_after="yes")
    message = "dropout: drops between layers, so with num_layers=1 dropout=0.5 does nothing"
    with pytest.warns(UserWarning, match=message):
        hotloop.LSTM(5, 6, dropout=0.5)


F4 = {"dtype": np.float32}
X7 = ONES((7, 3, 5), np.float32)
RULE = "expected shape (num_layers*num_directions, batch_size, hidden_size) = (4, 3, 6)"
BAD_CALLS = [
    ((ONES((7, 3, 5)),), {}, TypeError, "x: expected float32 (the dtype of weight_ih), got float64"),
    ((ONES((7, 3, 4), **F4),), {}, ValueError, "x: expected input_size = 5 (columns of weight_ih), got 4"),
    ((ONES((0, 3, 5), **F4),), {}, ValueError, "x: expected seq_len >= 1, got 0"),
    ((ONES(5, **F4),), {}, ValueError,
     "x: expected (seq_len, batch_size, input_size) or (seq_len, input_size), got 1 dimensions (5,)"),
    ((X7, ONES((4, 3, 6), **F4)), {}, TypeError,
     "state: expected (h0, c0), got ndarray of shape (4, 3, 6)"),
    ((X7, (ONES((4, 3, 6), **F4),)), {}, TypeError, "state: expected (h0, c0), got a tuple of 1"),
    ((X7, (ONES((2, 3, 6), **F4), None)), {}, ValueError, f"h0: {RULE}, got (2, 3, 6)"),
    ((X7, (None, ONES((4, 2, 6), **F4))), {}, ValueError, f"c0: {RULE}, got (4, 2, 6)"),
    ((X7, (None, ONES((4, 3, 6)))), {}, TypeError,
     "c0: expected float32 (the dtype of weight_ih), got float64"),
    ((ONES((7, 5), **F4), (ONES((4, 1, 6), **F4), None)), {}, ValueError,
     "h0: expected shape (num_layers*num_directions, hidden_size) = (4, 6), got (4, 1, 6)"),
    ((X7,), {"threads": 0}, ValueError, "threads: expected an integer >= 1, got 0"),
    ((X7,), {"lengths": [7, 8, 7]}, ValueError, "lengths: expected integers from 0 to seq_len = 7, got 8 at 1"),
    ((X7,), {"resets": ONES((7, 4), bool)}, ValueError,
     "resets: expected shape (seq_len, batch_size) = (7, 3), got (7, 4)"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD_CALLS)
def test_bad_calls(arguments, options, error, message):
    for function in (LAYER, LAYER.vjp):
        with raises(error, message):
            function(*arguments, **options)


BAD_OUTS = [
    ([0.0], TypeError, "out: expected a numpy array, got list"),
    (ONES((7, 3, 12)), TypeError, "out: expected float32 (the dtype of weight_ih), got float64"),
    (ONES((7, 3, 6), np.float32), ValueError,
     "out: expected shape (seq_len, batch_size, 2*hidden_size) = (7, 3, 12), got (7, 3, 6)"),
    (np.broadcast_to(np.float32(0), (7, 3, 12)), ValueError, "out: expected a writeable array, got a read-only one"),
    (LAYER.state_dict()["weight_ih_l0"][:21, 0].repeat(12).reshape(7, 3, 12).view(), None, None),
]  # fmt: skip


@pytest.mark.parametrize(("out", "error", "message"), BAD_OUTS)
def test_bad_outs(out, error, message):
    if error is None:
        assert LAYER(X7, out=out)[0] is out
        return
    with raises(error, message):
        LAYER(X7, out=out)


def test_out_apart_from_the_inputs():
    memory = np.zeros(7 * 3 * 12, np.float32)
    x, out = memory[: 7 * 3 * 5].reshape(7, 3, 5), memory.reshape(7, 3, 12)
    with raises(ValueError, "out: expected memory of its own, got memory it shares with x"):
        LAYER(x, out=out)
    h0 = memory[-72:].reshape(4, 3, 6)
    with raises(ValueError, "out: expected memory of its own, got memory it shares with h0"):
        LAYER(X7, (h0, None), out=out)
    assert not memory.any()


GRAD_OUTPUT = "grad_output: expected shape (seq_len, batch_size, 2*hidden_size) = (7, 3, 12), got (7, 3, 6)"
BAD_VJPS = [
    ({"grad_output": ONES((7, 3, 6), np.float32)}, ValueError, GRAD_OUTPUT),
    (
        {"grad_output": ONES((7, 3, 12))},
        TypeError,
        "grad_output: expected float32 (the dtype of weight_ih), got float64",
    ),
    ({"grad_h_n": ONES((4, 3, 5), np.float32)}, ValueError, f"grad_h_n: {RULE}, got (4, 3, 5)"),
    ({"grad_c_n": ONES((3, 6), np.float32)}, ValueError, f"grad_c_n: {RULE}, got (3, 6)"),
    ({"wrt": 3}, TypeError, "wrt: expected a name or an iterable of names, got 3"),
    ({"wrt": ["weight_ih"]}, ValueError, f"wrt: expected names among {('x', 'state', *NAMES)}, got ['weight_ih']"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_VJPS)
def test_bad_upstream_gradients(arguments, error, message):
    _, vjp = LAYER.vjp(X7)
    with raises(error, message):
        vjp(**arguments)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)])
def test_bad_seeds(seed, error):
    with raises(error, f"seed: expected an integer >= 0, got {seed!r}"):
        LAYER.vjp(X7, seed=seed)


def test_a_state_overwritten_after_the_forward(variant, rng):
    """States are the caller's to overwrite in the next step."""
    layer = make("lstm", 5, 6, 2, rng=rng)
    x, state, upstream = problem(layer, "time_major", rng)
    _, vjp = layer.vjp(x, state)
    want = vjp(*upstream)
    one = [array[0].copy() for array in state]
    weights = [layer.state_dict()[f"{name}_l0"] for name in PARAMETERS]
    _, function_vjp = hotloop.lstm_vjp(x, *weights, *one)
    function_want = function_vjp(upstream[0])
    for array in (*state, *one):
        array.fill(np.nan)
    assert np.array_equal(vjp(*upstream).x, want.x)
    assert np.array_equal(function_vjp(upstream[0]).weight_hh, function_want.weight_hh)


def test_gradients_of_a_layer_are_clipped(best_isa, rng):
    layer = make("gru", 5, 6, rng=rng)
    x, state, upstream = problem(layer, "time_major", rng)
    grads = layer.vjp(x, state)[1](*upstream)
    want = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in grads.parameters.values()))
    assert hotloop.clip_grad_norm_(grads, 0.5) == pytest.approx(want)


def test_state_of_a_cell_without_c():
    layer = hotloop.GRU(5, 6)
    with raises(TypeError, "state: expected h0, an array, got a list of 2"):
        layer(X7, [np.ones((1, 3, 6)), np.ones((1, 3, 6))])
    with pytest.raises(TypeError, match=r"^vjp\(\) got an unexpected keyword argument 'grad_c_n'$"):
        layer.vjp(X7)[1](grad_c_n=None)
    with raises(TypeError, "state: expected h0, an array, got a tuple of 2"):
        layer(X7, (None, None))


ARRAYS = {name: array.copy() for name, array in LAYER.state_dict().items()}
BAD_MAPPINGS = [
    ({"weight_ih_l9": ONES((24, 5))}, ValueError, f"mapping: expected names among {NAMES}, got ['weight_ih_l9']"),
    ({"weight_hh_l0": ONES((24, 5))}, ValueError, "weight_hh_l0: expected shape (24, 6), got (24, 5)"),
    ({"bias_ih_l0": ONES((24, 1))}, ValueError, "bias_ih_l0: expected shape (24,), got (24, 1)"),
    ({"bias_ih_l0": ONES(24, int)}, TypeError, "bias_ih_l0: expected float32 or float64, got int64"),
    ({"bias_ih_l0": None}, TypeError, "bias_ih_l0: expected an array, got None"),
    ({"bias_ih_l0": torch.ones(24, requires_grad=True)}, TypeError,
     "bias_ih_l0: expected an array without gradient tracking, got a tensor that requires grad; "
     "pass bias_ih_l0.detach()"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD_MAPPINGS)
def test_bad_mappings_change_nothing(change, error, message):
    good = {"weight_ih_l0": 2 * ARRAYS["weight_ih_l0"]}
    for function in (lambda: LAYER.update(good | change), lambda: LAYER.load_state_dict(ARRAYS | good | change)):
        with raises(error, message):
            function()
    assert_same_bits(LAYER.state_dict(), ARRAYS)


def test_what_is_no_mapping_of_names():
    for function in (hotloop.LSTM.from_state_dict, LAYER.load_state_dict, LAYER.update):
        with raises(TypeError, "mapping: expected a mapping of names to arrays, got list"):
            function(list(ARRAYS.items()))
        with raises(TypeError, "mapping: expected names that are strings, got [1, b'weight_ih_l0']"):
            function(ARRAYS | {1: ONES(2), b"weight_ih_l0": ONES(2)})
    with raises(TypeError, "prefix: expected a string, got None"):
        hotloop.LSTM.from_state_dict(ARRAYS, None)


def test_missing_parameters():
    some = {name: array for name, array in ARRAYS.items() if "l1" not in name}
    message = f"mapping: expected every parameter of {LAYER}, missing {[n for n in NAMES if 'l1' in n]}"
    with raises(ValueError, message):
        LAYER.load_state_dict(some)
    assert_same_bits(LAYER.state_dict(), ARRAYS)


BAD_STATE_DICTS = [
    (ARRAYS, "encoder.", f"mapping: expected names that start with 'encoder.', got {sorted(ARRAYS)}"),
    ({"weight_ih_l0": ARRAYS["weight_ih_l0"]}, "",
     "mapping: expected every parameter of LSTM(5, 6, bias=False, dtype=float32), missing ['weight_hh_l0']"),
    ({"weight_hh_l0": ARRAYS["weight_hh_l0"]}, "", "mapping: expected weight_ih_l0, got ['weight_hh_l0']"),
    (ARRAYS | {"bias_ih_l7": ONES(24)}, "", "mapping: expected layers 0, 1, ... without a gap, got [0, 1, 7]"),
    (ARRAYS | {"weight_hr_l0": ONES(3)}, "",
     "weight_hr_l0: expected 2 dimensions, got shape (3,)"),
    (ARRAYS | {"weight_ih_l0": ONES(3)}, "", "weight_ih_l0: expected 2 dimensions, got shape (3,)"),
    (ARRAYS | {"weight_hh_l0": ONES((24, 7), np.float32)}, "", "weight_hh_l0: expected shape (24, 6), got (24, 7)"),
    (hotloop.GRU(5, 6).state_dict(), "", "mapping: expected the parameters of an LSTM, got weight_hh_l0 of shape "
     "(18, 6), which is that of a GRU"),
    (ARRAYS | {"other": ONES(3)}, "", "mapping: expected names as weight_ih_l0, got ['other']"),
    (ARRAYS | {"weight_ih_l0": ONES((25, 5), np.float32)}, "", "weight_ih_l0: expected shape (24, 5), got (25, 5)"),
    ({n: a for n, a in ARRAYS.items() if n != "bias_hh_l1"}, "",
     f"mapping: expected every parameter of {LAYER}, missing ['bias_hh_l1']"),
]  # fmt: skip


@pytest.mark.parametrize(("mapping", "prefix", "message"), BAD_STATE_DICTS)
def test_bad_state_dicts(mapping, prefix, message):
    with raises(ValueError, message):
        hotloop.LSTM.from_state_dict(mapping, prefix)
