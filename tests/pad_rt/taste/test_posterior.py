"""The posterior of a person's feature weights, against integrals on a grid, and by what must hold of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pad_rt.taste.posterior import LAPSES, SCALES, TRAINING_SCALE, Array, Posterior
from pad_rt.taste.prior import Prior
from pad_runtime.errors import OptionError
from tests.support.error_checks import refused


def fit(differences: Array, *, counts: Array | None = None, mean: Array | None = None) -> Posterior:
    d = differences.shape[1]
    ones, zeros = np.ones(len(differences)), np.zeros(d)
    return Posterior.fit(
        differences, ones if counts is None else counts, zeros if mean is None else mean, np.full(d, math.sqrt(1 / d))
    )


def on_grid(differences: Array, mean: Array, asked: Array) -> tuple[Array, float]:
    """The mean of w of length 1, and the probability that the answer to a question is yes: sums over a fine grid."""
    d = differences.shape[1]
    axis = np.linspace(-7, 7, 1000 if d == 1 else 120)  # in spreads; without 0, which has no direction
    grid = np.stack([each.ravel() for each in np.meshgrid(*[axis] * d, indexing="ij")], axis=-1)
    total, direction, yes = 0.0, np.zeros(d), 0.0
    for scale in SCALES:
        for lapse in LAPSES:
            weights = scale * math.sqrt(1 / d) * grid
            prior = np.exp(-((grid - mean * math.sqrt(d)) ** 2).sum(axis=1) / 2)
            asked_all = np.vstack([differences, asked])
            chance = lapse + (1 - 2 * lapse) / (1 + np.exp(-TRAINING_SCALE * weights @ asked_all.T))
            density = prior * chance[:, :-1].prod(axis=1)
            total += density.sum()
            direction += density @ (weights / np.linalg.norm(weights, axis=1, keepdims=True))
            yes += density @ chance[:, -1]
    return direction / total, yes / total


@pytest.mark.parametrize("mean", [0.0, 0.5])
@pytest.mark.parametrize("answers", [[], [12.0], [30.0, -4.0, 25.0], [40.0, -40.0], [15.0] * 12])
def test_one_feature_as_by_integration(answers: list[float], mean: float) -> None:
    differences, asked = np.array(answers, float).reshape(-1, 1), np.array([[18.0]])
    direction, yes = on_grid(differences, np.array([mean]), asked)
    posterior = fit(differences, mean=np.array([mean]))
    assert posterior.mean() == pytest.approx(direction, abs=0.01)
    assert posterior.preferred(asked)[0] == pytest.approx(yes, abs=0.01)


@pytest.mark.parametrize("seed", range(1, 4))
def test_two_features_as_by_integration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences, asked = 20 * rng.standard_normal((6, 2)), np.array([[20.0, -10.0]])
    direction, yes = on_grid(differences, np.zeros(2), asked)
    posterior = fit(differences)
    assert posterior.mean() == pytest.approx(direction, abs=0.01)
    assert posterior.preferred(asked)[0] == pytest.approx(yes, abs=0.01)
    assert posterior.mean() != pytest.approx(fit(-differences).mean(), abs=0.1)


def test_the_order_of_answers_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    differences = 20 * rng.standard_normal((9, 4))
    first, second = fit(differences), fit(differences[rng.permutation(9)])
    assert first.mean() == pytest.approx(second.mean(), abs=1e-9)
    assert np.array(first.interval(0.9)) == pytest.approx(np.array(second.interval(0.9)), abs=1e-9)


def test_nobody_is_believed_to_want_anything_before_the_first_answer() -> None:
    posterior = fit(np.zeros((0, 3)))
    assert posterior.mean() == pytest.approx(np.zeros(3), abs=1e-3)
    low, high = posterior.interval(0.9)
    assert low == pytest.approx(np.full(3, -0.9), abs=0.05)  # a coordinate on the sphere is uniform
    assert high == pytest.approx(np.full(3, 0.9), abs=0.05)


def test_more_answers_narrow_and_contradictions_widen() -> None:
    rng = np.random.default_rng(2)
    differences = 25 * rng.standard_normal((24, 3))
    differences[differences[:, 0] < 0] *= -1  # someone who looks at the first feature alone

    def width(answers: Array) -> float:
        low, high = fit(answers).interval(0.9)
        return float((high - low)[0])

    flipped = differences * np.where(np.arange(24) % 2, -1, 1)[:, None]
    assert width(differences) < width(differences[:8]) < width(differences[:2])
    assert width(flipped) > 2 * width(differences)
    assert np.linalg.norm(fit(differences).mean()) > 0.9
    assert np.linalg.norm(fit(flipped).mean()) < 0.5


def test_answers_that_count_less_say_less() -> None:
    differences = np.array([[20.0, 0.0]] * 4 + [[0.0, 20.0]] * 4)
    counted = fit(differences, counts=np.array([0.1] * 4 + [1.0] * 4)).mean()
    assert counted[1] > 1.5 * counted[0] > 0


def test_a_question_tells_most_where_least_is_known() -> None:
    known = fit(np.array([[30.0, 0.0]] * 10))
    told = known.information(np.array([[30.0, 0.0], [0.0, 30.0], [0.0, 0.0]]))
    assert 1 > told[1] > 3 * told[0] > 0 == pytest.approx(told[2], abs=1e-9)


@pytest.mark.parametrize("num_features", [3, 8])
def test_nine_of_ten_intervals_hold_the_weight(num_features: int) -> None:
    """People as the prior has them, their scale and their slips too."""
    rng = np.random.default_rng(num_features)
    held = []
    for _ in range(100):
        scale, lapse = rng.choice(SCALES), rng.choice(LAPSES)
        person = scale * rng.standard_normal(num_features) / math.sqrt(num_features)
        asked = 20 * rng.standard_normal((10, num_features))
        chance = lapse + (1 - 2 * lapse) / (1 + np.exp(-TRAINING_SCALE * asked @ person))
        low, high = fit(np.where((rng.random(10) < chance)[:, None], asked, -asked)).interval(0.9)
        direction = person / np.linalg.norm(person)
        held.append((low <= direction) & (direction <= high))
    assert np.mean(held) == pytest.approx(0.9, abs=0.04)


def test_each_answer_is_foretold_as_by_the_others_alone() -> None:
    rng = np.random.default_rng(8)
    differences, ones = 20 * rng.standard_normal((7, 2)), np.ones(7)
    foretold = fit(differences).foretold(differences, ones)
    for at in range(7):
        alone = fit(np.delete(differences, at, axis=0)).preferred(differences[at : at + 1])
        assert foretold[at] == pytest.approx(alone[0], abs=0.04)


# -- the prior --------------------------------------------------------------------------------------------------------


def test_a_population_is_what_is_believed_at_first() -> None:
    people = [{"kind": 3.0, "odd": 0.0}, {"kind": 0.8, "odd": 0.6}, {"kind": 0.6, "odd": -0.8}, {"kind": 0.0}]
    prior = Prior.of_people(people)
    assert prior.mean == pytest.approx({"kind": 0.8, "odd": -0.2 / 3})
    mean, spread = prior.arrays(["odd", "kind", "new"])
    assert mean == pytest.approx([-0.2 / 3, 0.8, 0.0])
    assert spread[2] == pytest.approx(math.sqrt(1 / 3))
    found = Posterior.fit(np.zeros((0, 3)), np.ones(0), mean, spread).mean()
    assert found[1] > 0.6
    assert abs(found[0]) < 0.2


def test_priors_that_are_none() -> None:
    with refused(OptionError, given="a prior of 1 people", expected="two or more"):
        Prior.of_people([{"kind": 1.0}, {"kind": 0.0}])
    with refused(OptionError, given="the prior of 'kind' is nan", expected="finite"):
        Prior({"kind": math.nan})
    with refused(OptionError, given="spread of 'kind' is 0", expected="above 0"):
        Prior(spread={"kind": 0})
    with refused(OptionError, given="a prior of 'kind'", expected="odd"):
        Prior({"kind": 1.0}).arrays(["odd"])
