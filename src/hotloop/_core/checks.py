"""What a call may be given: every check and every message. Backends trust what is checked here.

Sequences reach backends time-major as views ([T, B, *]; batch_first is only another pair of strides), flat ones as
[total, 1, *], states as contiguous [B, H].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import as_array, check_extent, convert, plain, runs_in_place, unexpected, with_unit_feature_stride
from .types import (
    DTYPES,
    FLAT,
    GRU,
    GRU_RESET_BEFORE,
    LAYOUTS,
    MOST_BYTES,
    RNN_RELU,
    RNN_TANH,
    TIME_MAJOR,
    ZEROS,
    Array,
    Cell,
    Layout,
    Parameter,
    Ragged,
    Resets,
    Weights,
)


def rnn_cell(nonlinearity: str) -> Cell:
    cells = {"tanh": RNN_TANH, "relu": RNN_RELU}
    if not isinstance(nonlinearity, str) or nonlinearity not in cells:
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    return cells[nonlinearity]


def gru_cell(reset_after: bool) -> Cell:
    return GRU if check_flag("reset_after", reset_after) else GRU_RESET_BEFORE


def check_weights(cell: Cell, *arrays: Any) -> Weights:
    """The parameters of a recurrence, in the order of the cell's table; biases may be None."""
    given = dict(zip(cell.names, arrays, strict=True))
    weight_ih = as_array("weight_ih", given["weight_ih"])
    dtype, gates = weight_ih.dtype, cell.gates
    if weight_ih.ndim != 2:
        raise _other_dimensions("weight_ih", weight_ih, f"{_rows(cell)}, input_size")
    rows, input_size = weight_ih.shape
    hidden_size = output_size = rows // gates
    if "weight_hr" in given:
        weight_hr = as_array("weight_hr", given["weight_hr"], dtype)
        if weight_hr.ndim != 2:
            raise _other_dimensions("weight_hr", weight_hr, "proj_size, hidden_size")
        output_size = len(weight_hr)
    if not plain(given["weight_hh"], dtype, (rows, output_size)):
        given["weight_hh"] = as_array("weight_hh", given["weight_hh"], dtype)
        if given["weight_hh"].ndim != 2:
            raise _other_dimensions("weight_hh", given["weight_hh"], f"{_rows(cell)}, {width_rule(cell)}")
    if rows % gates:
        raise ValueError(
            f"weight_ih: expected shape ({_rows(cell)}, input_size), a multiple of {gates}, got {weight_ih.shape}"
        )
    if rows < 1 or input_size < 1:
        raise ValueError(f"weight_ih: expected hidden_size >= 1 and input_size >= 1, got shape {weight_ih.shape}")
    if output_size < 1:
        raise ValueError(f"weight_hr: expected proj_size >= 1, got shape {weight_hr.shape}")
    given["weight_ih"] = weight_ih
    checked: list[Array | None] = []
    for parameter in cell.parameters:
        array, shape = given[parameter.name], parameter.shape(cell, input_size, hidden_size, output_size)
        absent = array is None and parameter.operand is None
        if not absent and not plain(array, dtype, shape):
            array = as_array(parameter.name, array, dtype)
            if array.shape != shape:
                raise unexpected(parameter.name, array, _rule(cell, parameter), shape)
            array = np.ascontiguousarray(array)
        checked.append(array)
    return Weights(cell, dtype, input_size, hidden_size, output_size, tuple(checked))


def _other_dimensions(name: str, weight: Array, rule: str) -> ValueError:
    return ValueError(f"{name}: expected 2 dimensions ({rule}), got {weight.ndim} {weight.shape}")


def _rows(cell: Cell) -> str:
    """The rows of weights, in words."""
    return f"{cell.gates}*hidden_size" if cell.gates > 1 else "hidden_size"


def width_rule(cell: Cell) -> str:
    """The size of h, in words."""
    return "proj_size" if cell.projects else "hidden_size"


def _rule(cell: Cell, parameter: Parameter) -> str:
    """The shape of a parameter, in words."""
    if parameter.operand is None:
        return f"({_rows(cell)},)"
    if parameter.operand == "hidden":
        return f"({width_rule(cell)}, hidden_size)"
    return f"({_rows(cell)}, {'input_size' if parameter.operand == 'x' else width_rule(cell)})"


