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

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Iterable[tuple[int, Row]]  # each with its line number, from 1
Skip: TypeAlias = Callable[[int, str], None]  # line number, reason

ROLES = ("system", "user", "assistant")


class RowProblem(Exception):  # noqa: N818  (no error: the row is skipped and counted)
    """Why a row gives no pair."""


def checked(pair: Pair) -> Pair:
    """The pair, if there is something to learn from it.

    Raises:
        RowProblem: the prompt is empty or ends with another's turn than the user's, the replies are equal, or a text
            holds a lone surrogate, which no tokenizer takes.
    """
    check_prompt(pair.messages)
    if pair.chosen.strip() == pair.rejected.strip():
        raise RowProblem("chosen = rejected")
    texts = [pair.chosen, pair.rejected, pair.preference or "", *(message["content"] for message in pair.messages)]
    try:
        "".join(f"{text}\n" for text in texts).encode()
    except UnicodeEncodeError:
        raise RowProblem("text that UTF-8 cannot carry") from None
    return pair


def read_prompt(value: Any) -> tuple[Message, ...]:
    """A prompt's messages: text is one user turn.

    Raises:
        RowProblem: missing, or neither text nor messages.
    """
    if value is None:
        raise RowProblem("no prompt")
    return ({"role": "user", "content": value},) if isinstance(value, str) else read_messages(value)


def read_reply(row: Row, key: str) -> str:
    """The text of a reply, as it stands.

    Raises:
        RowProblem: missing, not text, or blank.
    """
    value = row.get(key)
    if value is None:
        raise RowProblem(f"no {key}")
    if not isinstance(value, str):
        raise RowProblem(f"{key} that is not text")
    if not value.strip():
        raise RowProblem("an empty reply")
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
    """The name, if a feature may be called so.

    Raises:
        RowProblem: it holds something other than letters, digits, '.', '_' and '-'.
    """
    if not NAME.fullmatch(name):
        raise RowProblem(f"the feature {reprlib.repr(name)}, which is not a name")
    return name


def read_weights(value: Any) -> dict[str, float]:
    """A person's weights by feature; none where there is no value.

    Raises:
        RowProblem: not finite numbers by feature, or all of them zero.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RowProblem("weights that are not finite numbers by feature")
    weights = {check_feature(feature): read_number(weight) for feature, weight in value.items()}
    if not all(math.isfinite(weight) for weight in weights.values()):
        raise RowProblem("weights that are not finite numbers by feature")
    if weights and not any(weights.values()):
        raise RowProblem("weights that are all zero")
    return weights


def read_flag(row: Row, key: str) -> bool:
    """A yes or no of a row, yes where it is not there.

    Raises:
        RowProblem: neither true nor false.
    """
    value = row.get(key)
    if value is None:
        return True
    if not isinstance(value, bool):
        raise RowProblem(f"{key} that is neither true nor false")
    return value


def read_messages(value: Any) -> tuple[Message, ...]:
    """A list of messages.

    Raises:
        RowProblem: anything else.
    """
    if not isinstance(value, list):
        raise RowProblem("a prompt that is neither text nor messages")
    messages = []
    for message in value:
        if (
            not isinstance(message, Mapping)
            or message.keys() != {"role", "content"}
            or message["role"] not in ROLES
            or not isinstance(message["content"], str)
        ):
            raise RowProblem('a message that is not {"role": system, user or assistant, "content": text}')
        messages.append({"role": message["role"], "content": message["content"]})
    return tuple(messages)


def check_prompt(messages: Sequence[Message]) -> None:
    """Refuse a conversation that asks nothing.

    Raises:
        RowProblem: it is empty, or its last turn is empty or not the user's.
    """
    if not messages:
        raise RowProblem("an empty prompt")
    if messages[-1]["role"] != "user":
        raise RowProblem("a last turn that is not the user's")
    if not messages[-1]["content"].strip():
        raise RowProblem("an empty prompt")
