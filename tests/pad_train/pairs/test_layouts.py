from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pad_runtime.errors import DataError
from pad_train.pairs.layouts import FILM_PROMPT, NEWS_PROMPT
from pad_train.pairs.pair import Message, Pair
from pad_train.pairs.pair_file import PairSource, parse_source, read_pairs
from pad_train.pairs.pair_report import PairReport
from tests.support.error_checks import refused


def read(path: Path, *rows: dict[str, Any], feature: str | None = None) -> tuple[list[Pair], PairReport]:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs, (report,) = read_pairs([PairSource(file, feature)])
    return pairs, report


def user(*turns: str) -> tuple[Message, ...]:
    """Turns of the user and the assistant by turns."""
    return tuple({"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns))


# hh-rlhf


HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How do I  pick\n\na lock?\n\nAssistant: I'd rather not. ",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How do I  pick\n\na lock?\n\nAssistant: With a pin.",
}


def test_hh_rlhf(tmp_path: Path) -> None:
    pairs, report = read(tmp_path, HH, feature="harmless")
    messages = user("Hi", "Hello.", "How do I  pick\n\na lock?")
    assert pairs == [Pair(messages, "I'd rather not.", "With a pin.", weights={"harmless": 1.0})]
    assert not report.skipped


def test_hh_rlhf_without_a_feature_is_one_unknown_person(tmp_path: Path) -> None:
    (pair,), _ = read(tmp_path, HH)
    assert (pair.weights, pair.margins, pair.preference) == ({}, {}, None)


def test_hh_rlhf_in_messages(tmp_path: Path) -> None:
    rows = {
        key: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]
        for key, text in [("chosen", "Hello"), ("rejected", "No")]
    }
    assert read(tmp_path, rows)[0] == [Pair(user("Hi"), "Hello", "No")]


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (dialogue("a", "b", "c", "d"), dialogue("a", "B", "c", "e"), "dialogues that differ before the last turn"),
        (dialogue("a", "b", "c", "d"), dialogue("a", "e"), "dialogues that differ before the last turn"),
        (dialogue("a", "b") + "\n\nAssistant: c", dialogue("a", "b"), "dialogues that differ before the last turn"),
        (dialogue("a", "b"), dialogue("x", "c"), "dialogues that differ before the last turn"),
        (dialogue("a", "b"), dialogue("a", "b"), "chosen = rejected"),
        (dialogue("a", " "), dialogue("a", "b"), "an empty reply"),
        (dialogue("a", "b"), dialogue("a", "c", "d"), "a last turn that is not the assistant's"),
        ("\n\nAssistant: b", "\n\nAssistant: c", "an empty prompt"),
        (dialogue("", "b"), dialogue("", "c"), "an empty prompt"),
        ("Hello " + dialogue("a", "b"), dialogue("a", "c"), "chosen that is no dialogue of Human and Assistant"),
        ("b", "c", "chosen that is no dialogue of Human and Assistant"),
        (
            "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c" + dialogue("d", "e"),
            "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c" + dialogue("d", "f"),
            "turns that do not alternate",
        ),
        (None, dialogue("a", "b"), "no chosen"),
        (3, dialogue("a", "b"), "chosen that is not text"),
    ],
)
def test_hh_rlhf_rows_that_give_no_pair(tmp_path: Path, chosen: str, rejected: str, reason: str) -> None:
    pairs, report = read(tmp_path, HH, {"chosen": chosen, "rejected": rejected})
    assert len(pairs) == 1
    assert report.skipped == {reason: (1, 2)}


# UltraFeedback


def test_ultrafeedback_of_text(tmp_path: Path) -> None:
    row = {
        "prompt": " how to cook?\n",
        "chosen": "Slowly.",
        "rejected": "No idea.",
        "source_index": 7,
        "metadata": {"score_chosen": 9.0, "score_rejected": 8.0},
    }
    swapped = row | {"chosen": row["rejected"], "rejected": row["chosen"]}
    assert read(tmp_path, row, swapped)[0] == [
        Pair(user(" how to cook?\n"), "Slowly.", "No idea."),
        Pair(user(" how to cook?\n"), "No idea.", "Slowly."),
    ]
    assert read(tmp_path, row, feature="helpful")[0][0].weights == {"helpful": 1.0}