def check_integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value}")
    return int(value)


def check_threads(threads: Any) -> int:
    return min(check_integer("threads", threads, 1), 1024)


def check_flag(name: str, flag: Any) -> bool:
    if flag is True or flag is False:
        return bool(flag)
    if not isinstance(flag, np.bool_) and not (isinstance(flag, (int, np.integer)) and flag in (0, 1)):
        raise TypeError(f"{name}: expected True or False, got {flag!r}")
    return bool(flag)


def check_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        if dtype is None:  # which is float64 to NumPy
            raise TypeError
        result: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype: expected NumPy's float32 or float64, got {dtype!r}") from error
    if result not in DTYPES:
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")
    return DTYPES[DTYPES.index(result)]  # there are others of the same meaning, as after unpickling


def check_probability(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number from 0 to 1, got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    return float(value)


def check_generator(name: str, rng: Any) -> np.random.Generator:
    try:
        if isinstance(rng, (bool, np.bool_)):
            raise TypeError
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a seed or a numpy.random.Generator, got {rng!r}") from error


def check_state(
    name: str, state: Any, rule: str, shape: tuple[int, ...], dtype: np.dtype[Any], unbatched: bool, copy: bool = False
) -> Array | None:
    """A state as a contiguous array of `shape`, [..., B, H], `rule` in words; unbatched, the caller leaves B out.

    It is copied where backward will read it: states are what callers overwrite in the next step.
    """
    if state is None:
        return None
    if type(state) is np.ndarray and state.dtype == dtype and state.shape == shape and not (unbatched or copy):
        flags = state.flags
        if flags.c_contiguous and flags.aligned:
            return state  # what a step is mostly given: seen in 0.18 us, where the rest takes 0.25
    array = as_array(name, state, dtype)
    if unbatched:
        if array.shape != (*shape[:-2], shape[-1]):
            rule = "(hidden_size,)" if len(shape) == 2 else rule.replace("batch_size, ", "")
            raise unexpected(name, array, rule, (*shape[:-2], shape[-1]))
        array = array[..., np.newaxis, :]
    elif array.shape != shape:
        raise unexpected(name, array, rule, shape)
    return np.array(array, order="C") if copy else np.ascontiguousarray(array)


def _overlaps_itself(array: Array) -> bool:
    """Whether two elements may lie at one place: in order of their strides, each axis must step over the one before."""
    if array.size == 0:
        return False
    end = array.itemsize
    for stride, length in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if length > 1:
            if stride < end:
                return True
            end = stride * (length - 1) + end
    return False


def _share_memory(a: Array, b: Array) -> bool:
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]  # any integer will do
    except Exception:  # TooHardError moved between numpy 1 and 2: not known to be apart
        return True


