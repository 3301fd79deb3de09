"""Glue to the C++ kernels and nothing else: arrays to pointers, a plan, one call, status to exception."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .._core import memory
from .._core.environment import quoted, refuse
from .._core.types import CELLS, Array, Backward, Forward, Run, Weights

try:
    from .._calls import backward as _dense_backward
    from .._calls import bind, fill_buffers, fill_gradients
    from .._calls import forward as _dense_forward
    from .._ffi import ffi, lib
except ModuleNotFoundError as error:
    raise ImportError(
        f"there is no native module in {os.path.dirname(os.path.dirname(__file__))}: this is a source tree that was "
        "not installed, or the installation found no C++ compiler or no Python headers; install hotloop with "
        "HOTLOOP_REQUIRE_NATIVE=1"
    ) from error

NAME = "native"

_CELLS = {name: getattr(lib, f"HOTLOOP_{name.upper()}") for name in CELLS}
_DTYPES = {np.dtype(np.float32): lib.HOTLOOP_FLOAT32, np.dtype(np.float64): lib.HOTLOOP_FLOAT64}
_AGAIN = lib.HOTLOOP_AGAIN
_BYTE = np.dtype(np.uint8)


def isas() -> tuple[str, ...]:
    """The instruction sets this processor can run, best first."""
    names: list[str] = []
    while name := lib.hotloop_isa_at(len(names)):
        names.append(ffi.string(name).decode())
    return tuple(names)


def use_isa(name: str) -> None:
    """Switch the process to an instruction set; no call may be under way."""
    if lib.hotloop_use_isa(name.encode()) != lib.HOTLOOP_OK:
        raise ValueError(f"isa: expected one of {', '.join(isas())}, got {name!r}")
    _last_plans.clear()


def description() -> str:
    return str(ffi.string(lib.hotloop_isa()).decode())


if not lib.hotloop_isa():
    refuse(ValueError(f"HOTLOOP_ISA: expected one of {', '.join(isas())}, got {quoted(os.environ['HOTLOOP_ISA'])}"))


_WORDS = ffi.typeof("uint64_t[2]")
_SPEC, _PLAN, _WEIGHTS = map(ffi.typeof, ("hotloop_spec *", "hotloop_plan *", "hotloop_weights *"))
_BUFFERS, _GRADIENTS = map(ffi.typeof, ("hotloop_buffers[]", "hotloop_gradients[]"))
_NULL = ffi.NULL
_from_buffer = ffi.from_buffer  # the address of a contiguous array: 0.2 us, where ctypes.data takes 0.9

_INFERENCE, _TRAINING, _BACKWARD = lib.HOTLOOP_INFERENCE, lib.HOTLOOP_TRAINING, lib.HOTLOOP_BACKWARD
_PACKED, _GRAD_X, _GRAD_WEIGHTS = lib.HOTLOOP_PACKED, lib.HOTLOOP_GRAD_X, lib.HOTLOOP_GRAD_WEIGHTS
_RESET_TO_INITIAL, _ACCUMULATE = lib.HOTLOOP_RESET_TO_INITIAL, lib.HOTLOOP_ACCUMULATE
_MASKED = lib.HOTLOOP_MASKED


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


bind(*(_address(ffi.addressof(lib, name)) for name in ("hotloop_forward", "hotloop_backward", "hotloop_status_string")))


def _fail(status: int) -> NoReturn:
    raise RuntimeError(f"hotloop: {ffi.string(lib.hotloop_status_string(status)).decode()}")


def _describe(weights: Weights) -> Any:
    """The struct that points to the parameters, which have to live as long."""
    return ffi.new(_WEIGHTS, ([_NULL if array is None else _from_buffer(array) for array in weights.arrays],))


def _spec(weights: Weights) -> Any:
    return ffi.new(
        _SPEC,
        {
            "cell": _CELLS[weights.cell.name],
            "dtype": _DTYPES[weights.dtype],
            "input_size": weights.input_size,
            "hidden_size": weights.hidden_size,
            "output_size": weights.output_size,
        },
    )


class Plan(NamedTuple):
    """A plan of the core, and what it was made for."""

    key: tuple[Any, ...]
    struct: Any
    address: int
    workspace_bytes: int  # 0: a short call, which takes its workspace from the stack
    threads: int  # as many as were asked for, or as the process could have


# The last plan of each use, for a call like the one before: to look at the key takes 0.2 us, to make another plan 1.5.
_last_plans: dict[int, Plan] = {}


def _plan(weights: Weights, uses: int, count: int, seq_len: int, batch_size: int, threads: int) -> Plan:
    key = (
        weights.input_size, weights.hidden_size, weights.output_size, weights.cell, weights.dtype, count, seq_len,
        batch_size, threads,
    )  # fmt: skip
    plan = _last_plans.get(uses)
    if plan is None or plan.key != key:
        _last_plans[uses] = plan = _make_plan(weights, uses, key)
    elif plan.threads < threads and plan.workspace_bytes and plan.threads != lib.hotloop_processors():
        _last_plans[uses] = plan = _make_plan(weights, uses, key)  # the process may run on others since
    return plan


def _make_plan(weights: Weights, uses: int, key: tuple[Any, ...]) -> Plan:
    count, seq_len, batch_size, threads = key[5:]
    if threads > 1:
        threads = min(threads, lib.hotloop_processors())
    struct = ffi.new(_PLAN)
    status = lib.hotloop_make_plan(struct, _spec(weights), uses, count, seq_len, batch_size, threads)
    if status == lib.HOTLOOP_TOO_LARGE:
        raise MemoryError("hotloop: the sizes of this call overflow")
    if status:
        _fail(status)
    return Plan(
        key=key,
        struct=struct,
        address=_address(struct),
        workspace_bytes=lib.hotloop_workspace_bytes(struct),
        threads=threads,
    )


def _prepared(
    function: Any, uses: int, sizes: tuple[int, int, int], weights: Weights, packed: Packed | None, executor: Any,
    batch_first: bool,
) -> Run:  # fmt: skip
    """A call of one recurrence. The first argument keeps alive what the addresses lead to."""
    plan = _plan(weights, uses, 1, *sizes)
    given = (
        (plan, packed, executor), plan.address, weights.arrays if packed is None else packed.address,
        0 if executor is None else _address(executor), *sizes[:2], weights.input_size, weights.hidden_size,
        weights.output_size, batch_first, uses & _ACCUMULATE != 0,
    )  # fmt: skip
    size = plan.workspace_bytes
    if size == 0:
        return partial(function, *given, None)
    if plan.threads == sizes[2]:
        return lambda *arrays: function(*given, memory.empty((size,), _BYTE), *arrays)

    def run(*arrays: Any) -> None:
        if lib.hotloop_processors() == plan.threads:
            function(*given, memory.empty((size,), _BYTE), *arrays)
        else:  # the process may run on others since
            _prepared(function, uses, sizes, weights, packed, executor, batch_first)(*arrays)

    return run


def prepare(
    weights: Weights, packed: Packed | None, *, seq_len: int, batch_size: int, batch_first: bool, training: bool,
    threads: int, executor: Any = None,
) -> Run | None:  # fmt: skip
    uses = _TRAINING if training else _INFERENCE if packed is None else _PACKED
    return _prepared(_dense_forward, uses, (seq_len, batch_size, threads), weights, packed, executor, batch_first)


def prepare_backward(
    weights: Weights, *, seq_len: int, batch_size: int, batch_first: bool, x_wanted: bool, weights_wanted: bool,
    threads: int, executor: Any = None, accumulate: bool = False,
) -> Run | None:  # fmt: skip
    uses = _BACKWARD | (_GRAD_X if x_wanted else 0) | (_GRAD_WEIGHTS if weights_wanted else 0)
    if accumulate:
        uses |= _ACCUMULATE
    return _prepared(_dense_backward, uses, (seq_len, batch_size, threads), weights, None, executor, batch_first)


def _steps(args: Forward) -> int:
    """seq_len of the ABI: of flat sequences the longest's."""
    flat = args.ragged is not None and args.ragged.offsets is not None
    return args.steps if flat else len(args.x)


