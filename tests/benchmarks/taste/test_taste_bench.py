"""Simulated people, on pools made by hand: what they answer, what is learned, and what the figures count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from benchmarks.quality.replies import JudgedReply
from benchmarks.taste import closed_loop, learning
from benchmarks.taste.closed_loop import LEARNED, PAIRS, Arm, held_against
from benchmarks.taste.judged_pool import JudgedPool
from benchmarks.taste.learning import COUNTS, hold_out, learn, measure
from benchmarks.taste.person import Person, draw_people, feeling
from pad_rt import ReplyPool
from pad_rt.taste.reply_pool import PooledPrompt, PooledReply
from tests.support import tiny_bundles

FEATURES = ("kind", "brief", "odd")
GENERATOR: Any = SimpleNamespace(
    manifest=SimpleNamespace(
        persrms=[SimpleNamespace(features=FEATURES, adapter="a", feature_head=None)],
        is_contrast=lambda persrm: False,
        base="a base",
    )
)
KIND = Person({"kind": 1.0}, panel=0, seed=0)


def make_pool(seed: int, *, noise: float = 0.0, prompts: int = 12) -> JudgedPool:
    """phi of "kind" and "brief" is what the first panel measures of them, times 40; the second panel measures noise."""
    rng = np.random.default_rng(seed)
    scores = {name: rng.standard_normal((4 * prompts, 2)) for name in ("kind", "brief", "asks")}
    phi = 40 * np.stack(
        [scores["kind"][:, 0], scores["brief"][:, 0], rng.standard_normal(4 * prompts)], axis=-1
    ) + noise * rng.standard_normal((4 * prompts, 3))
    replies = [PooledReply(f"reply {at}", False, tuple(row)) for at, row in enumerate(phi.tolist())]
    pooled = tuple(PooledPrompt(f"question {at}", tuple(replies[4 * at : 4 * at + 4])) for at in range(prompts))
    return JudgedPool(ReplyPool(FEATURES, pooled), scores)


def test_pairs_are_of_one_prompt() -> None:
    pool = make_pool(0, prompts=2)
    assert pool.pairs == [(i, j) for start in (0, 4) for i in range(start, start + 4) for j in range(i + 1, start + 4)]
    assert pool.phi.shape == (8, 3)


@pytest.mark.parametrize("share", [0.7, 0.84, 0.95])
def test_this_share_of_the_answers_is_as_meant(share: float) -> None:
    pool = make_pool(1, prompts=40)
    utilities = KIND.utility(pool.scores)
    scale = feeling(utilities, pool.pairs, share)
    first, second = np.array(pool.pairs).T
    chances = 1 / (1 + np.exp(-scale * np.abs(utilities[first] - utilities[second])))
    assert chances.mean() == pytest.approx(share, abs=0.005)


def test_populations() -> None:
    names = ("cheerful", "simple", "concise", "warm")
    for population, most in (("three", 3), ("mixed", 3), ("single", 1), ("outside", 1)):
        people = draw_people(population, 16, names)
        assert people == draw_people(population, 16, names)
        assert {person.panel for person in people} == {0, 1}
        for person in people:
            assert 1 <= len(person.wish) <= most
            assert np.linalg.norm(list(person.wish.values())) == pytest.approx(1)
            assert bool(person.weights(names)) == (population != "outside")
    wishes = {tuple(person.wish.items()) for person in draw_people("single", 16, names)}
    assert wishes == {((name, sign),) for name in names for sign in (1.0, -1.0)}


def test_what_can_be_attained() -> None:
    """All of it where phi is the utility, a coin's where no feature says anything of it."""
    asking, unseen = make_pool(2, prompts=40), make_pool(3, prompts=40)
    held = hold_out(KIND, asking, unseen)
    assert held.attainable > 0.98
    assert held.sliders == 1.0
    assert held.best[0] > 0.98
    outside = hold_out(Person({"asks": 1.0}, 0, 0), asking, unseen)
    assert outside.attainable == pytest.approx(0.5, abs=0.12)
    assert outside.sliders == 0.5


