"""How well a person is known after so many answers, by the way of asking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.quality.estimates import Array
from benchmarks.taste.judged_pool import JudgedPool
from benchmarks.taste.person import Person, feeling
from pad_rt import Generator, Question, Taste

Way = Literal["asked", "random", "uncertain"]
WAYS: tuple[Way, ...] = ("asked", "random", "uncertain")
COUNTS = (1, 2, 3, 5, 8, 12, 20, 40)
LEVEL = 0.9


@dataclass(frozen=True)
class HeldOut:
    """What a learned w is held against.

    Attributes:
        differences: phi of the reply that the person means, less the other's, for each pair of unseen questions.
        best: the w of length 1 that explains all pairs of the asking pool best, as if every answer were known.
        attainable: share of the held-out pairs that it foretells.
        sliders: the same of the wish itself, as weights.
    """

    differences: Array
    best: Array
    attainable: float
    sliders: float

    def accuracy(self, weights: Array) -> float:
        """Share of the pairs that weights foretell; 0 says nothing, and is half right."""
        told = self.differences @ weights
        return float(np.mean(np.where(told == 0, 0.5, told > 0)))


@dataclass(frozen=True)
class Step:
    """What is known after so many answers, and the answers as texts: question, the better reply, the other."""

    count: int
    taste: Taste
    pairs: tuple[tuple[str, str, str], ...]


def hold_out(person: Person, asking: JudgedPool, unseen: JudgedPool) -> HeldOut:
    """Of one person."""
    differences, meant = _differences(person, asking)
    regression = LogisticRegression(C=1e3, fit_intercept=False, max_iter=2000)
    scale = differences.std(axis=0)
    regression.fit(np.concatenate([differences, -differences]) / scale, np.concatenate([meant, np.logical_not(meant)]))
    best = regression.coef_[0] / scale
    best /= np.linalg.norm(best)
    later, as_meant = _differences(person, unseen)
    later = np.where(as_meant[:, None], later, -later)
    features = asking.pool.features
    wish = np.array([person.weights(features).get(name, 0.0) for name in features])
    held = HeldOut(later, best, 0.0, 0.0)
    return HeldOut(later, best, held.accuracy(best), held.accuracy(wish))


def _differences(person: Person, pool: JudgedPool) -> tuple[Array, Array]:
    """Pairs that the person does not find alike: phi of the first reply less the second's, and whether it is meant."""
    first, second = np.array(pool.pairs).T
    utilities, phi = person.utility(pool.scores), pool.phi
    gap = utilities[first] - utilities[second]
    told = gap != 0
    return (phi[first] - phi[second])[told], gap[told] > 0


def learn(
    person: Person,
    way: Way,
    as_meant: float,
    asking: JudgedPool,
    generator: Generator,
    *,
    most: int = COUNTS[-1],
) -> list[Step]:
    """What is known after each of `COUNTS` answers."""
    utilities, pairs = person.utility(asking.scores), asking.pairs
    scale = feeling(utilities, pairs, as_meant)
    rng = np.random.default_rng([person.seed, round(100 * as_meant)])
    flat = [(prompt.prompt, reply) for prompt in asking.pool.prompts for reply in prompt.replies]
    place = {(prompt, reply.text): at for at, (prompt, reply) in enumerate(flat)}
    taste = Taste(generator, half_life=None)
    order = rng.permutation(len(pairs))
    asked: list[int] = []
    told: list[tuple[str, str, str]] = []
    steps: list[Step] = []
    for count in range(1, most + 1):
        if way == "asked":
            question = taste.ask(asking.pool, least_bits=0.0)
            assert question is not None, "the pool has more pairs"
        else:
            asked.append(int(order[count - 1]) if way == "random" else _most_uncertain(taste, asking, asked))
            one, other = pairs[asked[-1]]
            question = Question.of(flat[one][0], flat[one][1], flat[other][1])
        one, other = place[question.prompt, question.a], place[question.prompt, question.b]
        likes_a = rng.random() < 1 / (1 + np.exp(-scale * (utilities[one] - utilities[other])))
        taste.answer(question, "a" if likes_a else "b")
        better, worse = (question.a, question.b) if likes_a else (question.b, question.a)
        told.append((str(question.prompt), better.strip(), worse.strip()))
        if count in COUNTS:
            known = Taste(generator, half_life=None, answers=taste.answers)
            steps.append(Step(count, known, tuple(told)))
    return steps


def _most_uncertain(taste: Taste, asking: JudgedPool, asked: Sequence[int]) -> int:
    """The pair whose answer is nearest to a coin's, by the mean of w."""
    weights = np.array(list(taste.preference().weights.values()))
    first, second = np.array(asking.pairs).T
    doubt = np.abs((asking.phi[first] - asking.phi[second]) @ weights)
    doubt[asked] = np.inf
    ties = np.random.default_rng(len(asked)).random(len(doubt))
    return int(np.argmin(doubt + 1e-9 * ties))


def measure(
    person: Person,
    ways: Sequence[Way],
    as_meant: float,
    asking: JudgedPool,
    unseen: JudgedPool,
    generator: Generator,
) -> list[dict[str, Any]]:
    """Rows of one person: a way of asking, a number of answers, and what is known then."""
    held = hold_out(person, asking, unseen)
    rows = []
    for way in ways:
        for step in learn(person, way, as_meant, asking, generator):
            taste = step.taste
            weights = np.array(list(taste.preference().weights.values()))
            length = float(np.linalg.norm(weights))
            within = [
                one.low <= best <= one.high
                for one, best in zip(taste.uncertainty(LEVEL).values(), held.best, strict=True)
            ]
            agreement = taste.agreement()
            rows.append(
                {
                    "way": way,
                    "answers": step.count,
                    "as_meant": as_meant,
                    "accuracy": held.accuracy(weights),
                    "attainable": held.attainable,
                    "sliders": held.sliders,
                    "cosine": float(weights @ held.best / max(length, 1e-12)),
                    "length": length,
                    "covered": float(np.mean(within)),
                    "width": float(np.mean([one.high - one.low for one in taste.uncertainty(LEVEL).values()])),
                    "right": None if agreement is None else agreement.right,
                    "expected": None if agreement is None else agreement.expected,
                }
            )
    return rows
