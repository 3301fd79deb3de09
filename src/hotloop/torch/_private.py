"""What hotloop.torch uses of torch that torch does not document: each name once, and what it is asked.

These are the functions that torch's own Python code asks. They may go or change with any version, so each has a test of
what it answers, tests/test_torch_private.py. Versions that lack one are refused when hotloop.torch is imported.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch

TESTED = "2.13"  # the version that all tests run with


def _find(path: str) -> Any:
    try:
        return reduce(getattr, path.split("."), torch)
    except AttributeError:
        raise ImportError(
            f"hotloop.torch: expected a torch that has torch.{path}, as {TESTED} has, got torch {torch.__version__}; "
            f"install torch {TESTED}, or a hotloop that knows yours"
        ) from None


# Tensors that stand for many at once: in torch.func.vmap, and with `is_grads_batched`.
is_batched = _find("_C._functorch.is_batchedtensor")
is_legacy_batched = _find("_C._functorch.is_legacy_batchedtensor")


def is_many(tensor: torch.Tensor) -> bool:
    return bool(is_batched(tensor) or is_legacy_batched(tensor))


# Tensors that a transform of torch.func has wrapped, and the transform that is under way, or None.
is_wrapped = _find("_C._functorch.is_functorch_wrapped_tensor")
current_transform = _find("_C._functorch.peek_interpreter_stack")
transforms_are_active = _find("_C._are_functorch_transforms_active")
# How many modes see every operation, such as fake tensors'; the graph that torch.jit.trace records, or None.
count_modes = _find("_C._len_torch_dispatch_stack")
tracing_state = _find("_C._get_tracing_state")
is_any_autocast_enabled = _find("_C._is_any_autocast_enabled")
# Whether a backward pass that is under way will come to a node of the graph.
engine_executes = _find("_C._will_engine_execute_node")
# The hooks that take what is saved for backward, or None.
saved_tensors_hooks = _find("_C._autograd._top_saved_tensors_default_hooks")
# The file that torch's compiled part lies in: its OpenMP runtime is what that is linked with.
library_file: str = _find("_C.__file__")


def outside_transforms() -> Any:
    """A context in which no transform of torch.func is under way."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack  # which takes its time to load

    return temporarily_clear_interpreter_stack()
