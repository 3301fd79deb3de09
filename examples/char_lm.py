"""Train a character language model on the text that comes with Python: torch's LSTM, then the same on hotloop.

    python examples/char_lm.py               an LSTM on torch and on hotloop
    python examples/char_lm.py --cell gru    a GRU
    python examples/char_lm.py --quick       a few seconds: less text, one pass over it, fewer units
    python examples/char_lm.py --check       in float64: the first 20 losses are torch's to 9 digits

What it shows
-------------
Truncated backpropagation through time: the text is read in 32 places side by side, 64 characters between two updates;
the state is carried on, detached. The text is Python's licence, the help of its built-in types and the docstrings of
its standard library, so it depends on the Python that is installed; the last 5 % are held out.

`hotloop.torch.replace_modules(model)` is the one line that differs; both trainings start from the same seed. Writing
text, one character a call, is where a call's own cost counts, not the kernels'.

Result
------
Seed 0, 500 000 characters, 256 units, float32, Python 3.11, two threads on 2 processors (AMD EPYC, Zen 5):

                                              torch   hotloop
    LSTM   loss at update 100              2.165041  2.165042
           loss at update 696, the last    1.528620  1.528620
           bits per character, held out       2.364     2.364
           ms an update                        17.8      15.8   1.1 x
    GRU    loss at update 100              2.008629  2.008629
           loss at update 696, the last    1.358455  1.358455
           bits per character, held out       2.173     2.173
           ms an update                        42.0      13.3   3.2 x

An LSTM of this width is nearly all matrix products, in torch too. A character written (256 units, one call each) took
362 and 101 us for the LSTM, 113 and 83 us for the GRU.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import inspect
import math
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import hotloop.torch


@dataclass(frozen=True)
class Settings:
    """All that a training depends on beside the text and the seed."""

    cell: str = "lstm"
    hidden: int = 256
    embedding: int = 64
    steps: int = 64  # characters between two updates, and how far gradients go back
    batch: int = 32  # places in the text that are read at once
    epochs: int = 3
    learning_rate: float = 3e-3
    max_norm: float = 1.0
    text: int = 500_000  # characters at most
    dtype: torch.dtype = torch.float32


# The text


def documents() -> Iterator[str]:
    """Python's licence, the help of its built-in types, and the docstrings of its modules, in the same order always."""
    for path in (Path(sysconfig.get_path("stdlib")) / "LICENSE.txt", Path(sysconfig.get_path("data")) / "LICENSE.txt"):
        if path.exists():
            yield path.read_text("utf-8")
            break
    for _, kind in sorted(vars(builtins).items()):
        if isinstance(kind, type):
            yield from (inspect.getdoc(member) or "" for _, member in [("", kind), *sorted(vars(kind).items())])
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def gather(size: int) -> str:
    """Return at most `size` characters of the documents, each once, in ASCII."""
    seen: dict[str, None] = {}
    length = 0
    for document in documents():
        document = "".join(c for c in document.expandtabs() if c == "\n" or " " <= c <= "~")
        if document and document not in seen:
            seen[document] = None
            length += len(document) + 2
        if length >= size:
            break
    return "\n\n".join(seen)[:size]


class Text:
    """The text as numbers, its first 95 % to train on."""

    def __init__(self, size: int) -> None:
        text = gather(size)
        self.alphabet = sorted(set(text))
        number = {character: k for k, character in enumerate(self.alphabet)}
        self.numbers = torch.tensor([number[character] for character in text])
        cut = int(0.95 * len(text))
        self.train, self.held_out = self.numbers[:cut], self.numbers[cut:]


def pieces(numbers: torch.Tensor, settings: Settings) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cut a text into `batch` columns, and those into what is read between two updates: (steps, batch), and the same
    one character on.
    """  # fmt: skip
    rows = (len(numbers) - 1) // settings.batch
    x, y = (part[: rows * settings.batch].view(settings.batch, rows).t() for part in (numbers, numbers[1:]))
    return [(x[k : k + settings.steps], y[k : k + settings.steps]) for k in range(0, rows, settings.steps)]


# The model: nothing in it knows of hotloop


class CharacterModel(torch.nn.Module):
    """The scores of the next character, after each character of a text."""

    def __init__(self, characters: int, settings: Settings) -> None:
        super().__init__()
        layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[settings.cell]
        self.embedding = torch.nn.Embedding(characters, settings.embedding)
        self.rnn = layer(settings.embedding, settings.hidden)
        self.linear = torch.nn.Linear(settings.hidden, characters)

    def forward(self, x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """Read (steps, batch) characters from a state on; return scores (steps, batch, characters) and the state."""
        output, state = self.rnn(self.embedding(x), state)
        return self.linear(output), state


def detach(state: Any) -> Any:
    """Cut a state off from what it was computed from; its values stay."""
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def cross_entropy(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy, in nats a character."""
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())


# Training


