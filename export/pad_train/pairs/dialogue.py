"""Conversations as other projects write them down: marks within a text, or lists whose last turn is the reply."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pad_train.pairs.pair import Message
from pad_train.pairs.record import ROLES, Record, RecordProblem, read_messages, read_reply

_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_HH_MARK = re.compile(r"\n\n(Human|Assistant):")
_HELPSTEER_MARK = re.compile(r"(?:(?<!\n)\n+)?<extra_id_\d+>(System|User|Assistant)[ \t]*\n?")


def split_dialogue(row: Record, key: str) -> tuple[tuple[Message, ...], str]:
    """The turns of a dialogue before its last, and the text of that.

    Raises:
        RecordProblem: text without the marks of hh-rlhf, or as `split_turns`.
    """
    if not isinstance(row.get(key), str):
        return split_turns(row, key)
    turns = _split_hh(row[key])
    if turns is None:
        raise RecordProblem(f"{key} that is no dialogue of Human and Assistant")
    return split_turns({key: turns}, key)


def split_turns(row: Record, key: str) -> tuple[tuple[Message, ...], str]:
    """The turns of a list before its last, and the text of that; of plain text, no turns and itself.

    Raises:
        RecordProblem: neither messages nor text, a last turn that is not the assistant's, or a blank one.
    """
    value = row.get(key)
    if not isinstance(value, list):
        return (), read_reply(row, key)
    messages = read_messages(value)
    if not messages or messages[-1]["role"] != "assistant":
        raise RecordProblem("a last turn that is not the assistant's")
    return messages[:-1], read_reply(messages[-1], "content")


def _split_hh(text: str) -> list[Message] | None:
    """The turns of a text in hh-rlhf's marks; None if it does not begin with one."""
    before, *pieces = _HH_MARK.split("\n\n" + text.lstrip())
    if before:
        return None
    return [
        {"role": _HH_ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def split_marked(text: str) -> tuple[Message, ...]:
    """The turns of a prompt in hh-rlhf's or HelpSteer2's marks; without marks, one turn, the text as it stands."""
    turns = _split_hh(text)
    if turns is None:
        before, *pieces = _HELPSTEER_MARK.split(text)
        turns = [{"role": "user", "content": before}] if before.strip() or not pieces else []
        turns += [
            {"role": speaker.lower(), "content": content}
            for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
        ]
    if len(turns) > 1 and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        turns.pop()  # the mark after which the reply belongs
    return tuple(turns)


def check_same(before: Sequence[Message], before_rejected: Sequence[Message]) -> None:
    """Hold the conversation before the chosen reply against that before the rejected one.

    Raises:
        RecordProblem: they differ.
    """
    if before != before_rejected:
        raise RecordProblem("dialogues that differ before the last turn")


def check_alternation(messages: Sequence[Message]) -> None:
    """Where a mark within a turn's text passes for a turn of its own, what follows is no longer who said what.

    Raises:
        RecordProblem: turns of user and assistant that do not alternate.
    """
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if any(role != ROLES[1 + index % 2] for index, role in enumerate(roles)):
        raise RecordProblem("turns that do not alternate")