def check_out(
    out: Any, rule: str, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: Mapping[str, Any], argument: str = "out"
) -> Array:
    """`out` as it is, or the error that says why a result cannot be written there. `inputs` are as the caller has them:
    a backend may read copies.
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{argument}: expected a numpy array, got {type(out).__name__}")
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"{argument}: expected an array without a mask, got a masked array")
    if out.dtype != dtype:
        raise TypeError(f"{argument}: expected {dtype} (the dtype of weight_ih), got {out.dtype}")
    if out.shape != shape:
        raise unexpected(argument, out, rule, shape)
    if not out.flags.writeable:
        raise ValueError(f"{argument}: expected a writeable array, got a read-only one")
    check_extent(argument, out)
    if _overlaps_itself(out):
        raise ValueError(f"{argument}: expected every element at a place of its own, got strides {out.strides}")
    for name, array in inputs.items():
        if array is not None and _share_memory(out, np.asarray(array)):
            raise ValueError(f"{argument}: expected memory of its own, got memory it shares with {name}")
    return out


def check_accumulated(
    name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any], others: Sequence[Any]
) -> None:
    """The array that gradients of this parameter are added to: contiguous, and apart from `others`, as the inputs."""
    argument = f"accumulate_into: {name}"
    if array is None:
        raise ValueError(f"{argument}: expected an array, since {name} is in wrt, got None")
    check_out(array, str(shape), shape, dtype, {}, argument)
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{argument}: expected a contiguous array, got strides {array.strides}")
    if any(other is not None and _share_memory(array, np.asarray(other)) for other in others):
        raise ValueError(
            f"{argument}: expected memory of its own, got memory it shares with an input or with another gradient"
        )


def check_size(weights: Weights, seq_len: int, batch_size: int, training: bool) -> None:
    """Results whose byte count overflows are refused before NumPy, or a kernel, has to count them."""
    size = seq_len * batch_size * weights.hidden_size * weights.dtype.itemsize
    if training:
        size *= max(len(weights.cell.saved), 1)
    if size > MOST_BYTES:
        raise MemoryError(
            f"x: expected sizes whose results have at most {MOST_BYTES} bytes, "
            f"got seq_len, batch_size, hidden_size = {seq_len}, {batch_size}, {weights.hidden_size}"
        )


def check_layout(x: Array, input_size: int, *, batch_first: bool, flat: bool) -> tuple[Layout, int, int]:
    """How the sequences in `x` lie, how many steps it has and, where it is not flat, how many rows."""
    if batch_first is not False:
        batch_first = check_flag("batch_first", batch_first)
    shape = x.shape
    if flat:
        if len(shape) != 2:
            raise ValueError(f"x: expected 2 dimensions (total, input_size) with offsets, got {x.ndim} {shape}")
        layout, seq_len, batch_size = FLAT, shape[0], 1
    elif len(shape) == 3:
        layout = LAYOUTS[batch_first, False] if batch_first else TIME_MAJOR
        seq_len, batch_size = (shape[1], shape[0]) if batch_first else shape[:2]
    elif len(shape) == 2:
        layout, seq_len, batch_size = LAYOUTS[batch_first, True], shape[0], 1
    else:
        dims = "(batch_size, seq_len, input_size)" if batch_first else "(seq_len, batch_size, input_size)"
        raise ValueError(f"x: expected {dims} or (seq_len, input_size), got {x.ndim} dimensions {shape}")
    if shape[-1] != input_size:
        raise ValueError(f"x: expected input_size = {input_size} (columns of weight_ih), got {shape[-1]}")
    if seq_len < 1 and not flat:
        raise ValueError(f"x: expected seq_len >= 1, got {seq_len}")
    return layout, seq_len, batch_size


def check_sequence(
    x: Any, input_size: int, dtype: np.dtype[Any], *, batch_first: bool, flat: bool
) -> tuple[Array, Layout]:
    """`x` as [T, B, I], [total, 1, I] where it is flat, and how the caller's sequences lie."""
    x = as_array("x", x, dtype)
    layout, _, _ = check_layout(x, input_size, batch_first=batch_first, flat=flat)
    return with_unit_feature_stride(layout.time_major(x)), layout


def _check_integers(name: str, value: Any, rule: str) -> Array:
    """An array of integers, of whatever type."""
    if type(value) is not np.ndarray:
        empty = isinstance(value, (list, tuple)) and not value  # which is float64 to NumPy
        value = np.zeros(0, np.int64) if empty else convert(name, value, rule, ("int64",))
    array: Array = value
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected {rule}, got {array.dtype}")
    return array


def check_ragged(x: Array, layout: Layout, lengths: Any, offsets: Any) -> Ragged | None:
    """`lengths` or `offsets`, copied, for a sequence as backends see it. None where all rows have all steps."""
    if offsets is not None:
        if lengths is not None:
            raise ValueError("lengths, offsets: expected one of them, got both")
        return _check_offsets(offsets, len(x))
    if lengths is None:
        return None
    seq_len, batch_size, _ = x.shape
    rule = f"integers from 0 to seq_len = {seq_len}"
    array = _check_integers("lengths", lengths, rule)
    if layout.unbatched:
        raise ValueError(f"lengths: expected x of 3 dimensions (unbatched input has one length, "
                         f"flat input has offsets), got 2 {layout.outer(x).shape}")  # fmt: skip
    if array.shape != (batch_size,):
        raise unexpected("lengths", array, "(batch_size,)", (batch_size,))
    outside = (array < 0) | (array > seq_len)
    if outside.any():
        index = int(outside.argmax())
        raise ValueError(f"lengths: expected {rule}, got {array[index]} at {index}")
    checked = np.array(array, np.int64)
    if (checked == seq_len).all():
        return None
    return Ragged(checked, None, max(int(checked.max()), 1))


