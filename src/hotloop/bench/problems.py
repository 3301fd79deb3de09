"""The problems that are timed, as data. The command and the pytest-benchmark suites both read them here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .._contract import CELLS

CellName = Literal["lstm", "gru", "rnn"]
Mode = Literal["inference", "training"]
Dtype = Literal["float32", "float64"]

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
    dtype : {"float32", "float64"}
    why : str
        What the problem stands for.
    """

    cell: CellName
    mode: Mode
    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int
    dtype: Dtype = "float32"
    why: str = ""

    @property
    def name(self) -> str:
        """Cell, mode and shape in one word; float64 is said, float32 is not."""
        suffix = "" if self.dtype == "float32" else f"-{self.dtype}"
        shape = f"T{self.seq_len}-B{self.batch_size}-I{self.input_size}-H{self.hidden_size}"
        return f"{self.cell}-{self.mode}-{shape}{suffix}"

    @property
    def cell_key(self) -> str:
        """The name of the cell inside the package, where the RNN's nonlinearity is part of it."""
        return "rnn_tanh" if self.cell == "rnn" else self.cell

    @property
    def gates(self) -> int:
        """G, the row blocks of the weights."""
        return CELLS[self.cell_key].gates

    @property
    def is_judged(self) -> bool:
        """Whether being slower than a peer counts: nobody trains on sequences of one step."""
        return self.mode == "inference" or self.seq_len > 1

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return 8 if self.dtype == "float64" else 4

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products: 2 T B G H (I + H), and three times that in training."""
        forward = (
            2 * self.seq_len * self.batch_size * self.gates * self.hidden_size * (self.input_size + self.hidden_size)
        )
        return forward * (3 if self.mode == "training" else 1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Problem:
        """Read what `as_dict` wrote."""
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

_QUICK_STEPS: tuple[tuple[Mode, int], ...] = (
    ("inference", 1), ("inference", 32), ("inference", 1000), ("training", 32),
)  # fmt: skip

# 14 problems: with six candidates at one and two threads each takes some 6 s, preparation included.
QUICK = (
    *(_named(cell, mode, (seq_len, 1, 40, 128), SPEECH) for cell in CELL_NAMES for mode, seq_len in _QUICK_STEPS),
    _named("lstm", "training", (128, 8, 64, 128), BATCH),
    _named("gru", "training", (128, 8, 64, 128), BATCH),
)

SMOKE = tuple(
    _named(cell, mode, (seq_len, 2, 5, 9), "odd sizes, small enough for a test")
    for cell in CELL_NAMES
    for mode in MODES
    for seq_len in (1, 6)
    if mode == "inference" or seq_len > 1
)

GROUPS: dict[str, tuple[Problem, ...]] = {
    "headline": HEADLINE,
    "sweep": SWEEP,
    "quick": QUICK,
    "smoke": SMOKE,
}
DEFAULT_GROUPS = ("headline", "sweep")


def select(
    groups: Iterable[str],
    *,
    shapes: Sequence[Shape] = (),
    cells: Sequence[str] = CELL_NAMES,
    modes: Sequence[str] = MODES,
    dtype: Dtype = "float32",
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
    dtype : {"float32", "float64"}
    """
    if shapes:
        found = [
            Problem(cell, mode, *shape, why="asked for")
            for shape in shapes
            for cell in CELL_NAMES
            for mode in MODES
        ]  # fmt: skip
    else:
        found = [problem for group in groups for problem in GROUPS[group]]
    unique = {
        problem.name: Problem(**{**asdict(problem), "dtype": dtype})
        for problem in found
        if problem.cell in cells and problem.mode in modes
    }
    return list(unique.values())