def _largest(recurrences: Sequence[Forward]) -> tuple[int, int]:
    """The most steps and the most rows."""
    return max(map(_steps, recurrences)), max(len(args.h_n) for args in recurrences)


def _buffers(recurrences: Sequence[Forward]) -> tuple[Any, Any]:
    """The structs of a call, and what they point to beside its arrays."""
    count, spec = len(recurrences), recurrences[0].weights.spec
    if any(args.weights.spec != spec for args in recurrences[1:]):  # of which the plan knows one
        raise ValueError(
            f"recurrences: expected one cell, dtype and size, got {[args.weights.spec for args in recurrences]}"
        )
    buffers = ffi.new(_BUFFERS, count)
    weights = [_describe(args.weights) if args.packed is None else args.packed.struct for args in recurrences]
    for index, args in enumerate(recurrences):
        ragged, resets = args.ragged, args.resets
        offsets = None if ragged is None else ragged.offsets
        lengths = None if ragged is None or offsets is not None else ragged.lengths
        fill_buffers(
            _address(buffers + index), _address(weights[index]), _steps(args), len(args.h_n), args.reverse,
            resets is not None and resets.initial, args.x, args.h0, args.c0, args.output, args.h_n, args.c_n,
            args.gates, args.c, lengths, offsets, None if resets is None else resets.at, args.recurrent_mask,
        )  # fmt: skip
    return buffers, weights


