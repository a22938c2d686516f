from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.quality.judges import Judge, load_judges
from benchmarks.quality.judges.certainty import likelihood, stance
from benchmarks.quality.judges.checks import Contrast, accuracy, read_asked, read_contrasts, read_films, read_levels
from benchmarks.quality.judges.judge import of_plain
from benchmarks.quality.judges.kinship import kinship
from benchmarks.quality.judges.words import MIN_WORDS, per_100_words, phrases
from benchmarks.quality.replies import JudgedReply
from benchmarks.quality.traits import DIRECTIONS

UNRELATED = {  # texts that differ in the second have as much of the first
    "cheerful": "lists",
    "simple": "cheerful",
    "concise": "cheerful",
    "warm": "hedged",
    "formal": "cheerful",
    "hedged": "simple",
    "lists": "cheerful",
    "enthusiastic": "hedged",
}
ODD = [
    "Yes.",
    "42",
    "def f(x):\n    return x + 1  # f(1) == 2\n",
    "```python\nprint('hello')\n```",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "素早い茶色の狐がのろまな犬を飛び越える。",
    "🙂🙂🙂 ok",
    "1.\n2.\n3.",
    "a" * 3000,
    "the cat " * 300,
    "\\ud800 \x00 \u200b word",
]


def reply(text: str, *, cut: bool = False, prompt: str = "?") -> JudgedReply:
    return JudgedReply(prompt, text, (), cut)


@pytest.fixture(scope="module")
def judges() -> list[Judge]:
    pytest.importorskip("vaderSentiment")
    pytest.importorskip("textblob")
    pytest.importorskip("markdown_it")
    pytest.importorskip("all_minilm_l6_v2")
    pytest.importorskip("textstat", exc_type=ImportError)
    return load_judges()


def contrasts(feature: str) -> list[Contrast]:
    return [each for each in read_contrasts() if each.feature == feature]


def test_two_judges_a_feature_in_the_order_of_the_features(judges: list[Judge]) -> None:
    assert [judge.feature for judge in judges] == [feature for feature in DIRECTIONS for _ in range(2)]
    assert len({judge.name for judge in judges}) == len(judges)
    assert all("% of" in judge.check for judge in judges)


def test_a_judge_orders_pairs_written_by_hand_and_not_those_of_an_unrelated_trait(judges: list[Judge]) -> None:
    for judge in judges:
        own = contrasts(judge.feature)
        assert len(own) >= 12
        assert accuracy(judge, own) >= 0.9, judge.name
        assert 0.25 <= accuracy(judge, contrasts(UNRELATED[judge.feature])) <= 0.75, judge.name
        swapped = [Contrast(each.feature, each.prompt, each.less, each.more) for each in own]
        assert accuracy(judge, swapped) <= 0.1, judge.name


def test_judges_order_texts_that_others_labelled(judges: list[Judge]) -> None:
    films, levels = read_films()[:400], read_levels()
    for judge in judges:
        if judge.feature == "cheerful":
            assert accuracy(judge, films) > 0.62, judge.name
        if judge.feature == "simple":
            assert accuracy(judge, levels) > 0.62, judge.name
        if judge.feature == "lists":  # control
            assert accuracy(judge, films) == accuracy(judge, levels) == 0.5, judge.name


def test_judges_see_what_the_base_was_asked_for_more_often_than_not(judges: list[Judge]) -> None:
    asked = read_asked()
    found = {judge.name: accuracy(judge, [each for each in asked if each.feature == judge.feature]) for judge in judges}
    assert min(found.values()) >= 0.5, found
    assert np.mean(list(found.values())) > 0.62, found
    swapped = [Contrast(each.feature, each.prompt, each.less, each.more, each.cut[::-1]) for each in asked]
    for judge in judges:  # control
        against = accuracy(judge, [each for each in swapped if each.feature == judge.feature])
        assert against == pytest.approx(1 - found[judge.name]), judge.name


def test_odd_replies_get_a_finite_score_and_those_without_a_word_none(judges: list[Judge]) -> None:
    for judge in judges:
        assert np.isfinite(judge([reply(text) for text in ODD])).all(), judge.name
        assert np.isnan(judge([reply(text) for text in ("", " \n", "**", "...", "- \n- ")])).all(), judge.name
        assert len(judge([])) == 0


def test_a_batch_scores_as_its_replies_alone(judges: list[Judge]) -> None:
    replies = [reply(each.more) for each in read_contrasts()[::9]]
    for judge in judges:
        alone = [float(judge([one])[0]) for one in replies]
        assert judge(replies) == pytest.approx(alone, abs=1e-6), judge.name


