"""Estimates over prompts: rates, means, medians, rank correlations and hypervolumes, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
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


def rate(values: Array) -> list[float | None]:
    """Mean and interval over questions, as JSON has them; replies of several training seeds [questions, seeds] are
    averaged within a question.
    """
    return bootstrap(mean, mean(values) if values.ndim > 1 else values).rounded()


def mean(values: Array) -> Array:
    """Over prompts, the last axis; those without a score are left out."""
    known = ~np.isnan(values)
    total: Array = np.where(known, values, 0.0).sum(axis=-1)
    average: Array = total / np.maximum(known.sum(axis=-1), 1)
    return average


def median_ratio(own: Array, other: Array) -> Array:
    """Median over median, each over the last two axes, questions and seeds."""
    ratio: Array = np.median(own, axis=(-2, -1)) / np.median(other, axis=(-2, -1))
    return ratio


def mean_difference(low: Array, high: Array) -> Array:
    """Over prompts, the last axis."""
    return mean(high) - mean(low)


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


def hypervolume(points: Array) -> Array:
    """Area between the origin and the front of points, both of whose coordinates are to be high (Zitzler and Thiele
    1998); a coordinate below 0 counts as 0.

    Args:
        points: [..., points, 2].
    """
    points = np.maximum(points, 0.0)
    order = np.argsort(-points[..., 0], axis=-1)
    x, y = (np.take_along_axis(points[..., axis], order, axis=-1) for axis in (0, 1))  # x falls
    next_x = np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], axis=-1)
    area: Array = ((x - next_x) * np.maximum.accumulate(y, axis=-1)).sum(axis=-1)
    return area
