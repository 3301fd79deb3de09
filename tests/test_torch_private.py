"""What hotloop.torch asks of torch that torch does not document: each function answers as hotloop takes it to."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from hotloop.torch import _private  # noqa: E402


def test_batched_tensors():
    plain = torch.ones(3)
    assert not _private.is_batched(plain)
    assert not _private.is_legacy_batched(plain)
    seen = []
    torch.func.vmap(lambda x: seen.append((_private.is_batched(x), _private.is_wrapped(x))) or x)(torch.ones(2, 3))
    assert seen == [(True, True)]

    class Many(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            seen.append(_private.is_batched(grad) or _private.is_legacy_batched(grad))
            return 2 * grad

    x = torch.ones(3, requires_grad=True)
    torch.autograd.grad(Many.apply(x), x, torch.eye(3), is_grads_batched=True)
    assert seen[1:] == [True]


def test_transforms():
    assert _private.current_transform() is None
    assert not _private.transforms_are_active()
    seen = []

    def asked(x):
        seen.append((_private.current_transform() is None, _private.transforms_are_active(), _private.is_wrapped(x)))
        with _private.outside_transforms():
            seen.append(_private.current_transform() is None)
        return x.sum()

    torch.func.grad(asked)(torch.ones(3))
    assert seen == [(False, True, True), True]
    assert not _private.is_wrapped(torch.ones(3))


def test_modes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert _private.count_modes() == 0
    with FakeTensorMode():
        assert _private.count_modes() == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing():
    assert _private.tracing_state() is None
    seen = []

    def asked(x):
        seen.append(_private.tracing_state() is not None)
        return x + 1

    torch.jit.trace(asked, torch.ones(3), check_trace=False)
    assert seen == [True]


def test_autocast():
    assert not _private.is_any_autocast_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        assert _private.is_any_autocast_enabled()


def test_nodes_of_a_pass():
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    seen = []

    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, grad):
            seen.extend(_private.engine_executes(node) for node, _ in ctx.next_functions)
            return grad, grad

    torch.autograd.grad(Asks.apply(2 * x, 2 * y).sum(), x)
    assert seen == [True, False]


def test_hooks():
    assert _private.saved_tensors_hooks(False) is None
    with torch.autograd.graph.save_on_cpu():
        assert _private.saved_tensors_hooks(False) is not None


def test_the_compiled_part():
    assert _private.library_file.endswith(".so")


def test_a_torch_that_lacks_one():
    """It is refused in a line that says what is missing and what to do."""
    code = """
import torch
del torch._C._is_any_autocast_enabled
try:
    import hotloop.torch
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "hotloop.torch: expected a torch that has torch._C._is_any_autocast_enabled, as 2.13 has, got torch "
        f"{torch.__version__}; install torch 2.13, or a hotloop that knows yours"
    )
