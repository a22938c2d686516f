"""`Generator.score` against torch: what the base and every PersRM make of a reply, behind what each of them reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pad_rt import EncodedPrompt, Generator, PadError, Preference, ReplyScore
from pad_runtime.errors import OptionError, PreferenceError, PromptError
from tests.support import score_oracle, tiny_bundles
from tests.support.bundle_text import read_tokenizer
from tests.support.error_checks import check_line, edit_manifest, refused
from tests.support.guided_models import PREFERENCES, PROMPTS, TEMPLATE, Models, Plan
from tests.support.score_oracle import OracleReward

TOLERANCE = 1e-4
TOP_K = 64  # of training: the default
REPLY = "the egg boils 東京 !"
FEATURES = {"plain": ["plain"], "official": ["official"], "many": ["kind", "brief", "odd"]}
PAPER_TEMPLATE = (
    "[Guidelines] Your task is to generate response by considering the following principle. "
    "[Principles] {p} [Instruction] {x}"
)
TEMPLATES = {"plain": PAPER_TEMPLATE, "official": TEMPLATE, "many": TEMPLATE}


def encode(models: Models, reply: str) -> tuple[int, ...]:
    return tuple(read_tokenizer(models.bundle("base")).encode(reply, add_special_tokens=False).ids)


def turn(models: Models, name: str, prompt: str, words: str | None) -> tuple[int, ...]:
    """What a PersRM reads."""
    text = prompt if words is None else TEMPLATES[name].replace("{p}", words).replace("{x}", prompt)
    return tiny_bundles.encode_turn(models.bundle("base"), text)


def phi(
    models: Models,
    name: str,
    prompt: str,
    words: str | None,
    reply: Sequence[int],
    reference: str = "base",
    **changes: Any,
) -> np.ndarray:
    """phi of a PersRM by torch: [tokens, features]."""
    read = turn(models, changes.pop("read_by", name), prompt, words)
    reward = OracleReward(models.persrms[name], read, None if reference == "base" else models.base)
    top_k = changes.pop("top_k", TOP_K)
    return np.asarray(score_oracle.phi(models.base, turn(models, name, prompt, None), reply, reward, top_k))


def columns(score: ReplyScore, names: Sequence[str]) -> np.ndarray:
    return np.array([[token.features[name] for name in names] for token in score.per_token])


def assert_near(given: Any, expected: Any) -> None:
    np.testing.assert_allclose(given, expected, atol=TOLERANCE, rtol=0)


def assert_sums(score: ReplyScore) -> None:
    """The sums are of the tokens."""
    assert score.token_ids == tuple(token.id for token in score.per_token)
    assert score.logprob == pytest.approx(sum(token.logprob for token in score.per_token))
    for name, value in score.features.items():
        assert value == pytest.approx(sum(token.features[name] for token in score.per_token))


@pytest.mark.parametrize("reference", ["base", "backbone"])
def test_without_a_preference_every_feature_of_the_bundle(models: Models, reference: str) -> None:
    generator = tiny_bundles.load(models.bundle(reference))
    ids = encode(models, REPLY)
    for prompt in PROMPTS:
        score = generator.score(prompt, REPLY)
        assert (score.token_ids, score.reward) == (ids, None)
        assert "".join(token.text for token in score.per_token) == REPLY
        base = score_oracle.log_probs(models.base, turn(models, "plain", prompt, None), ids)
        assert_near([token.logprob for token in score.per_token], base)
        assert list(score.features) == ["plain", "official", "kind", "brief", "odd"]
        for name, features in FEATURES.items():
            assert_near(columns(score, features), phi(models, name, prompt, None, ids, reference))
        assert_sums(score)


@pytest.mark.parametrize("name", [name for name in PREFERENCES if PREFERENCES[name][1]])
@pytest.mark.parametrize("reference", ["base", "backbone"])
def test_every_kind_of_preference(models: Models, reference: str, name: str) -> None:
    """Each PersRM that it calls on, on what it reads in decoding; rewards are what decoding adds, before beta."""
    preference, plan = PREFERENCES[name]
    generator, ids = tiny_bundles.load(models.bundle(reference)), encode(models, REPLY)
    score = generator.score(PROMPTS[0], REPLY, preference)
    assert_near([token.reward for token in score.per_token], _rewards(models, plan, ids, reference))
    for persrm, words, _, _ in plan[:1]:
        assert_near(columns(score, FEATURES[persrm]), phi(models, persrm, PROMPTS[0], words, ids, reference))
    assert score.reward == pytest.approx(sum(token.reward or 0.0 for token in score.per_token))
    assert_sums(score)


def _rewards(models: Models, plan: Plan, ids: Sequence[int], reference: str) -> np.ndarray:
    return np.sum(
        [
            scale * phi(models, persrm, PROMPTS[0], words, ids, reference) @ np.array(weights)
            for persrm, words, weights, scale in plan
        ],
        axis=0,
    )


def test_what_must_not_agree(models: Models, generator: Generator) -> None:
    """The known-wrong readings of one preference: each is far off."""
    preference = Preference(text="egg", weights={"kind": 1.5, "brief": -0.75})
    ids = encode(models, REPLY)
    score = generator.score(PROMPTS[0], REPLY, preference)
    given, weights = columns(score, FEATURES["many"]), np.array([1.5, -0.75, 0.0])
    right = phi(models, "many", PROMPTS[0], "egg", ids)
    assert_near(given, right)
    assert_near([token.reward for token in score.per_token], right @ weights)

    def differs(other: np.ndarray) -> bool:
        return float(np.abs(given - other).max()) > 100 * TOLERANCE

    assert differs(phi(models, "many", PROMPTS[0], None, ids))  # without the preference's words
    assert differs(phi(models, "many", PROMPTS[0], "egg", ids, read_by="plain"))  # another PersRM's template
    assert differs(phi(models, "many", PROMPTS[0], "egg", ids, "backbone"))  # another reference
    assert differs(phi(models, "many", PROMPTS[0], "egg", ids, top_k=10))  # decoding's candidates
    assert differs(given[:, [1, 0, 2]])  # features that changed places
    assert np.abs(right @ weights[[1, 0, 2]] - right @ weights).max() > 100 * TOLERANCE
    other = generator.score(PROMPTS[1], REPLY, preference)
    assert differs(columns(other, FEATURES["many"]))  # another prompt


def test_one_persrm_on_two_prompts(models: Models, generator: Generator) -> None:
    """Words in two preferences: the second reading's features have its number."""
    preference = [("be kind", 1.0), ("cook", -0.5), ("be kind", 0.25)]
    ids = encode(models, REPLY)
    score = generator.score(PROMPTS[0], REPLY, preference)
    assert list(score.features) == ["plain", "plain #2"]
    first, second = (phi(models, "plain", PROMPTS[0], words, ids)[:, 0] for words in ("be kind", "cook"))
    assert_near(columns(score, ["plain", "plain #2"]), np.stack([first, second], axis=1))
    assert_near([token.reward for token in score.per_token], 1.25 * first - 0.5 * second)


