"""What the parts of a call are: cells, weights, the arrays of one recurrence, layouts, and what a backend is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
MOST_BYTES = 1 << 55  # of an array, and between its first and its last byte; processes address less


class Parameter(NamedTuple):
    """A parameter of a recurrence: the rows of every gate, or of a projection those of h."""

    name: str
    operand: str | None  # what the weight multiplies: "x", "h", or "hidden" of a projection; None: a bias

    def shape(self, cell: Cell, input_size: int, hidden_size: int, output_size: int) -> tuple[int, ...]:
        if self.operand == "hidden":
            return output_size, hidden_size
        rows = cell.gates * hidden_size
        return (rows,) if self.operand is None else (rows, input_size if self.operand == "x" else output_size)


_PARAMETERS = (
    Parameter("weight_ih", "x"),
    Parameter("weight_hh", "h"),
    Parameter("bias_ih", None),
    Parameter("bias_hh", None),
)  # of most cells, in PyTorch's order


class Stage(NamedTuple):
    """A product of a step: of `operand`, h of the step before or the hidden array that the stage before leaves."""

    operand: str  # "h" or "hidden"
    parameter: str
    gates: int  # blocks of rows of the parameter, behind those of the stages before


@dataclass(frozen=True)
class Cell:
    """The constants in which the cells differ; equations are in `cells` and csrc/kernels/cells.h."""

    name: str
    gates: int  # row blocks of weight_ih and weight_hh
    stages: tuple[Stage, ...]
    saved: tuple[str, ...]  # the arrays of [hidden_size] that training saves of a step beside the output (and c)
    has_c: bool
    parameters: tuple[Parameter, ...] = _PARAMETERS
    names: tuple[str, ...] = field(init=False)  # of the parameters
    weight_names: tuple[str, ...] = field(init=False)  # of those that are not biases

    def __post_init__(self) -> None:
        weights = (parameter.name for parameter in self.parameters if parameter.operand is not None)
        object.__setattr__(self, "names", tuple(parameter.name for parameter in self.parameters))
        object.__setattr__(self, "weight_names", tuple(weights))

    @property
    def projects(self) -> bool:
        """Whether h is a product of weight_hr."""
        return "weight_hr" in self.names

    def saved_shapes(self, *lead: int, hidden_size: int) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """The shapes of what training saves, of sequences that begin with the sizes `lead`: of `gates`, the saved
        arrays side by side, and of c. None: a cell that has no such array.
        """
        gates = (*lead, len(self.saved) * hidden_size) if self.saved else None
        return gates, (*lead, hidden_size) if self.has_c else None


def _gates(count: int) -> tuple[Stage, ...]:
    """Those of a cell whose gates all multiply h."""
    return (Stage("h", "weight_hh", count),)


RNN_TANH = Cell("rnn_tanh", 1, _gates(1), (), has_c=False)
RNN_RELU = Cell("rnn_relu", 1, _gates(1), (), has_c=False)
LSTM = Cell("lstm", 4, _gates(4), ("i", "f", "g", "o"), has_c=True)
GRU = Cell("gru", 3, _gates(3), ("r", "z", "n", "q"), has_c=False)
GRU_RESET_BEFORE = Cell(
    "gru_reset_before", 3, (Stage("h", "weight_hh", 2), Stage("hidden", "weight_hh", 1)), ("r", "z", "n"), has_c=False
)
LSTM_PROJECTED = Cell(
    "lstm_projected", 4, (Stage("h", "weight_hh", 4), Stage("hidden", "weight_hr", 1)), LSTM.saved, has_c=True,
    parameters=(*_PARAMETERS, Parameter("weight_hr", "hidden")),
)  # fmt: skip
PARAMETERS = LSTM.names  # of every cell that projects nothing
CELLS = {cell.name: cell for cell in (RNN_TANH, RNN_RELU, LSTM, GRU, GRU_RESET_BEFORE, LSTM_PROJECTED)}


class Weights(NamedTuple):
    """The parameters of one recurrence, checked and contiguous; biases may be absent."""

    cell: Cell
    dtype: np.dtype[Any]
    input_size: int
    hidden_size: int
    output_size: int  # of h
    arrays: tuple[Array | None, ...]  # the parameters, in the order of the cell's table

    @property
    def spec(self) -> tuple[Cell, np.dtype[Any], int, int, int]:
        """What the parameters do not say."""
        return self[:5]

    @property
    def named(self) -> dict[str, Array]:
        """The parameters that are there, by name."""
        pairs = zip(self.cell.names, self.arrays, strict=True)
        return {name: array for name, array in pairs if array is not None}

    def with_arrays(self, arrays: Iterable[Array | None]) -> Weights:
        """The same of other memory."""
        return Weights(*self.spec, tuple(arrays))


@dataclass(slots=True)
class Ragged:
    """How the rows of a batch lie in time, where they do not all have the steps of `x`.

    What lies after a row's end is padding: nobody reads it, and results are zero there.
    """

    lengths: Array  # int64 [B], contiguous
    offsets: Array | None  # int64 [B+1], contiguous: row b is offsets[b]:offsets[b+1] of flat sequences. None: padded
    steps: int  # the longest length, at least 1
    # In backward, int64 [B], contiguous: in which order rows of one length are summed; by number where None.
    ranks: Array | None = None

    def at(self, row: Any, step: Any, reverse: bool) -> Any:
        """Where step `step`, in processing order, of row `row` lies in time. Arrays are welcome."""
        time = self.lengths[row] - 1 - step if reverse else step
        return time if self.offsets is None else self.offsets[row] + time

    def canonical_ranks(self) -> Array:
        """The place of each row in the order in which the rows of a step are summed: longest first."""
        order = np.lexsort((np.arange(len(self.lengths)) if self.ranks is None else self.ranks, -self.lengths))
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        return ranks


class Resets(NamedTuple):
    """Before which steps a row's state is replaced, in the order of processing of the recurrence they are given to."""

    at: Array  # bool, like x without features: [T, B], or [total, 1]
    initial: bool  # the state becomes h0 and c0, or else zero

    def of_reverse(self, ragged: Ragged | None) -> Resets:
        """Marks of the first steps of episodes in time, as the reverse direction needs them: it leaves an episode, and
        is reset, before the step that lies before its first one in time.
        """
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
    """

    weights: Weights
    packed: Any  # what the backend's pack() made of the weights, or None
    reverse: bool
    x: Array  # [T, B, I]
    h0: Array | None  # [B, P]
    c0: Array | None  # [B, H]
    output: Array  # [T, B, P]
    h_n: Array  # [B, P]
    c_n: Array | None  # [B, H]
    gates: Array | None  # [T, B, S*H], contiguous
    c: Array | None  # [T, B, H], strided as output may be
    ragged: Ragged | None = None
    resets: Resets | None = None
    recurrent_mask: Array | None = None  # [B, P], contiguous: multiplies h of the step before in products

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
    grad_output: Array | None  # [T, B, P]
    grad_h_n: Array | None  # [B, P]
    grad_c_n: Array | None  # [B, H]
    grad_x: Array | None  # [T, B, I]
    grad_parameters: dict[str, Array]  # those that are wanted, by name
    grad_h0: Array  # [B, P]
    grad_c0: Array | None  # [B, H]
    grad_c: Array | None = None  # [T, B, H]
    accumulate: bool = False  # gradients of parameters are added to what is there


Run = Callable[..., None]  # a prepared call: see `Backend.prepare` and `Backend.prepare_backward`


class Backend(Protocol):
    """A module that fills arrays it is given: it does not check, allocate results or choose names.

    A call takes several recurrences of one cell, dtype and size that do not depend on each other, as the directions of
    a layer, and may run them side by side on at most `threads` threads: those of `executor`, which hotloop.torch gives,
    or its own.
    """

    NAME: str

    def forward(self, recurrences: Sequence[Forward], threads: int, executor: Any = None) -> None:
        """Fill output, h_n and, where present, c_n, gates and c."""

    def backward(self, recurrences: Sequence[Backward], threads: int, executor: Any = None) -> None:
        """Fill every gradient that is present; read only what forward saved."""

    def pack(self, weights: Weights) -> Any:
        """Prepare weights for many inference calls; None where there is nothing to prepare."""

    def prepare(
        self, weights: Weights, packed: Any, *, seq_len: int, batch_size: int, batch_first: bool, training: bool,
        threads: int, executor: Any = None,
    ) -> Run | None:  # fmt: skip
        """Prepare many calls of these sizes: one recurrence, all steps of all rows, from the first step to the last.

        `run(x, h0, c0, output, h_n, c_n, gates, c, resets)` takes contiguous arrays, or None: x, output and resets, to
        zeros, in the caller's layout, gates and c time-major. Addresses will do as well. None from a backend that
        prepares nothing.
        """

    def prepare_backward(
        self, weights: Weights, *, seq_len: int, batch_size: int, batch_first: bool, x_wanted: bool,
        weights_wanted: bool, threads: int, executor: Any = None, accumulate: bool = False,
    ) -> Run | None:  # fmt: skip
        """The same for backward: `run(x, h0, c0, output, gates, c, resets, grad_output, grad_h_n, grad_c_n, grad_x,
        grad_h0, grad_c0, *grad_parameters)`, these in the order of the cell's table. With `accumulate` they are added
        to.
        """

    def fingerprint(self, arrays: Sequence[Array]) -> Callable[[], tuple[int, int]] | None:
        """A function that returns a hash of the bytes these contiguous arrays hold at the moment; None where packing is
        as cheap as hashing, or is not done.
        """

    def openmp_executor(self, parallel: int, max_threads: int) -> Any:
        """An executor on the threads of the OpenMP runtime with GOMP_parallel and omp_get_max_threads at these
        addresses; None where the backend has no use for one.
        """

    def isas(self) -> tuple[str, ...]:
        """The instruction sets this processor can run, best first; none where that is not the backend's own choice."""

    def description(self) -> str:
        """One word on the variant in use, e.g. the instruction set."""


