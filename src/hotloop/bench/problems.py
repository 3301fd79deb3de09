"""The problems that are timed, as data. The command and the pytest-benchmark suites both read them here."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from .._core.types import CELLS

CellName = Literal["lstm", "gru", "rnn"]
Mode = Literal["inference", "training"]
Dtype = Literal["float32", "float64"]
Lengths = Literal["", "uniform"]
Module = Literal["", "layer", "cell"]

CELL_NAMES: tuple[CellName, ...] = get_args(CellName)
MODES: tuple[Mode, ...] = get_args(Mode)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

Shape = tuple[int, int, int, int]  # T, B, I, H


@dataclass(frozen=True)
class Problem:
    """One thing to time: a cell over sequences of one shape, forward only or forward and backward.

    Attributes
    ----------
    cell : {"lstm", "gru", "rnn"}
        "rnn" is the one with tanh; the GRU is the one that resets after the product.
    mode : {"inference", "training"}
    seq_len, batch_size, input_size, hidden_size : int
        T, B, I and H.
    num_layers : int
        Each on the output of the one before.
    bidirectional : bool
        Whether each layer has a second direction, from the last step to the first.
    lengths : {"", "uniform"}
        "uniform": sequences of 1 to T steps in a padded batch, see `row_lengths`.
    resets : float
        The share of steps at which an episode begins, and with it a state of zeros.
    module : {"", "layer", "cell"}
        Of what in torch.nn this is a call, stock against swapped by `hotloop.torch.replace_modules`; "" where it is a
        call of ours against every library. Training is then a whole step: forward, backward to the parameters, and
        the update by plain SGD; inference is under torch.no_grad. A "cell" does one step from a given state. Rows of
        several lengths are packed and padded again inside the call.
    goal : float
        How many times as fast as the stock module the project wants the swapped one to be; 0 for no goal.
    dtype : {"float32", "float64"}
    why : str
        What the problem stands for.
    proj_size : int
        Features of h behind a projection, P; 0: there is none. Only of an LSTM that is a layer of torch.nn.
    """

    cell: CellName
    mode: Mode
    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int
    dtype: Dtype = "float32"
    why: str = ""
    num_layers: int = 1
    bidirectional: bool = False
    lengths: Lengths = ""
    resets: float = 0.0
    module: Module = ""
    goal: float = 0.0
    proj_size: int = 0

    @property
    def name(self) -> str:
        """Cell, mode and shape in one word; what is one layer, one direction, dense or float32 is not said."""
        return "-".join((self.cell, self.mode, *self.words))

    @property
    def words(self) -> tuple[str, ...]:
        """Shape, layers, directions, lengths, resets, module and dtype.

        A word each: "T100", "B1", "I8", "H32", "P16" (a projection), "L2", "bi", "ragged" (in torch "packed"),
        "resets5%", "torch" (a layer of torch.nn) or "cell" (a cell of torch.nn), "float64".
        """
        words = [f"T{self.seq_len}", f"B{self.batch_size}", f"I{self.input_size}", f"H{self.hidden_size}"]
        if self.proj_size:
            words.append(f"P{self.proj_size}")
        if self.num_layers > 1:
            words.append(f"L{self.num_layers}")
        if self.bidirectional:
            words.append("bi")
        if self.lengths:
            words.append("packed" if self.module else "ragged")
        if self.resets:
            words.append(f"resets{100 * self.resets:g}%")
        if self.module:
            words.append("cell" if self.module == "cell" else "torch")
        if self.dtype != "float32":
            words.append(self.dtype)
        return tuple(words)

    @property
    def cell_key(self) -> str:
        """The name of the cell inside the package, where the RNN's nonlinearity is part of it."""
        return "rnn_tanh" if self.cell == "rnn" else "lstm_projected" if self.proj_size else self.cell

    @property
    def output_size(self) -> int:
        """Features of h: H, or P behind a projection."""
        return self.proj_size or self.hidden_size

    @property
    def gates(self) -> int:
        """G, the row blocks of the weights."""
        return CELLS[self.cell_key].gates

    @property
    def directions(self) -> int:
        """D, the recurrences of a layer."""
        return 2 if self.bidirectional else 1

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """The features that each layer reads: I, and D H (or D P) of the layer below."""
        return (self.input_size, *[self.directions * self.output_size] * (self.num_layers - 1))

    @property
    def is_judged(self) -> bool:
        """Whether being slower than a peer counts: nobody trains on sequences of one step."""
        return self.mode == "inference" or self.seq_len > 1

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return 8 if self.dtype == "float64" else 4

    @property
    def is_dense(self) -> bool:
        """Whether all rows are one sequence of T steps each."""
        return not self.lengths and not self.resets

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """The steps of every row: T, or drawn from 1 to T, the same for all problems of one T and B.

        Each of B equal parts of 1 to T gives one, in any order: so of few rows, too, half of the batch is padding.
        """
        if not self.lengths:
            return (self.seq_len,) * self.batch_size
        # Seeded so, `random()` gives the same numbers in every version of Python: records that were kept stay true.
        draw = random.Random(f"{self.seq_len} {self.batch_size}")
        lengths = [1 + int(self.seq_len * (row + draw.random()) / self.batch_size) for row in range(self.batch_size)]
        return tuple(sorted(lengths, key=lambda _: draw.random()))

    @property
    def tokens(self) -> int:
        """Steps of all rows together, without padding: T B of a dense problem."""
        return sum(self.row_lengths)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products.

        2 G H (I + H) for every token, layer and direction, I being what that layer reads (with a projection
        2 G H (I + P) + 2 H P); three times that in training.
        """
        columns = sum(size + self.output_size for size in self.input_sizes)
        weights = self.gates * self.hidden_size * columns + self.num_layers * self.hidden_size * self.proj_size
        forward = 2 * self.tokens * self.directions * weights
        return forward * (3 if self.mode == "training" else 1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Problem:
        """Read what `as_dict` wrote, now or before there were layers, directions, lengths, resets and modules."""
        return cls(**{key: value for key, value in record.items() if key != "name"})


def _named(cell: CellName, mode: Mode, shape: Shape, why: str) -> Problem:
    return Problem(cell, mode, *shape, why=why)


SPEECH = "one utterance at batch 1: 40 features, 128 units, weights live in L2"
SMALL = "small sequences at batch 1, where the overhead of a step decides"
SERIES = "a batch of long time series with few units, where the cell's elementwise part weighs most"
HEAVY = "large matrices, close to the peak of the FMA units"
BATCH = "a small batch, typical of serving and of reinforcement learning"

# The figures the project holds itself to; they are quoted one by one and therefore never change shape.
HEADLINE = (
    _named("lstm", "inference", (512, 32, 256, 256), HEAVY),
    _named("lstm", "inference", (1000, 1, 40, 128), SPEECH),
    _named("lstm", "inference", (100, 1, 8, 32), SMALL),
    _named("lstm", "training", (512, 32, 256, 256), HEAVY),
    _named("lstm", "training", (1000, 32, 8, 64), SERIES),
    _named("gru", "training", (1000, 1, 40, 128), SPEECH),
    _named("gru", "training", (100, 1, 8, 32), SMALL),
)

# Sequence length is what a fused time loop changes most: from one step, where a call's overhead is everything, to
# thousands, where it is nothing.
SWEEP_LENGTHS = (1, 4, 16, 64, 256, 1024, 4096)
SWEEP_SIZES = (((1, 40, 128), SPEECH), ((8, 128, 128), BATCH), ((32, 8, 64), SERIES))

SWEEP = tuple(
    _named(cell, mode, (seq_len, *size), why)
    for size, why in SWEEP_SIZES
    for cell in CELL_NAMES
    for mode in MODES
    for seq_len in SWEEP_LENGTHS
)

ONE_STEP = "one step a call, where the cost of the call itself decides"
WIDE = "one sequence through large weights, read anew at every step: bandwidth decides"
SERVING = "a batch of one step, as a server or an agent with many environments calls it"
LAYERS = "two layers over long sequences, the second on the output of the first"
TEXT = "a batch of sentences, as a language model trains on"
SHORT = "a large batch of short sequences, as a first experiment trains on"
BOTH_WAYS = "a word, letter by letter, in both directions"
DOUBLE = "the same in double precision, half the lanes"
LENGTHS = "one of several lengths at one size: what a call costs, and what a step"
ODD = "a hidden size that fills no vector"
RAGGED_ROWS = "sequences of 1 to T steps in one batch, half of it padding"
UNPADDED = "the same without padding: what the others are held against, token for token"
EPISODES = "what a reinforcement learner trains on: episodes that end in the middle of a sequence"
FEW_RESETS = "few beginnings of episodes: what telling a step from the first of an episode costs"

# Every shape at which the libraries were measured before there was anything to compare with them.
_DENSE: tuple[tuple[Shape, str], ...] = (
    ((1, 1, 40, 128), ONE_STEP),
    ((100, 1, 8, 32), SMALL),
    ((100, 1, 40, 128), SPEECH),
    ((1000, 1, 40, 128), SPEECH),
    ((1000, 1, 64, 128), SPEECH),
    ((100, 1, 256, 256), WIDE),
    ((100, 1, 512, 512), WIDE),
    ((100, 1, 1024, 1024), WIDE),
    ((128, 8, 64, 128), BATCH),
    ((64, 32, 256, 256), HEAVY),
    ((512, 32, 256, 256), HEAVY),
    ((100, 64, 512, 512), HEAVY),
    ((1000, 32, 8, 64), SERIES),
)
_ODD_SIZES: tuple[Shape, ...] = ((100, 4, 50, 50), (100, 8, 100, 100), (100, 16, 200, 200))
_TWINS: tuple[tuple[CellName, Mode, Shape], ...] = (
    ("lstm", "inference", (1000, 1, 40, 128)),
    ("lstm", "training", (64, 32, 256, 256)),
    ("gru", "inference", (128, 8, 64, 128)),
    ("gru", "training", (128, 8, 64, 128)),
    ("rnn", "training", (100, 1, 256, 256)),
)
# Few enough lengths that a run is bearable; those of _DENSE (1, 100 and 1000; 64 and 512) complete them.
_GRID_LENGTHS: tuple[Shape, ...] = (
    *((seq_len, 1, 40, 128) for seq_len in (1, 4, 16, 100, 320, 1000)),
    *((seq_len, 32, 256, 256) for seq_len in (1, 8, 64, 512)),
)


def _everywhere(shapes: Iterable[Shape], why: str) -> Iterator[Problem]:
    """Every cell and mode at these shapes."""
    for shape in shapes:
        for cell in CELL_NAMES:
            for mode in MODES:
                yield _named(cell, mode, shape, why)


def _unique(found: Iterable[Problem]) -> tuple[Problem, ...]:
    """The first problem of every name."""
    unique: dict[str, Problem] = {}
    for problem in found:
        unique.setdefault(problem.name, problem)
    return tuple(unique.values())


_GATED: tuple[CellName, ...] = ("lstm", "gru")

# Sequences as people have them, each beside its dense twin.
_PADDED: Shape = (200, 32, 64, 128)
_DENSE_AND_RAGGED: tuple[tuple[Lengths, str], ...] = (("", UNPADDED), ("uniform", RAGGED_ROWS))
RAGGED = (
    *(
        replace(_named(cell, mode, _PADDED, why), lengths=lengths)
        for cell in _GATED
        for mode in MODES
        for lengths, why in _DENSE_AND_RAGGED
    ),
    *(replace(_named(cell, "training", _PADDED, FEW_RESETS), resets=0.01) for cell in _GATED),
    *(replace(_named(cell, "training", (128, 16, 64, 128), EPISODES), resets=0.05) for cell in _GATED),
)

# What hotloop.torch is judged on: a model that is there, before and after its one line. The goals are of torch's best
# number of threads over the swapped model's.
_STEPS: tuple[tuple[CellName, Shape, float, str], ...] = (
    ("lstm", (512, 32, 256, 256), 1.4, HEAVY),
    ("lstm", (1000, 32, 8, 64), 2.7, SERIES),
    ("lstm", (32, 64, 32, 128), 1.3, SHORT),
    ("gru", (512, 32, 256, 256), 2.2, HEAVY),
    ("gru", (1000, 32, 8, 64), 5.0, SERIES),
    ("gru", (32, 64, 32, 128), 3.0, SHORT),
    ("gru", (1000, 1, 40, 128), 14.0, SPEECH),
    ("gru", (100, 1, 8, 32), 30.0, SMALL),
    ("rnn", (1000, 32, 8, 64), 4.0, SERIES),
)
TORCH = (
    *(replace(_named(cell, "training", shape, why), module="layer", goal=goal) for cell, shape, goal, why in _STEPS),
    replace(_named("lstm", "training", _PADDED, RAGGED_ROWS), lengths="uniform", module="layer", goal=5.0),
    replace(_named("lstm", "training", (128, 8, 64, 128), SERIES), proj_size=64, module="layer", goal=3.0),
    *(
        replace(_named(cell, "inference", (1, 32, 64, 128), SERVING), module="cell", goal=1.5)
        for cell in _GATED
    ),
)  # fmt: skip

# What speed is judged on: no peer may be faster on any of these.
GRID = _unique(
    (
        *(problem for shape, why in _DENSE for problem in _everywhere((shape,), why)),
        *(_named(cell, "training", (32, 64, 32, 128), SHORT) for cell in _GATED),
        *(replace(_named("lstm", mode, (2000, 8, 256, 256), LAYERS), num_layers=2) for mode in MODES),
        *(_named(cell, "training", (80, 128, 128, 128), TEXT) for cell in _GATED),
        *(_named(cell, "inference", (1, 32, 64, 128), SERVING) for cell in CELL_NAMES),
        *(
            replace(_named(cell, mode, (31, 1, 32, 32), BOTH_WAYS), bidirectional=True)
            for cell in _GATED
            for mode in MODES
        ),
        *(replace(_named(cell, mode, shape, DOUBLE), dtype="float64") for cell, mode, shape in _TWINS),
        *_everywhere(_GRID_LENGTHS, LENGTHS),
        *_everywhere(_ODD_SIZES, ODD),
        *RAGGED,
    )
)

# What a change is judged on: every cell and mode, and every path a kernel has. Calls take 3 us to 2 ms: where more work
# is waiting than there are processors, a call of 10 ms never has one to itself, and its time is no longer its own.
GATE_SHORT = (
    _named("lstm", "inference", (100, 1, 40, 128), SPEECH),
    _named("gru", "inference", (32, 8, 64, 128), BATCH),
    _named("rnn", "inference", (100, 1, 256, 256), WIDE),
    _named("lstm", "training", (8, 32, 32, 128), SHORT),
    _named("gru", "training", (100, 1, 8, 32), SMALL),
    _named("rnn", "training", (64, 8, 64, 128), BATCH),
)
GATE = (
    *GATE_SHORT,
    _named("lstm", "inference", (1, 1, 40, 128), ONE_STEP),
    _named("gru", "inference", (1, 32, 64, 128), SERVING),
    _named("lstm", "inference", (100, 1, 8, 32), SMALL),
    _named("lstm", "inference", (4, 32, 256, 256), HEAVY),
    replace(_named("gru", "inference", (31, 1, 32, 32), BOTH_WAYS), bidirectional=True),
    _named("lstm", "training", (25, 8, 100, 100), ODD),
    _named("gru", "training", (32, 8, 64, 128), BATCH),
    replace(_named("lstm", "training", (20, 16, 64, 128), RAGGED_ROWS), lengths="uniform"),
    replace(_named("gru", "training", (20, 8, 64, 128), EPISODES), resets=0.05),
    replace(_named("rnn", "training", (64, 8, 64, 128), DOUBLE), dtype="float64"),
)

_QUICK_STEPS: tuple[tuple[Mode, int], ...] = (
    ("inference", 1), ("inference", 32), ("inference", 1000), ("training", 32),
)  # fmt: skip

# 14 problems: with six candidates at one and two threads each takes some 6 s, preparation included.
QUICK = (
    *(_named(cell, mode, (seq_len, 1, 40, 128), SPEECH) for cell in CELL_NAMES for mode, seq_len in _QUICK_STEPS),
    _named("lstm", "training", (128, 8, 64, 128), BATCH),
    _named("gru", "training", (128, 8, 64, 128), BATCH),
)

SMOKE = (
    tuple(
        _named(cell, mode, (seq_len, 2, 5, 9), "odd sizes, small enough for a test")
        for cell in CELL_NAMES
        for mode in MODES
        for seq_len in (1, 6)
        if mode == "inference" or seq_len > 1
    )
    + tuple(
        Problem(cell, mode, 6, 2, 5, 9, "float32", "layers and directions, small enough for a test", *stack)
        for cell, stack in zip(CELL_NAMES, ((2, False), (1, True), (2, True)), strict=True)
        for mode in MODES
    )
    + tuple(
        replace(_named(cell, mode, (6, 3, 5, 9), "padding and episodes, small enough for a test"), **rows)
        for cell in _GATED
        for mode in MODES
        for rows in ({"lengths": "uniform"}, {"resets": 0.3})
    )
)

# Of which single calls are timed: see latency.py.
LATENCY = (
    *(_named(cell, "inference", (1, 1, 40, 128), ONE_STEP) for cell in CELL_NAMES),
    *(_named("lstm", "inference", (1, 1, size, size), ONE_STEP) for size in (32, 512)),
)
LATENCY_SMOKE = (_named("lstm", "inference", (1, 1, 5, 9), ONE_STEP),)

_TINY = "in torch, small enough for a test"
TORCH_SMOKE = (
    *(
        replace(_named(cell, mode, (6, 3, 5, 9), _TINY), module="layer")
        for cell in CELL_NAMES
        for mode in MODES
    ),
    *(replace(_named(cell, "inference", (1, 3, 5, 9), _TINY), module="cell") for cell in CELL_NAMES),
    *(replace(_named(cell, "training", (6, 3, 5, 9), _TINY), lengths="uniform", module="layer") for cell in _GATED),
    Problem("lstm", "training", 6, 2, 5, 9, "float64", _TINY, 2, True, module="layer"),
    replace(_named("lstm", "training", (6, 3, 5, 9), _TINY), proj_size=4, module="layer"),
)  # fmt: skip

GROUPS: dict[str, tuple[Problem, ...]] = {
    "headline": HEADLINE,
    "grid": GRID,
    "ragged": RAGGED,
    "sweep": SWEEP,
    "quick": QUICK,
    "smoke": SMOKE,
    "torch": TORCH,
    "torch-smoke": TORCH_SMOKE,
    "gate": GATE,
    "gate-short": GATE_SHORT,
}
DEFAULT_GROUPS = ("headline", "grid")


def select(
    groups: Iterable[str],
    *,
    shapes: Sequence[Shape] = (),
    cells: Sequence[str] = CELL_NAMES,
    modes: Sequence[str] = MODES,
    dtype: Dtype | None = None,
    module: Module = "",
) -> list[Problem]:
    """List the problems of these groups, without repetition; or, given shapes, every cell and mode at these.

    Parameters
    ----------
    groups : iterable of str
        Keys of `GROUPS`.
    shapes : sequence of (T, B, I, H), optional
        Take these in place of the groups.
    cells, modes : sequence of str
        Leave out all others.
    dtype : {"float32", "float64"}, optional
        Take every problem in this one; None leaves each its own.
    module : {"", "layer", "cell"}
        What the shapes are of: see `Problem`.
    """
    if shapes:
        found = [
            Problem(cell, mode, *shape, why="asked for", module=module)
            for shape in shapes
            for cell in CELL_NAMES
            for mode in MODES
        ]  # fmt: skip
    else:
        found = [problem for group in groups for problem in GROUPS[group]]
    return list(
        _unique(
            problem if dtype is None else replace(problem, dtype=dtype)
            for problem in found
            if problem.cell in cells and problem.mode in modes
        )
    )
