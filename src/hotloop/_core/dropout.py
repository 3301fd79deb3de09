"""Dropout between layers, by seed.

The mask of a seed and a layer is made of the raw bits of one generator, in time-major order, so many steps at once, and
is made again where it is needed again: only a piece of it ever exists. It depends on nothing but the seed, the layer
and the shape, so neither the layout nor the number of threads can show.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .types import Array

_PIECE = 1 << 18  # elements


def _mask(probability: float, seed: int, layer: int, shape: tuple[int, ...]) -> Iterator[tuple[slice, Array]]:
    """Pieces of a mask of `shape`, [T, B, F]: steps, and whether each element is kept."""
    generator = np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(layer,)))
    seq_len, row = shape[0], shape[1] * shape[2]
    threshold = round(probability * 2**32)
    steps = max(1, _PIECE // max(1, row))
    for start in range(0, seq_len, steps):
        piece = slice(start, min(seq_len, start + steps))
        count = (piece.stop - start) * row
        bits = generator.random_raw((count + 1) // 2).view(np.uint32)[:count]
        yield piece, (bits >= threshold).reshape(piece.stop - start, *shape[1:])


def drop(probability: float, seed: int, layer: int, sequence: Array, out: Array) -> Array:
    """`sequence` times the mask over the probability to keep, in `out`."""
    scale = sequence.dtype.type(1 / (1 - probability) if probability < 1 else 0)
    for piece, keep in _mask(probability, seed, layer, sequence.shape):
        np.multiply(sequence[piece], keep * scale, out=out[piece])
    return out
