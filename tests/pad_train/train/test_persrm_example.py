from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pad_train.pairs.feature import Feature
from pad_train.pairs.pair import Pair
from pad_train.train.backbone import Backbone
from pad_train.train.example import (
    WORDS,
    Example,
    TrainingBatch,
    feature_names,
    make_batch,
    make_examples,
    swapped,
    with_words,
)
from pad_train.train.reward_model import RewardModel
from tests.support import tiny_training

PAIR = Pair(({"role": "user", "content": "the egg"},), "the cook boils", "the egg boils")
WINDOWED = {"sliding_window": 5}
EXAMPLES = [  # of unequal lengths; in one the base reads another prompt than the PersRM
    Example([5, 6, 7], [5, 6, 7, 8, 30], [10, 11, 12], [13, 14], None, "x"),
    Example([9], [9], [20, 21, 22, 23, 24, 25], [13], None, "x"),
    Example([9, 40, 41], [9, 40, 41, 7], [13], [20, 21, 22, 23, 24, 25, 40], None, "x"),
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return tiny_training.make_backbone(tmp_path_factory.mktemp("example") / "base")


def alone(backbone: Backbone, examples: Sequence[Example], *, plain: bool = False) -> torch.Tensor:
    """Hidden states before each reply token, every reply run by itself after its prompt, unpadded and unmasked."""
    states = []
    for example in examples:
        prompt = example.plain if plain else example.prompt
        for reply in (example.chosen, example.rejected):
            output = backbone.model.model(torch.tensor([prompt + reply])).last_hidden_state[0]
            states.append(output[len(prompt) - 1 : -1])
    return torch.cat(states)


# -- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_by_hand() -> None:
    batch = make_batch(EXAMPLES[:2])
    assert batch.ids.tolist() == [
        [5, 6, 7, 8, 30, 10, 11, 12, 13, 14],
        [9, 20, 21, 22, 23, 24, 25, 13, 0, 0],
    ]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 5, 6], [0, 1, 2, 3, 4, 5, 6, 1, 0, 0]]
    assert batch.rows.tolist() == [0] * 5 + [1] * 7
    assert batch.sources.tolist() == [4, 5, 6, 4, 8, 0, 1, 2, 3, 4, 5, 0]
    assert batch.targets.tolist() == [10, 11, 12, 13, 14, 20, 21, 22, 23, 24, 25, 13]
    assert batch.signs.tolist() == [1, 1, 1, -1, -1, 1, 1, 1, 1, 1, 1, -1]
    assert batch.sees[0, 9].tolist() == [True] * 5 + [False] * 3 + [True] * 2  # rejected sees prompt and itself
    assert batch.sees[0, 7].tolist() == [True] * 8 + [False] * 2
    assert batch.sees[1, 9].tolist() == [False] * 9 + [True]  # padding sees itself, so that no softmax is empty


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}), ("mistral", WINDOWED), ("qwen3", {}), ("gemma", {}),
        ("gemma2", WINDOWED), ("gemma3_text", WINDOWED),
    ],
)  # fmt: skip
@torch.no_grad()
def test_packed_replies_are_as_alone(tmp_path: Path, family: str, config: dict[str, int]) -> None:
    backbone = tiny_training.make_backbone(tmp_path / "base", family, **config)
    expected = alone(backbone, EXAMPLES)
    model = RewardModel(backbone, ("a",), rank=2, alpha=4.0)
    batch = make_batch(EXAMPLES)
    torch.testing.assert_close(model.hidden(batch), expected, atol=1e-4, rtol=1e-4)
    causal = torch.ones_like(batch.sees).tril()
    assert (model.hidden(replace(batch, sees=causal)) - expected).abs().max() > 0.05  # rejected sees chosen
    in_a_row = torch.arange(batch.ids.shape[1]).expand(len(EXAMPLES), -1)
    assert (model.hidden(replace(batch, positions=in_a_row)) - expected).abs().max() > 0.05


@torch.no_grad()
def test_a_plain_batch_has_the_prompt_of_the_base(backbone: Backbone) -> None:
    expected = alone(backbone, EXAMPLES, plain=True)
    assert (expected - alone(backbone, EXAMPLES)).abs().max() > 0.05
    model = RewardModel(backbone, ("a",), rank=2, alpha=4.0)
    torch.testing.assert_close(model.hidden(make_batch(EXAMPLES, plain=True)), expected, atol=1e-4, rtol=1e-4)
    backbone.model.eval()


def test_a_batch_of_one_is_its_row() -> None:
    whole: TrainingBatch = make_batch(EXAMPLES)
    for row, example in enumerate(EXAMPLES):
        one = make_batch([example])
        width = one.ids.shape[1]
        assert torch.equal(whole.ids[row, :width], one.ids[0])
        assert torch.equal(whole.sees[row, :width, :width], one.sees[0])
        assert torch.equal(whole.targets[whole.rows == row], one.targets)