class Options(TypedDict, total=False):
    """What every call of a function or a layer takes besides; see `hotloop.lstm`."""

    lengths: Any
    offsets: Any
    resets: Any
    reset_state: str
    recurrent_mask: Any
    threads: int | None


class _Gradients(NamedTuple):
    x: Array | None
    weight_ih: Array | None
    weight_hh: Array | None
    bias_ih: Array | None
    bias_hh: Array | None
    h0: Array | None


class Gradients(_Gradients):
    """Gradients of an RNN or GRU call; None where an argument was absent or is not in `wrt`."""

    rows: Ragged | None = None  # how the rows of the call lay, which `accumulate_into` goes by


class _LSTMGradients(NamedTuple):
    x: Array | None
    weight_ih: Array | None
    weight_hh: Array | None
    bias_ih: Array | None
    bias_hh: Array | None
    h0: Array | None
    c0: Array | None
    weight_hr: Array | None = None


class LSTMGradients(_LSTMGradients):
    """Gradients of an LSTM call; None where an argument was absent or is not in `wrt`."""

    rows: Ragged | None = None


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


LAYOUTS = {(first, unbatched): Layout(first, unbatched) for first in (False, True) for unbatched in (False, True)}
FLAT = Layout(batch_first=False, unbatched=False, flat=True)
TIME_MAJOR = LAYOUTS[False, False]  # as backends see them: nothing to turn
STATE_RULE = "(batch_size, hidden_size)"
LAYERS_STATE_RULE = "(num_layers*num_directions, batch_size, hidden_size)"
ZEROS = "zeros"  # what reset_state is by default, told by identity: other values may be arrays
