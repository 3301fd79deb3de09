"""What a call may be given and what it gives back: every check, every message, every allocation of results.

Backends trust what is checked here. Sequences reach them time-major as views ([T, B, *]; batch_first is only another
pair of strides), flat ones as [total, 1, *], states as contiguous [B, H].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from . import _memory

Array = npt.NDArray[Any]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

_MOST_BYTES = 1 << 55  # of an array, and between its first and its last byte; processes address less


@dataclass(frozen=True)
class Cell:
    """The constants in which the cells differ; equations are in `_cells` and csrc/kernels/cells.h."""

    name: str
    gates: int  # row blocks of weight_ih and weight_hh
    of_h: int  # the first so many multiply h; the others, in a second pass, the reset h
    saved: int  # arrays a unit that backward needs beside the output (and c)
    has_c: bool


RNN_TANH = Cell("rnn_tanh", gates=1, of_h=1, saved=0, has_c=False)
RNN_RELU = Cell("rnn_relu", gates=1, of_h=1, saved=0, has_c=False)
LSTM = Cell("lstm", gates=4, of_h=4, saved=4, has_c=True)
GRU = Cell("gru", gates=3, of_h=3, saved=4, has_c=False)
GRU_RESET_BEFORE = Cell("gru_reset_before", gates=3, of_h=2, saved=3, has_c=False)
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
CELLS = {cell.name: cell for cell in (RNN_TANH, RNN_RELU, LSTM, GRU, GRU_RESET_BEFORE)}


def rnn_cell(nonlinearity: str) -> Cell:
    cells = {"tanh": RNN_TANH, "relu": RNN_RELU}
    if not isinstance(nonlinearity, str) or nonlinearity not in cells:
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    return cells[nonlinearity]


def gru_cell(reset_after: bool) -> Cell:
    return GRU if check_flag("reset_after", reset_after) else GRU_RESET_BEFORE


class Weights(NamedTuple):
    """The parameters of one recurrence, checked and contiguous; biases may be absent."""

    cell: Cell
    dtype: np.dtype[Any]
    input_size: int
    hidden_size: int
    weight_ih: Array  # [G*H, I]
    weight_hh: Array  # [G*H, H]
    bias_ih: Array | None  # [G*H]
    bias_hh: Array | None  # [G*H]


@dataclass(slots=True)
class Ragged:
    """How the rows of a batch lie in time, where they do not all have the steps of `x`.

    What lies after a row's end is padding: nobody reads it, and results are zero there.
    """

    lengths: Array  # int64 [B], contiguous
    offsets: Array | None  # int64 [B+1], contiguous: row b is offsets[b]:offsets[b+1] of flat sequences. None: padded
    steps: int  # the longest length, at least 1

    def at(self, row: Any, step: Any, reverse: bool) -> Any:
        """Where step `step`, in processing order, of row `row` lies in time. Arrays are welcome."""
        time = self.lengths[row] - 1 - step if reverse else step
        return time if self.offsets is None else self.offsets[row] + time


class Resets(NamedTuple):
    """Before which steps a row's state is replaced, in the order of processing of the recurrence they are given to."""

    at: Array  # bool, like x without features: [T, B], or [total, 1]
    initial: bool  # the state becomes h0 and c0, or else zero

    def of_reverse(self, ragged: Ragged | None) -> Resets:
        """Marks of the first steps of episodes in time, as the reverse direction needs them: it leaves an episode, and
        is reset, before the step that lies before its first one in time.
        """  # fmt: skip
        at = np.zeros(self.at.shape, np.bool_)
        at[:-1] = self.at[1:]
        if ragged is not None:  # what comes from the padding, or from the row that lies behind
            rows = np.flatnonzero(ragged.lengths)
            at[ragged.at(rows, 0, True), rows if ragged.offsets is None else 0] = False
        return Resets(at, self.initial)


