"""Glue to the C++ kernels and nothing else: arrays to pointers, one call, status to exception."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _memory
from ._contract import Array, Backward, Forward, Weights
from ._environment import refuse

try:
    from ._ffi import ffi, lib
except ModuleNotFoundError as error:
    raise ImportError(
        "the native module was not built, because the installation found no C++ compiler or no Python headers; "
        "install one and reinstall hotloop with HOTLOOP_REQUIRE_NATIVE=1"
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
    refuse(ValueError(f"HOTLOOP_ISA: expected one of {', '.join(isas())}, got {os.environ['HOTLOOP_ISA']!r}"))


_FORWARD, _BACKWARD = ffi.typeof("hotloop_forward_args[]"), ffi.typeof("hotloop_backward_args[]")
_NULL = ffi.NULL
_from_buffer = ffi.from_buffer


def _address(array: Array | None) -> Any:
    if array is None:
        return _NULL
    # from_buffer takes 0.15 us and contiguous arrays only, ctypes.data 1 us.
    return _from_buffer(array) if array.flags.c_contiguous else ffi.cast("void *", array.ctypes.data)


def _fail(status: int) -> None:
    raise RuntimeError(f"hotloop: {ffi.string(lib.hotloop_status_string(status)).decode()}")


def _workspace(size: int) -> Array:
    if size < 0:
        raise MemoryError("hotloop: the sizes of this call overflow")
    return _memory.empty((size,), _BYTE)  # fresh pages for the packed weights of LSTM I512 H512 take 1 ms


def _set_weights(target: Any, weights: Weights) -> None:
    target.cell = _CELLS[weights.cell.name]
    target.dtype = _DTYPES[weights.dtype]
    target.input_size = weights.input_size
    target.hidden_size = weights.hidden_size
    target.weight_ih = _address(weights.weight_ih)
    target.weight_hh = _address(weights.weight_hh)
    if weights.bias_ih is not None:  # fields are NULL until they are set
        target.bias_ih = _address(weights.bias_ih)
    if weights.bias_hh is not None:
        target.bias_hh = _address(weights.bias_hh)


def _strides(sequence: Array) -> tuple[int, int]:
    """Strides for time and batch in elements; that of an axis of length 1 may be anything and means nothing."""
    shape, strides, size = sequence.shape, sequence.strides, sequence.itemsize
    return strides[0] // size if shape[0] > 1 else 0, strides[1] // size if shape[1] > 1 else 0


def _run(workspace_size: Any, function: Any, targets: Any, count: int, threads: int) -> None:
    # Never more than the process may run on; asked once a call, since that may change in the middle of it.
    if threads > 1:
        threads = min(threads, lib.hotloop_processors())
    size = workspace_size(targets, count, threads)
    workspace = _workspace(size)
    address = _address(workspace)
    # Between two slices of a long call the interpreter sees Ctrl-C.
    while (status := function(targets, count, threads, address, size)) == _AGAIN:
        pass
    if status:
        _fail(status)


def _set_forward(target: Any, args: Forward) -> None:
    _set_weights(target, args.weights)
    x, output = args.x, args.output
    target.reverse = args.reverse
    target.seq_len, target.batch_size = x.shape[:2]
    target.x = _address(x)
    target.x_stride_t, target.x_stride_b = _strides(x)
    target.output = _address(output)
    target.output_stride_t, target.output_stride_b = _strides(output)
    target.h_n = _address(args.h_n)
    for name in ("h0", "c0", "c_n", "gates", "c"):
        if (array := getattr(args, name)) is not None:
            setattr(target, name, _address(array))


def forward(recurrences: Sequence[Forward], threads: int) -> None:
    count = len(recurrences)
    targets = ffi.new(_FORWARD, count)
    for target, args in zip(targets, recurrences, strict=True):
        _set_forward(target, args)
        if args.packed is not None:
            target.packed = _address(args.packed)
    _run(lib.hotloop_forward_workspace, lib.hotloop_forward, targets, count, threads)


def backward(recurrences: Sequence[Backward], threads: int) -> None:
    count = len(recurrences)
    targets = ffi.new(_BACKWARD, count)
    for target, args in zip(targets, recurrences, strict=True):
        _set_backward(target, args)
    _run(lib.hotloop_backward_workspace, lib.hotloop_backward, targets, count, threads)


def _set_backward(target: Any, args: Backward) -> None:
    _set_forward(target.forward, args.forward)
    if (grad_output := args.grad_output) is not None:
        target.grad_output = _address(grad_output)
        target.grad_output_stride_t, target.grad_output_stride_b = _strides(grad_output)
    if (grad_x := args.grad_x) is not None:
        target.grad_x = _address(grad_x)
        target.grad_x_stride_t, target.grad_x_stride_b = _strides(grad_x)
    target.grad_h_n, target.grad_c_n = _address(args.grad_h_n), _address(args.grad_c_n)
    target.grad_weight_ih, target.grad_weight_hh = _address(args.grad_weight_ih), _address(args.grad_weight_hh)
    target.grad_bias_ih, target.grad_bias_hh = _address(args.grad_bias_ih), _address(args.grad_bias_hh)
    target.grad_h0, target.grad_c0 = _address(args.grad_h0), _address(args.grad_c0)


def pack(weights: Weights) -> Array:
    target = ffi.new("hotloop_forward_args *")
    _set_weights(target, weights)
    size = lib.hotloop_packed_bytes(target)
    buffer = _workspace(size if size < 0 else size + 64)
    start = -buffer.ctypes.data % 64  # a cache line
    packed = buffer[start : start + size]
    if status := lib.hotloop_pack(target, _address(packed), size):
        _fail(status)
    return packed
