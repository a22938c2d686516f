"""Replies to be ranked, as their files have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pad_runtime.errors import DataError
from pad_train.pairs.pair_choice import MadeReply
from pad_train.pairs.reply_file import read_answers
from tests.support.error_checks import refused


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


def test_replies_come_by_prompt_and_say_whom_they_were_made_for(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "p"}]
    path = write(
        tmp_path / "replies.jsonl",
        {"prompt": "p", "reply": "one"},
        {"prompt": chat, "reply": "two", "weights": {"kind": -1}},
        {"prompt": "p", "reply": "three", "finished": False, "weights": {"kind": 0.5}},
    )
    answers, lines = read_answers([path])
    assert [[dict(message) for message in answer.messages] for answer in answers] == [
        [{"role": "user", "content": "p"}],
        chat,
    ]
    assert answers[0].replies == (MadeReply("one"), MadeReply("three", finished=False, weights={"kind": 0.5}))
    assert answers[1].replies == (MadeReply("two", weights={"kind": -1.0}),)
    assert lines == [f"{path}: 3 replies to 2 prompts"]


def test_pairs_are_two_replies_made_for_nobody(tmp_path: Path) -> None:
    ours = {"prompt": "p", "chosen": "a", "rejected": "b", "weights": {"kind": 1.0}, "rejected_finished": False}
    news = {"advanced": "It is arduous.", "elementary": "It is hard."}
    files = [write(tmp_path / "ours.jsonl", ours), write(tmp_path / "news.jsonl", news)]
    answers, lines = read_answers(files)
    assert [answer.replies for answer in answers] == [
        (MadeReply("a"), MadeReply("b", finished=False)),
        (MadeReply("It is hard."), MadeReply("It is arduous.")),
    ]
    assert lines == [f"{path}: 1 pair of 1 row" for path in files]


def test_rows_that_hold_no_reply_are_counted(tmp_path: Path) -> None:
    good = {"prompt": "p", "reply": "one"}
    bad: list[Any] = [
        {"prompt": "p", "reply": " "},
        "{",
        {"reply": "one"},
        {"prompt": "p", "reply": 1},
        good | {"finished": "no"},
        good | {"weights": {"kind": float("nan")}},
        good | {"weight": {"kind": 1}},
        good | {"prompt": " "},
        good | {"reply": "\ud800"},
    ]
    path = write(tmp_path / "replies.jsonl", good, *bad)
    answers, (line,) = read_answers([path])
    assert [answer.replies for answer in answers] == [(MadeReply("one"),)]
    assert line.startswith(f"{path}: 1 reply to 1 prompt; skipped ")
    assert "1 with an empty reply (first at line 2)" in line
    for words in (
        "not JSON",
        "no prompt",
        "reply that is not text",
        "finished that is neither",
        "weights that are not",
    ):
        assert words in line
    assert "unknown key 'weight'" in line


def test_replies_to_one_prompt_may_lie_in_several_files(tmp_path: Path) -> None:
    usual = write(tmp_path / "usual.jsonl", {"prompt": "p", "reply": "one"}, {"prompt": "q", "reply": "other"})
    made = write(tmp_path / "made.jsonl", {"prompt": "p", "reply": "two", "weights": {"kind": 1, "short": 0}})
    answers, lines = read_answers([usual, made])
    assert [answer.replies for answer in answers] == [
        (MadeReply("one"), MadeReply("two", weights={"kind": 1.0})),  # what weighs nothing is not wanted
        (MadeReply("other"),),
    ]
    assert lines == [f"{usual}: 2 replies to 2 prompts", f"{made}: 1 reply to 1 prompt"]


def test_rows_with_more_than_is_read_are_told_and_not_taken_for_scored_replies(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "reply": f"r{seed}", "weights": {"kind": 1}, "seed": seed} for seed in range(2)]
    path = write(tmp_path / "replies.jsonl", {"prompt": "p"}, *rows, {"prompt": "p", "reply": "one"})
    answers, (line,) = read_answers([path])
    assert [answer.replies for answer in answers] == [(MadeReply("one"),)]
    assert "1 with no reply (first at line 1), 2 with the unknown key 'seed' (first at line 2)" in line


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for argument, words in ((str(tmp_path / "absent.jsonl"), "does not exist"), ("x" * 300, "cannot be read")):
        with refused(DataError, given=words):
            read_answers([argument])


@pytest.mark.parametrize("row", [{"prompt": "p", "reply": ""}, {"question": "p"}])
def test_a_file_with_nothing_to_rank_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write(tmp_path / "replies.jsonl", row)
    with refused(DataError, given=path):
        read_answers([path])