@dataclass(slots=True)
class Forward:
    """One recurrence over one batch. `gates` and `c` are there when training: backward reads them; `c` also where it is
    a result. Shapes are those of dense and of padded sequences; flat ones are [total, 1, *].
    """  # fmt: skip

    weights: Weights
    packed: Any  # what the backend's pack() made of the weights, or None
    reverse: bool
    x: Array  # [T, B, I]
    h0: Array | None  # [B, H]
    c0: Array | None  # [B, H]
    output: Array  # [T, B, H]
    h_n: Array  # [B, H]
    c_n: Array | None  # [B, H]
    gates: Array | None  # [T, B, S*H], contiguous
    c: Array | None  # [T, B, H], strided as output may be
    ragged: Ragged | None = None
    resets: Resets | None = None
    kept: Any = field(default=None, init=False)  # what a backend's forward leaves for its own backward; not in a copy

    @property
    def cell(self) -> Cell:
        return self.weights.cell

    @property
    def steps(self) -> int:
        """How many steps the longest row has."""
        return len(self.x) if self.ragged is None else self.ragged.steps

    def place(self, row: Any, step: Any) -> tuple[Any, Any]:
        """The index in sequences of step `step`, in processing order, of row `row`: arrays, or one step of all rows."""
        if self.ragged is not None:
            return self.ragged.at(row, step, self.reverse), row if self.ragged.offsets is None else 0
        return len(self.x) - 1 - step if self.reverse else step, row


@dataclass(slots=True)
class Backward:
    """Gradients of one recurrence. Absent upstream gradients count as zero; absent results are not wanted."""

    forward: Forward
    grad_output: Array | None  # [T, B, H]
    grad_h_n: Array | None  # [B, H]
    grad_c_n: Array | None  # [B, H]
    grad_x: Array | None  # [T, B, I]
    grad_weight_ih: Array | None
    grad_weight_hh: Array | None
    grad_bias_ih: Array | None
    grad_bias_hh: Array | None
    grad_h0: Array  # [B, H]
    grad_c0: Array | None  # [B, H]
    grad_c: Array | None = None  # [T, B, H]


class Backend(Protocol):
    """A module that fills arrays it is given: it does not check, allocate results or choose names.

    A call takes several recurrences that do not depend on each other, as the directions of a layer, and may run them
    side by side on at most `threads` threads.
    """

    NAME: str

    def forward(self, recurrences: Sequence[Forward], threads: int) -> None:
        """Fill output, h_n and, where present, c_n, gates and c."""

    def backward(self, recurrences: Sequence[Backward], threads: int) -> None:
        """Fill every gradient that is present; read only what forward saved."""

    def pack(self, weights: Weights) -> Any:
        """Prepare weights for many inference calls; None where there is nothing to prepare.

        The result may have a method `step(x, h0, c0, output, h_n, c_n)`: a forward call, not reversed, over contiguous
        arrays, done at once if it is short. False if it is not; then nothing has been done.
        """

    def description(self) -> str:
        """One word on the variant in use, e.g. the instruction set."""


class Gradients(NamedTuple):
    """Gradients of an RNN or GRU call; None where an argument was absent or is not in `wrt`."""

    x: Array | None
    weight_ih: Array | None
    weight_hh: Array | None
    bias_ih: Array | None
    bias_hh: Array | None
    h0: Array | None


class LSTMGradients(NamedTuple):
    """Gradients of an LSTM call; None where an argument was absent or is not in `wrt`."""

    x: Array | None
    weight_ih: Array | None
    weight_hh: Array | None
    bias_ih: Array | None
    bias_hh: Array | None
    h0: Array | None
    c0: Array | None


def as_array(name: str, value: Any, dtype: np.dtype[Any] | None = None) -> Array:
    """`value` as an aligned native array of `dtype` (float32 or float64 where None), without a copy where possible."""
    if type(value) is not np.ndarray:
        value = _converted(name, value, _dtype_rule(dtype), map(str, DTYPES))
    if value.dtype != dtype and (dtype is not None or value.dtype not in DTYPES):
        raise TypeError(f"{name}: expected {_dtype_rule(dtype)}, got {value.dtype}")
    array: Array = value
    flags = array.flags
    if not flags.c_contiguous:
        _check_extent(name, array)
    return array if flags.aligned else array.copy()