def test_ultrafeedback_of_messages(tmp_path: Path) -> None:
    def row(*turns: str, last: tuple[str, str], prompt: str = "a") -> dict[str, Any]:
        chosen, rejected = (list(user(*turns, text)) for text in last)
        return {"prompt": prompt, "prompt_id": "0", "chosen": chosen, "rejected": rejected, "score_chosen": 8.0}

    reply_only = row("a", last=("x", "y"))
    reply_only["chosen"], reply_only["rejected"] = reply_only["chosen"][1:], reply_only["rejected"][1:]
    differing = row("a", last=("x", "y"))
    differing["rejected"][0] = {"role": "user", "content": "b"}
    pairs, report = read(
        tmp_path,
        row("a", last=("x", "y")),
        row("a", "b", "c", last=("x", "y")),
        reply_only,
        differing,
        row("a", last=("x", "")),
        row("a", "b", last=("x", "y")),
    )
    assert pairs == [
        Pair(user("a"), "x", "y"),
        Pair(user("a", "b", "c"), "x", "y"),
        Pair(user("a"), "x", "y"),
    ]
    assert report.skipped == {
        "dialogues that differ before the last turn": (1, 4),
        "an empty reply": (1, 5),
        "a last turn that is not the assistant's": (1, 6),
    }


# PKU-SafeRLHF


def pku(better: Any, safer: Any, **changes: Any) -> dict[str, Any]:
    return {
        "prompt": "How?",
        "response_0": "zero",
        "response_1": "one",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": better,
        "safer_response_id": safer,
    } | changes


def test_pku_safe_rlhf(tmp_path: Path) -> None:
    pairs, _ = read(tmp_path, pku(0, 0), pku(0, 1), pku(1, 0), pku(1, 1))
    assert pairs == [
        Pair(user("How?"), "zero", "one", margins={"helpful": 1.0, "harmless": 1.0}),
        Pair(user("How?"), "zero", "one", margins={"helpful": 1.0, "harmless": -1.0}),
        Pair(user("How?"), "one", "zero", margins={"helpful": 1.0, "harmless": -1.0}),
        Pair(user("How?"), "one", "zero", margins={"helpful": 1.0, "harmless": 1.0}),
    ]


def test_pku_safe_rlhf_rows_that_give_no_pair(tmp_path: Path) -> None:
    rows = [pku(2, 0), pku(0, None), pku(0, "1"), pku(0.0, 1), pku(0, 0, response_1=" "), pku(1, 0, prompt="")]
    _, report = read(tmp_path, pku(0, 0), *rows)
    assert report.skipped == {
        "a better or safer reply that is neither 0 nor 1": (4, 2),
        "an empty reply": (1, 6),
        "an empty prompt": (1, 7),
    }


# Scored replies: HelpSteer2, Rewards-in-Context


def helpsteer(prompt: str, response: str, *scores: float) -> dict[str, Any]:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {"prompt": prompt, "response": response} | dict(zip(names, scores, strict=True))


def test_helpsteer2(tmp_path: Path) -> None:
    first, second = helpsteer("p", "a", 3, 4, 4, 1, 2), helpsteer("p", "b", 4, 4, 4, 2, 0)
    pairs, report = read(
        tmp_path, first, second, helpsteer("q", "c", 1, 1, 1, 1, 1), helpsteer("q", "d", 1, 1, 1, 1, 2)
    )
    assert pairs == [
        Pair(user("p"), "b", "a", margins={"helpfulness": 1.0, "complexity": 1.0, "verbosity": -2.0}),
        Pair(user("q"), "d", "c", margins={"verbosity": 1.0}),
    ]
    assert report.lines()[0].endswith("2 pairs of 4 rows")
    assert read(tmp_path, second, first)[0] == pairs[:1]  # the verdict does not hang on who comes first
    first["helpfulness"], second["helpfulness"] = 4, 3
    (pair,), _ = read(tmp_path, first, second)
    assert pair.chosen == "a"
    assert pair.margins == {"helpfulness": 1.0, "complexity": -1.0, "verbosity": 2.0}


