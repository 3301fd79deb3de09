"""What is kept of weights between calls is never that of other weights, however they were changed."""

from __future__ import annotations

import contextlib
import gc
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torched import make, states_of, twins

import hotloop.torch
from hotloop._core.checks import check_weights
from hotloop._core.types import CELLS
from hotloop.torch import _bridge, _ops, _packed

native = pytest.importorskip("hotloop._backends.native", reason="only the native backend packs weights")


class AsOp(TorchDispatchMode):
    """Calls go through the ops where something looks at them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def ones(module):
    return torch.ones(1, 5) if isinstance(module, torch.nn.RNNCellBase) else torch.ones(2, 1, 5)


def optimizer_step(module):
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    with torch.enable_grad():
        states_of(module(ones(module)))[0].sum().backward()
    optimizer.step()


def fused_optimizer_step(module):
    optimizer = torch.optim.Adam(module.parameters(), 0.5, fused=True)
    with torch.enable_grad():
        states_of(module(ones(module)))[0].sum().backward()
    optimizer.step()


def load_state_dict(module):
    module.load_state_dict({name: value + 0.25 for name, value in module.state_dict().items()})


def load_state_dict_by_assignment(module):
    module.load_state_dict({n: (v + 0.25).requires_grad_() for n, v in module.state_dict().items()}, assign=True)


def copy(module):
    weight = last(module)
    weight.copy_(weight + 0.25)


def data_add(module):
    """The version is not counted."""
    weight = last(module)
    before = weight._version
    weight.data.add_(0.25)
    assert weight._version == before


def data_of_one_element(module):
    last(module).data[-1] += 0.25


def data_assignment(module):
    weight = last(module)
    weight.data = weight.data + 0.25


def numpy_alias(module):
    """No version and no address changes."""
    last(module).detach().numpy()[...] += 0.25


def numpy_alias_of_one_bit(module):
    last(module).detach().numpy().view(np.int32)[-1] ^= 1 << 22


def storage(module):
    last(module).untyped_storage().copy_((last(module) * 0.5).untyped_storage())


def swap_tensors(module):
    if hasattr(module, "_flat_weight_refs"):  # torch's own, which it lets go in the same way
        module._flat_weight_refs = []
    torch.utils.swap_tensors(last(module), torch.nn.Parameter(last(module).detach() + 0.25))


def another_parameter(module):
    name = list(module._parameters)[-1]
    setattr(module, name, torch.nn.Parameter(last(module).detach() + 0.25))


def to_double_and_back(module):
    module.double()
    data_add(module)
    module.float()


def last(module):
    return list(module.parameters())[-1]


WAYS = (
    optimizer_step, fused_optimizer_step, load_state_dict, load_state_dict_by_assignment, copy, data_add,
    data_of_one_element, data_assignment, numpy_alias, numpy_alias_of_one_bit, storage, swap_tensors,
    another_parameter, to_double_and_back,
)  # fmt: skip


@pytest.fixture
def packings(monkeypatch):
    """What was packed."""
    made, pack = [], native.pack
    monkeypatch.setattr(native, "pack", lambda weights: made.append(weights) or pack(weights))
    return made


@pytest.mark.parametrize("kind", ["LSTM", "GRU2", "GRUCell"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_never_stale(way, kind, packings):
    """After each way to change a parameter the next call is that of torch's module with the same parameters."""
    name, options = kind.rstrip("2"), {"num_layers": 2, "bidirectional": True} if kind == "GRU2" else {}
    ours, theirs = twins(name, 5, 6, **options)
    x = torch.randn(*((3,) if "Cell" in kind else (2, 3)), 5)
    with torch.no_grad():
        before = ours(x)
        ours(x)
        count = len(packings)
        for _ in range(3):
            ours(x)
        assert len(packings) == count, "packed anew though nothing changed"
        way(ours)
        after = ours(x)
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(after, theirs(x))
        assert not torch.equal(states_of(after)[0], states_of(before)[0])
        with torch.enable_grad():  # the views that training uses
            torch.testing.assert_close(ours(x), theirs(x), check_stride=False)


def test_inference_mode_parameters():
    """They have no version."""
    with torch.inference_mode():
        ours, theirs = twins("LSTM", 5, 6)
        x = torch.randn(2, 3, 5)
        ours(x)
        ours(x)
        for way in (copy, numpy_alias, data_assignment):
            way(ours)
            theirs.load_state_dict(ours.state_dict())
            torch.testing.assert_close(ours(x), theirs(x))