def _converted(name: str, value: Any, rule: str, dtypes: Iterable[str]) -> Any:
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


def _dtype_rule(dtype: np.dtype[Any] | None) -> str:
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


def _check_extent(name: str, array: Array) -> None:
    """Addresses, and the size of a copy, can be computed: strides made by hand or by a broadcast may be anything."""
    if array.size == 0:
        return
    steps = zip(array.strides, array.shape, strict=True)
    extent = array.itemsize + sum(abs(stride) * (length - 1) for stride, length in steps)
    if extent > _MOST_BYTES:
        raise ValueError(
            f"{name}: expected strides that span at most {_MOST_BYTES} bytes, got {array.strides} for {array.shape}"
        )
    if math.prod(array.shape) * array.itemsize > _MOST_BYTES:
        raise MemoryError(f"{name}: expected at most {_MOST_BYTES} bytes, got shape {array.shape} of {array.dtype}")


def _runs_in_place(array: Array) -> bool:
    """Whether backends can use a sequence as it lies: features side by side, whole elements between steps and rows."""
    (step, row, feature), size = array.strides, array.itemsize
    return (feature == size or array.shape[2] <= 1) and not (step % size or row % size) and array.flags.aligned


def _with_unit_feature_stride(array: Array) -> Array:
    return array if _runs_in_place(array) else np.ascontiguousarray(array)


def _unexpected(name: str, array: Array, rule: str, shape: tuple[int, ...]) -> ValueError:
    """What is wrong with an array of another shape than `shape`, `rule` in words."""
    return ValueError(f"{name}: expected shape {rule} = {shape}, got {array.shape}")


