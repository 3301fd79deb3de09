"""Train on real speech with torch: packed sequences through an LSTM and a GRU, then the same model on hotloop.

    python examples/torch_japanese_vowels.py           three seeds of each cell
    python examples/torch_japanese_vowels.py --quick   a few seconds: one seed, 10 epochs
    python examples/torch_japanese_vowels.py --check   in float64: the first 20 losses are torch's to 9 digits

What it shows
-------------
A torch model that takes utterances of any lengths as a PackedSequence, and `hotloop.torch.replace_modules(model)`, the
one line by which its recurrent layer runs on hotloop's kernels: the optimizer, the clipping, the losses stay. Data,
settings and noise are those of japanese_vowels.py, which does the same without torch.

Both libraries train from the same seed: their losses are equal in as many digits as the dtype has, then drift apart as
training amplifies the rounding, and end on a level. A step is forward, backward, clipping and Adam for 8 utterances.

Result
------
Seed 0, float32, one thread of a processor of 2 cores (AMD EPYC, Zen 5); CPU time of a step.

            test accuracy          loss in epoch 1          loss in epoch 45          ms a step
            torch    hotloop       torch      hotloop       torch      hotloop        torch   hotloop
    LSTM    98.6 %   98.4 %        1.537197   1.537197      0.033775   0.032059       3.03    0.73     4.2 x
    GRU     98.4 %   98.4 %        1.461320   1.461320      0.022659   0.022657       2.46    0.71     3.4 x
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import hotloop.torch

SPEAKERS, COEFFICIENTS = 9, 12
LIBRARIES = ("torch", "hotloop")


@dataclass(frozen=True)
class Settings:
    """All that a training depends on beside the data and the seed; chosen in japanese_vowels.py."""

    cell: str = "lstm"
    epochs: int = 45
    hidden: int = 64
    batch: int = 8
    learning_rate: float = 5e-3
    max_norm: float = 1.0
    noise: float = 0.25  # standard deviation, of each frame
    offset: float = 0.4  # standard deviation, of a whole utterance
    dtype: torch.dtype = torch.float32


# The data


@dataclass(frozen=True)
class Utterances:
    """Real utterances: `frames[k]` is a tensor (length, 12), `speaker[k]` a number from 0 to 8."""

    frames: list[torch.Tensor]
    speaker: torch.Tensor


def load() -> tuple[Utterances, Utterances]:
    """Return the utterances to train on and those to test on, standardised by the frames of the former."""
    with np.load(Path(__file__).parent / "data" / "japanese_vowels.npz") as file:
        parts = {}
        for name in ("train", "test"):
            x, lengths = torch.from_numpy(file[f"x_{name}"]).double(), file[f"lengths_{name}"]
            frames = [x[k, :length] for k, length in enumerate(lengths)]
            parts[name] = Utterances(frames, torch.from_numpy(file[f"y_{name}"]).long())
    everything = torch.cat(parts["train"].frames)
    mean, deviation = everything.mean(0), everything.std(0, correction=0)
    for part in parts.values():
        part.frames[:] = [(x - mean) / deviation for x in part.frames]
    return parts["train"], parts["test"]


Batch = tuple[PackedSequence, torch.Tensor]


def epoch_batches(data: Utterances, settings: Settings, generator: torch.Generator) -> list[Batch]:
    """Return an epoch's batches, of utterances in random order and with noise added: packed frames, and speakers."""

    def noisy(x: torch.Tensor) -> torch.Tensor:
        noise = settings.noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        offset = settings.offset * torch.randn(COEFFICIENTS, generator=generator, dtype=x.dtype)
        return (x + noise + offset).to(settings.dtype)

    order = torch.randperm(len(data.frames), generator=generator)
    return [
        (pack_sequence([noisy(data.frames[k]) for k in index], enforce_sorted=False), data.speaker[index])
        for index in order.split(settings.batch)
    ]


# The model: nothing in it knows of hotloop