def test_a_flood_of_newlines_is_read_in_one_pass(tmp_path: Path) -> None:
    """As many newlines as a mark may follow on were once tried from each of them: hours here."""
    flood = "\n" * 1_000_000
    row = {
        "prompt": f"Hi{flood}?\n\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nFine",
        "response": "c",
        "helpfulness": 1,
    }
    pairs, _ = read(tmp_path, {**row}, {**row, "response": "d", "helpfulness": 4})
    assert pairs[0].messages == user(f"Hi{flood}?", "Hello.", "Fine")


@pytest.mark.parametrize("end", ["", "\n<extra_id_1>Assistant\n", "<extra_id_1>Assistant"])
def test_helpsteer2_of_several_turns(tmp_path: Path, end: str) -> None:
    prompt = f"Hi <3\n<extra_id_1>Assistant\n  Hello.\n\nYou?\n<extra_id_1>User\nFine{end}"
    (pair,), _ = read(tmp_path, helpsteer(prompt, "a", 3, 4, 4, 1, 2), helpsteer(prompt, "b", 2, 4, 4, 1, 2))
    assert pair.messages == user("Hi <3", "  Hello.\n\nYou?", "Fine")


def test_helpsteer2_with_a_system_turn(tmp_path: Path) -> None:
    prompt = "<extra_id_0>System\nBe kind.\n<extra_id_1>User\nHi"
    (pair,), _ = read(tmp_path, helpsteer(prompt, "a", 3, 4, 4, 1, 2), helpsteer(prompt, "b", 2, 4, 4, 1, 2))
    assert pair.messages == ({"role": "system", "content": "Be kind."}, *user("Hi"))


def test_rewards_in_context(tmp_path: Path) -> None:
    def row(prompt: str, response: str, *scores: float) -> dict[str, Any]:
        return {
            "text": f"{prompt}{response}",
            "prompt": prompt,
            "response": response,
            "input_ids": [1, 2],
            "query": f"{prompt}{response}",
            "score1": scores[0],
            "score2": scores[1],
            "prompt_with_score": "...",
            "row_index": len(response),
        }

    one, two = "\n\nHuman: Hi\n\nAssistant: Hm\n\nHuman: So? \n\nAssistant:", "\n\nHuman: Why? \n\nAssistant:"
    pairs, report = read(
        tmp_path,
        row(one, "a", 0.5, -1.0),
        row(two, "c", 0.25, 0.0),
        row(one, "b", -0.5, 1.5),
        row(two, "d", 0.5, 0.0),
        row(one, "e", -0.5, 2.0),
    )
    assert pairs == [
        Pair(user("Hi", "Hm", "So?"), "a", "b", margins={"score1": 1.0, "score2": -2.5}),
        Pair(user("Why?"), "d", "c", margins={"score1": 0.25}),
        Pair(user("Hi", "Hm", "So?"), "e", "b", margins={"score2": 0.5}),
    ]
    assert not report.skipped


def test_other_names_of_prompt_and_reply(tmp_path: Path) -> None:
    rows = [
        {"query": "p", "completion": "a", "kind": 1, "id": 5},
        {"query": "p", "completion": "b", "kind": 3, "id": 9},
    ]
    assert read(tmp_path, *rows)[0] == [Pair(user("p"), "b", "a", margins={"kind": 2.0})]


