"""Which of several replies make pairs, and for whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pad_train.pairs import pair_choice
from pad_train.pairs.feature import Feature
from pad_train.pairs.make_pairs import rank_replies
from pad_train.pairs.pair import Pair
from pad_train.pairs.pair_choice import ALONE, SAME, Answers, MadeReply, choose_pairs
from pad_train.pairs.scorer import Critic
from tests.support.sampled_pairs import feature, length, many_vowels, pairs_of

PROMPT = ({"role": "user", "content": "p"},)
MORE, LESS = {"vowels": 1.0}, {"vowels": -0.5}
CRITICS = {"vowels": Critic(many_vowels), "length": Critic(length)}
repeats_itself = pair_choice.repeats_itself  # the real one: tests of random models switch it off


def chosen(
    *replies: MadeReply, features: tuple[Feature, ...] = (feature(),), critics: dict[str, Critic] = CRITICS
) -> list[tuple[str, str, float] | str]:
    """(chosen, rejected, weight) of each pair, or why there is none."""
    told: list[tuple[str, str, float] | str] = []
    for choice in choose_pairs([Answers(PROMPT, replies)], features, critics):
        told.append((choice.chosen, choice.rejected, *choice.weights.values()) if isinstance(choice, Pair) else choice)
    return told


def test_each_person_prefers_the_best_of_their_own_to_the_usual_reply() -> None:
    pairs = chosen(
        MadeReply("xaa"),
        MadeReply("xaaa", weights=MORE),
        MadeReply("xaaaa", weights=MORE),
        MadeReply("xa", weights=LESS),
        MadeReply("x", weights=LESS),
        MadeReply("aaaaaaaaa"),  # another usual reply: the first one counts
        MadeReply("aaaaaaaaa", weights={"length": 1.0}),  # for somebody else
        MadeReply("aaaaaaaaa", weights={"vowels": 1.0, "length": 1.0}),  # for both
    )
    assert pairs == [("xaaaa", "xaa", 1.0), ("x", "xaa", -1.0)]


def test_a_reply_that_missed_its_mark_stands_below_the_usual_one() -> None:
    usual = MadeReply("xaa")
    assert chosen(usual, MadeReply("xaaa", weights=MORE), MadeReply("xa", weights=MORE)) == [
        ("xaaa", "xaa", 1.0),
        ("xaa", "xa", 1.0),
    ]
    assert chosen(usual, MadeReply("x", weights=LESS), MadeReply("xaaaa", weights=LESS)) == [
        ("x", "xaa", -1.0),
        ("xaa", "xaaaa", -1.0),
    ]
    assert chosen(usual, MadeReply("xa", weights=MORE)) == [SAME, ("xaa", "xa", 1.0)]  # only the miss


def test_what_repeats_itself_loses_to_both_peoples_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_choice, "repeats_itself", lambda reply: "loop" in reply)
    usual, best, least = MadeReply("xaa"), MadeReply("xaaa", weights=MORE), MadeReply("x", weights=LESS)
    loop = MadeReply("aaaaloop", finished=False, weights=MORE)  # the most vowels, and nobody is to want it
    both = [("xaaa", "xaa", 1.0), ("x", "xaa", -1.0)]
    assert chosen(usual, best, loop, least) == [*both, ("xaaa", "aaaaloop", 1.0), ("x", "aaaaloop", -1.0)]
    assert chosen(usual, best, least) == both
    assert chosen(usual, loop, least) == ["repeats itself", ("x", "xaa", -1.0)]  # nobody's best to hold it against
    made_for_nobody = MadeReply("aaaaloop")
    assert chosen(usual, best, made_for_nobody, least) == both
    another = MadeReply("aloop", weights=LESS)
    one_of_them = [pair[1] for pair in chosen(usual, best, loop, another, least)[2:]]
    assert one_of_them == ["aaaaloop", "aaaaloop"]  # the same one for both people, or somebody would imitate it


def test_replies_made_for_nobody_are_ranked_by_every_feature(tmp_path: Path) -> None:
    answers = [
        Answers(PROMPT, (MadeReply("aa", finished=False), MadeReply("bbbb"))),
        Answers(PROMPT, (MadeReply("a"), MadeReply("aeiou", finished=False), MadeReply("ae"))),
        Answers(PROMPT, (MadeReply("xy"), MadeReply("yx"))),
        Answers(PROMPT, (MadeReply("alone"),)),
    ]
    features = [feature(), Feature("unsampled"), feature("length", min_gap=2.0)]
    counts = rank_replies(answers, features, CRITICS, tmp_path / "ranked.jsonl")
    ranked = [(pair.chosen, pair.rejected, dict(pair.weights)) for pair in pairs_of(tmp_path / "ranked.jsonl")]
    assert ranked == [
        ("aa", "bbbb", {"vowels": 1.0}),
        ("aeiou", "a", {"vowels": 1.0}),
        ("aeiou", "a", {"length": 1.0}),
    ]
    assert counts == {"vowels": 2, "length": 1, SAME: 3, ALONE: 2}
    first, second, _ = pairs_of(tmp_path / "ranked.jsonl")
    assert (first.chosen_finished, first.rejected_finished) == (False, True)
    assert (second.chosen_finished, second.rejected_finished) == (False, True)


def test_each_feature_has_the_replies_that_were_made_for_it() -> None:
    made = [MadeReply("xaa"), MadeReply("aaa", weights=MORE), MadeReply("xxxxxx", weights={"length": 1.0})]
    assert chosen(*made, features=(feature(), feature("length"))) == [("aaa", "xaa", 1.0), ("xxxxxx", "xaa", 1.0)]
    assert chosen(*made[:2], features=(feature(), feature("length"))) == [("aaa", "xaa", 1.0)]  # none for length


def test_without_a_usual_reply_there_is_no_pair() -> None:
    both = (feature(), feature("length"))
    assert chosen(MadeReply("aaa", weights=MORE), MadeReply("x", weights=LESS), features=both) == [ALONE]
    assert chosen(MadeReply("aaa"), features=both) == [ALONE, ALONE]


def test_a_scorer_is_never_asked_about_nothing() -> None:
    def strict(_: Sequence[str], replies: Sequence[str]) -> list[float]:
        assert replies
        return [float(len(reply)) for reply in replies]

    mixed = Answers(PROMPT, (MadeReply("aa", weights={"vowels": 1.0, "length": 1.0}),))
    assert list(choose_pairs([mixed, Answers(PROMPT, ())], [feature()], {"vowels": Critic(strict)})) == []


def test_short_replies_make_no_pair() -> None:
    wordy = (feature(min_words=2),)
    assert chosen(MadeReply("a b"), MadeReply("aa", weights=MORE), features=wordy) == ["too short"]
    assert chosen(MadeReply("b"), MadeReply("a a", weights=MORE), features=wordy) == ["too short"]


def test_what_is_vetoed_loses_to_both_peoples_best() -> None:
    def veto(prompts: Sequence[str], replies: Sequence[str]) -> list[str]:
        assert set(prompts) == {"p"}
        return ["leaves the question" if "off" in reply else "" for reply in replies]

    critics = {"vowels": Critic(many_vowels, veto)}
    usual, best, least = MadeReply("xaa"), MadeReply("xaaa", weights=MORE), MadeReply("x", weights=LESS)
    stray = MadeReply("aaaaoff", weights=MORE)
    both: list[tuple[str, str, float] | str] = [("xaaa", "xaa", 1.0), ("x", "xaa", -1.0)]
    assert chosen(usual, best, stray, least, critics=critics) == [
        *both,
        ("xaaa", "aaaaoff", 1.0),
        ("x", "aaaaoff", -1.0),
    ]
    assert chosen(usual, best, stray, least)[0] == ("aaaaoff", "xaa", 1.0)  # the control: nobody vetoes it
    assert chosen(MadeReply("xaaoff"), best, least, critics=critics) == ["leaves the question"] * 2  # a usual one


def test_a_person_of_mixed_wishes_has_pairs_by_the_sum_of_both_scores(tmp_path: Path) -> None:
    wishes = {"vowels": 3.0, "length": -4.0}  # many vowels in a short reply
    opposite = {"vowels": -0.3, "length": 0.4}
    replies = (
        MadeReply("xxaa"),
        MadeReply("aaa", weights=wishes),
        MadeReply("aaaaaaaaxxxxxxxxxxxxxxxxxxxx", weights=wishes),  # more vowels, and far too long
        MadeReply("xxxxxxxxxxxx", weights=opposite),
        MadeReply("aaxa", weights=MORE),
    )
    features = [feature(), feature("length")]
    rank_replies([Answers(PROMPT, replies)], features, CRITICS, tmp_path / "ranked.jsonl")
    ranked = [(pair.chosen, pair.rejected, dict(pair.weights)) for pair in pairs_of(tmp_path / "ranked.jsonl")]
    more, less = {"length": -0.8, "vowels": 0.6}, {"length": 0.8, "vowels": -0.6}
    assert ranked == [
        ("aaxa", "xxaa", {"vowels": 1.0}),
        ("xxxxxxxxxxxx", "xxaa", less),
        ("aaa", "xxaa", more),
        ("xxaa", "aaaaaaaaxxxxxxxxxxxxxxxxxxxx", more),
    ]


LONG = " ".join(f"word{number % 80}" for number in range(300))  # a long text uses its words again, and is no loop


@pytest.mark.parametrize(
    ("reply", "repeats"),
    [
        (LONG, False),
        ("I am fine, thank you, and so is my dog, who is very old, very kind and very fond of me.", False),
        ("He said that that was fine. No, no.", False),
        ("We begin in India for that reason on one side. This is island life.", False),
        ("It costs $1,000,000,000 ........ or so\n|---|---|---|\n-------- and more", False),
        (LONG + " a b c d" * 20, True),
        ("The dish is known as kaka-kaka-kaka-kaka in the south.", True),
        ("It is great, great, great fun to visit the old town of the king in winter.", True),
        (
            "A rose of the kind of the sort of the type of the genus of the garden is red, as one may see from afar.",
            True,
        ),
        ("", False),
    ],
)
def test_what_repeats_itself(reply: str, repeats: bool) -> None:
    assert repeats_itself(reply) is repeats
