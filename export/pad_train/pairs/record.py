"""A row of a file, and what must be true of it, whatever the layout.

A row that gives nothing is skipped with the reason, worded to follow "skipped 4 with".
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from pad_export.read.persrm_name import NAME
from pad_train.pairs.pair import Message, Pair

Record: TypeAlias = Mapping[str, Any]
Records: TypeAlias = Iterable[tuple[int, Record]]  # each with its line number, from 1
Skip: TypeAlias = Callable[[int, str], None]  # line number, reason

ROLES = ("system", "user", "assistant")


class RecordProblem(Exception):  # noqa: N818  (no error: the row is skipped and counted)
    """Why a row gives no pair."""


def checked(pair: Pair) -> Pair:
    """Return the pair if a PersRM can learn from it.

    Raises:
        RecordProblem: the prompt is empty or does not end with a user turn, the replies are equal, or a text has a lone
            surrogate, which no tokenizer takes.
    """
    check_prompt(pair.messages)
    if pair.chosen.strip() == pair.rejected.strip():
        raise RecordProblem("chosen = rejected")
    texts = [pair.chosen, pair.rejected, pair.preference or "", *(message["content"] for message in pair.messages)]
    try:
        "".join(f"{text}\n" for text in texts).encode()
    except UnicodeEncodeError:
        raise RecordProblem("text that UTF-8 cannot carry") from None
    return pair


def read_prompt(value: Any) -> tuple[Message, ...]:
    """A prompt's messages: text is one user turn.

    Raises:
        RecordProblem: missing, or neither text nor messages.
    """
    if value is None:
        raise RecordProblem("no prompt")
    return ({"role": "user", "content": value},) if isinstance(value, str) else read_messages(value)


def read_reply(row: Record, key: str) -> str:
    """The text of a reply, as it stands.

    Raises:
        RecordProblem: missing, not text, or blank.
    """
    value = row.get(key)
    if value is None:
        raise RecordProblem(f"no {key}")
    if not isinstance(value, str):
        raise RecordProblem(f"{key} that is not text")
    if not value.strip():
        raise RecordProblem("an empty reply")
    return value


def read_number(value: Any) -> float:
    """A number as float; NaN for anything that is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def check_feature(name: str) -> str:
    """Return the name if a feature may have it.

    Raises:
        RecordProblem: the name has other characters than letters, digits, '.', '_' and '-'.
    """
    if not NAME.fullmatch(name):
        raise RecordProblem(f"the feature {reprlib.repr(name)}, which is not a name")
    return name


def read_weights(value: Any) -> dict[str, float]:
    """A person's weights by feature; empty if there is no value.

    Raises:
        RecordProblem: not finite numbers by feature, or all of them zero.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecordProblem("weights that are not finite numbers by feature")
    weights = {check_feature(feature): read_number(weight) for feature, weight in value.items()}
    if not all(math.isfinite(weight) for weight in weights.values()):
        raise RecordProblem("weights that are not finite numbers by feature")
    if weights and not any(weights.values()):
        raise RecordProblem("weights that are all zero")
    return weights


def read_flag(row: Record, key: str) -> bool:
    """A boolean of a row, True if the key is missing.

    Raises:
        RecordProblem: neither true nor false.
    """
    value = row.get(key)
    if value is None:
        return True
    if not isinstance(value, bool):
        raise RecordProblem(f"{key} that is neither true nor false")
    return value


def read_messages(value: Any) -> tuple[Message, ...]:
    """A list of messages.

    Raises:
        RecordProblem: anything else.
    """
    if not isinstance(value, list):
        raise RecordProblem("a prompt that is neither text nor messages")
    messages = []
    for message in value:
        if (
            not isinstance(message, Mapping)
            or message.keys() != {"role", "content"}
            or message["role"] not in ROLES
            or not isinstance(message["content"], str)
        ):
            raise RecordProblem('a message that is not {"role": system, user or assistant, "content": text}')
        messages.append({"role": message["role"], "content": message["content"]})
    return tuple(messages)


def check_prompt(messages: Sequence[Message]) -> None:
    """Refuse a conversation that asks nothing.

    Raises:
        RecordProblem: it is empty, or its last turn is empty or not the user's.
    """
    if not messages:
        raise RecordProblem("an empty prompt")
    if messages[-1]["role"] != "user":
        raise RecordProblem("a last turn that is not the user's")
    if not messages[-1]["content"].strip():
        raise RecordProblem("an empty prompt")