def test_a_batch_is_worth_what_each_is_alone(models: Models, generator: Generator) -> None:
    prompts: list[Any] = [PROMPTS[0], PROMPTS[1], [{"role": "user", "content": PROMPTS[2]}], PROMPTS[0], PROMPTS[3]]
    replies: list[Any] = [REPLY, [5, 17, 300], "no", "a " * 60, REPLY]
    preferences = [
        None,
        "be kind",
        PREFERENCES["several preferences with scales"][0],
        Preference(weights={"odd": 1.0}),
        None,
    ]
    together = generator.score_batch(prompts, replies, preferences, ended=False)
    for prompt, reply, preference, score in zip(prompts, replies, preferences, together, strict=True):
        alone = generator.score(prompt, reply, preference)
        assert (score.token_ids, list(score.features)) == (alone.token_ids, list(alone.features))
        assert_near([token.logprob for token in score.per_token], [token.logprob for token in alone.per_token])
        assert_near(columns(score, list(alone.features)), columns(alone, list(alone.features)))
        assert (score.reward is None) == (preference is None)
    assert generator.score_batch([], []) == []
    (first, second) = generator.score_batch(PROMPTS[:2], [REPLY, REPLY])
    assert first.logprob != second.logprob


def test_a_guided_reply_has_the_rewards_that_chose_it(models: Models, generator: Generator) -> None:
    """Differences of scores in a trace are differences of what is scored: the same sum, of the same readings."""
    preference = PREFERENCES["several PersRMs in one"][0]
    config = {"top_k": 2, "max_new_tokens": 1, "beta": 1.0}
    result = generator.generate(PROMPTS[0], preference=preference, config=config, trace=True)
    step = result.trace[0]
    scores = generator.score_batch([PROMPTS[0]] * 2, [[id] for id in step.candidates.tolist()], [preference] * 2)
    total = [score.logprob + (score.reward or 0.0) for score in scores]
    # T holds both candidates whichever of them is scored, and normalisers are the same for both.
    assert total[1] - total[0] == pytest.approx(float(step.scores[1] - step.scores[0]), abs=1e-3)
    assert scores[1].logprob - scores[0].logprob == pytest.approx(
        float(step.base_logits[1] - step.base_logits[0]), abs=1e-3
    )