def test_feelings_of_a_text_twice_as_long_are_the_same(judges: list[Judge]) -> None:
    text = "The food is good and the room is fine. The bus was late."
    for judge in judges:
        if judge.feature == "cheerful":
            once, twice = judge([reply(text), reply(f"{text} {text}")])
            assert twice == pytest.approx(once), judge.name


def test_markup_moves_judges_of_words_nowhere(judges: list[Judge]) -> None:
    plain = "You can rest. You can also walk a lot, perhaps with a friend!"
    marked = "# You can rest\n\n- You can **also** walk a lot, perhaps with a friend!"
    for judge in judges:
        one, another = judge([reply(plain), reply(marked)])
        assert (one == pytest.approx(another)) == (judge.feature != "lists"), judge.name


def test_lists_are_what_commonmark_says(judges: list[Judge]) -> None:
    share = next(judge for judge in judges if judge.feature == "lists")
    texts = [
        "Two:\n- a\n- b",
        "Two:\n\n1. a\n2. b\n\nDone.",
        "a - b\nc - d",
        "• a\n• b",
        "-5 degrees",
        "- a\n\n  more a\nno item",
    ]
    assert share([reply(text) for text in texts]) == pytest.approx([2 / 3, 1 / 2, 0, 1, 0, 1])


def test_certainty_by_hand() -> None:
    filler = "word " * 18
    assert likelihood(f"Maybe often {filler}") == 10
    assert likelihood(f"Every exactly {filler}") == -10
    assert stance(f"It seems {filler}") == 5
    assert stance(f"Not necessarily {filler}") == 5
    assert stance(f"Indeed, {filler} x") == -5
    scored = "may might could would perhaps possibly usually sometimes always never must certainly definitely clearly"
    assert likelihood(scored) == stance(scored) == 0  # the words of the training's scorer


def test_a_rate_is_of_whole_words_and_no_word_is_a_rate_of_fifty() -> None:
    pattern = phrases("you, your, as far as")
    assert per_100_words(pattern, "You and your youth, as far\nas bayous go " + "x " * 30) == pytest.approx(
        100 * 3 / 39
    )
    assert per_100_words(pattern, "You too") == 100 / MIN_WORDS
    assert per_100_words(phrases("don't"), "I don\N{RIGHT SINGLE QUOTATION MARK}t") == 100 / MIN_WORDS


def test_the_sentence_that_the_cap_broke_off_makes_no_text_harder(judges: list[Judge]) -> None:
    easy, broken = "The cat sat. It was warm.", " Notwithstanding epistemological considerations, interdisciplinary"
    for judge in judges:
        if judge.feature == "simple":
            whole, cut, finished = judge([reply(easy), reply(easy + broken, cut=True), reply(easy + broken)])
            assert whole == cut > finished, judge.name


# -- kinship ----------------------------------------------------------------------------------------------------------


def test_kinship_sees_a_judge_that_is_the_scorer_and_clears_one_that_is_not() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.permutation(200)
    replies = [reply(str(number)) for number in numbers]
    noise = {str(number): value for number, value in zip(numbers, rng.normal(size=200), strict=True)}

    def scorer(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [math.exp(int(text) / 50) if text.strip() else 1e9 for text in texts]

    judges = [
        Judge("the same order", "simple", of_plain(float)),
        Judge("the other order", "simple", of_plain(lambda text: -float(text))),
        Judge("no order", "simple", of_plain(lambda text: noise[text])),
        Judge("of another feature", "warm", of_plain(float)),
    ]
    found = kinship(judges, {"simple": scorer}, replies)
    assert list(found) == ["the same order", "the other order", "no order"]
    assert found["the same order"].value == pytest.approx(1)
    assert found["the other order"].high == pytest.approx(-1)
    unrelated = found["no order"]
    assert unrelated.low < 0 < unrelated.high
    assert 0.15 < unrelated.high - unrelated.low < 0.40  # 4 standard errors of 1 / sqrt(200)


def test_replies_without_a_word_have_no_kinship() -> None:
    replies = [reply(text) for text in ("1", "2", "3", "...")]
    judge = Judge(
        "numbers", "simple", lambda replies: [float(one.text) if one.text.isdigit() else 9 for one in replies]
    )
    found = kinship(
        [judge],
        {"simple": lambda _, texts: [float(len(text) == 1) * int(text[0] != ".") * (ord(text[0])) for text in texts]},
        replies,
    )
    assert found["numbers"].value == pytest.approx(1)
