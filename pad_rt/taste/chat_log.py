"""Choices that a log of chats holds: replies that a person preferred, rewrote, had written again, or rated."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pad_rt.taste.choice import Choice

_VERDICTS = {"1": 1, "+1": 1, "up": 1, "good": 1, "thumbs_up": 1, "-1": -1, "down": -1, "bad": -1, "thumbs_down": -1}


@dataclass
class ChatLog:
    """What was read of a log.

    Attributes:
        choices: in the order of the log.
        skipped: reasons why a line tells nothing, with the number of such lines and the first one.
    """

    choices: list[Choice] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, lines: Iterable[str]) -> ChatLog:
        """Read lines of JSON, in one of two forms.

        A chat, {"messages": [...]} as OpenAI's clients send them, whose last message is the assistant's, with at least
        one of: "rating" (1 or -1, also "up" or "down"), "edited" (the text that the person made of the reply),
        "regenerated" (a list of replies in whose place the last one was written). Or a preference in the form that
        OpenAI's preference tuning takes: {"input": {"messages": [...]}, "preferred_output": [...],
        "non_preferred_output": [...]}.
        """
        log = cls()
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    log.choices += _choices(line)
                except _NothingError as nothing:
                    reason = str(nothing)
                    log.skipped[reason] += 1
                    log.first.setdefault(reason, number)
        return log

    @property
    def kinds(self) -> Counter[str]:
        """How many choices of each kind."""
        return Counter(choice.kind for choice in self.choices)


class _NothingError(Exception):
    """A line that tells nothing."""


def _choices(line: str) -> list[Choice]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise _NothingError("no JSON object")
    if "preferred_output" in data:
        return [_preferred(data)]
    *prompt, last = _messages(data.get("messages"))
    if last["role"] != "assistant" or not prompt:
        raise _NothingError("no reply of the assistant at the end")
    reply = _text(last)
    found: list[Choice] = []
    if data.get("edited") is not None:
        found.append(Choice("edited", prompt, _string(data["edited"], "edited"), reply))
    for before in _listed(data.get("regenerated")):
        found.append(Choice("regenerated", prompt, reply, _string(before, "regenerated")))
    if data.get("rating") is not None:
        verdict = _VERDICTS.get(str(data["rating"]).lower())
        if verdict is None:
            raise _NothingError("a rating that is neither 1 nor -1")
        found.append(Choice("rated", prompt, *((reply, None) if verdict == 1 else (None, reply))))
    if not found:
        raise _NothingError("no rating, edit or regenerated reply")
    if all(choice.better == choice.worse for choice in found):
        raise _NothingError("replies that are alike")
    return [choice for choice in found if choice.better != choice.worse]


def _preferred(data: Mapping[str, Any]) -> Choice:
    given = data.get("input")
    messages = _messages(given.get("messages") if isinstance(given, dict) else None)
    better, worse = (_text(_messages(data.get(name))[-1]) for name in ("preferred_output", "non_preferred_output"))
    if better == worse:
        raise _NothingError("replies that are alike")
    return Choice("preferred", messages, better, worse)


def _messages(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise _NothingError("no messages")
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in value):
        raise _NothingError("messages that are not OpenAI's")
    return value


def _text(message: Mapping[str, Any]) -> str:
    """Of a message whose content is a string, or a list of parts that are all text."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    return _string(content, "a reply")


def _string(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _NothingError(f"{what} without text")
    return value


def _listed(value: object) -> Sequence[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _NothingError("regenerated that is no list")
    return value