def _check_offsets(offsets: Any, total: int) -> Ragged:
    rule = f"0 = offsets[0] <= offsets[1] <= ... <= offsets[-1] = {total} (rows of x)"
    array = _check_integers("offsets", offsets, f"integers {rule}")
    if array.ndim != 1 or not array.size:
        raise ValueError(f"offsets: expected shape (batch_size + 1,), got {array.shape}")
    # Before the conversion to int64, in which a large uint64 would be another number.
    wrong = (array < 0) | (array > total)
    wrong[1:] |= array[1:] < array[:-1]
    wrong[0] |= array[0] != 0
    wrong[-1] |= array[-1] != total
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(f"offsets: expected {rule}, got {array[index]} at {index}")
    checked = np.array(array, np.int64)
    lengths = np.diff(checked)
    return Ragged(lengths, checked, max(int(lengths.max(initial=0)), 1))


def check_resets(x: Array, layout: Layout, resets: Any, reset_state: Any, copy: bool) -> Resets | None:
    """`resets` for a sequence as backends see it."""
    if not isinstance(reset_state, str) or reset_state not in (ZEROS, "initial"):
        raise ValueError(f"reset_state: expected 'zeros' or 'initial', got {reset_state!r}")
    if resets is None:
        return None
    rule = "bool (for each step whether an episode begins)"
    array = resets if type(resets) is np.ndarray else convert("resets", resets, rule, ("bool",))
    if array.dtype != np.bool_:
        raise TypeError(f"resets: expected {rule}, got {array.dtype}; pass resets.astype(bool)")
    if array.shape != (shape := layout.shape(*x.shape[:2])):
        raise unexpected("resets", array, layout.rule(), shape)
    check_extent("resets", array)
    return Resets(layout.time_major(np.array(array) if copy else array), reset_state == "initial")


def check_return_states(cell: Cell, return_states: Any) -> bool:
    """Whether every c is to be returned: only an LSTM has one."""
    wanted = check_flag("return_states", return_states)
    if wanted and not cell.has_c:
        kind = "a GRU" if cell.name.startswith("gru") else "an RNN"
        raise TypeError(f"return_states: expected False, since the output of {kind} holds every state, got True")
    return wanted


def check_output(
    out: Any,
    layout: Layout,
    shape: tuple[int, int, int],
    features: str,
    dtype: np.dtype[Any],
    inputs: Mapping[str, Array | None],
) -> tuple[Array, Array]:
    """The same for an `out` that the caller gave; `features` is the last size of `shape` in words. Where the two do not
    share memory, `finish_output` copies.
    """
    check_out(out, layout.rule(features), layout.shape(*shape), dtype, inputs)
    view = layout.time_major(out)
    return out, view if runs_in_place(view) else np.empty(shape, dtype)


def check_wrt(wrt: Any, names: Sequence[str]) -> frozenset[str]:
    """The gradients that are wanted, among `names`: all of them if `wrt` is None."""
    if wrt is None:
        return frozenset(names)
    try:
        wanted = (wrt,) if isinstance(wrt, str) else tuple(wrt)
    except TypeError:
        raise TypeError(f"wrt: expected a name or an iterable of names, got {wrt!r}") from None
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"wrt: expected names among {tuple(names)}, got {unknown}")
    return frozenset(wanted)


def check_grad_sequence(
    name: str, gradient: Any, layout: Layout, shape: tuple[int, ...], features: str, dtype: np.dtype[Any]
) -> Array | None:
    """The upstream gradient of the output, or of c, [T, B, *]: `shape`."""
    if gradient is None:
        return None
    array = as_array(name, gradient, dtype)
    if array.shape != (outer := layout.shape(*shape)):
        raise unexpected(name, array, layout.rule(features), outer)
    return with_unit_feature_stride(layout.time_major(array))
