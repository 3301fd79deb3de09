"""Medians, ratios of medians and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with its confidence interval. One sample has no interval: its ends are NaN."""

    value: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """How far the interval reaches from the estimate, as a share of it; infinite where nothing is known."""
        if not (self.value > 0 and np.isfinite(self.low) and np.isfinite(self.high)):
            return float("inf")
        return max(self.high - self.value, self.value - self.low) / self.value


def median_interval(values: Sequence[float], *, level: float = 0.95, resamples: int = 2000) -> Interval:
    """Return the median with its percentile bootstrap interval. The same values always give the same interval."""
    samples = np.asarray(values, np.float64)
    value = float(np.median(samples)) if samples.size else float("nan")
    if samples.size < 2:
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(0)
    medians = np.median(samples[rng.integers(0, samples.size, (resamples, samples.size))], axis=1)
    low, high = np.quantile(medians, ((1 - level) / 2, (1 + level) / 2))
    return Interval(value, float(low), float(high))


def round_medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Return one number a round: the median of its samples. A single disturbed sample does not show."""
    return [float(np.median(samples)) for samples in rounds]


def speedup(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Interval:
    """Return how many times faster we are: the median over rounds of their time over our time in the same round.

    Rounds are paired, since what slows the machine down for seconds slows both candidates of a round. Where one of
    them ran fewer rounds, the first ones count.
    """
    pairs = zip(round_medians(ours), round_medians(theirs), strict=False)
    return median_interval([their / our for our, their in pairs])