# -- people ---------------------------------------------------------------------------------------------------------


def examples_of(
    pairs: list[Pair], backbone: Backbone, features: Sequence[str] = ("a", "b"), **limits: int
) -> tuple[list[Example], Counter[str]]:
    arguments = {"max_prompt": 400, "max_reply": 100, "seed": 0} | limits
    return make_examples(pairs, backbone, features, **arguments)


def test_people_who_say_what_they_want(backbone: Backbone) -> None:
    pairs = [
        replace(PAIR, weights={"b": -2.0}),
        replace(PAIR, weights={"a": 0.5, "b": 1.0}),
        replace(PAIR, preference="kind"),
        replace(PAIR, preference="kind", weights={"a": 1.0}),
        PAIR,
    ]
    examples, counts = examples_of(pairs, backbone)
    assert [(example.weights, example.label) for example in examples] == [
        ((0.0, -2.0), "b"),
        ((0.5, 1.0), "mixtures"),
        (None, WORDS),
        ((1.0, 0.0), "a"),
        (None, "learned"),
    ]
    assert not counts
    plain = backbone.encode_prompt(PAIR.messages)
    worded = backbone.encode_prompt(PAIR.messages, "kind")
    assert plain != worded
    assert [example.prompt for example in examples] == [plain, plain, worded, worded, plain]
    assert all(example.plain == plain for example in examples)


def test_a_reply_in_between_is_imitated_by_nobody(backbone: Backbone) -> None:
    usual = {"chosen": "the egg", "rejected": "cook"}
    pairs = [
        replace(PAIR, chosen="boils", rejected="the egg", weights={"a": 1.0}),
        replace(PAIR, **usual, weights={"a": 1.0}),
        replace(
            PAIR, chosen="cook", rejected="the egg", weights={"a": -1.0}
        ),  # the second, seen by the opposite person
        replace(PAIR, chosen="the egg", rejected="boils", preference="kind"),
        replace(PAIR, chosen="cook", rejected="a b", preference="kind"),
        PAIR,
    ]
    assert [example.imitated for example in examples_of(pairs, backbone)[0]] == [
        (True, False),
        (False, True),
        (True, False),
        (False, False),  # in words nobody is known to want the opposite
        (True, False),
        (True, False),
    ]
    elsewhere = ({"role": "user", "content": "another"},)
    alone = [replace(pairs[0], messages=elsewhere), pairs[1]]
    assert [example.imitated for example in examples_of(alone, backbone)[0]] == [(True, True), (True, True)]
    apart = [pairs[0], replace(pairs[1], weights={"b": 1.0})]
    assert [example.imitated for example in examples_of(apart, backbone)[0]] == [(True, True), (True, True)]


def test_margins_become_people(backbone: Backbone) -> None:
    pairs = [replace(PAIR, margins={"a": 3.0, "b": -0.5, "c": 0.0}), replace(PAIR, margins={"a": -1.0})]
    examples, _ = examples_of(pairs, backbone, ("a", "b", "c"))
    assert [example.label for example in examples] == ["a", "b", "mixtures", "a"]
    assert [examples[index].weights for index in (0, 1, 3)] == [(1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)]


def test_a_mixture_prefers_the_chosen_reply_in_units_of_the_margins_own_spread(backbone: Backbone) -> None:
    pairs = [replace(PAIR, margins={"a": 1.0, "b": -1000.0}), replace(PAIR, margins={"a": 1.0, "b": 2000.0})] * 20
    examples, _ = examples_of(pairs, backbone)
    mixtures = [example.weights for example in examples if example.label == "mixtures"]
    assert len(mixtures) == 40
    scale = math.sqrt((1000.0**2 + 2000.0**2) / 2)
    raw = []
    for weights, pair in zip(mixtures, pairs, strict=True):
        assert weights is not None
        assert math.hypot(*weights) == pytest.approx(1.0)
        assert weights[0] * pair.margins["a"] + weights[1] * pair.margins["b"] / scale > 0
        raw.append(weights[0] * pair.margins["a"] + weights[1] * pair.margins["b"] > 0)
    assert not all(raw)  # in raw units the large feature alone would decide
    assert len(set(mixtures)) == 40


def test_a_seed_draws_the_same_people(backbone: Backbone) -> None:
    pairs = [replace(PAIR, margins={"a": 3.0, "b": -0.5})]
    assert examples_of(pairs, backbone, seed=3) == examples_of(pairs, backbone, seed=3)
    assert examples_of(pairs, backbone, seed=3) != examples_of(pairs, backbone, seed=4)