@pytest.mark.parametrize("way", learning.WAYS)
def test_a_person_is_learned(way: learning.Way) -> None:
    asking, unseen = make_pool(2, noise=20.0), make_pool(3, noise=20.0)
    held = hold_out(KIND, asking, unseen)
    steps = learn(KIND, way, 0.95, asking, GENERATOR, most=12)
    assert [step.count for step in steps] == [count for count in COUNTS if count <= 12]
    assert [step.taste.num_answers for step in steps] == [step.count for step in steps]
    assert len({tuple(sorted((question, *texts))) for question, *texts in steps[-1].pairs}) == 12, "no pair twice"
    weights = np.array(list(steps[-1].taste.preference().weights.values()))
    assert held.accuracy(weights) > 0.9 * held.attainable > 0.7
    assert held.accuracy(-weights) == pytest.approx(1 - held.accuracy(weights))
    assert held.accuracy(0 * weights) == 0.5
    again = learn(KIND, way, 0.95, asking, GENERATOR, most=12)
    assert [step.pairs for step in again] == [step.pairs for step in steps]


def test_rows_of_a_person() -> None:
    asking, unseen = make_pool(2, noise=20.0), make_pool(3, noise=20.0)
    rows = measure(KIND, ("asked", "random"), 0.84, asking, unseen, GENERATOR)
    assert [(row["way"], row["answers"]) for row in rows] == [(way, n) for way in ("asked", "random") for n in COUNTS]
    for row in rows:
        assert 0 <= row["covered"] <= 1
        assert -1 <= row["cosine"] <= 1.0001
        assert row["length"] <= 1
    asked = rows[: len(COUNTS)]
    assert asked[-1]["width"] < asked[0]["width"]
    assert asked[-1]["cosine"] > 0.9
    assert rows[0]["right"] is None


def replies(*texts: str) -> list[JudgedReply]:
    return [JudgedReply(f"question {at}", text, (), False) for at, text in enumerate(texts)]


def test_wins_and_gains_are_the_persons_own() -> None:
    def instruments(given: Any) -> Any:
        return {"kind": np.array([[reply.text.count("kind"), 0] for reply in given], np.float64)}

    base = replies("kind", "", "kind")
    arms = {LEARNED: [replies("kind kind", "", "")] * 2, PAIRS: [replies("", "kind", "kind")] * 2}
    likes, dislikes = KIND, Person({"kind": -1.0}, 0, 1)
    found = held_against([likes, dislikes], arms, base, instruments)  # type: ignore[arg-type]
    assert found[LEARNED]["win"].tolist() == [pytest.approx(1.5 / 3), pytest.approx(1.5 / 3)]
    assert found[PAIRS]["win"].tolist() == [pytest.approx(1.5 / 3), pytest.approx(1.5 / 3)]
    assert found[LEARNED]["gain"].tolist() == [0, 0]
    assert found[LEARNED]["win over pairs"].tolist() == [pytest.approx(1 / 3), pytest.approx(2 / 3)]


def test_replies_of_an_arm_are_kept(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = tiny_bundles.load(tiny_bundle)
    monkeypatch.setattr(closed_loop, "config", lambda: {"max_new_tokens": 4})
    pairs = (("Why?", "So it is.", "Because."),)
    prompt = closed_loop.prompted(pairs, "the cook")
    assert str(prompt).index("First: So it is.") < str(prompt).index("Second: Because.") < str(prompt).index("the cook")
    expected = {
        "base": generator.generate("the cook", config={"max_new_tokens": 4}).text,
        "pairs": generator.generate(prompt, config={"max_new_tokens": 4}).text,
    }
    for arm in (Arm("base"), Arm("pairs", pairs=pairs)):
        (reply,) = arm.replies(tmp_path, "mark", generator, ["the cook"])
        assert (reply.prompt, reply.text) == ("the cook", expected[arm.name])
    none: Any = None
    assert Arm("base").replies(tmp_path, "mark", none, ["the cook"])[0].text == expected["base"]
    with pytest.raises(AttributeError):
        Arm("base").replies(tmp_path, "another", none, ["the cook"])
