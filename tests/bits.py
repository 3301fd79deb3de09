"""The bits that the kernels gave at revision 8d2f1e4, for problems that cover what a call can be.

    python tests/bits.py          compare what is imported with the record, tests/bits.json
    python tests/bits.py --write  write the record anew; a change of it is a change of the contract, and says so

Outputs, states and gradients, by instruction set; gcc and clang give the same. Inputs are made of integers, so they do
not depend on NumPy's generators. What a NaN holds besides is left out.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hotloop

RECORD = Path(__file__).with_name("bits.json")
CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before")
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Problem:
    """A call of a layer; `form` says how its sequences are of several lengths."""

    cell: str
    dtype: str = "float32"
    seq_len: int = 7
    batch_size: int = 5
    input_size: int = 9
    hidden_size: int = 21
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    states: bool = True
    form: str = "dense"  # lengths, offsets
    resets: str | None = None  # zeros, initial
    dropout: float = 0.0
    threads: int = 1

    def __str__(self) -> str:
        parts = [self.cell, self.dtype, f"T{self.seq_len}-B{self.batch_size}-I{self.input_size}-H{self.hidden_size}"]
        parts += [f"{self.layers}layers"] * (self.layers > 1) + ["bidirectional"] * self.bidirectional
        parts += ["no-bias"] * (not self.bias) + ["batch_first"] * self.batch_first + ["zero"] * (not self.states)
        parts += [self.form] * (self.form != "dense") + [f"resets-{self.resets}"] * (self.resets is not None)
        parts += ["dropout"] * (self.dropout > 0) + [f"{self.threads}threads"] * (self.threads > 1)
        return "-".join(parts)


def _problems() -> list[Problem]:
    made = []
    for cell in CELLS:
        for dtype in ("float32", "float64"):
            common = {"cell": cell, "dtype": dtype}
            made += [
                Problem(**common),
                Problem(**common, seq_len=1, batch_size=1, input_size=32, hidden_size=32),
                Problem(**common, seq_len=33, batch_size=1, input_size=1, hidden_size=37, states=False),
                Problem(**common, seq_len=5, batch_size=17, input_size=40, hidden_size=64, bias=False),
                Problem(**common, batch_first=True, bidirectional=True, layers=2),
                Problem(**common, form="lengths", bidirectional=True, resets="initial"),
                Problem(**common, form="offsets", layers=2, bidirectional=True),
                Problem(**common, resets="zeros", batch_first=True),
                Problem(**common, layers=3, dropout=0.5),
                Problem(**common, seq_len=40, batch_size=3, input_size=8, hidden_size=256),  # units among a team
                Problem(**common, seq_len=60, batch_size=40, input_size=20, hidden_size=100, bidirectional=True),
            ]
    return made + [Problem(**vars(problem) | {"threads": 2}) for problem in made if problem.seq_len >= 40]


PROBLEMS = _problems()


def numbers(seed: int, *shape: int) -> np.ndarray:
    """Multiples of 2^-11 from -1 to 1: exact in both types. splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        state = np.uint64((seed * 0x9E3779B97F4A7C15) & _MASK)
        z = state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(52)).astype(np.float64) / 2048 - 1).reshape(shape)


def _layer(problem: Problem) -> hotloop.LSTM | hotloop.GRU | hotloop.RNN:
    options = {
        "num_layers": problem.layers, "bidirectional": problem.bidirectional, "bias": problem.bias,
        "batch_first": problem.batch_first, "dropout": problem.dropout, "dtype": problem.dtype, "rng": 0,
    }  # fmt: skip
    sizes = problem.input_size, problem.hidden_size
    if problem.cell == "lstm":
        layer = hotloop.LSTM(*sizes, **options)
    elif problem.cell.startswith("gru"):
        layer = hotloop.GRU(*sizes, reset_after=problem.cell == "gru", **options)
    else:
        layer = hotloop.RNN(*sizes, nonlinearity=problem.cell.removeprefix("rnn_"), **options)
    scale = 2.0 ** -np.ceil(np.log2(problem.hidden_size) / 2)  # of powers of two, so exact too
    layer.load_state_dict(
        {name: scale * numbers(100 + i, *one.shape) for i, (name, one) in enumerate(layer.state_dict().items())}
    )
    return layer


def results(problem: Problem) -> list[np.ndarray]:
    """Of inference, of training and of the backward pass."""
    layer, steps, rows = _layer(problem), problem.seq_len, problem.batch_size
    dtype, count = problem.dtype, problem.layers * (1 + problem.bidirectional)
    options: dict = {"threads": problem.threads}
    lengths = np.array([steps, 0, 1, steps // 2, steps - 1][:rows] + [steps] * (rows - 5))
    x = numbers(1, steps, rows, problem.input_size).astype(dtype)
    resets = numbers(2, steps, rows) > 0.7
    if problem.form == "lengths":
        options["lengths"] = lengths
    if problem.form == "offsets":
        options["offsets"] = np.append(0, lengths.cumsum())
        x = np.concatenate([x[:length, row] for row, length in enumerate(lengths)])
    elif problem.batch_first:
        x, resets = x.swapaxes(0, 1).copy(), resets.swapaxes(0, 1).copy()
    if problem.resets is not None:
        options |= {"resets": resets, "reset_state": problem.resets}
    has_c = problem.cell == "lstm"
    state = None
    if problem.states:
        h0, c0 = numbers(3, 2, count, rows, problem.hidden_size).astype(dtype)
        state = (h0, c0) if has_c else h0
    found = []
    output, end = layer(x, state, **options)
    found += [output, *(end if has_c else [end])]
    (output, end), vjp = layer.vjp(x, state, seed=7, **options)
    found += [output, *(end if has_c else [end])]
    upstream = [numbers(4 + i, *one.shape).astype(dtype) for i, one in enumerate(found[-2 - has_c :])]
    gradients = vjp(*upstream)
    states = gradients.state if has_c else [gradients.state]
    return [*found, gradients.x, *states, *gradients.parameters.values()]


def digest(problem: Problem) -> str:
    """A NaN is one whatever its payload."""
    hashed = hashlib.sha256()
    for array in results(problem):
        hashed.update(str(array.shape).encode())
        hashed.update(np.where(np.isnan(array), np.array(np.nan, array.dtype), array).tobytes())
    return hashed.hexdigest()[:20]


def found(isa: str) -> dict[str, str]:
    """On an instruction set, which is switched to."""
    from hotloop._backends import native as _native

    _native.use_isa(isa)
    return {str(problem): digest(problem) for problem in PROBLEMS}


if __name__ == "__main__":
    from hotloop._backends import native as _native

    record = json.loads(RECORD.read_text()) if RECORD.exists() and "--write" not in sys.argv else {}
    different = 0
    for isa in _native.isas():
        now = found(isa)
        if "--write" in sys.argv:
            record[isa] = now
        for name, bits in now.items():
            if record[isa].get(name) != bits:
                different += 1
                print(f"{isa}: {name}: other bits than recorded")
    if "--write" in sys.argv:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(PROBLEMS)} problems on {', '.join(_native.isas())}: {different} have other bits")
    sys.exit(different > 0)
