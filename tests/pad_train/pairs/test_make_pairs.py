"""From prompts to pairs: more of the feature against less, and what makes no pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from pad_export.output.stages import Stages
from pad_runtime.errors import OptionError
from pad_train.pairs import make_pairs as module
from pad_train.pairs import pair_choice
from pad_train.pairs.feature import Feature
from pad_train.pairs.make_pairs import make_pairs, plan_tasks
from pad_train.pairs.pair_choice import MadeReply
from pad_train.pairs.scorer import Critic, checked
from pad_train.train.backbone import Backbone
from tests.support.error_checks import refused
from tests.support.sampled_pairs import PROMPTS, feature, length, many_vowels, pairs_of, sample


def test_chosen_has_more_of_the_feature(backbone: Backbone, tmp_path: Path) -> None:
    counts = sample(backbone, tmp_path / "pairs.jsonl")
    pairs = pairs_of(tmp_path / "pairs.jsonl")
    assert counts["vowels"] == len(pairs)
    assert len(pairs) >= 8
    assert sum(counts.values()) == 2 * len(PROMPTS)  # more and usual, usual and less: kept, or counted as dropped
    gaps = [many_vowels([""], [pair.chosen])[0] - many_vowels([""], [pair.rejected])[0] for pair in pairs]
    assert min(gaps) > 0
    assert all(pair.weights == {"vowels": 1.0} for pair in pairs)
    assert [pair.messages[0]["content"] for pair in pairs] == sorted(pair.messages[0]["content"] for pair in pairs)
    shared = {pair.rejected for pair in pairs} & {pair.chosen for pair in pairs}
    assert shared  # the usual reply stands between the other two


def test_choosing_block_by_block_tells_the_replies_apart(backbone: Backbone, tmp_path: Path) -> None:
    lengths: dict[int, tuple[float, float]] = {}
    for samples in (1, 6):
        prompts = [f"boil {number}" for number in range(16)]
        output = tmp_path / f"{samples}.jsonl"
        sample(backbone, output, [feature(samples=samples, block=2)], prompts=prompts, scorer=length)
        sides = {pair.chosen for pair in pairs_of(output)}, {pair.rejected for pair in pairs_of(output)}
        usual = sides[0] & sides[1]
        best, worst = (sum(length([], list(side - usual))) / len(side - usual) for side in sides)
        lengths[samples] = best, worst
    assert lengths[6][0] - lengths[6][1] > lengths[1][0] - lengths[1][1] + 2


def test_what_makes_no_pair_is_counted(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample(backbone, tmp_path / "same.jsonl", scorer=lambda prompts, texts: [1.0] * len(texts))
    assert rows == {"the scorer sees no difference": 12}
    assert (tmp_path / "same.jsonl").read_text() == ""
    rows = sample(backbone, tmp_path / "gap.jsonl", [feature(min_gap=1e5)])
    assert rows == {"the scorer sees no difference": 12}
    assert sample(backbone, tmp_path / "short.jsonl", [feature(min_words=100)]) == {"too short": 12}
    monkeypatch.setattr(pair_choice, "repeats_itself", lambda _: True)
    assert sample(backbone, tmp_path / "same again.jsonl") == {"repeats itself": 12}


def test_a_reply_may_be_set_against_its_own_beginning(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a b c d e. f", "a b. c d! e f", "no sentence ends here", "The first? The second. The third"]
    usual = [MadeReply(text, finished=False) for text in texts]
    styled = [*([MadeReply("a b c", finished=True)] * 4), *([MadeReply("a b c d " * 9, finished=False)] * 4)]
    monkeypatch.setattr(module, "sample_replies", lambda *_, samples, **__: usual if samples == 1 else styled)
    short = [feature("short", ends_early=True, min_words=3)]
    prompts = [f"p{index}" for index in range(4)]
    tasks = plan_tasks(prompts, short, batch=4)
    critics = {"short": Critic(lambda prompts, texts: [-float(len(text)) for text in texts])}
    counts = make_pairs(
        backbone,
        tasks,
        critics,
        tmp_path / "pairs.jsonl",
        settings={},
        seed=0,
        stages=Stages(),
    )
    pairs = [pair for pair in pairs_of(tmp_path / "pairs.jsonl") if pair.rejected.startswith(pair.chosen[:8])]
    pairs = [pair for pair in pairs if pair.chosen != "a b c" and pair.rejected in texts]
    assert [(pair.messages[0]["content"], pair.chosen, pair.rejected) for pair in pairs] == [
        ("p0", "a b c d e.", texts[0]),
        ("p1", "a b. c d!", texts[1]),
        ("p3", "The first? The second.", texts[3]),
    ]
    assert all(pair.chosen_finished and not pair.rejected_finished for pair in pairs)
    assert counts == {"short": 11, "the scorer sees no difference": 1}


def test_all_features_of_some_prompts_come_first() -> None:
    tasks = plan_tasks(PROMPTS[:3], [feature("a"), Feature("unsampled"), feature("b")], batch=2)
    plan = [(task.feature.name, task.prompts) for task in tasks]
    assert plan == [
        ("a", tuple(PROMPTS[:2])), ("b", tuple(PROMPTS[:2])), ("a", (PROMPTS[2],)), ("b", (PROMPTS[2],)),
    ]  # fmt: skip
    assert len({task.key for task in tasks}) == 4


def test_each_prompt_may_have_some_of_the_features_in_turn() -> None:
    features = [feature(name) for name in "abc"]
    tasks = plan_tasks(PROMPTS[:4], features, batch=1, per_prompt=2)
    assert [task.feature.name for task in tasks] == ["a", "b", "c", "a", "b", "c", "a", "b"]
    assert [task.prompts for task in tasks] == [(prompt,) for prompt in PROMPTS[:4] for _ in range(2)]
    assert plan_tasks(PROMPTS, features, batch=2, per_prompt=9) == plan_tasks(PROMPTS, features, batch=2)


def test_what_is_vetoed_is_in_no_pair(backbone: Backbone, tmp_path: Path) -> None:
    all_of_them = make_pairs(
        backbone, plan_tasks(PROMPTS, [feature()], batch=2),
        {"vowels": Critic(many_vowels, lambda prompts, texts: ["off" if "a" in text else "" for text in texts])},
        tmp_path / "pairs.jsonl", settings={}, seed=0, stages=Stages(),
    )  # fmt: skip
    pairs = pairs_of(tmp_path / "pairs.jsonl")
    assert all_of_them["off"] + len(pairs) <= 2 * len(PROMPTS)
    assert all_of_them["off"] > 0
    assert not any("a" in pair.chosen or "a" in pair.rejected for pair in pairs)


def test_a_scorer_that_does_not_answer_as_it_should(backbone: Backbone, tmp_path: Path) -> None:
    broken = checked("mine.py:score", lambda prompts, texts: [float("nan")] * len(texts))
    with refused(OptionError, given="scorer mine.py:score gave [nan", expected="one finite number each"):
        sample(backbone, tmp_path / "pairs.jsonl", scorer=broken)
    assert not (tmp_path / "pairs.jsonl").exists()