def test_functional_call():
    ours, theirs = twins("GRU", 5, 6)
    x = torch.randn(2, 3, 5)
    other = {name: value + 0.25 for name, value in ours.state_dict().items()}
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x))
            got, want = (torch.func.functional_call(m, other, x) for m in (ours, theirs))
            torch.testing.assert_close(got, want)
        wide = {name: value.clone().requires_grad_() for name, value in other.items()}
        grads = [
            torch.autograd.grad(torch.func.functional_call(m, wide, x)[0].square().sum(), list(wide.values()))
            for m in (ours, theirs)
        ]
        torch.testing.assert_close(*grads)


def test_weights_that_are_views_of_another_kind():
    """The same memory seen as another shape, type or order."""
    x = torch.randn(2, 3, 6)
    for change in (
        lambda w: w.data.t(),
        lambda w: w.data.t().contiguous().t(),
        lambda w: w.data[:, :0].expand(6, 0),
        lambda w: w.data.view(torch.int32),
    ):
        ours, theirs = twins("RNN_TANH", 6, 6)
        with torch.no_grad():
            ours(x), ours(x)
            found = []
            for module in (ours, theirs):
                module.weight_hh_l0.requires_grad_(False)
                module.weight_hh_l0.data = change(module.weight_hh_l0)
                try:
                    found.append(module(x))
                except Exception as error:
                    found.append((type(error), str(error)))
        torch.testing.assert_close(*found) if isinstance(found[1][0], torch.Tensor) else None
        assert isinstance(found[0][0], torch.Tensor) or found[0] == found[1]


def test_many_rows_keep_nothing(packings):
    """Where packing is little of the work."""
    module = make("GRU", 5, 6)
    with torch.no_grad():
        for rows in (_packed.MANY_ROWS - 1, _packed.MANY_ROWS):
            module(torch.randn(rows, 1, 5))
            assert len(packings) == 1


def test_an_op_keeps_weights_while_they_live(packings):
    """As compiled code and traces call it."""
    module, x = make("GRU", 5, 6, 2), torch.randn(2, 3, 5)
    weights = list(module.parameters())
    given = _ops.arguments(module._call("time_major"))

    def run():
        return torch.ops.hotloop.forward(x, None, None, weights, *given, False)[0]

    with torch.no_grad():
        first = run()
        assert torch.equal(run(), first)
        assert len(packings) == 2
        weights[-1].data.add_(1)
        assert not torch.equal(run(), first)
        assert torch.equal(run(), module(x)[0])
    count = len(_packed._of_ops)
    weights.clear()
    packings.clear()
    del module
    gc.collect()
    torch.ops.hotloop.forward(x, None, None, list(make("GRU", 5, 6).parameters()), *given[:6], 1, *given[7:], False)
    assert len(_packed._of_ops) <= count


def test_what_an_op_packed_goes_with_the_weights(monkeypatch):
    """At the latest when the next is packed. Views at ever other places in one memory are bounded in number."""
    made, pack = [], native.pack

    def recorded(weights):
        packed = pack(weights)
        made.append(weakref.ref(packed))
        return packed

    def alive():
        gc.collect()
        return [packed() is not None for packed in made]

    monkeypatch.setattr(native, "pack", recorded)
    monkeypatch.setattr(_packed, "MOST_OF_OPS", 4)
    module, x = make("GRU", 5, 6), torch.randn(2, 3, 5)
    memory = torch.randn(1000)
    with torch.no_grad(), AsOp():
        first = {name: torch.randn_like(value) for name, value in module.named_parameters()}
        torch.func.functional_call(module, first, (x,))
        torch.func.functional_call(module, first, (x,))
        assert alive() == [True]
        del first
        for start in range(10):
            assert len(made) < 2 or not made[0](), "what was packed outlives the weights"
            views = {n: memory[start : start + p.numel()].view(p.shape) for n, p in module.named_parameters()}
            torch.func.functional_call(module, views, (x,))
            gc.collect()
        found = alive()
        assert len(found) == 11
        assert found[:7] == [False] * 7
        assert found[7:] == [True] * 4


def test_parameters_are_let_go():
    """`to` and the like free what the parameters were in."""
    module, x = make("GRU", 5, 6), torch.randn(2, 3, 5)
    with torch.no_grad():
        module(x)
        assert "_hotloop" in vars(module)
        module.double()
        assert "_hotloop" not in vars(module)


