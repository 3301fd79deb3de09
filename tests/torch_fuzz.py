"""Random calls of the ops and the modules: each ends in torch's answer or in an error.

    python tests/torch_fuzz.py FIRST COUNT

runs those of the seeds from FIRST on and prints how they ended. With a native module that was built with
AddressSanitizer (`-DHOTLOOP_SANITIZE=address`) it finds what reads or writes beside a tensor's memory.
"""

from __future__ import annotations

import collections
import functools
import math
import random
import sys
import warnings
from typing import Any

import torch
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import hotloop.torch
from hotloop.torch import _ops

KINDS = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
NAMES = ("x", "h0", "c0", "weights", "lengths", "resets", "batch_sizes", "unsorted", "seed", "cell", "layers",
         "directions", "bias", "layout", "batch_size", "dropout", "return_states", "threads")  # fmt: skip
ERRORS = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, OverflowError, AssertionError,
          AttributeError)  # fmt: skip
FAR = {torch.float32: 2e-4, torch.float64: 1e-10}


class Wrong(Exception):
    """A call that ended in something else than torch's answer or an error."""


# What is given: tensors that fit, and what may be made of them.


def tensor(rng: random.Random, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    return torch.rand(shape, generator=generator, dtype=torch.float64).sub(0.5).to(dtype)


def strided(rng: random.Random, one: torch.Tensor) -> torch.Tensor:
    """The same numbers, lying otherwise."""
    if not one.dim() or not one.is_floating_point() or type(one) is Other or not holds(one):
        return one
    way = rng.randrange(5)
    if way == 0:  # every second number of a larger tensor
        wide = torch.full((*one.shape[:-1], 2 * one.shape[-1]), math.nan, dtype=one.dtype)
        wide[..., ::2] = one
        return wide[..., ::2]
    if way == 1:  # the first axis is the innermost
        return one.transpose(0, -1).contiguous().transpose(0, -1)
    if way == 2:  # at an odd place in its storage
        wide = torch.full((one.numel() + 3,), math.nan, dtype=one.dtype)
        view = wide[3:].view(one.shape)
        view.copy_(one)
        return view
    if way == 3:  # a view that negates
        return torch.complex(torch.zeros_like(one), -one).conj().imag if one.numel() else one
    return one[:1].expand(one.shape) if one.shape[0] else one


def holds(one: torch.Tensor) -> bool:
    """Whether there is memory behind it."""
    return one.layout is torch.strided and not one.is_meta and not one._is_zerotensor() and (
        not one.numel() or one.data_ptr() != 0
    )  # fmt: skip


class Other(torch.Tensor):
    """A subclass."""


def spoiled(rng: random.Random, one: Any) -> Any:
    """Another dtype, shape, device, layout, class; or no tensor."""
    if one is None:
        return tensor(rng, *[rng.randrange(4) for _ in range(rng.randrange(4))])
    way = rng.randrange(11)
    if way == 0:
        return one.to(rng.choice((torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)))
    if way == 1:
        return one.to("meta")
    if way == 2 and one.dim():
        axis = rng.randrange(one.dim())
        return one.narrow(axis, 0, rng.randrange(one.shape[axis] + 1))
    if way == 3 and one.dim():
        return torch.cat([one, one], rng.randrange(one.dim()))
    if way == 4:
        return one.unsqueeze(0)
    if way == 5 and one.dim():
        return one[0] if one.shape[0] else one
    if way == 6 and one.dim() == 2 and one.is_floating_point():
        return one.to_sparse()
    if way == 7:
        return one.as_subclass(Other)
    if way == 8:
        emptied = one.clone()
        emptied.untyped_storage().resize_(0)
        return emptied
    if way == 9:
        return torch._efficientzerotensor(one.shape, dtype=one.dtype)
    return None


SCALARS = {
    "cell": ("lstm", "gru", "rnn_tanh", "rnn_relu", "gru_reset_before", "LSTM", ""),
    "layers": (-1, 0, 1, 2, 3, 2**40), "directions": (-1, 0, 1, 2, 3), "bias": (False, True),
    "layout": ("time_major", "batch_first", "unbatched", "packed", "step", "flat"),
    "batch_size": (-1, 0, 1, 3, 2**40), "dropout": (-1.0, 0.0, 0.5, 1.0, 2.0, math.nan),
    "return_states": (False, True), "threads": (-5, 0, 1, 2, 3, 2**31, 2**40),
}  # fmt: skip


def module_of(rng: random.Random, kind: str, **options: Any) -> Any:
    name, _, nonlinearity = kind.partition("_")
    if nonlinearity:
        options["nonlinearity"] = nonlinearity.lower()
    torch.manual_seed(rng.randrange(1 << 30))
    return getattr(hotloop.torch, name)(rng.randint(1, 9), rng.choice((1, 2, 5, 8, 16, 17)), **options)


def given(rng: random.Random) -> dict[str, Any]:
    """Arguments of an op that fit."""
    layout = rng.choice(("time_major", "batch_first", "unbatched", "packed", "step"))
    layers, bidirectional = (1, False) if layout == "step" else (rng.randint(1, 3), rng.random() < 0.4)
    module = module_of(
        rng, rng.choice(KINDS), num_layers=layers, bidirectional=bidirectional, bias=rng.random() < 0.8,
        dtype=rng.choice((torch.float32, torch.float32, torch.float64)),
    )  # fmt: skip
    dtype, features, steps, rows = module.weight_ih_l0.dtype, module.input_size, rng.randint(1, 9), rng.randint(1, 6)
    call = module._call(layout)
    if layout == "packed":
        lengths = sorted((rng.randint(1, steps) for _ in range(rows)), reverse=True)
        call.batch_sizes = torch.tensor([sum(length > t for length in lengths) for t in range(lengths[0])])
        if rng.random() < 0.5:
            call.unsorted = torch.tensor(rng.sample(range(rows), rows))
        call.batch_size = rows
        shape: tuple[int, ...] = (sum(lengths), features)
    else:
        shape = {
            "time_major": (steps, rows, features), "batch_first": (rows, steps, features),
            "unbatched": (steps, features), "step": (rows, features),
        }[layout]  # fmt: skip
        if layout in ("time_major", "batch_first"):
            if rng.random() < 0.2:
                call.lengths = torch.tensor([rng.randint(0, steps) for _ in range(rows)])
            call.return_states = call.cell.has_c and rng.random() < 0.2
    count = layers * (1 + bidirectional)
    states = {"step": (rows, module.hidden_size), "unbatched": (count, module.hidden_size)}.get(
        layout, (count, rows, module.hidden_size)
    )
    call.threads = rng.choice((None, 1, 2))
    h0 = tensor(rng, *states, dtype=dtype) if rng.random() < 0.6 else None
    c0 = tensor(rng, *states, dtype=dtype) if h0 is not None and call.cell.has_c else None
    weights = [weight.detach() for weight in module.parameters()]
    return dict(zip(NAMES, (tensor(rng, *shape, dtype=dtype), h0, c0, weights, *_ops.arguments(call)), strict=True))


# What torch makes of it, in float64.


def reference(arguments: dict[str, Any]) -> list[torch.Tensor]:
    """output, h_n and c_n."""
    cell, layout, lengths = arguments["cell"], arguments["layout"], arguments["lengths"]
    has_c = cell == "lstm"
    x = arguments["x"].double()
    flat = [weight.double() for weight in arguments["weights"]]
    count, width = arguments["layers"] * arguments["directions"], flat[1].shape[1]
    sizes = arguments["batch_sizes"]
    if layout == "step":
        x = x.unsqueeze(0)
    if layout == "unbatched":
        x = x.unsqueeze(1)
    if layout == "batch_first":
        x = x.transpose(0, 1)
    rows = x.shape[1] if sizes is None else int(sizes[0])
    states = []
    for name in ("h0", "c0")[: 1 + has_c]:
        given_state = arguments[name]
        states.append(
            torch.zeros(count, rows, width, dtype=torch.float64)
            if given_state is None
            else given_state.double().reshape(count, rows, width)
        )
    order = None
    if lengths is not None:  # rows of no steps are run by one and masked
        assert sizes is None
        packed = pack_padded_sequence(x, lengths.clamp(min=1), enforce_sorted=False)
        x, sizes, order = packed.data, packed.batch_sizes, packed.unsorted_indices
    elif sizes is not None:
        order = arguments["unsorted"]
    sort = None if order is None else torch.argsort(order)
    if sort is not None:
        states = [state.index_select(1, sort) for state in states]
    run = getattr(torch._VF, cell)
    tail = (flat, arguments["bias"], arguments["layers"], 0.0, False, arguments["directions"] == 2)
    hx = tuple(states) if has_c else states[0]
    made = run(x, sizes, hx, *tail) if sizes is not None else run(x, hx, *tail, False)
    output, *ends = made
    if order is not None:
        ends = [end.index_select(1, order) for end in ends]
    if lengths is not None:
        steps = arguments["x"].shape[1 if layout == "batch_first" else 0]
        output = pad_packed_sequence(PackedSequence(output, sizes, sort, order), total_length=steps)[0]
        there = (lengths > 0).double().view(1, -1, 1)
        output = output * there
        first = [
            torch.zeros_like(end) if arguments[name] is None else arguments[name].double()
            for name, end in zip(("h0", "c0"), ends, strict=False)
        ]
        ends = [end * there + before * (1 - there) for end, before in zip(ends, first, strict=True)]
    if layout == "batch_first":
        output = output.transpose(0, 1)
    if layout == "step":
        output, ends = output[0], [end[0] for end in ends]
    if layout == "unbatched":
        output, ends = output[:, 0], [end[:, 0] for end in ends]
    return [output, *ends]


def same(name: str, got: Any, want: Any, dtype: torch.dtype) -> None:
    """Shape, dtype and numbers. A NaN is one in both."""
    if got.shape != want.shape or got.dtype is not dtype:
        raise Wrong(f"{name}: expected {dtype} of {tuple(want.shape)}, got {got.dtype} of {tuple(got.shape)}")
    got, want = got.detach().double(), want.detach().double()
    scale = max(1.0, float(want.abs().nan_to_num(0, 0, 0).max())) if want.numel() else 1.0
    if not torch.allclose(got, want, rtol=FAR[dtype], atol=FAR[dtype] * scale, equal_nan=True):
        raise Wrong(f"{name}: {float((got - want).abs().max()):.3g} from torch's")


def leaves_of(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    named = {name: arguments[name] for name in ("x", "h0", "c0")}
    named |= {f"weights[{index}]": weight for index, weight in enumerate(arguments["weights"])}
    return {name: one for name, one in named.items() if one is not None}


# The kinds of calls. Each returns how it ended.


def op(rng: random.Random) -> str:
    """`infer` or `forward`, and the gradients of it; what is given fits, or does not in one or two places."""
    arguments = given(rng)
    wrong = rng.choice((0, 0, 1, 1, 2))
    for _ in range(wrong):
        name = rng.choice(NAMES)
        if name in SCALARS:
            arguments[name] = rng.choice(SCALARS[name])
        elif name != "weights":
            arguments[name] = spoiled(rng, arguments[name])
        elif arguments[name]:
            index = rng.randrange(len(arguments[name]))
            if rng.random() < 0.2:
                del arguments[name][index]
            else:
                arguments[name][index] = spoiled(rng, arguments[name][index])
    if rng.random() < 0.3:
        for name in ("x", "h0", "c0"):
            if isinstance(arguments[name], torch.Tensor):
                arguments[name] = strided(rng, arguments[name])
    training, name = rng.random() < 0.5, rng.choice(("infer", "forward"))
    if differentiated := rng.random() < 0.5:
        for index, weight in enumerate(arguments["weights"]):
            if isinstance(weight, torch.Tensor) and weight.is_floating_point() and rng.random() < 0.8:
                arguments["weights"][index] = weight.detach().requires_grad_()
        for one in ("x", "h0", "c0"):
            state = arguments[one]
            if isinstance(state, torch.Tensor) and state.is_floating_point() and rng.random() < 0.5:
                arguments[one] = state.detach().requires_grad_()
    try:
        if name == "infer":
            results = torch.ops.hotloop.infer(*arguments.values())
        else:
            *results, _ = torch.ops.hotloop.forward(*arguments.values(), training)
    except ERRORS as error:
        if not wrong and not isinstance(arguments["x"], Other):
            raise Wrong(f"an error for what fits: {error}") from error
        return f"{type(error).__name__}"
    if arguments["x"].is_meta:
        return "meta"
    if arguments["seed"] is not None or arguments["resets"] is not None or arguments["cell"] == "gru_reset_before":
        return "no reference"
    if not arguments["x"].numel():
        return "of no elements"
    dtype = arguments["x"].dtype
    wide = {one: value.detach().double() for one, value in leaves_of(arguments).items()}
    for one, value in leaves_of(arguments).items():
        wide[one].requires_grad_(value.requires_grad)
    copied = arguments | {one: wide[one] for one in ("x", "h0", "c0") if one in wide}
    copied["weights"] = [wide[f"weights[{index}]"] for index in range(len(arguments["weights"]))]
    expected = reference(copied)
    for one, got, want in zip(("output", "h_n", "c_n"), results, expected, strict=False):
        same(one, got, want, dtype)
    if not differentiated or not any(one.requires_grad for one in results):
        return "same"
    wanted = [(one, value) for one, value in leaves_of(arguments).items() if value.requires_grad]
    upstream = [tensor(rng, *one.shape, dtype=dtype) for one in expected]
    pairs = [pair for pair in zip(results, expected, upstream, strict=False) if rng.random() < 0.7] or [
        (results[0], expected[0], upstream[0])
    ]
    theirs = torch.autograd.grad(
        [want for _, want, _ in pairs], [wide[one] for one, _ in wanted], [grad.double() for *_, grad in pairs],
        allow_unused=True,
    )  # fmt: skip
    mine = torch.autograd.grad(
        [got for got, *_ in pairs], [value for _, value in wanted], [strided_as_is(rng, grad) for *_, grad in pairs],
        allow_unused=True,
    )  # fmt: skip
    for (one, _), got, want in zip(wanted, mine, theirs, strict=True):
        if want is None:
            want = torch.zeros(wide[one].shape)
        same(f"gradient of {one}", torch.zeros_like(want, dtype=dtype) if got is None else got, want, dtype)
    return "same, and its gradients"


def strided_as_is(rng: random.Random, one: torch.Tensor) -> torch.Tensor:
    """The same numbers; none of the ways of `strided` that changes them."""
    while True:
        other = strided(rng, one)
        if torch.equal(other, one):
            return other


def backward(rng: random.Random) -> str:
    """The backward op, with one argument that does not fit."""
    arguments = given(rng)
    *results, saved = torch.ops.hotloop.forward(*arguments.values(), True)
    output, h_n, c_n, c = results
    has_c = arguments["cell"] == "lstm"
    more: list[Any] = [
        torch.ones_like(output), torch.ones_like(h_n), torch.ones_like(c_n) if has_c else None,
        torch.ones_like(c) if arguments["return_states"] else None, output, c, saved,
        [True] * (3 + len(arguments["weights"])),
    ]  # fmt: skip
    index = rng.randrange(len(more))
    if index == 6:
        if saved:
            place = rng.randrange(len(saved))
            saved[place] = spoiled(rng, saved[place])
    elif index == 7:
        more[7] = more[7][: rng.randrange(len(more[7]) + 1)]
    else:
        more[index] = spoiled(rng, more[index])
    try:
        torch.ops.hotloop.backward(*arguments.values(), *more)
    except ERRORS as error:
        return f"backward: {type(error).__name__}"
    return "backward: taken"


def real(one: Any) -> Any:
    """What torch's layers are given: of a tensor without memory they read, and end the process or return anything."""
    if isinstance(one, torch.Tensor):
        if one._is_zerotensor():
            return torch.zeros(one.shape, dtype=one.dtype)
        if one.layout is torch.strided and not one.is_meta and not holds(one):
            raise RuntimeError("a tensor without memory")
        return one
    if isinstance(one, dict):
        return {name: real(value) for name, value in one.items()}
    return tuple(map(real, one)) if isinstance(one, tuple) else one


def outcome(run: Any) -> Any:
    try:
        return run()
    except ERRORS as error:
        return error


def compare(rng: random.Random, mine: Any, theirs: Any, leaves: list[torch.Tensor] = ()) -> str:
    """Both are results or both are errors."""
    if isinstance(theirs, Exception):
        if not isinstance(mine, Exception) and any(one.numel() for one in flat(mine)):
            raise Wrong(f"numbers, where torch raises {theirs}")
        return "torch's error"
    if isinstance(mine, Exception):
        raise Wrong(f"an error where torch has an answer: {type(mine).__name__}: {mine}") from mine
    for got, want in zip(flat(mine), flat(theirs), strict=True):
        if want.is_meta:
            return "meta"
        same("result", got, want, want.dtype)
    return "as torch"


def flat(result: Any) -> list[torch.Tensor]:
    if isinstance(result, PackedSequence):
        return [result.data]
    return [result] if isinstance(result, torch.Tensor) else [one for part in result for one in flat(part)]


def pair_of(rng: random.Random) -> tuple[Any, Any, bool]:
    """A module, torch's with its parameters, and whether they are cells."""
    kind = rng.choice(KINDS)
    mine = module_of(
        rng, kind, num_layers=rng.randint(1, 2), bidirectional=rng.random() < 0.3, batch_first=rng.random() < 0.3,
        bias=rng.random() < 0.8,
    )  # fmt: skip
    return mine, mine._as_torchs(), False


def inputs_of(rng: random.Random, module: Any) -> tuple[Any, Any]:
    steps, rows = rng.randint(0, 5), rng.randint(0, 4)
    unbatched = rng.random() < 0.2
    lead = (steps,) if unbatched else (rows, steps) if module.batch_first else (steps, rows)
    x: Any = tensor(rng, *lead, module.input_size)
    hx: Any = None
    if rng.random() < 0.6:
        count = module.num_layers * (1 + module.bidirectional)
        states = [tensor(rng, count, *(() if unbatched else (rows,)), module.hidden_size) for _ in range(2)]
        hx = tuple(states) if isinstance(module, torch.nn.LSTM) else states[0]
    if rng.random() < 0.4:
        x = strided(rng, x)
    if rng.random() < 0.3:
        x = spoiled(rng, x)
    if hx is not None and rng.random() < 0.3:
        hx = (spoiled(rng, hx[0]), hx[1]) if isinstance(hx, tuple) else spoiled(rng, hx)
    return x, hx


def module(rng: random.Random) -> str:
    """An eager call of a layer, and of torch's."""
    mine, theirs, _ = pair_of(rng)
    x, hx = inputs_of(rng, mine)
    with torch.set_grad_enabled(rng.random() < 0.5):
        return compare(rng, outcome(lambda: mine(x, hx)), outcome(lambda: theirs(*real((x, hx)))))


def called_with(layer: Any, parameters: Any, *given: Any) -> Any:
    return functional_call(layer, real(parameters), real(given))


def parameters_by_call(rng: random.Random) -> str:
    """functional_call with parameters of which one may not fit."""
    mine, theirs, _ = pair_of(rng)
    x, hx = inputs_of(rng, mine)
    parameters = {name: tensor(rng, *one.shape) for name, one in mine.named_parameters()}
    if rng.random() < 0.5:
        name = rng.choice(list(parameters))
        parameters[name] = spoiled(rng, parameters[name])
    if any(one is None for one in parameters.values()):
        return "no parameter"
    got = outcome(lambda: functional_call(mine, parameters, (x, hx)))
    if isinstance(mine, torch.nn.LSTM) and isinstance(got, RuntimeError) and ": expected " in str(got):
        return "misfit"  # torch's reads memory beside that of the weight
    want = outcome(lambda: called_with(theirs, parameters, x, hx))
    return compare(rng, got, want)


def many(rng: random.Random) -> str:
    """vmap over the rows of an input."""
    mine, theirs, _ = pair_of(rng)
    x = tensor(rng, rng.randint(1, 3), rng.randint(1, 4), rng.randint(1, 3), mine.input_size)
    if rng.random() < 0.3:
        x = spoiled(rng, x)
    return compare(rng, outcome(lambda: vmap(mine)(x)), outcome(lambda: vmap(theirs)(real(x))))


@functools.cache
def programs(kind: str) -> list[Any]:
    """A module, and programs made of it: what is checked in Python when they are made is not when they run."""
    made = module_of(random.Random(7), kind, num_layers=2, bias=True)
    x = torch.ones(4, 2, made.input_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(made, (x,)).module()
        steps, rows = torch.export.Dim("steps", min=2, max=64), torch.export.Dim("rows", min=2, max=64)
        dynamic = torch.export.export(made, (x,), dynamic_shapes=({0: steps, 1: rows},), strict=False).module()
        with torch.no_grad():
            traced = torch.jit.trace(made, (x,), check_trace=False)
        compiled = torch.compile(made, backend="aot_eager", dynamic=True)
    return [made, exported, dynamic, traced, compiled]


def program(rng: random.Random) -> str:
    """An exported, traced or compiled layer with other inputs; also with other parameters."""
    made, *ways = programs(rng.choice(KINDS))
    way = rng.choice(ways)
    x: Any = tensor(rng, rng.choice((1, 4, 7)), rng.choice((1, 2, 5)), made.input_size)
    if rng.random() < 0.3:
        x = strided(rng, x)
    if rng.random() < 0.5:
        x = spoiled(rng, x)
    theirs: Any = made._as_torchs()
    call: Any = way
    if way is ways[0] or way is ways[1]:
        parameters = dict(way.named_parameters())
        if rng.random() < 0.5 and parameters:
            name = rng.choice(list(parameters))
            parameters[name] = spoiled(rng, parameters[name].detach())
            if parameters[name] is None:
                return "no parameter"
            theirs = functools.partial(called_with, theirs, parameters)
            call = functools.partial(functional_call, way, parameters)
    with torch.set_grad_enabled(rng.random() < 0.5), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine = outcome(lambda: call(x))
        if isinstance(mine, Exception):  # a program takes less than the module
            return f"program: {type(mine).__name__}"
        if flat(mine)[0].is_meta:
            return "meta"
        return "program: " + compare(rng, mine, outcome(lambda: theirs(real(x))))


def changed(rng: random.Random) -> str:
    """Something is changed between forward and backward: the gradient of what was, or an error."""
    mine, theirs, _ = pair_of(rng)
    x = tensor(rng, rng.randint(1, 5), rng.randint(1, 3), mine.input_size).requires_grad_()
    y = x.detach().clone().requires_grad_()
    output = mine(x)[0]
    theirs(y)[0].sum().backward()
    want = [y.grad, *[one.grad for one in theirs.parameters()]]
    for one in theirs.parameters():
        one.grad = None
    victim = rng.choice([x, *mine.parameters()])
    way = rng.randrange(4)
    if way == 0:
        mine.double()
    elif way == 1:
        other = spoiled(rng, victim.detach())
        if other is None or type(other) is not torch.Tensor or other.dtype is not victim.dtype:
            return "changed: not"
        try:
            victim.data = other
        except ERRORS as error:
            return f"changed: {type(error).__name__}"
    elif way == 2:
        with torch.no_grad():
            victim.mul_(2)
    else:
        with torch.no_grad():
            output.mul_(2)
    try:
        gradients = torch.autograd.grad(output.sum(), [x, *mine.parameters()])
    except ERRORS as error:
        return f"changed: {type(error).__name__}"
    if way == 3:
        want = [2 * one for one in want]
        if any(one.isnan().any() for one in gradients):
            raise Wrong("NaN")
        return "changed: a result"
    if way == 2 or (way == 1 and victim is x):  # read anew, as torch's layers do
        return "changed: taken"
    for got, one in zip(gradients, want, strict=True):
        same("gradient", got.to(one.dtype), one, one.dtype)
    return "changed: as it was"


CALLS = (
    (op,) * 10 + (backward,) * 3 + (module,) * 4 + (parameters_by_call,) * 2 + (many,) + (program,) * 3 + (changed,) * 2
)


def one(seed: int) -> str:
    rng = random.Random(seed)
    call = rng.choice(CALLS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(rng)
        except Wrong as error:
            raise Wrong(f"seed {seed} ({call.__name__}): {error}") from error


if __name__ == "__main__":
    first, count = map(int, sys.argv[1:])
    ends: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + count):
        try:
            ends[one(seed)] += 1
        except Wrong as error:
            ends["WRONG"] += 1
            print(error, flush=True)
    for end, times in ends.most_common():
        print(f"{times:6d}  {end}")
