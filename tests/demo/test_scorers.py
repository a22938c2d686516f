"""The critics of the shipped PersRM's pairs, on texts whose order is plain to see."""

from __future__ import annotations

import pytest

from demo.training.scorers import cheerful, concise, formal, hedged, simple, unsound


def test_formal_counts_endings_and_what_joins_sentences() -> None:
    plain, written = (
        "We have a look at it and then we say yes.",
        "Consideration of the requirement is, however, essential.",
    )
    assert formal(["", ""], [plain, written]) == [0.0, 100 * 2 / 8 + 3 * 100 / 8]


def test_concise_counts_sentences_lines_and_what_was_cut_off() -> None:
    assert concise([""] * 4, ["One. Two! Three", "One\n- two\n- three\n- four", "3.5 is one", "..."]) == [-3, -4, -1, 0]


def test_hedged_counts_may_and_must() -> None:
    texts = ["It may help, and perhaps it could.", "It must never fail.", "It helps."]
    assert hedged([""] * 3, texts) == [100 * 3 / 8, -100 * 2 / 8, 0]


def test_simple_sees_rare_words_and_long_sentences() -> None:
    pytest.importorskip("wordfreq")
    short, long, rare = (
        "He has a dog. It is big.",
        "He has a dog and it is big.",
        "He has a dachshund. It is corpulent.",
    )
    scores = simple([""] * 3, [short, long, rare])
    assert scores[0] > scores[1] > scores[2]


def test_cheerful_sees_praise_in_words_that_people_rated_and_in_sentences() -> None:
    pytest.importorskip("all_minilm_l6_v2")
    pytest.importorskip("sklearn")
    praise = ["A moving and beautiful story, told with love.", "We laugh together, the sun shines."]
    blame = ["A dull mess without a single idea.", "They died of hunger, and war followed."]
    scores = cheerful([""] * 4, [*praise, *blame])
    assert min(scores[:2]) > max(scores[2:])


def test_nobody_should_want_what_leaves_the_question_or_speaks_of_itself() -> None:
    pytest.importorskip("all_minilm_l6_v2")
    question = "How do I boil an egg?"
    replies = [
        "Put the egg in boiling water for seven minutes.",
        "The stock market fell by three percent on Monday.",
        "While I am happy to help, boil the egg for seven minutes.",
        "As an AI, I boil the egg for seven minutes.",
    ]
    assert unsound([question] * 4, replies) == ["", "leaves the question", "a manner", "a manner"]
