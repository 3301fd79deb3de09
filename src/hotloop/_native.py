"""Glue to the C++ kernels and nothing else: arrays to pointers, one call, status to exception."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _memory
from ._contract import Array, Backward, Forward, Weights
from ._environment import quoted, refuse

try:
    from ._ffi import ffi, lib
except ModuleNotFoundError as error:
    raise ImportError(
        f"there is no native module in {os.path.dirname(__file__)}: this is a source tree that was not installed, or "
        "the installation found no C++ compiler or no Python headers; install hotloop with HOTLOOP_REQUIRE_NATIVE=1"
    ) from error

NAME = "native"

_CELLS = {
    "rnn_tanh": lib.HOTLOOP_RNN_TANH,
    "rnn_relu": lib.HOTLOOP_RNN_RELU,
    "lstm": lib.HOTLOOP_LSTM,
    "gru": lib.HOTLOOP_GRU,
    "gru_reset_before": lib.HOTLOOP_GRU_RESET_BEFORE,
}
_DTYPES = {np.dtype(np.float32): lib.HOTLOOP_FLOAT32, np.dtype(np.float64): lib.HOTLOOP_FLOAT64}
_AGAIN = lib.HOTLOOP_AGAIN
_BYTE = np.dtype(np.uint8)
_SHORT = 1 << 16  # bytes of workspace for a call that may be short
_short_workspaces: list[Any] = []  # those that no call has at the moment
_forward_step = lib.hotloop_forward_step


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


def description() -> str:
    return str(ffi.string(lib.hotloop_isa()).decode())


if not lib.hotloop_isa():
    refuse(ValueError(f"HOTLOOP_ISA: expected one of {', '.join(isas())}, got {quoted(os.environ['HOTLOOP_ISA'])}"))


_INTEGERS, _BYTES = ffi.typeof("int64_t[]"), ffi.typeof("uint8_t *")
_FORWARD, _BACKWARD = ffi.typeof("hotloop_forward_args[]"), ffi.typeof("hotloop_backward_args[]")
_VOID, _WORDS = ffi.typeof("void *"), ffi.typeof("uint64_t[2]")
_NULL = ffi.NULL
_cast = ffi.cast
_from_buffer = ffi.from_buffer  # the address of a contiguous array: 0.1 us, where ctypes.data takes 0.9


def _address(array: Array | None) -> Any:
    return _NULL if array is None else _from_buffer(array)


def _start(sequence: Array) -> Any:
    """The address of a sequence with strides: features lie side by side, so its first row is contiguous."""
    return _from_buffer(sequence[:1, :1])


def _strides(sequence: Array) -> tuple[int, int]:
    """Strides for time and batch in elements; that of an axis of length 1 may be anything and means nothing."""
    shape, strides, size = sequence.shape, sequence.strides, sequence.itemsize
    return strides[0] // size if shape[0] > 1 else 0, strides[1] // size if shape[1] > 1 else 0


def _sequence(sequence: Array | None) -> tuple[Any, int, int]:
    """The three fields of a sequence."""
    if sequence is None:
        return _NULL, 0, 0
    return _from_buffer(sequence) if sequence.flags.c_contiguous else _start(sequence), *_strides(sequence)


def _fail(status: int) -> None:
    raise RuntimeError(f"hotloop: {ffi.string(lib.hotloop_status_string(status)).decode()}")


def _workspace(size: int) -> Array:
    if size < 0:
        raise MemoryError("hotloop: the sizes of this call overflow")
    return _memory.empty((size,), _BYTE)  # fresh pages for the packed weights of LSTM I512 H512 take 1 ms


def _head(weights: Weights) -> tuple[Any, ...]:
    """What the struct of one step of one row begins with, in the order of hotloop_decls.h; what follows is zero."""
    bias_ih, bias_hh = weights.bias_ih, weights.bias_hh
    return (
        _CELLS[weights.cell.name], _DTYPES[weights.dtype], 0, 0, 1, 1, weights.input_size, weights.hidden_size,
        _NULL, 0, 0, _from_buffer(weights.weight_ih), _from_buffer(weights.weight_hh),
        _NULL if bias_ih is None else _from_buffer(bias_ih), _NULL if bias_hh is None else _from_buffer(bias_hh),
    )  # fmt: skip


class Packed:
    """Weights as forward reads them, and a struct that is copied for each call with them."""

    def __init__(self, array: Array, like: Any) -> None:
        self.array = array
        self.like = like  # a pointer, and what it points to
        self.struct = like[0]
        like.packed = _from_buffer(array)

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def step(
        self, x: Array, h0: Array | None, c0: Array | None, output: Array, h_n: Array, c_n: Array | None
    ) -> bool:  # fmt: skip
        """See `Backend.pack`: 2 us less than `forward`, which is half of what a call of one step takes."""
        seq_len, batch_size, _ = x.shape
        status: int = _forward_step(
            self.like, seq_len, batch_size, _from_buffer(x),
            _NULL if h0 is None else _from_buffer(h0), _NULL if c0 is None else _from_buffer(c0),
            _from_buffer(output), _from_buffer(h_n), _NULL if c_n is None else _from_buffer(c_n),
        )  # fmt: skip
        return status == 0


def _set_forward(target: Any, args: Forward) -> None:
    """What differs from call to call. An assignment takes 0.05 us, so what the head has right stays as it is."""
    x, output = args.x, args.output
    seq_len, batch_size, _ = x.shape
    target.x = _from_buffer(x) if x.flags.c_contiguous else _start(x)
    target.output = _from_buffer(output) if output.flags.c_contiguous else _start(output)
    target.h_n = _from_buffer(args.h_n)
    if args.reverse:
        target.reverse = 1
    if seq_len != 1 or batch_size != 1:
        target.seq_len, target.batch_size = seq_len, batch_size
        target.x_stride_t, target.x_stride_b = _strides(x)
        target.output_stride_t, target.output_stride_b = _strides(output)
    if args.h0 is not None:
        target.h0 = _from_buffer(args.h0)
    if args.c_n is not None:
        target.c_n = _from_buffer(args.c_n)
        if args.c0 is not None:
            target.c0 = _from_buffer(args.c0)
    if args.gates is not None:
        target.gates = _from_buffer(args.gates)
    if args.c is not None:
        target.c, target.c_stride_t, target.c_stride_b = _sequence(args.c)
    if args.ragged is not None:
        ragged = args.ragged
        if ragged.offsets is None:
            target.lengths = _from_buffer(_INTEGERS, ragged.lengths)
        else:
            target.seq_len, target.batch_size = ragged.steps, len(args.h_n)
            target.offsets = _from_buffer(_INTEGERS, ragged.offsets)
    if args.resets is not None:
        resets = args.resets.at
        target.resets = ffi.cast(_BYTES, _start(resets))
        target.resets_stride_t, target.resets_stride_b = _strides(resets)
        target.reset_to_initial = args.resets.initial


def _backward_fields(args: Backward) -> tuple[Any, ...]:
    """The struct, in the order of hotloop_decls.h."""
    forward = args.forward
    kept = forward.kept
    if kept is None:  # another backend ran it
        kept = ffi.new(_FORWARD, [_head(forward.weights)]), 0
        _set_forward(kept[0][0], forward)
        forward.kept = kept  # when it is complete: other threads may run this very backward
    targets, index = kept
    return (
        targets[index],
        *_sequence(args.grad_output),
        _address(args.grad_h_n),
        _address(args.grad_c_n),
        *_sequence(args.grad_c),
        *_sequence(args.grad_x),
        _address(args.grad_weight_ih),
        _address(args.grad_weight_hh),
        _address(args.grad_bias_ih),
        _address(args.grad_bias_hh),
        _from_buffer(args.grad_h0),
        _address(args.grad_c0),
    )


_FORWARD_CALLS = lib.hotloop_forward_short, lib.hotloop_forward_workspace, lib.hotloop_forward
_BACKWARD_CALLS = lib.hotloop_backward_short, lib.hotloop_backward_workspace, lib.hotloop_backward


def _run(calls: tuple[Any, Any, Any], targets: Any, count: int, threads: int) -> None:
    run_short, workspace_size, run = calls
    # Most short calls are done at once. Between two slices of a long one the interpreter sees Ctrl-C.
    try:
        short = _short_workspaces.pop()  # no other thread has it
    except IndexError:
        short = _from_buffer(np.empty(_SHORT, np.uint8))
    status = run_short(targets, count, short, _SHORT)
    _short_workspaces.append(short)
    if status:  # it is not short, or something is wrong with it
        # Never more than the process may run on; asked once a call, since that may change in the middle of it.
        if threads > 1:
            threads = min(threads, lib.hotloop_processors())
        size = workspace_size(targets, count, threads)
        workspace = _from_buffer(_workspace(size))
        while (status := run(targets, count, threads, workspace, size)) == _AGAIN:
            pass
        if status:
            _fail(status)


def forward(recurrences: Sequence[Forward], threads: int) -> None:
    count = len(recurrences)
    targets = ffi.new(_FORWARD, count)
    for index, args in enumerate(recurrences):
        packed = args.packed
        targets[index] = _head(args.weights) if packed is None else packed.struct
        _set_forward(targets[index], args)
        args.kept = targets, index  # backward takes it as it is, 3 us sooner than another
    _run(_FORWARD_CALLS, targets, count, threads)


def backward(recurrences: Sequence[Backward], threads: int) -> None:
    targets = ffi.new(_BACKWARD, [_backward_fields(args) for args in recurrences])
    _run(_BACKWARD_CALLS, targets, len(recurrences), threads)


class Direct:
    """One recurrence, in processing order of time, on memory given by addresses (0: absent): sequences lie one step
    after the other, with all rows in it. What `forward` and `backward` do, some 8 us sooner.
    """  # fmt: skip

    def __init__(self, weights: Weights) -> None:
        self.weights = weights  # which the struct points to
        self._owner = ffi.new(_BACKWARD, [(_head(weights),)])
        self.like = self._owner[0]
        self.steps = weights.input_size, weights.hidden_size

    def infer(
        self, packed: Packed | None, seq_len: int, batch_size: int, x: int, h0: int, c0: int, output: Array, h_n: Array,
        c_n: Array | None, resets: int, threads: int,
    ) -> None:  # fmt: skip
        if packed is None or resets or _forward_step(
            packed.like, seq_len, batch_size, _cast(_VOID, x), _cast(_VOID, h0), _cast(_VOID, c0), _from_buffer(output),
            _from_buffer(h_n), _NULL if c_n is None else _from_buffer(c_n),
        ):  # fmt: skip
            like = self.like.forward if packed is None else packed.struct
            self._forward(like, seq_len, batch_size, x, h0, c0, output, h_n, c_n, None, None, resets, threads)

    def _set(
        self, target: Any, seq_len: int, batch_size: int, x: int, h0: int, c0: int, output: Any, h_n: Array, gates: Any,
        c: Any,
    ) -> None:  # fmt: skip
        input_size, hidden_size = self.steps
        target.x, target.output, target.h_n = _cast(_VOID, x), output, _from_buffer(h_n)
        if seq_len != 1 or batch_size != 1:
            target.seq_len, target.batch_size = seq_len, batch_size
            target.x_stride_t, target.x_stride_b = batch_size * input_size, input_size
            target.output_stride_t = target.c_stride_t = batch_size * hidden_size
            target.output_stride_b = target.c_stride_b = hidden_size
        if h0:
            target.h0 = _cast(_VOID, h0)
        if c0:
            target.c0 = _cast(_VOID, c0)
        target.gates, target.c = gates, c

    def forward(
        self, seq_len: int, batch_size: int, x: int, h0: int, c0: int, output: Array, h_n: Array, c_n: Array | None,
        gates: Array | None, c: Array | None, threads: int,
    ) -> None:  # fmt: skip
        self._forward(self.like.forward, seq_len, batch_size, x, h0, c0, output, h_n, c_n, gates, c, 0, threads)

    def _forward(
        self, like: Any, seq_len: int, batch_size: int, x: int, h0: int, c0: int, output: Array, h_n: Array,
        c_n: Array | None, gates: Array | None, c: Array | None, resets: int, threads: int,
    ) -> None:  # fmt: skip
        targets = ffi.new(_FORWARD, 1)
        targets[0] = like
        target = targets[0]
        self._set(
            target, seq_len, batch_size, x, h0, c0, _from_buffer(output), h_n, _address(gates), _address(c)
        )  # fmt: skip
        if c_n is not None:
            target.c_n = _from_buffer(c_n)
        if resets:
            target.resets, target.resets_stride_t, target.resets_stride_b = _cast(_BYTES, resets), batch_size, 1
        _run(_FORWARD_CALLS, targets, 1, threads)

    def backward(
        self, seq_len: int, batch_size: int, x: int, h0: int, c0: int, output: int, gates: int, c: int,
        upstream: tuple[int, int, int], grad_x: Array | None, weights: Sequence[Array | None], grad_h0: Array,
        grad_c0: Array | None, threads: int,
    ) -> None:  # fmt: skip
        targets = ffi.new(_BACKWARD, 1)
        targets[0] = self.like
        target = targets[0]
        self._set(
            target.forward, seq_len, batch_size, x, h0, c0, _cast(_VOID, output), grad_h0, _cast(_VOID, gates),
            _cast(_VOID, c),
        )  # fmt: skip
        input_size, hidden_size = self.steps
        grad_output, grad_h_n, grad_c_n = upstream
        if grad_output:
            target.grad_output = _cast(_VOID, grad_output)
            target.grad_output_stride_t, target.grad_output_stride_b = batch_size * hidden_size, hidden_size
        if grad_h_n:
            target.grad_h_n = _cast(_VOID, grad_h_n)
        if grad_c_n:
            target.grad_c_n = _cast(_VOID, grad_c_n)
        if grad_x is not None:
            target.grad_x = _from_buffer(grad_x)
            target.grad_x_stride_t, target.grad_x_stride_b = batch_size * input_size, input_size
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        if weight_ih is not None:
            target.grad_weight_ih = _from_buffer(weight_ih)
        if weight_hh is not None:
            target.grad_weight_hh = _from_buffer(weight_hh)
        if bias_ih is not None:
            target.grad_bias_ih = _from_buffer(bias_ih)
        if bias_hh is not None:
            target.grad_bias_hh = _from_buffer(bias_hh)
        target.grad_h0 = _from_buffer(grad_h0)
        if grad_c0 is not None:
            target.grad_c0 = _from_buffer(grad_c0)
        _run(_BACKWARD_CALLS, targets, 1, threads)


def borrow_threads(run: int, most: int) -> None:
    """Have shares of calls run by GOMP_parallel, at that address, on so many threads as omp_get_max_threads, at the
    other, says; 0, 0: by threads of our own.
    """  # fmt: skip
    lib.hotloop_borrow_threads(
        _cast("void (*)(void (*)(void *), void *, unsigned, unsigned)", run), _cast("int (*)(void)", most)
    )


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


def pack(weights: Weights) -> Packed:
    target = ffi.new("hotloop_forward_args *", _head(weights))
    size = lib.hotloop_packed_bytes(target)
    buffer = _workspace(size if size < 0 else size + 64)
    start = -buffer.__array_interface__["data"][0] % 64  # a cache line
    packed = buffer[start : start + size]
    if status := lib.hotloop_pack(target, _from_buffer(packed), size):
        _fail(status)
    target.weight_ih = target.weight_hh = target.bias_ih = target.bias_hh = _NULL  # they may go before what was packed
    return Packed(packed, target)
