"""Measure tanh and sigmoid, as the cells compute them, on every instruction set here: the table of docs/accuracy.md.

float32: every number there is. float64: a million at each of several scales. Takes some 20 minutes on one core.

    python tools/activation_errors.py [--short]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_activations import FUNCTIONS, activation, reference, ulps

from hotloop._backends import native as _native

BLOCK = 1 << 22
SCALES = (1e-3, 0.1, 1, 3, 20, 50, 740)


def float32_blocks(short: bool) -> Iterator[np.ndarray]:
    for start in range(0, 1 << 32, BLOCK * (64 if short else 1)):
        x = np.arange(start, start + BLOCK, dtype=np.uint64).astype(np.uint32).view(np.float32)
        yield x[np.isfinite(x)]


def float64_blocks(short: bool) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for scale in SCALES:
        yield rng.uniform(-scale, scale, 10_000 if short else 1_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one number in 64, to try the script")
    short = parser.parse_args().short
    warnings.simplefilter("ignore", RuntimeWarning)
    print("| function | dtype | instruction set | largest error (ULP) | at x = | gives | exact |")
    print("|---|---|---|---|---|---|---|")
    for function in FUNCTIONS:
        for blocks in (float32_blocks, float64_blocks):
            worst: dict[str, tuple[float, Any, Any, Any]] = dict.fromkeys(_native.isas(), (-1.0, 0, 0, 0))
            for x in blocks(short):
                if not x.size:
                    continue
                want = reference(function, x)
                for isa, (most, *_) in worst.items():
                    _native.use_isa(isa)
                    got = activation(function, x)
                    errors = ulps(x, got, want)
                    at = int(errors.argmax())
                    if errors[at] > most:
                        worst[isa] = float(errors[at]), x[at], got[at], want[at]
            for isa, (most, at, got, want) in worst.items():
                name = np.asarray(at).dtype.name
                exact = np.format_float_scientific(want, precision=17)
                print(f"| {function} | {name} | {isa} | {most:.2f} | {at} | {got} | {exact} |", flush=True)


if __name__ == "__main__":
    main()
