"""The bank of readings, its replies to questions of its own, and what they say of values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.quality.estimates import Array
from benchmarks.quality.judges import Judge
from benchmarks.quality.policy_improvement.replies import STRIDE, GuidedReply
from benchmarks.quality.policy_improvement.value import Fit, fit
from benchmarks.quality.replies import JudgedReply

Direction = tuple[tuple[str, float], ...]  # feature and weight
BASE: Direction = ()
_HALF, _THIRD = math.sqrt(1 / 2), math.sqrt(1 / 3)
MIXTURES: tuple[dict[str, float], ...] = (  # the users: of unit length, then three in full
    {"cheerful": _HALF, "simple": _HALF},
    {"cheerful": -_HALF, "simple": -_HALF},
    {"cheerful": _HALF, "concise": _HALF},
    {"cheerful": -_HALF, "concise": _HALF},
    {"simple": _HALF, "concise": _HALF},
    {"simple": -_HALF, "concise": -_HALF},
    {"cheerful": 0.95, "simple": math.sqrt(1 - 0.95**2)},
    {"cheerful": -math.sqrt(1 - 0.95**2), "concise": 0.95},
    {"cheerful": _THIRD, "simple": _THIRD, "concise": _THIRD},
    {"cheerful": -_THIRD, "simple": _THIRD, "concise": -_THIRD},
    {"cheerful": 1.0, "simple": 1.0},
    {"cheerful": 1.0, "concise": 1.0},
    {"cheerful": 1.0, "simple": 1.0, "concise": 1.0},
)
WANTED = ("cheerful", "simple", "concise")


def corners(features: Sequence[str]) -> list[Direction]:
    """Who the PersRM was trained on: one feature, more or less of it."""
    return [((name, sign),) for name in features for sign in (1.0, -1.0)]


def directions(features: Sequence[str]) -> list[Direction]:
    """The readings: the corners, the mixture of every two features and that of all, in equal parts."""
    pairs = [(one, other) for index, one in enumerate(features) for other in features[index + 1 :]]
    mixed = [*pairs, tuple(features)] if len(features) > 2 else pairs
    return [*corners(features), *(tuple((name, 1 / math.sqrt(len(names))) for name in names) for names in mixed)]


def vector(direction: Direction, features: Sequence[str]) -> tuple[float, ...]:
    """Weights in the order of features, [d]."""
    weights = dict(direction)
    return tuple(weights.get(name, 0.0) for name in features)


class Utility:
    """sum_i w_i s_i / |w|, s_i the verdict on feature i over its standard deviation.

    Args:
        judges: one a feature.
        scales: standard deviations.
    """

    def __init__(self, judges: Mapping[str, Judge], scales: Mapping[str, float]) -> None:
        self._judges, self.scales = judges, scales

    def verdicts(self, name: str, replies: Sequence[JudgedReply], sign: float = 1.0) -> Array:
        """s_i, [replies]; for a user of this sign an empty reply is as bad as the worst of the others."""
        scores = self._judges[name](replies) / self.scales[name]
        return np.where(np.isnan(scores), np.nanmin(scores) if sign > 0 else np.nanmax(scores), scores)

    def __call__(self, weights: Mapping[str, float], replies: Sequence[JudgedReply]) -> Array:
        norm = math.sqrt(sum(weight * weight for weight in weights.values()))
        parts = [weight / norm * self.verdicts(name, replies, weight) for name, weight in weights.items()]
        total: Array = np.sum(parts, axis=0)
        return total


def measure_scales(judges: Mapping[str, Judge], replies: Mapping[Direction, Sequence[GuidedReply]]) -> dict[str, float]:
    """Standard deviation of each judge over the replies of the base and of its feature's two corners."""
    scales = {}
    for name, judge in judges.items():
        three = [replies[direction] for direction in (BASE, ((name, 1.0),), ((name, -1.0),))]
        scales[name] = float(np.nanstd(judge([made.reply for some in three for made in some])))
    return scales


@dataclass(frozen=True)
class Values:
    """What the bank's replies say of V.

    Attributes:
        fits: of every reading and feature.
        nats: reward that a standard deviation of a verdict is worth, by feature: the slope of the summed phi_i on the
            verdict over the base's and the two corners' replies, within a question.
    """

    fits: Mapping[tuple[Direction, str], Fit]
    nats: Mapping[str, float]

    def coefficients(self, bank: Sequence[Direction], features: Sequence[str]) -> torch.Tensor:
        """[J, d, hidden + 2]; 0 for a feature that no user wants."""
        nothing = np.zeros_like(next(iter(self.fits.values())).coefficients)
        rows = [
            [self.fits[direction, name].coefficients if name in WANTED else nothing for name in features]
            for direction in bank
        ]
        return torch.tensor(np.array(rows), dtype=torch.float32)


def estimate_values(
    utility: Utility, replies: Mapping[Direction, Sequence[GuidedReply]], features: Sequence[str], *, cap: int
) -> Values:
    """Regressions and slopes, from the replies of the base and of every reading to the same questions.

    Args:
        features: of the PersRM, in its order.
        cap: most tokens of the replies.
    """
    fits, nats = {}, {}
    for direction, made in replies.items():
        if direction == BASE:
            continue
        states = [_with_time(one.states.numpy(), cap) for one in made]
        questions = np.repeat(np.arange(len(made)), [len(some) for some in states])
        for name in WANTED:
            verdicts = utility.verdicts(name, [one.reply for one in made])
            fits[direction, name] = fit(np.concatenate(states).astype(np.float64), verdicts[questions], questions)
    for name in WANTED:
        index = features.index(name)
        three = [replies[direction] for direction in (BASE, ((name, 1.0),), ((name, -1.0),))]
        verdicts = np.stack([utility.verdicts(name, [one.reply for one in some]) for some in three])
        rewards = np.array([[float(one.phi[index]) for one in some] for some in three])
        verdicts, rewards = (values - values.mean(0) for values in (verdicts, rewards))
        nats[name] = float((verdicts * rewards).sum() / np.square(verdicts).sum())
    return Values(fits, nats)


def _with_time(states: Array, cap: int) -> Array:
    """States with the share of the cap that was used up."""
    used = np.arange(len(states)) * STRIDE / cap
    return np.concatenate([states, used[:, None]], axis=1)