def test_the_end_of_the_turn(models: Models) -> None:
    generator = tiny_bundles.load(tiny_bundles.set_eos(models.bundle("base", max_top_k=9), (2, 1)))
    eos = read_tokenizer(models.bundle("base")).token_to_id("</s>")
    ids = encode(models, REPLY)
    assert generator.score(PROMPTS[0], REPLY).token_ids == ids
    ended = generator.score(PROMPTS[0], REPLY, ended=True)
    assert ended.token_ids == (*ids, eos)
    assert ended.per_token[-1].text == "</s>"
    assert generator.score(PROMPTS[0], (*ids, eos)) == ended == generator.score(PROMPTS[0], REPLY + "</s>")
    assert generator.score(PROMPTS[0], "", ended=True).token_ids == (eos,)
    edit_manifest(models.bundle("base", max_top_k=9), eos_token_ids=[7])  # the tokenizer's own end ends no turn here
    other = tiny_bundles.load(models.bundle("base", max_top_k=9))
    assert other.score(PROMPTS[0], REPLY, ended=True).token_ids == (*ids, 7)


def test_a_reply_that_was_begun(models: Models, generator: Generator) -> None:
    """The base's prompt holds the words that stand before; the rest is as behind any prompt."""
    messages = [{"role": "user", "content": "the cook"}, {"role": "assistant", "content": "the egg"}]
    score = generator.score(messages, " boils")
    prompt = (*tiny_bundles.encode_turn(models.bundle("base"), "the cook"), *encode(models, "the egg"))
    assert_near(score.logprob, score_oracle.log_probs(models.base, prompt, encode(models, " boils")).sum())
    assert [token.text for token in score.per_token] == [
        read_tokenizer(models.bundle("base")).decode([id]) for id in score.token_ids
    ]


def test_prompts_as_ids(models: Models, generator: Generator) -> None:
    base, reward = turn(models, "plain", "the cook", None), turn(models, "plain", "the cook", "be kind")
    ids = encode(models, REPLY)
    bare = generator.score(EncodedPrompt(base), ids)
    assert (bare.features, bare.reward) == ({}, None)
    assert bare.logprob == pytest.approx(generator.score("the cook", REPLY).logprob, abs=TOLERANCE)
    guided = generator.score(EncodedPrompt(base, reward), ids)
    assert guided.reward == pytest.approx(generator.score("the cook", REPLY, "be kind").reward, abs=TOLERANCE)
    with refused(PromptError, given="a preference with an EncodedPrompt that has no reward ids"):
        generator.score(EncodedPrompt(base), ids, "be kind")


