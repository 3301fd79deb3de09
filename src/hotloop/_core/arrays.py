"""Whatever the caller has, as arrays that backends take; and arrays for results."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from . import memory
from .types import DTYPES, MOST_BYTES, TIME_MAJOR, Array, Layout


def as_array(name: str, value: Any, dtype: np.dtype[Any] | None = None) -> Array:
    """`value` as an aligned native array of `dtype` (float32 or float64 where None), without a copy where possible."""
    if type(value) is not np.ndarray:
        value = convert(name, value, dtype_rule(dtype), map(str, DTYPES))
    if value.dtype != dtype and (dtype is not None or value.dtype not in DTYPES):
        raise TypeError(f"{name}: expected {dtype_rule(dtype)}, got {value.dtype}")
    array: Array = value
    flags = array.flags
    if not flags.c_contiguous:
        check_extent(name, array)
    return array if flags.aligned else array.copy()


def convert(name: str, value: Any, rule: str, dtypes: Iterable[str]) -> Any:
    """`value` as an array; `rule` and `dtypes` say which, for the error."""
    if value is None:
        raise TypeError(f"{name}: expected an array, got None")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got a masked array; pass {name}.filled(...)")
    if getattr(value, "requires_grad", False):
        raise TypeError(f"{name}: expected an array without gradient tracking, got a tensor that requires grad; "
                        f"pass {name}.detach()")  # fmt: skip
    try:
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(_why_no_array(name, value, rule, dtypes, error)) from error


def dtype_rule(dtype: np.dtype[Any] | None) -> str:
    return "float32 or float64" if dtype is None else f"{dtype} (the dtype of weight_ih)"


def _why_no_array(name: str, value: Any, rule: str, dtypes: Iterable[str], error: Exception) -> str:
    """What is wrong with a value that np.asarray does not take."""
    kind = type(value).__name__
    device = getattr(value, "device", "cpu")
    if (where := getattr(device, "type", str(device))) != "cpu":
        return f"{name}: expected an array in the processor's memory, got a {kind} on device {where}; pass {name}.cpu()"
    elements = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if elements and elements not in dtypes:
        return f"{name}: expected {rule}, got {elements}"
    return f"{name}: expected an array, got {kind}: {error}"


def check_extent(name: str, array: Array) -> None:
    """Addresses, and the size of a copy, can be computed: strides made by hand or by a broadcast may be anything."""
    if array.size == 0:
        return
    steps = zip(array.strides, array.shape, strict=True)
    extent = array.itemsize + sum(abs(stride) * (length - 1) for stride, length in steps)
    if extent > MOST_BYTES:
        raise ValueError(
            f"{name}: expected strides that span at most {MOST_BYTES} bytes, got {array.strides} for {array.shape}"
        )
    if math.prod(array.shape) * array.itemsize > MOST_BYTES:
        raise MemoryError(f"{name}: expected at most {MOST_BYTES} bytes, got shape {array.shape} of {array.dtype}")


def runs_in_place(array: Array) -> bool:
    """Whether backends can use a sequence as it lies: features side by side, whole elements between steps and rows."""
    (step, row, feature), size = array.strides, array.itemsize
    return (feature == size or array.shape[2] <= 1) and not (step % size or row % size) and array.flags.aligned


def with_unit_feature_stride(array: Array) -> Array:
    return array if array.flags.c_contiguous or runs_in_place(array) else np.ascontiguousarray(array)


def unexpected(name: str, array: Array, rule: str, shape: tuple[int, ...]) -> ValueError:
    """What is wrong with an array of another shape than `shape`, `rule` in words."""
    return ValueError(f"{name}: expected shape {rule} = {shape}, got {array.shape}")


def make_output(layout: Layout, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """The output as the caller sees it, and as backends fill it, [T, B, *]: `shape`."""
    if layout is TIME_MAJOR:
        output = memory.empty(shape, dtype)
        return output, output
    output = memory.empty(layout.shape(*shape), dtype)
    return output, layout.time_major(output)


def finish_output(output: Array, filled: Array, layout: Layout) -> None:
    """Fill `output` where the backend could not: an `out=` whose features do not lie side by side."""
    view = layout.time_major(output)
    if not runs_in_place(view):
        view[...] = filled


def _plain(array: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Whether `array` can be used as it lies: a NumPy array and no subclass, of that very dtype and that shape,
    contiguous and aligned.
    """
    if type(array) is not np.ndarray or array.dtype is not dtype or array.shape != shape:
        return False
    return bool(array.flags.c_contiguous and array.flags.aligned)


def _plain_out(array: Any, dtype: np.dtype[Any], shape: tuple[int, ...], others: tuple[Any, ...]) -> bool:
    """Whether it is plain and writeable, and lies apart from the others, each an array or None, as far as can be seen
    from where they begin and end.
    """
    return (
        _plain(array, dtype, shape)
        and array.flags.writeable
        and all(
            other is None or (isinstance(other, np.ndarray) and not np.may_share_memory(array, other))
            for other in others
        )
    )


try:  # the same, 0.1 us sooner an array
    from .._calls import plain as plain
    from .._calls import plain_out as plain_out
except ImportError:
    plain, plain_out = _plain, _plain_out