class Classifier(torch.nn.Module):
    """A recurrent layer, and a linear read-out of the state at each utterance's own end."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[settings.cell]
        self.rnn = layer(COEFFICIENTS, settings.hidden)
        self.linear = torch.nn.Linear(settings.hidden, SPEAKERS)

    def forward(self, frames: PackedSequence) -> torch.Tensor:
        """Return the score of every speaker, (batch, 9)."""
        _, state = self.rnn(frames)
        h_n = state[0] if isinstance(state, tuple) else state
        return self.linear(h_n[-1])


@dataclass(frozen=True)
class Training:
    """A trained model, its loss at every step, and the seconds spent in steps (not in making batches)."""

    model: Classifier
    losses: list[float]
    seconds: float


def train(library: str, data: Utterances, settings: Settings, seed: int) -> Training:
    """Train a new model. Weights, batches and noise follow from the seed alone, not from what runs the model."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(settings).to(settings.dtype)
    if library == "hotloop":
        hotloop.torch.replace_modules(model)  # the one line
    adam = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.epochs)
    losses, seconds = [], 0.0
    for _ in range(settings.epochs):
        batches = epoch_batches(data, settings, generator)
        start = time.perf_counter()
        for frames, speaker in batches:
            adam.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(frames), speaker)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_norm)
            adam.step()
            losses.append(loss.item())
        seconds += time.perf_counter() - start
        schedule.step()
    return Training(model, losses, seconds)


@torch.no_grad()
def accuracy(model: Classifier, data: Utterances) -> float:
    """Return the part of the utterances whose speaker gets the highest score."""
    dtype = model.linear.weight.dtype
    scores = model(pack_sequence([x.to(dtype) for x in data.frames], enforce_sorted=False))
    return (scores.argmax(1) == data.speaker).double().mean().item()


def compare(data: Utterances, settings: Settings, seed: int, steps: int = 20) -> float:
    """Return the largest relative difference between torch's first losses and hotloop's, in float64."""
    exact = replace(settings, dtype=torch.float64, epochs=1)
    theirs, ours = (train(library, data, exact, seed).losses[:steps] for library in LIBRARIES)
    return max(abs(a - b) / abs(a) for a, b in zip(theirs, ours, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="An LSTM and a GRU on real speech, on torch and on hotloop.")
    parser.add_argument("--seeds", type=int, help="train N times (default 3)", metavar="N")
    parser.add_argument("--epochs", type=int, help=f"default {Settings.epochs}")
    parser.add_argument("--threads", type=int, default=1, help="default 1: batches are small")
    parser.add_argument("--quick", action="store_true", help="10 epochs and 1 seed")
    parser.add_argument("--check", action="store_true", help="compare the first 20 losses in float64, and stop")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    epochs, seeds = args.epochs or (10 if args.quick else 45), args.seeds or (1 if args.quick else 3)
    data, test = load()
    print(f"{len(data.frames)} utterances to train on, {len(test.frames)} to test on; {args.threads} thread(s)")
    for cell in ("lstm", "gru"):
        settings = Settings(cell=cell, epochs=epochs)
        if args.check:
            difference = compare(data, settings, seed=0)
            print(f"{cell.upper()}: the first 20 losses in float64 differ by {difference:.1e} at most, relatively")
            if difference > 1e-9:
                raise SystemExit(1)
            continue
        for library in LIBRARIES:
            train(library, data, replace(settings, epochs=1), 0)  # warm: not timed
        runs = {library: [train(library, data, settings, seed) for seed in range(seeds)] for library in LIBRARIES}
        print(f"\n{cell.upper()}, {settings.hidden} units, {epochs} epochs" + f"{'torch':>20}{'hotloop':>12}")
        per_epoch = {name: np.array_split(run[0].losses, epochs) for name, run in runs.items()}
        for epoch in sorted({0, 1, 4, epochs // 2, epochs - 1}):
            if epoch < epochs:
                values = "".join(f"{losses[epoch].mean():12.6f}" for losses in per_epoch.values())
                print(f"    loss in epoch {epoch + 1:2d}, seed 0      {values}")
        for seed in range(seeds):
            values = "".join(f"{accuracy(run[seed].model, test):12.1%}" for run in runs.values())
            print(f"    test accuracy, seed {seed}         {values}")
        ms = [1e3 * sum(r.seconds for r in run) / sum(len(r.losses) for r in run) for run in runs.values()]
        print("    ms a training step            " + "".join(f"{t:12.2f}" for t in ms) + f"{ms[0] / ms[1]:8.1f} x")


if __name__ == "__main__":
    main()