def test_what_is_left_out_or_cut_is_counted(backbone: Backbone) -> None:
    long_prompt = replace(PAIR, messages=({"role": "user", "content": "the egg " * 400},))
    same = replace(PAIR, chosen="the egg " * 6 + "cook", rejected="the egg " * 6 + "boils")
    zero = replace(PAIR, margins={"a": 0.0})
    pairs = [long_prompt, PAIR, same, zero, replace(PAIR, preference="kind " * 400)]
    examples, counts = examples_of(pairs, backbone, max_reply=2)
    assert len(examples) == 1
    assert counts == {
        "a prompt of more than 400 tokens, left out": 2,
        "a reply of more than 2 tokens, cut": sum(
            len(backbone.encode_reply(text, finished=True)) > 2
            for pair in (PAIR, same, zero)
            for text in (pair.chosen, pair.rejected)
        ),
        "replies that are the same once cut, left out": 1,
        "margins that are all zero, left out": 1,
    }
    assert len(examples[0].chosen) == len(examples[0].rejected) == 2


def test_words_stay_when_no_feature_tells_the_replies_apart(backbone: Backbone) -> None:
    examples, counts = examples_of([replace(PAIR, preference="kind", margins={"a": 0.0})], backbone)
    assert [(example.weights, example.label) for example in examples] == [(None, WORDS)]
    assert not counts


def test_only_a_finished_reply_ends(backbone: Backbone) -> None:
    (example,), _ = examples_of([replace(PAIR, rejected_finished=False)], backbone)
    assert example.chosen[-1] == backbone.eos_id
    assert example.chosen[:-1] == backbone.encode_reply(PAIR.chosen, finished=False)
    assert backbone.eos_id not in example.rejected
    assert backbone.tokenizer.decode(example.rejected) == PAIR.rejected


def test_turns_that_the_chat_template_refuses_are_counted(backbone: Backbone) -> None:
    template = backbone.tokenizer.chat_template
    backbone.tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + template
    )
    try:
        system = replace(PAIR, messages=({"role": "system", "content": "Be kind."}, *PAIR.messages))
        examples, counts = examples_of([system, PAIR], backbone)
    finally:
        backbone.tokenizer.chat_template = template
    assert len(examples) == 1
    assert counts == {"turns that the chat template refuses (No system role), left out": 1}


# -- features and words ---------------------------------------------------------------------------------------------


def test_feature_names() -> None:
    pairs = [replace(PAIR, weights={"b": 1.0}), replace(PAIR, margins={"c": 1.0, "b": 2.0}), PAIR]
    assert feature_names(pairs) == ("b", "c")
    assert feature_names([*pairs, replace(PAIR, preference="kind", weights={"d": 1.0})]) == ("b", "c", "d")
    assert feature_names([replace(PAIR, preference="kind"), *pairs]) == ("b", "c", WORDS)
    assert feature_names([PAIR]) == (WORDS,)


def test_the_opposite_person() -> None:
    pair = replace(PAIR, weights={"a": 1.0}, margins={"b": -2.0}, chosen_finished=False)
    other = swapped(pair)
    assert (other.chosen, other.rejected) == (pair.rejected, pair.chosen)
    assert (other.weights, other.margins) == ({"a": -1.0}, {"b": 2.0})
    assert (other.chosen_finished, other.rejected_finished) == (True, False)
    assert swapped(other) == pair


def test_people_in_words() -> None:
    features = {"a": Feature("a", more=("more a", "much a"), less=("less a", "no a")), "quiet": Feature("quiet")}
    chosen = replace(PAIR, weights={"a": 1.0}, rejected_finished=False)
    rejected = replace(swapped(chosen), weights={"a": -1.0})  # the same verdict, told from the other side
    others = [
        PAIR, replace(PAIR, preference="kind"), replace(PAIR, weights={"a": 1.0, "b": 1.0}),
        replace(PAIR, weights={"b": 1.0}), replace(PAIR, weights={"quiet": 1.0}),
    ]  # fmt: skip
    pairs = [chosen, rejected] * 20 + others
    result = with_words(pairs, features, 0)
    assert result[: len(pairs)] == pairs
    spoken = result[len(pairs) :]
    assert len(spoken) == 40
    assert {pair.preference for pair in spoken} == {"more a", "much a", "less a", "no a"}
    for pair in spoken:
        assert not pair.weights
        more = pair.preference in features["a"].more
        assert (pair.chosen, pair.chosen_finished) == ((PAIR.chosen, True) if more else (PAIR.rejected, False))
        assert (pair.rejected, pair.rejected_finished) == ((PAIR.rejected, False) if more else (PAIR.chosen, True))
    assert with_words(pairs, features, 0) == result
    assert with_words(pairs, features, 1) != result
    some = with_words(pairs, features, 0, 0.5)
    assert len(some) == len(pairs) + len(pairs) // 2
    assert all(pair in spoken for pair in some[len(pairs) :])
    assert some[len(pairs) :] != spoken[: len(some) - len(pairs)]
    only_less = with_words([chosen], {"a": Feature("a", less=("less a",))}, 0)[1]
    assert (only_less.preference, only_less.chosen) == ("less a", PAIR.rejected)