class Packed:
    """Weights as forward reads them."""

    __slots__ = ("__weakref__", "address", "array", "struct")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.struct = ffi.new(_WEIGHTS, {"packed": _from_buffer(array)})
        self.address = _address(self.struct)

    @property
    def nbytes(self) -> int:
        return self.array.nbytes


def pack(weights: Weights) -> Packed:
    spec = _spec(weights)
    size = lib.hotloop_packed_bytes(spec)
    if size < 0:
        raise MemoryError("hotloop: the sizes of the weights overflow")
    buffer = memory.empty((size + 64,), _BYTE)
    start = -buffer.__array_interface__["data"][0] % 64  # a cache line
    packed = buffer[start : start + size]
    if status := lib.hotloop_pack(spec, _describe(weights), _from_buffer(packed), size):
        _fail(status)
    return Packed(packed)


def _run(plan: Plan, call: Callable[[Any, int], int]) -> None:
    """`call(workspace, bytes)` until it is done: between two slices of a long one the interpreter sees Ctrl-C."""
    size = plan.workspace_bytes
    # Fresh pages for the packed weights of LSTM I512 H512 take 1 ms.
    workspace = _from_buffer(memory.empty((size,), _BYTE)) if size else _NULL
    while (status := call(workspace, size)) == _AGAIN:
        pass
    if status:
        _fail(status)


def forward(recurrences: Sequence[Forward], threads: int, executor: Any = None) -> None:
    first, count = recurrences[0], len(recurrences)
    uses = (_INFERENCE if first.gates is None else _TRAINING) | (0 if first.packed is None else _PACKED)
    uses |= _masked(recurrences)
    plan = _plan(first.weights, uses, count, *_largest(recurrences), threads)
    buffers, _weights = _buffers(recurrences)
    given = _NULL if executor is None else executor
    _run(plan, lambda workspace, size: lib.hotloop_forward(plan.struct, buffers, given, workspace, size))


def _masked(recurrences: Sequence[Forward]) -> int:
    return _MASKED if any(args.recurrent_mask is not None for args in recurrences) else 0


def _backward_uses(args: Backward) -> int:
    uses: int = _BACKWARD
    if args.grad_x is not None:
        uses |= _GRAD_X
    if not args.grad_parameters.keys().isdisjoint(args.forward.cell.weight_names):
        uses |= _GRAD_WEIGHTS
    if args.accumulate:
        uses |= _ACCUMULATE
    resets = args.forward.resets
    return uses | _RESET_TO_INITIAL if resets is not None and resets.initial else uses


def backward(recurrences: Sequence[Backward], threads: int, executor: Any = None) -> None:
    first, count, uses = recurrences[0].forward, len(recurrences), 0
    for args in recurrences:
        uses |= _backward_uses(args)
    forwards = [args.forward for args in recurrences]
    uses |= _masked(forwards)
    plan = _plan(first.weights, uses, count, *_largest(forwards), threads)
    buffers, _weights = _buffers(forwards)
    gradients = ffi.new(_GRADIENTS, count)
    for index, args in enumerate(recurrences):
        fill_gradients(
            _address(gradients + index), args.grad_output, args.grad_h_n, args.grad_c_n, args.grad_c, args.grad_x,
            args.grad_h0, args.grad_c0, *map(args.grad_parameters.get, first.cell.names),
        )  # fmt: skip
        gradients[index].accumulate = args.accumulate
        ragged = args.forward.ragged
        if ragged is not None and ragged.ranks is not None:
            gradients[index].ranks = ffi.cast("int64_t *", ragged.ranks.ctypes.data)  # which the call keeps alive
    given = _NULL if executor is None else executor
    _run(plan, lambda workspace, size: lib.hotloop_backward(plan.struct, buffers, gradients, given, workspace, size))


def openmp_executor(parallel: int, max_threads: int) -> Any:
    executor = lib.hotloop_openmp_executor(
        ffi.cast("void (*)(void (*)(void *), void *, unsigned, unsigned)", parallel),
        ffi.cast("int (*)(void)", max_threads),
    )
    return None if executor == _NULL else executor


_SEED = int.from_bytes(os.urandom(8), "little")


def fingerprint(arrays: Sequence[Array]) -> Callable[[], tuple[int, int]]:
    """A function that returns a hash of the bytes these contiguous arrays hold at the moment.

    If they change, the hash stays the same with a probability of 2**-63 at most, over the seeds of processes.
    """
    count = len(arrays)
    pointers = ffi.new("void *[]", [_from_buffer(array) for array in arrays])
    sizes = ffi.new("int64_t[]", [array.nbytes for array in arrays])

    def now(arrays: Sequence[Array] = arrays) -> tuple[int, int]:  # which keeps them alive
        result = ffi.new(_WORDS)  # each call its own: it may be under way in several threads
        if status := lib.hotloop_hash(pointers, sizes, count, _SEED, result):
            _fail(status)
        return result[0], result[1]

    return now