@dataclass(frozen=True)
class Training:
    """A trained model, the loss at every update, and the seconds that all updates took."""

    model: CharacterModel
    losses: list[float]
    seconds: float


def train(library: str, text: Text, settings: Settings, seed: int, updates: int | None = None) -> Training:
    """Train a new model with truncated backpropagation through time: values are carried on, gradients are not."""
    torch.manual_seed(seed)
    model = CharacterModel(len(text.alphabet), settings).to(settings.dtype)
    if library == "hotloop":
        hotloop.torch.replace_modules(model)  # the one line
    adam = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    all_pieces = pieces(text.train, settings)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.epochs * len(all_pieces))
    losses: list[float] = []
    start = time.perf_counter()
    for _ in range(settings.epochs):
        state = None
        for x, y in all_pieces[: None if updates is None else updates - len(losses)]:
            scores, state = model(x, state)
            state = detach(state)
            loss = cross_entropy(scores, y)
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_norm)
            adam.step()
            schedule.step()
            losses.append(loss.item())
    return Training(model, losses, time.perf_counter() - start)


@torch.no_grad()
def bits_per_character(model: CharacterModel, numbers: torch.Tensor, settings: Settings) -> float:
    """Return the mean cross entropy over a text, in bits a character."""
    total, state = 0.0, None
    parts = pieces(numbers, settings)
    for x, y in parts:
        scores, state = model(x, state)
        total += cross_entropy(scores, y).item() * y.numel()
    return total / sum(y.numel() for _, y in parts) / math.log(2)


@torch.no_grad()
def write(model: CharacterModel, text: Text, length: int, seed: int = 0) -> str:
    """Let the model write, one character after the other."""
    generator = torch.Generator().manual_seed(seed)
    x, state, result = torch.tensor([[text.alphabet.index("\n")]]), None, ""
    for _ in range(length):
        scores, state = model(x, state)
        x = torch.multinomial(torch.softmax(scores[0] / 0.8, 1), 1, generator=generator)
        result += text.alphabet[int(x)]
    return result


def compare(text: Text, settings: Settings, seed: int, updates: int = 20) -> float:
    """Return the largest relative difference between torch's first losses and hotloop's, in float64."""
    exact = replace(settings, dtype=torch.float64)
    theirs, ours = (train(library, text, exact, seed, updates).losses for library in ("torch", "hotloop"))
    return max(abs(a - b) / abs(a) for a, b in zip(theirs, ours, strict=True))


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Return a result, and the seconds it took."""
    start = time.perf_counter()
    return function(*args), time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="A character language model, on torch and on hotloop.")
    parser.add_argument("--cell", choices=("lstm", "gru"), default="lstm")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's")
    parser.add_argument("--quick", action="store_true", help="1 epoch of 60 000 characters, 128 units")
    parser.add_argument("--check", action="store_true", help="compare the first 20 losses in float64, and stop")
    args = parser.parse_args(argv)
    settings = Settings(cell=args.cell)
    if args.quick:
        settings = replace(settings, epochs=1, text=60_000, hidden=128, steps=32, batch=16)
    settings = replace(settings, epochs=args.epochs or settings.epochs)
    torch.set_num_threads(args.threads)
    text = Text(settings.text)
    print(f"{len(text.numbers)} characters, {len(text.alphabet)} different ones; {args.threads} thread(s)")
    if args.check:
        difference = compare(text, settings, args.seed)
        print(f"the first 20 losses in float64 differ by {difference:.1e} at most, relatively")
        raise SystemExit(difference > 1e-9)

    runs = {library: train(library, text, settings, args.seed) for library in ("torch", "hotloop")}
    updates = len(runs["torch"].losses)
    print(f"{settings.cell.upper()}, {settings.hidden} units, {updates} updates; loss in nats a character")
    print("    update     " + "".join(f"{library:>10}" for library in runs))
    for k in sorted({0, 1, 9, 99, *range(updates // 5 - 1, updates, updates // 5), updates - 1}):
        if k < updates:
            print(f"    {k + 1:6d}     " + "".join(f"{run.losses[k]:10.6f}" for run in runs.values()))
    samples = {library: timed(write, run.model, text, 300) for library, run in runs.items()}
    rows = {
        "bits per character, held-out text": [
            bits_per_character(r.model, text.held_out, settings) for r in runs.values()
        ],
        "ms an update": [1e3 * run.seconds / updates for run in runs.values()],
        "training, s": [run.seconds for run in runs.values()],
        "us a character written": [1e6 * seconds / 300 for _, seconds in samples.values()],
    }
    print(" " * 37 + "".join(f"{library:>10}" for library in runs))
    for name, values in rows.items():
        ratio = f"{values[0] / values[1]:8.1f} x" if "bits" not in name else ""
        print(f"    {name:<33}" + "".join(f"{value:10.3f}" for value in values) + ratio)
    print("\nWritten by hotloop's:\n    " + samples["hotloop"][0].strip().replace("\n", "\n    "))


if __name__ == "__main__":
    main()