def test_hash():
    """A change of any bit shows, wherever it is and however long the arrays are; equal bytes hash equal."""
    rng = np.random.default_rng(0)
    for sizes in ((1,), (7, 8, 9), (63, 64, 65), (4096, 4095), (4097, 8192 + 13), (0, 3)):
        arrays = [rng.integers(0, 256, size, np.uint8) for size in sizes]
        now = native.fingerprint(arrays)
        seen = {now()}
        assert native.fingerprint([array.copy() for array in arrays])() in seen
        count = 0
        for array in arrays:
            for index in {*range(min(len(array), 20)), *range(max(len(array) - 20, 0), len(array)), len(array) // 2}:
                if index < len(array):
                    array[index] ^= 1 << (index % 8)
                    seen.add(now())
                    count += 1
                    array[index] ^= 1 << (index % 8)
        assert len(seen) == count + 1
    blocks = rng.integers(0, 256, (2, 4096), np.uint8)
    assert native.fingerprint([blocks])() != native.fingerprint([blocks[::-1].copy()])()
    zeros = np.zeros((2, 64), np.uint8)
    assert len({native.fingerprint([zeros[0, :n]])() for n in range(64)} | {native.fingerprint([])()}) <= 64


@pytest.mark.parametrize("isa", native.isas())
def test_hash_is_what_its_equations_say(isa):
    """Written anew with Python's integers: every instruction set has the same."""
    lib, ffi = native.lib, native.ffi
    rng, mask = np.random.default_rng(1), (1 << 64) - 1
    seed, result = 12345, ffi.new("uint64_t[2]")

    def number(n):
        z = (seed + (n + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    def nh(words, shift):
        total = 0
        for index, word in enumerate(words):
            key = number(index + shift)
            low, high = (word + key) % 2**32, ((word >> 32) + (key >> 32)) % 2**32
            total += low * high
        return total & mask

    before = native.description()
    for sizes in ((0,), (5,), (128,), (4096 + 130, 77)):
        arrays = [rng.integers(0, 256, size, np.uint8) for size in sizes]
        total, n = 0, 512 + 8
        for array in arrays:
            for block in (array[start : start + 4096] for start in range(0, len(array), 4096)):
                padded = np.zeros(-(-len(block) // 128) * 128, np.uint8)
                padded[: len(block)] = block
                words = [int(word) for word in padded.view("<u8")]
                total += ((nh(words, 0) + number(n)) & mask) * ((nh(words, 8) + number(n + 1)) & mask)
                n += 2
        pointers = ffi.new("void *[]", [ffi.from_buffer(array) for array in arrays])
        try:
            native.use_isa(isa)
            status = lib.hotloop_hash(pointers, ffi.new("int64_t[]", sizes), len(sizes), seed, result)
            assert status == lib.HOTLOOP_OK
            assert [result[0], result[1]] == [total & mask, total >> 64 & mask]
        finally:
            native.use_isa(before)


def test_hash_refuses_what_it_cannot_read():
    lib, ffi = native.lib, native.ffi
    result, sizes = ffi.new("uint64_t[2]"), ffi.new("int64_t[]", [8])
    none = ffi.new("void *[]", [ffi.NULL])
    assert lib.hotloop_hash(none, sizes, 1, 0, result) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_hash(none, sizes, -1, 0, result) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_hash(ffi.NULL, sizes, 1, 0, result) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_hash(none, sizes, 0, 0, ffi.NULL) == lib.HOTLOOP_BAD_ARGUMENT
    assert lib.hotloop_hash(ffi.NULL, ffi.NULL, 0, 0, result) == lib.HOTLOOP_OK
    sizes[0] = -1
    assert lib.hotloop_hash(none, sizes, 1, 0, result) == lib.HOTLOOP_BAD_ARGUMENT


@pytest.mark.parametrize("backend", ["numpy"])
def test_other_backends_keep_nothing(backend):
    restore = hotloop._backends.choice.use(backend)
    try:
        ours, theirs = twins("LSTM", 5, 6, dtype=torch.float64)
        x = torch.randn(2, 3, 5, dtype=torch.float64)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(ours(x), theirs(x))
                data_add(ours)
                theirs.load_state_dict(ours.state_dict())
    finally:
        restore()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


class Moments:
    """What another thread may do while weights are hashed and packed: called before and after each step of that."""

    def __init__(self, monkeypatch):
        self.count, self.actions = 0, {}
        fingerprint, pack = native.fingerprint, native.pack
        monkeypatch.setattr(native, "pack", self.around(pack))
        monkeypatch.setattr(
            native, "fingerprint", self.around(lambda arrays: self.around(fingerprint(arrays)))
        )  # fmt: skip

    def around(self, function):
        def run(*arguments):
            self.pass_by()
            result = function(*arguments)
            self.pass_by()
            return result

        return run

    def pass_by(self):
        self.count += 1
        self.actions.get(self.count, lambda: None)()

    def begin(self, actions):
        self.count, self.actions = 0, actions


@pytest.mark.parametrize("through", ["module", "op"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_weights_that_are_exchanged_and_put_back_meanwhile(kind, through, monkeypatch):
    """As an average of weights is, for an evaluation, while another thread serves: the next call is right, at whatever
    moments that happens.
    """
    moments = Moments(monkeypatch)
    module = make(kind, 5, 6, *[2] * (kind == "GRU"))
    weights = list(module.parameters())
    own = [weight.detach().clone() for weight in weights]
    x = torch.randn(2, 3, 5)

    def put(values):
        for weight, value in zip(weights, values, strict=True):
            weight.data.copy_(value)

    def run():
        with AsOp() if through == "op" else contextlib.nullcontext():
            return module(x)[0]

    def run_packing(actions):
        with torch.no_grad():
            weights[0].add_(0)  # a change that counts
            moments.begin(actions)
            result = run()
            moments.actions = {}
            return result

    run_packing({})
    want, last = run_packing({}), moments.count
    assert last >= 6
    for first in range(1, last + 1):
        for second in range(first + 1, last + 1):
            run_packing({first: lambda: put([value + 0.25 for value in own]), second: lambda: put(own)})
            with torch.no_grad():
                torch.testing.assert_close(run(), want, rtol=0, atol=0, msg=f"exchanged at {first}, back at {second}")


def test_weights_that_are_assigned_to_while_views_are_made(monkeypatch):
    """What is kept of one memory does not stand for another."""
    ours, theirs = twins("GRU", 5, 6)
    x = torch.randn(2, 3, 5)
    weights = _bridge.Call.weights

    def assign(call, tensors):
        made = weights(call, tensors)
        data_assignment(ours)
        return made

    with torch.no_grad():
        monkeypatch.setattr(_bridge.Call, "weights", assign)
        ours(x)
        monkeypatch.setattr(_bridge.Call, "weights", weights)
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))


def test_packed_weights_do_not_need_those_they_were_made_of(rng):
    """They may be a copy that is gone."""
    weights = check_weights(CELLS["gru"], *(rng.standard_normal(s) for s in ((18, 5), (18, 6), 18, 18)))
    packed = native.pack(weights)
    assert all(parameter == native.ffi.NULL for parameter in packed.struct.parameters)
    assert packed.struct.packed != native.ffi.NULL


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_TANH"])
@pytest.mark.parametrize("layers", [1, 2])
def test_weights_that_move_before_backward(kind, layers):
    """share_memory_() frees the memory they had, as sending a state_dict to another process does."""
    ours, theirs = twins(kind, 64, 128, num_layers=layers)
    x = torch.randn(20, 3, 64)
    outputs = [module(x)[0] for module in (ours, theirs)]
    ours.share_memory()
    junk = [torch.full_like(one, torch.nan) for one in ours.parameters() for _ in range(8)]  # where they were
    for output in outputs:
        output.sum().backward()
    for (name, got), (_, want) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-4, msg=name)
    assert len(junk) == 8 * 4 * layers


def test_a_negated_view_for_a_weight():
    ours, theirs = twins("GRU", 5, 6)
    x = torch.randn(2, 3, 5)
    with torch.no_grad():
        ours(x)  # what it keeps is of the same memory
        negated = {name: torch._neg_view(value.detach()) for name, value in ours.named_parameters()}
        got = torch.func.functional_call(ours, negated, (x,))
        torch.testing.assert_close(got, torch.func.functional_call(theirs, negated, (x,)))


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ih_l1"])
def test_a_weight_changed_before_backward_without_the_gradient_of_x(name):
    """As with torch's layers: an error where backward reads the weight, the right gradients where it does not."""
    torch.manual_seed(0)
    layer, x = hotloop.torch.GRU(4, 5, 2), torch.randn(3, 2, 4)
    layer(x)[0].sum().backward()
    want = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    output = layer(x)[0]
    with torch.no_grad():
        getattr(layer, name).mul_(2)
    if name in ("weight_hh_l0", "weight_ih_l1"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
    else:
        output.sum().backward()
        for parameter, grad in zip(layer.parameters(), want, strict=True):
            assert torch.equal(parameter.grad, grad)