def check_weights(cell: Cell, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> Weights:
    weight_ih = as_array("weight_ih", weight_ih)
    dtype = weight_ih.dtype
    weight_hh = as_array("weight_hh", weight_hh, dtype)
    if weight_ih.ndim != 2 or weight_hh.ndim != 2:
        name, weight, columns = ("weight_hh", weight_hh, "hidden_size")
        if weight_ih.ndim != 2:
            name, weight, columns = ("weight_ih", weight_ih, "input_size")
        raise ValueError(f"{name}: expected 2 dimensions ({_rows(cell)}, {columns}), got {weight.ndim} {weight.shape}")
    (rows, input_size), gates = weight_ih.shape, cell.gates
    if rows % gates:
        raise ValueError(
            f"weight_ih: expected shape ({_rows(cell)}, input_size), a multiple of {gates}, got {weight_ih.shape}"
        )
    if rows < 1 or input_size < 1:
        raise ValueError(f"weight_ih: expected hidden_size >= 1 and input_size >= 1, got shape {weight_ih.shape}")
    hidden_size = rows // gates
    if weight_hh.shape != (rows, hidden_size):
        raise _unexpected("weight_hh", weight_hh, f"({_rows(cell)}, hidden_size)", (rows, hidden_size))
    return Weights(
        cell, dtype, input_size, hidden_size, np.ascontiguousarray(weight_ih), np.ascontiguousarray(weight_hh),
        None if bias_ih is None else _check_bias("bias_ih", bias_ih, cell, rows, dtype),
        None if bias_hh is None else _check_bias("bias_hh", bias_hh, cell, rows, dtype),
    )  # fmt: skip


def _check_bias(name: str, bias: Any, cell: Cell, rows: int, dtype: np.dtype[Any]) -> Array:
    bias = as_array(name, bias, dtype)
    if bias.shape != (rows,):
        raise _unexpected(name, bias, f"({_rows(cell)},)", (rows,))
    return np.ascontiguousarray(bias)


def _rows(cell: Cell) -> str:
    """The rows of weights, in words."""
    return f"{cell.gates}*hidden_size" if cell.gates > 1 else "hidden_size"


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
            raise _unexpected(name, array, rule, (*shape[:-2], shape[-1]))
        array = array[..., np.newaxis, :]
    elif array.shape != shape:
        raise _unexpected(name, array, rule, shape)
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


def check_out(out: Any, rule: str, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: Mapping[str, Any]) -> Array:
    """`out` as it is, or the error that says why a result cannot be written there. `inputs` are as the caller has them:
    a backend may read copies.
    """  # fmt: skip
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a numpy array, got {type(out).__name__}")
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError("out: expected an array without a mask, got a masked array")
    if out.dtype != dtype:
        raise TypeError(f"out: expected {dtype} (the dtype of weight_ih), got {out.dtype}")
    if out.shape != shape:
        raise _unexpected("out", out, rule, shape)
    if not out.flags.writeable:
        raise ValueError("out: expected a writeable array, got a read-only one")
    _check_extent("out", out)
    if _overlaps_itself(out):
        raise ValueError(f"out: expected every element at a place of its own, got strides {out.strides}")
    for name, array in inputs.items():
        if array is not None and _share_memory(out, np.asarray(array)):
            raise ValueError(f"out: expected memory of its own, got memory it shares with {name}")
    return out


class Layout(NamedTuple):
    """How the caller's sequences lie; backends only ever see [T, B, *]."""

    batch_first: bool
    unbatched: bool
    flat: bool = False  # all rows one behind the other, which backends see as [total, 1, *]; states are [B, *]

    def time_major(self, array: Array) -> Array:
        if self.unbatched or self.flat:
            return array[:, np.newaxis]
        return array.swapaxes(0, 1) if self.batch_first else array

    def outer(self, array: Array) -> Array:
        """What `time_major` was given."""
        if self.unbatched or self.flat:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    def shape(self, seq_len: int, batch_size: int, *features: int) -> tuple[int, ...]:
        """The shape of a sequence in the caller's layout."""
        if self.unbatched or self.flat:
            return seq_len, *features
        return (batch_size, seq_len, *features) if self.batch_first else (seq_len, batch_size, *features)

    def rule(self, *features: str) -> str:
        """The same in words."""
        if self.unbatched or self.flat:
            names: tuple[str, ...] = ("total" if self.flat else "seq_len",)
        else:
            names = ("batch_size", "seq_len") if self.batch_first else ("seq_len", "batch_size")
        names += features
        return f"({', '.join(names)}{',' * (len(names) == 1)})"

    def state(self, array: Array) -> Array:
        """[..., B, H] as the caller sees it."""
        return array[..., 0, :] if self.unbatched else array


_LAYOUTS = {(first, unbatched): Layout(first, unbatched) for first in (False, True) for unbatched in (False, True)}
_FLAT = Layout(batch_first=False, unbatched=False, flat=True)
TIME_MAJOR = _LAYOUTS[False, False]  # as backends see them: nothing to turn


def check_size(weights: Weights, seq_len: int, batch_size: int, training: bool) -> None:
    """Results whose byte count overflows are refused before NumPy, or a kernel, has to count them."""
    size = seq_len * batch_size * weights.hidden_size * weights.dtype.itemsize
    if training:
        size *= max(weights.cell.saved, 1)
    if size > _MOST_BYTES:
        raise MemoryError(
            f"x: expected sizes whose results have at most {_MOST_BYTES} bytes, "
            f"got seq_len, batch_size, hidden_size = {seq_len}, {batch_size}, {weights.hidden_size}"
        )


STATE_RULE = "(batch_size, hidden_size)"
LAYERS_STATE_RULE = "(num_layers*num_directions, batch_size, hidden_size)"


def check_sequence(
    x: Any, input_size: int, dtype: np.dtype[Any], *, batch_first: bool, flat: bool
) -> tuple[Array, Layout]:
    """`x` as [T, B, I], [total, 1, I] where it is flat, and how the caller's sequences lie."""
    if batch_first is not False:
        batch_first = check_flag("batch_first", batch_first)
    x = as_array("x", x, dtype)
    if flat:
        if x.ndim != 2:
            raise ValueError(f"x: expected 2 dimensions (total, input_size) with offsets, got {x.ndim} {x.shape}")
        layout = _FLAT
        x = layout.time_major(x)
    elif x.ndim == 3 and not batch_first:
        layout = TIME_MAJOR
    elif x.ndim in (2, 3):
        layout = _LAYOUTS[batch_first, x.ndim == 2]
        x = layout.time_major(x)
    else:
        dims = "(batch_size, seq_len, input_size)" if batch_first else "(seq_len, batch_size, input_size)"
        raise ValueError(f"x: expected {dims} or (seq_len, input_size), got {x.ndim} dimensions {x.shape}")
    seq_len, _, features = x.shape
    if features != input_size:
        raise ValueError(f"x: expected input_size = {input_size} (columns of weight_ih), got {features}")
    if seq_len < 1 and not flat:
        raise ValueError(f"x: expected seq_len >= 1, got {seq_len}")
    return x if x.flags.c_contiguous else _with_unit_feature_stride(x), layout


def _check_integers(name: str, value: Any, rule: str) -> Array:
    """An array of integers, of whatever type."""
    if type(value) is not np.ndarray:
        empty = isinstance(value, (list, tuple)) and not value  # which is float64 to NumPy
        value = np.zeros(0, np.int64) if empty else _converted(name, value, rule, ("int64",))
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
        raise _unexpected("lengths", array, "(batch_size,)", (batch_size,))
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


ZEROS = "zeros"  # what reset_state is by default, told by identity: other values may be arrays


def check_resets(x: Array, layout: Layout, resets: Any, reset_state: Any, copy: bool) -> Resets | None:
    """`resets` for a sequence as backends see it."""
    if not isinstance(reset_state, str) or reset_state not in (ZEROS, "initial"):
        raise ValueError(f"reset_state: expected 'zeros' or 'initial', got {reset_state!r}")
    if resets is None:
        return None
    rule = "bool (for each step whether an episode begins)"
    array = resets if type(resets) is np.ndarray else _converted("resets", resets, rule, ("bool",))
    if array.dtype != np.bool_:
        raise TypeError(f"resets: expected {rule}, got {array.dtype}; pass resets.astype(bool)")
    if array.shape != (shape := layout.shape(*x.shape[:2])):
        raise _unexpected("resets", array, layout.rule(), shape)
    _check_extent("resets", array)
    return Resets(layout.time_major(np.array(array) if copy else array), reset_state == "initial")


def check_return_states(cell: Cell, return_states: Any) -> bool:
    """Whether every c is to be returned: only an LSTM has one."""
    wanted = check_flag("return_states", return_states)
    if wanted and not cell.has_c:
        kind = "a GRU" if cell.name.startswith("gru") else "an RNN"
        raise TypeError(f"return_states: expected False, since the output of {kind} holds every state, got True")
    return wanted


def make_output(layout: Layout, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """The output as the caller sees it, and as backends fill it, [T, B, *]: `shape`."""
    if layout is TIME_MAJOR:
        output = _memory.empty(shape, dtype)
        return output, output
    output = _memory.empty(layout.shape(*shape), dtype)
    return output, layout.time_major(output)


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
    """  # fmt: skip
    check_out(out, layout.rule(features), layout.shape(*shape), dtype, inputs)
    view = layout.time_major(out)
    return out, view if _runs_in_place(view) else np.empty(shape, dtype)


def make_forward(
    weights: Weights,
    packed: Any,
    reverse: bool,
    x: Array,
    h0: Array | None,
    c0: Array | None,
    output: Array,
    h_n: Array,
    c_n: Array | None,
    training: bool,
    ragged: Ragged | None = None,
    resets: Resets | None = None,
    c: Array | None = None,
) -> Forward:
    """A backend's arguments out of checked ones; allocates what backward will need. `c`, like `output`, where the
    caller wants it.
    """  # fmt: skip
    if not training:
        return Forward(weights, packed, reverse, x, h0, c0, output, h_n, c_n, None, c, ragged, resets)
    cell, dtype = weights.cell, weights.dtype
    seq_len, batch_size, hidden_size = output.shape
    gates = _memory.empty((seq_len, batch_size, cell.saved * hidden_size), dtype) if cell.saved else None
    if c is None and cell.has_c:
        c = _memory.empty((seq_len, batch_size, hidden_size), dtype)
    return Forward(weights, packed, reverse, x, h0, c0, output, h_n, c_n, gates, c, ragged, resets)


def check_forward(
    weights: Weights,
    x: Any,
    h0: Any,
    c0: Any,
    *,
    batch_first: bool,
    reverse: bool,
    lengths: Any,
    resets: Any,
    training: bool,
    offsets: Any = None,
    reset_state: Any = "zeros",
    return_states: Any = False,
    packed: Any = None,
    out: Any = None,
    parameters: tuple[Any, ...] = (),
) -> tuple[Forward, Array, Layout]:
    """Check a call of one recurrence and allocate its results. Returns the backend's arguments, the output as the
    caller sees it and the layout of the caller's sequences. `parameters` are the weights and biases as the caller has
    them, which `out` must not share memory with; those of `weights` by default.
    """  # fmt: skip
    given = x, h0, c0
    reverse = check_flag("reverse", reverse)
    dtype, hidden_size = weights.dtype, weights.hidden_size
    x, layout = check_sequence(x, weights.input_size, dtype, batch_first=batch_first, flat=offsets is not None)
    seq_len, batch_size, _ = x.shape
    check_size(weights, seq_len, batch_size, training)
    shape = (seq_len, batch_size, hidden_size)
    ragged = marks = None
    if lengths is not None or offsets is not None:
        ragged = check_ragged(x, layout, lengths, offsets)
        if layout.flat and ragged is not None:
            batch_size = len(ragged.lengths)
    if resets is not None or reset_state is not ZEROS:
        marks = check_resets(x, layout, resets, reset_state, copy=training)
    if return_states is not False:
        return_states = check_return_states(weights.cell, return_states)
    state = (batch_size, hidden_size)
    if h0 is not None:
        h0 = check_state("h0", h0, STATE_RULE, state, dtype, layout.unbatched, copy=training)
    if c0 is not None:
        c0 = check_state("c0", c0, STATE_RULE, state, dtype, layout.unbatched, copy=training)
    if out is None:
        output, view = make_output(layout, shape, dtype)
    else:
        parameters = parameters or tuple(getattr(weights, name) for name in PARAMETERS)
        names = ("x", "h0", "c0", "resets", *PARAMETERS)
        inputs = dict(zip(names, (*given, resets, *parameters), strict=True))
        output, view = check_output(out, layout, shape, "hidden_size", dtype, inputs)
    c_n = np.empty(state, dtype) if weights.cell.has_c else None
    args = make_forward(
        weights, packed, reverse, x, h0, c0, view, np.empty(state, dtype), c_n, training, ragged, marks,
        make_output(layout, shape, dtype)[1] if return_states else None,
    )  # fmt: skip
    return args, output, layout


def finish_output(output: Array, filled: Array, layout: Layout) -> None:
    """Fill `output` where the backend could not: an `out=` whose features do not lie side by side."""
    view = layout.time_major(output)
    if not _runs_in_place(view):
        view[...] = filled


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
        raise _unexpected(name, array, layout.rule(features), outer)
    return _with_unit_feature_stride(layout.time_major(array))


def make_vjp(run: Callable[..., Any], has_c: bool, every_c: bool) -> Callable[..., Any]:
    """The function that users call: `run(grad_output, grad_h_n, grad_c_n, grad_c, wrt)` with the arguments that a cell
    has; `grad_c` where c of every step was returned.
    """  # fmt: skip
    vjp = (_vjp_of_states if every_c else _vjp_of_lstm if has_c else _vjp_without_c)(run)
    vjp.__qualname__ = "vjp"
    return vjp


def _vjp_of_states(run: Callable[..., Any]) -> Callable[..., Any]:
    def vjp(
        grad_output: Any = None, grad_h_n: Any = None, grad_c_n: Any = None, grad_c: Any = None, *,
        wrt: Iterable[str] | None = None,
    ) -> Any:  # fmt: skip
        return run(grad_output, grad_h_n, grad_c_n, grad_c, wrt)

    return vjp


def _vjp_of_lstm(run: Callable[..., Any]) -> Callable[..., Any]:
    def vjp(
        grad_output: Any = None, grad_h_n: Any = None, grad_c_n: Any = None, *, wrt: Iterable[str] | None = None
    ) -> Any:
        return run(grad_output, grad_h_n, grad_c_n, None, wrt)

    return vjp


def _vjp_without_c(run: Callable[..., Any]) -> Callable[..., Any]:
    def vjp(grad_output: Any = None, grad_h_n: Any = None, *, wrt: Iterable[str] | None = None) -> Any:
        return run(grad_output, grad_h_n, None, None, wrt)

    return vjp


def make_backward(
    forward: Forward,
    grad_output: Array | None,
    grad_h_n: Array | None,
    grad_c_n: Array | None,
    grad_x: Array | None,
    grad_h0: Array,
    grad_c0: Array | None,
    wanted: Container[str],
    grad_c: Array | None = None,
) -> Backward:
    """A backend's arguments out of checked ones; allocates the gradients of those parameters that are wanted."""
    weights = forward.weights
    bias_ih, bias_hh = weights.bias_ih, weights.bias_hh
    return Backward(
        forward,
        grad_output,
        grad_h_n,
        grad_c_n,
        grad_x,
        np.empty_like(weights.weight_ih) if "weight_ih" in wanted else None,
        np.empty_like(weights.weight_hh) if "weight_hh" in wanted else None,
        np.empty_like(bias_ih) if bias_ih is not None and "bias_ih" in wanted else None,
        np.empty_like(bias_hh) if bias_hh is not None and "bias_hh" in wanted else None,
        grad_h0,
        grad_c0,
        grad_c,
    )


def check_backward(
    forward: Forward, layout: Layout, grad_output: Any, grad_h_n: Any, grad_c_n: Any, wrt: Any, grad_c: Any = None
) -> tuple[Backward, Any]:
    """Check upstream gradients of one recurrence and allocate the others. Returns the backend's arguments and the
    named tuple that vjp returns once they are filled.
    """  # fmt: skip
    weights = forward.weights
    kind = LSTMGradients if weights.cell.has_c else Gradients
    wanted = check_wrt(wrt, kind._fields)
    shape, state, dtype = forward.output.shape, forward.h_n.shape, weights.dtype
    grad_output = check_grad_sequence("grad_output", grad_output, layout, shape, "hidden_size", dtype)
    grad_c = check_grad_sequence("grad_c", grad_c, layout, shape, "hidden_size", dtype)
    grad_h_n = check_state("grad_h_n", grad_h_n, STATE_RULE, state, dtype, layout.unbatched)
    grad_c_n = check_state("grad_c_n", grad_c_n, STATE_RULE, state, dtype, layout.unbatched)
    grad_x = _memory.empty(layout.shape(*forward.x.shape), dtype) if "x" in wanted else None
    args = make_backward(
        forward, grad_output, grad_h_n, grad_c_n, None if grad_x is None else layout.time_major(grad_x),
        np.empty(state, dtype), np.empty(state, dtype) if weights.cell.has_c else None, wanted, grad_c,
    )  # fmt: skip
    parameters = args.grad_weight_ih, args.grad_weight_hh, args.grad_bias_ih, args.grad_bias_hh
    h0 = layout.state(args.grad_h0) if "h0" in wanted else None
    if args.grad_c0 is None:
        return args, Gradients(grad_x, *parameters, h0)
    return args, LSTMGradients(grad_x, *parameters, h0, layout.state(args.grad_c0) if "c0" in wanted else None)