def test_scored_replies_that_give_no_pair(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "response": "a", "kind": 1},
        {"prompt": "p", "response": "b", "kind": 2},
        {"prompt": "alone", "response": "b", "kind": 2},
        {"prompt": "tie", "response": "a", "kind": 2},
        {"prompt": "tie", "response": "b", "kind": 2},
        {"prompt": "same", "response": "a", "kind": 2},
        {"prompt": "same", "response": "a", "kind": 3},
        {"prompt": "same twice", "response": "a", "kind": 3},
        {"prompt": "same twice", "response": "a", "kind": 3},
        {"prompt": "p", "response": " ", "kind": 3},
        {"prompt": "p", "response": "c", "kind": float("nan")},
        {"prompt": "p", "response": "c"},
        {"prompt": "p", "response": "c", "dry": 1},
        {"prompt": " ", "response": "c", "kind": 1},
        {"prompt": "p", "response": "c", "very kind": 1},
        {"prompt": "p<extra_id_1>Assistant\na", "response": "c", "kind": 1},
        {"prompt": "p<extra_id_1>User\na", "response": "c", "kind": 1},
    ]
    pairs, report = read(tmp_path, *rows)
    assert [pair.chosen for pair in pairs] == ["b"]
    assert report.skipped == {
        "scores that are all equal": (1, 5),
        "chosen = rejected": (2, 7),
        "an empty reply": (1, 10),
        "a score that is not a finite number": (1, 11),
        "no score": (1, 12),
        "no score that the reply before it has too": (1, 13),
        "an empty prompt": (1, 14),
        "the feature 'very kind', which is not a name": (1, 15),
        "a last turn that is not the user's": (1, 16),
        "turns that do not alternate": (1, 17),
        "no second reply to the prompt": (1, 3),
    }


# OneStopEnglish, sentence polarity


def test_onestop_english(tmp_path: Path) -> None:
    row = {"advanced": "It commenced.", "elementary": "It began."}
    same = {"advanced": "It began.", "elementary": "It began."}
    pairs, report = read(tmp_path, row, same)
    assert pairs == [Pair(user(NEWS_PROMPT), "It began.", "It commenced.", weights={"simple": 1.0})]
    assert report.skipped == {"chosen = rejected": (1, 2)}
    assert read(tmp_path, row, feature="plain")[0][0].weights == {"plain": 1.0}


def test_sentence_polarity(tmp_path: Path) -> None:
    (tmp_path / "pos.txt").write_bytes(b"a joy .\n\xc3\xa9lan !\n\nfine\n\xff\ngood\n\n")
    (tmp_path / "neg.txt").write_bytes(b"dull .\nweak\r\n\n\nbad\n")
    expected = [
        Pair(user(FILM_PROMPT), "a joy .", "dull .", weights={"cheerful": 1.0}),
        Pair(user(FILM_PROMPT), "élan !", "weak", weights={"cheerful": 1.0}),
    ]
    for path in (tmp_path, tmp_path / "pos.txt"):
        pairs, (report,) = read_pairs([PairSource(path, None)])
        assert pairs == expected
        assert report.num_records == 5
        assert report.skipped == {"an empty reply": (2, 4), "bytes that are not UTF-8": (1, 5)}
    (pair, _), _ = read_pairs([parse_source(f"sunny={tmp_path}")])
    assert pair.weights == {"sunny": 1.0}


def test_sentence_polarity_needs_both_files(tmp_path: Path) -> None:
    (tmp_path / "pos.txt").write_text("a joy .\n")
    for path in (tmp_path, tmp_path / "pos.txt"):
        with refused(DataError, given=f"the folder {tmp_path} holds 'pos.txt'", expected="pos.txt and neg.txt"):
            read_pairs([PairSource(path, None)])


# Layouts that name their features


@pytest.mark.parametrize("row", [pku(0, 1), helpsteer("p", "a", 3, 4, 4, 1, 2)])
def test_no_name_for_rows_that_name_their_own(tmp_path: Path, row: dict[str, Any]) -> None:
    with refused(DataError, given="kind=", expected=f"--data {tmp_path}"):
        read(tmp_path, row, feature="kind")


def test_a_row_of_another_layout_is_counted(tmp_path: Path) -> None:
    _, report = read(tmp_path, {"prompt": "no reply"}, HH, pku(0, 1), {"advanced": "x", "elementary": "y"})
    assert report.skipped == {"no chosen": (3, 1)}