def test_a_contrast_needs_words(models: Models) -> None:
    bundle = models.folder / "contrast"
    tiny_bundles.export(bundle, models.folder / "base", [])
    generator = tiny_bundles.load(bundle)
    bare = generator.score("the cook", REPLY)
    assert bare.features == {}
    worded = generator.score("the cook", REPLY, "be kind")
    (name,) = worded.features
    assert worded.features[name] == pytest.approx(worded.reward or 0.0)
    assert abs(worded.features[name]) > 0.1


def test_threads_that_score_while_others_generate(models: Models) -> None:
    """Everybody gets what they get alone."""
    generator = tiny_bundles.load(models.bundle("base"))
    work: list[Callable[[], Any]] = [
        lambda: generator.score(PROMPTS[0], REPLY, "be kind"),
        lambda: generator.generate(PROMPTS[1], preference="be kind", config={"max_new_tokens": 12}).token_ids,
        lambda: generator.score(PROMPTS[2], "a " * 30),
    ]
    expected = [job() for job in work]
    with ThreadPoolExecutor(6) as pool:
        given = [pool.submit(job) for _ in range(4) for job in work]
        assert [future.result() for future in given] == expected * 4


WRONG: Mapping[str, tuple[type[PadError], dict[str, Any], str]] = {
    "no reply": (PromptError, {"reply": ""}, "an empty reply"),
    "no ids": (PromptError, {"reply": []}, "an empty reply"),
    "another type": (PromptError, {"reply": 5}, "reply ids of type int"),
    "ids of another type": (PromptError, {"reply": [1, "x"]}, "reply id 1 is 'x'"),
    "an id below 0": (PromptError, {"reply": [1, -2]}, "reply id 1 is -2"),
    "an id that no token has": (PromptError, {"reply": [10**6]}, "token id 1000000"),
    "a long reply": (PromptError, {"reply": "ab " * 600}, "tokens"),
    "an absurd reply": (PromptError, {"reply": "ab " * 10**6}, "a reply of 3,000,000 characters"),
    "no prompt": (PromptError, {"prompt": ""}, "an empty prompt"),
    "a lone surrogate": (PromptError, {"reply": "a\udcff"}, "lone surrogate"),
    "an unknown feature": (PreferenceError, {"preference": Preference(weights={"sad": 1.0})}, "unknown feature 'sad'"),
    "a weight beyond measure": (
        PreferenceError,
        {"preference": Preference(weights={"odd": 1e30})},
        "of strength 1e+30",
    ),
    "no candidates": (OptionError, {"top_k": 0}, "top_k=0"),
    "half a candidate": (OptionError, {"top_k": 1.5}, "top_k=1.5"),
    "an end that is no answer": (OptionError, {"ended": "no"}, "ended='no'"),
    "an end of a bundle without": (OptionError, {"ended": True}, "ended"),
    "a template argument": (OptionError, {"template_args": {"x": 1}}, "template argument 'x'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_scored(generator: Generator, name: str) -> None:
    kind, changes, given = WRONG[name]
    with refused(kind, given=given):
        generator.score(**{"prompt": "the cook", "reply": REPLY, **changes})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("the cook", [REPLY]), "prompts of type str"),
        ((["the cook"], REPLY), "replies of type str"),
        ((["the cook"], [REPLY, REPLY]), "2 replies for 1 prompts"),
        ((["the cook"], [REPLY], [None, None]), "2 preferences for 1 prompts"),
        ((["the cook"], [REPLY], "be kind"), "preferences of type str"),
        ((["the cook"], None), "replies of type NoneType"),
    ],
)
def test_lists_that_do_not_match(generator: Generator, arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(OptionError, match=words) as caught:
        generator.score_batch(*arguments)
    check_line(caught.value)
