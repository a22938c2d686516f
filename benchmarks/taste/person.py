"""People who are simulated: what they want, by which instruments, and how often they answer as they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.quality.estimates import Array

LIKE_SLIDERS = ("cheerful", "simple", "concise")  # the population of the first trial
OUTSIDE = ("says I", "asks")  # no feature is about them


@dataclass(frozen=True)
class Person:
    """What somebody wants.

    Attributes:
        wish: weight of each trait, of length 1.
        panel: which of a trait's two instruments judges for them.
        seed: of their slips.
    """

    wish: Mapping[str, float]
    panel: int
    seed: int

    def utility(self, scores: Mapping[str, Array]) -> Array:
        """Of replies, by their scores [replies]."""
        total: Array = np.sum([weight * scores[trait][:, self.panel] for trait, weight in self.wish.items()], axis=0)
        return total

    def weights(self, features: Sequence[str]) -> dict[str, float]:
        """The sliders as this person would set them, had they to; traits that no feature is about are left out."""
        return {name: self.wish[name] for name in features if name in self.wish}


def draw_people(population: str, number: int, features: Sequence[str], *, seed: int = 0) -> list[Person]:
    """Of one population: "three" sliders mixed in any way, "mixed" wishes of two or three of all features, "single"
    ones, or "outside" of what the features say.
    """
    rng = np.random.default_rng([seed, *population.encode()])
    people = []
    for place in range(number):
        if population == "three":
            named = {name: rng.standard_normal() for name in LIKE_SLIDERS}
        elif population == "mixed":
            some = rng.choice(len(features), size=rng.integers(2, 4), replace=False)
            named = {features[at]: float(rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0)) for at in some}
        elif population == "single":
            named = {features[place // 4 % len(features)]: (1.0, -1.0)[place // 2 % 2]}
        else:
            named = {OUTSIDE[place // 4 % 2]: (1.0, -1.0)[place // 2 % 2]}
        length = float(np.linalg.norm(list(named.values())))
        people.append(Person({name: weight / length for name, weight in named.items()}, place % 2, place))
    return people


def feeling(utilities: Array, pairs: Sequence[tuple[int, int]], as_meant: float) -> float:
    """How strongly a difference of utility tells in an answer, so that this share of the answers to random pairs is as
    meant (a logistic in the difference).
    """
    first, second = np.array(pairs).T
    differences = np.abs(utilities[first] - utilities[second])
    scales = np.geomspace(1e-3, 1e3, 600)
    shares = [np.mean(1 / (1 + np.exp(-scale * differences[differences > 0]))) for scale in scales]
    return float(np.exp(np.interp(as_meant, shares, np.log(scales))))
