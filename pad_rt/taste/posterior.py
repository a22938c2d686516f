"""What answers say of a person's feature weights: Bradley-Terry on phi, with a person's own constancy.

An answer that prefers reply a to reply b has the probability

    p(x) = lapse + (1 - 2 lapse) * sigmoid(0.05 * w . x)      x = phi(a) - phi(b), summed over the tokens

0.05 is the scale on which training compares replies (`pad-train --beta`). How strongly a person feels and how often an
answer is a slip are not known: w has a normal prior whose scale, like the lapse, is one of a few values, all equally
likely. For each pair of them samples are drawn, near the mode and from the prior, and weighted by the true posterior
over the density that they are drawn from (importance sampling). They are at fixed places, so that the same answers give
the same posterior, in whatever order they came.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

TRAINING_SCALE = 0.05
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)  # of w, against the prior's: from hardly any feeling to answers always as meant
LAPSES = (0.01, 0.06, 0.15, 0.3)
SAMPLES = 256  # of each scale and lapse
FEW = 512  # enough to compare questions
WIDENING = 1.2  # of the normal densities, whose tails are thinner than the posterior's
_STEPS, _PRECISION = 12, 1e-3  # of Fisher scoring: near the mode is enough for samples that are weighted

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """Weighted samples of a person's feature weights.

    Attributes:
        weights: w [m, d].
        lapses: of each sample [m].
        shares: of each sample, their sum 1 [m].
    """

    weights: Array
    lapses: Array
    shares: Array

    @classmethod
    def fit(cls, differences: Array, counts: Array, mean: Array, spread: Array) -> Posterior:
        """Of answers.

        Args:
            differences: x of each answer, the preferred reply's phi less the other's [n, d].
            counts: how much each answer counts, 1 or less [n].
            mean, spread: of the prior, for a scale of 1 [d], [d].
        """
        scales, lapses = (grid.ravel() for grid in np.meshgrid(SCALES, LAPSES, indexing="ij"))
        model = _Model(differences, counts, scales[:, None] * mean, (scales[:, None] * spread) ** -2, lapses)
        samples, log_density = model.draw()
        log_shares = (model.log_posterior(samples) - log_density).ravel()
        shares = np.exp(log_shares - log_shares.max())
        return cls(samples.reshape(-1, len(mean)), np.repeat(lapses, SAMPLES), shares / shares.sum())

    @cached_property
    def directions(self) -> Array:
        """w of length 1 [m, d]."""
        lengths: Array = np.linalg.norm(self.weights, axis=1, keepdims=True)
        return self.weights / lengths

    def mean(self) -> Array:
        """Of w of length 1 [d]: its own length is near 0 where little is known, and near 1 where much is."""
        mean: Array = self.shares @ self.directions
        return mean

    def interval(self, level: float) -> tuple[Array, Array]:
        """The central interval of each weight of w of length 1 [d], [d]."""
        tail = (1 - level) / 2
        bounds = [_quantiles(column, self.shares, (tail, 1 - tail)) for column in self.directions.T]
        return np.array([low for low, _ in bounds]), np.array([high for _, high in bounds])

    def preferred(self, differences: Array) -> Array:
        """Probability that an answer would prefer what has the larger phi of each difference [n, d] -> [n]."""
        probabilities: Array = self.shares @ self._each(differences)
        return probabilities

    def information(self, differences: Array) -> Array:
        """What the answer to each question would tell, in bits [n]: the mutual information of answer and person."""
        few = self.thinned
        each = few._each(differences)
        told: Array = _entropy(few.shares @ each) - few.shares @ _entropy(each)
        return told.clip(min=0.0)

    @cached_property
    def thinned(self) -> Posterior:
        """The same with few samples that count alike, where there are many questions to look at."""
        reached = np.cumsum(self.shares)
        taken = np.searchsorted(reached, (np.arange(FEW) + 0.5) / FEW * reached[-1])  # systematic resampling
        return Posterior(self.weights[taken], self.lapses[taken], np.full(FEW, 1 / FEW))

    def foretold(self, differences: Array, counts: Array) -> Array:
        """Probability of each answer that it was fitted to, from the others alone [n, d], [n] -> [n].

        The samples are weighted anew, as if the answer had not been given (leave-one-out by importance sampling).
        """
        each = self._each(differences)  # [m, n]
        without = self.shares[:, None] / each**counts
        probabilities: Array = (without * each).sum(axis=0) / without.sum(axis=0)
        return probabilities

    def _each(self, differences: Array) -> Array:
        """By sample [m, n]."""
        plain = _sigmoid(TRAINING_SCALE * self.weights @ differences.T)
        each: Array = self.lapses[:, None] + (1 - 2 * self.lapses[:, None]) * plain
        return each


@dataclass(frozen=True)
class _Model:
    """The posteriors of all scales and lapses, side by side: c of them, n answers, d features."""

    differences: Array  # [n, d]
    counts: Array  # [n]
    means: Array  # [c, d]
    precisions: Array  # [c, d]
    lapses: Array  # [c]

    def draw(self) -> tuple[Array, Array]:
        """Samples [c, s, d], and the logarithm of the density that they are drawn from, but for a constant [c, s].

        Half of them are from the normal density at the mode, a little wider, and half from the prior: where answers may
        be slips the posterior's tails are the prior's.
        """
        modes, information = self.modes()
        factors = np.linalg.cholesky(information) / WIDENING
        normals = _spread_normals(len(modes), modes.shape[1])
        steps = np.linalg.solve(factors.transpose(0, 2, 1), normals.transpose(0, 2, 1)).transpose(0, 2, 1)
        samples = np.concatenate(
            [modes[:, None] + steps, self.means[:, None] - normals / np.sqrt(self.precisions)[:, None]], axis=1
        )
        scaled = (samples - modes[:, None]) @ factors
        at_mode = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)[:, None] - (scaled**2).sum(axis=-1) / 2
        return samples, np.logaddexp(at_mode, self._log_prior(samples))

    def _log_prior(self, weights: Array) -> Array:
        """Of samples [c, s, d], but for a constant [c, s]."""
        distance = ((weights - self.means[:, None]) ** 2 * self.precisions[:, None]).sum(axis=-1)
        result: Array = np.log(self.precisions).sum(axis=1)[:, None] / 2 - distance / 2
        return result

    def log_posterior(self, weights: Array) -> Array:
        """Of samples [c, s, d], but for a constant [c, s]."""
        plain = _sigmoid(TRAINING_SCALE * weights @ self.differences.T)
        slip = self.lapses[:, None, None]
        likelihood = np.log(slip + (1 - 2 * slip) * plain) @ self.counts
        result: Array = likelihood + self._log_prior(weights)
        return result

    def modes(self) -> tuple[Array, Array]:
        """The mode of each [c, d], and its precision by the Fisher information [c, d, d]."""
        weights = self.means.copy()
        for _ in range(_STEPS):
            gradient, information = self._curve(weights)
            step = np.asarray(np.linalg.solve(information, gradient[..., None])[..., 0], np.float64)
            if np.abs(step).max() < _PRECISION:
                break
            weights = self._climb(weights, step)
        return weights, self._curve(weights)[1]

    def _climb(self, weights: Array, step: Array) -> Array:
        """Along the step, or half of it, and so on, until the posterior does not fall."""
        here = self.log_posterior(weights[:, None])[:, 0]
        size = np.ones((len(weights), 1))
        for _ in range(20):
            falls = self.log_posterior((weights + size * step)[:, None])[:, 0] < here - 1e-12
            if not falls.any():
                break
            size[falls] /= 2
        result: Array = weights + size * step
        return result

    def _curve(self, weights: Array) -> tuple[Array, Array]:
        """Gradient [c, d] and Fisher information [c, d, d]."""
        plain = _sigmoid(TRAINING_SCALE * weights @ self.differences.T)  # [c, n]
        right = self.lapses[:, None] + (1 - 2 * self.lapses[:, None]) * plain
        slope = TRAINING_SCALE * (1 - 2 * self.lapses[:, None]) * plain * (1 - plain)
        gradient = (self.counts * slope / right) @ self.differences - self.precisions * (weights - self.means)
        known = self.counts * slope**2 / (right * (1 - right))
        information = (known[:, None] * self.differences.T) @ self.differences  # [c, d, d]
        return gradient, information + self.precisions[:, :, None] * np.eye(self.differences.shape[1])


@functools.cache
def _spread_normals(num_densities: int, num_features: int) -> Array:
    """Standard normal numbers that fill space evenly [c, SAMPLES / 2, d].

    They are of the additive recurrence with the generalised golden ratio (Roberts 2018, "The unreasonable effectiveness
    of quasirandom sequences").
    """
    golden = 2.0
    for _ in range(60):
        golden = (1 + golden) ** (1 / (num_features + 1))  # the root of x^(d+1) = x + 1
    number = num_densities * SAMPLES // 2
    points = (0.5 + np.arange(1, number + 1)[:, None] * golden ** -np.arange(1.0, num_features + 1)) % 1.0
    inverse = NormalDist().inv_cdf
    return np.array([inverse(point) for point in points.ravel()]).reshape(num_densities, -1, num_features)


def _sigmoid(values: Array) -> Array:
    with np.errstate(over="ignore"):
        result: Array = 1 / (1 + np.exp(-values))
    return result


def _entropy(probabilities: Array) -> Array:
    """Of a yes or no, in bits."""
    kept = probabilities.clip(1e-12, 1 - 1e-12)
    bits: Array = -(kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept))
    return bits


def _quantiles(values: Array, shares: Array, at: tuple[float, float]) -> tuple[float, float]:
    order = np.argsort(values)
    reached = np.cumsum(shares[order])
    low, high = (values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)] for share in at)
    return float(low), float(high)
