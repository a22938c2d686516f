"""Estimates over prompts: win rates, means, medians and rank correlations, each with a bootstrap interval."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def rounded(self, digits: int = 4) -> list[float | None]:
        """[value, low, high], as JSON has it: None where there is no number."""
        return [
            round(number, digits) if math.isfinite(number) else None for number in (self.value, self.low, self.high)
        ]


@dataclass(frozen=True)
class WinRate:
    """Shares of prompts won, lost and tied; `rate` is wins plus half of the ties."""

    win: float
    lose: float
    tie: float
    rate: Estimate

    def record(self) -> dict[str, Any]:
        shares = {"win": round(self.win, 4), "lose": round(self.lose, 4), "tie": round(self.tie, 4)}
        return {**shares, "rate": self.rate.rounded()}


def bootstrap(
    statistic: Callable[..., Any], *samples: Array, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Percentile bootstrap over prompts (Efron 1979).

    Prompts are drawn with replacement, the same ones from every sample, so that pairs stay pairs.

    Args:
        statistic: of arrays [..., prompts, *rest]; reduces the prompts, with any axes before them.
        samples: each [prompts, *rest].
    """
    number = len(samples[0])
    drawn = np.random.default_rng(seed).integers(number, size=(resamples, number))
    values = np.asarray(statistic(*(sample[drawn] for sample in samples)))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(*samples)), float(low), float(high))


def outcomes(own: Array, other: Array) -> Array:
    """1 where own is higher, 0 where it is lower, 1/2 for a tie [prompts]; a reply without score (NaN) loses to any."""
    own, other = (np.where(np.isnan(scores), -np.inf, scores) for scores in (own, other))
    return np.where(own > other, 1.0, np.where(own < other, 0.0, 0.5))


def win_rate(won: Array) -> WinRate:
    """Of `outcomes`."""
    win, lose, tie = (float((won == value).mean()) for value in (1.0, 0.0, 0.5))
    return WinRate(win, lose, tie, bootstrap(mean, won))


def mean(values: Array) -> Array:
    """Over prompts, the last axis; those without a score are left out."""
    known = ~np.isnan(values)
    total: Array = np.where(known, values, 0.0).sum(axis=-1)
    average: Array = total / np.maximum(known.sum(axis=-1), 1)
    return average


def median_ratio(own: Array, other: Array) -> Array:
    """Median over median, over prompts, the last axis."""
    ratio: Array = np.median(own, axis=-1) / np.median(other, axis=-1)
    return ratio


def rank_correlation(x: Array, y: Array) -> Array:
    """Spearman's, over the last axis; 0 where one side is constant."""
    x, y = (_ranks(values) - (values.shape[-1] - 1) / 2 for values in (x, y))
    scale = np.sqrt(np.square(x).sum(axis=-1) * np.square(y).sum(axis=-1))
    product: Array = (x * y).sum(axis=-1)
    correlation: Array = np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)
    return correlation


def _ranks(values: Array) -> Array:
    """0 to n - 1; equal values share the mean of their ranks."""
    below = (values[..., :, None] > values[..., None, :]).sum(axis=-1)
    same = (values[..., :, None] == values[..., None, :]).sum(axis=-1)
    ranks: Array = below + (same - 1) / 2
    return ranks


def distinct_2(text: str) -> float:
    """Different pairs of words over all pairs of words (Li et al. 2016); NaN below two words."""
    words = re.findall(r"[\w']+", text.lower())
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else math.nan


def distance_to_trained(weights: Sequence[float]) -> float:
    """Euclidean distance of a weight vector to the nearest trained one: one feature, +1 or -1.

    |w -+ e_i|^2 = |w|^2 + 1 -+ 2 w_i
    """
    norm = sum(weight * weight for weight in weights)
    return math.sqrt(max(0.0, norm + 1 - 2 * max(map(abs, weights))))
