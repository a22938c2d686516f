"""Users who want several traits at once: does one reply have all of them?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.quality.design import Design
from benchmarks.quality.estimates import Array, rate
from benchmarks.quality.judges import Judge
from benchmarks.quality.methods import Cell
from benchmarks.quality.rows import CHECKS, texture
from benchmarks.quality.scores import Scores
from benchmarks.quality.traits import wanted

ORDINALS = ("first", "second")  # judges of each feature


def mixture_row(
    scores: Scores, design: Design, weights: Mapping[str, float], number: int, *, sampled: bool
) -> dict[str, Any]:
    """One mixture.

    joint win = share of replies that beat the base's on every wanted trait, at equal words where a judge does not count
    words, a tie as half for each trait: a quarter for two traits of a reply that is as good as the base's.

    Args:
        sampled: whether there are sampled replies of the base, whose joint wins over its greedy ones are "chance".
    """
    cell, base = design.cell("pad", weights), design.cell("base", weights)
    checks = scores.checks(cell, base, number)
    record: dict[str, Any] = {"weights": {name: round(weight, 4) for name, weight in weights.items()}}
    record["wanted"] = [wanted(name, weight) for name, weight in weights.items()]
    for ordinal, judges in _panels(scores, weights).items():
        won = _won(scores, cell, base, judges, weights, number)
        joint = np.prod(list(won.values()), axis=0)
        record[ordinal] = {
            "joint": rate(joint),
            "sound_joint": rate(joint * checks.sound),
            "each": {name: rate(own) for name, own in won.items()},
            "judges": {name: judge.name for name, judge in judges.items()},
        }
        if sampled:
            other = design.cell("base", weights, sample=1)
            by_chance = _won(scores, other, base, judges, weights, number)
            record[ordinal]["chance"] = rate(np.prod(list(by_chance.values()), axis=0))
    passed = {name: rate(getattr(checks, name).astype(float)) for name in CHECKS}
    return {**record, "questions": number, "checks": passed, **texture(scores, [cell], base, number)}


def _panels(scores: Scores, weights: Mapping[str, float]) -> dict[str, dict[str, Judge]]:
    """The first judge of each feature, and the second."""
    return {ordinal: {name: scores.judges(name)[index] for name in weights} for index, ordinal in enumerate(ORDINALS)}


def _won(
    scores: Scores, cell: Cell, base: Cell, judges: Mapping[str, Judge], weights: Mapping[str, float], number: int
) -> dict[str, Array]:
    """Outcomes of each wanted trait [questions]."""
    won = {}
    for name, weight in weights.items():
        sign = math.copysign(1, weight)
        equal = scores.equal_words(cell, base, judges[name], sign, number)
        won[name] = scores.wins(cell, base, judges[name], sign, number) if equal is None else equal
    return won
