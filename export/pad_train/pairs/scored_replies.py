"""Replies that are scored one by one: HelpSteer2, Rewards-in-Context (RiC), and others of that kind."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pad_train.pairs.dialogue import check_alternation, split_marked
from pad_train.pairs.pair import Message, Pair
from pad_train.pairs.record import (
    Record,
    RecordProblem,
    Records,
    Skip,
    check_feature,
    check_prompt,
    checked,
    read_number,
    read_prompt,
    read_reply,
)

_PROMPT_KEYS = ("prompt", "query")  # the first of these that a row has; RiC's query contains the reply
_REPLY_KEYS = ("response", "completion", "reply", "answer", "output", "text")
_ID_COLUMN = re.compile(r"(.*[_-])?(id|idx|index|row)", re.IGNORECASE)


def scored_replies(rows: Records, _: str | None, skip: Skip) -> Iterator[Pair]:
    """A reply and its scores in each row: HelpSteer2, Rewards-in-Context (RiC), and similar files.

    HelpSteer2: {prompt, response, helpfulness, correctness, coherence, complexity, verbosity}, a prompt's turns marked
    `<extra_id_1>Assistant`, `<extra_id_1>User`. RiC: {prompt, response, score1, score2, ...}, a prompt's turns as in
    hh-rlhf. Every column of numbers is a feature with its name, except for ids and indices.

    Each reply makes a pair with the previous reply to the same prompt, anywhere in the file. The reply with the higher
    score in the first column in which they differ is chosen; columns with equal scores are left out.
    """
    latest: dict[tuple[tuple[str, str], ...], _ScoredReply] = {}
    alone: dict[tuple[tuple[str, str], ...], int] = {}
    for line, row in rows:
        try:
            reply = _read_scored_reply(row)
            prompt = tuple((message["role"], message["content"]) for message in reply.messages)
            before = latest.get(prompt)
            latest[prompt] = reply
            if before is None:
                alone[prompt] = line
                continue
            alone.pop(prompt, None)
            pair = _compare(before, reply)
        except RecordProblem as problem:
            skip(line, str(problem))
            continue
        yield pair
    for line in alone.values():
        skip(line, "no second reply to the prompt")


def is_scored(row: Record) -> bool:
    """Whether a row has a prompt, a reply and a number."""
    has_texts = _first_key(row, _PROMPT_KEYS) is not None and _first_key(row, _REPLY_KEYS) is not None
    return has_texts and next(_score_columns(row), None) is not None


@dataclass(frozen=True)
class _ScoredReply:
    messages: tuple[Message, ...]
    text: str
    scores: Mapping[str, float]


def _read_scored_reply(row: Record) -> _ScoredReply:
    prompt = row.get(_first_key(row, _PROMPT_KEYS) or "prompt")
    if isinstance(prompt, str):
        messages = split_marked(prompt)
        check_alternation(messages)
    else:
        messages = read_prompt(prompt)
    check_prompt(messages)
    text = read_reply(row, _first_key(row, _REPLY_KEYS) or "response")
    scores = {check_feature(column): read_number(row[column]) for column in _score_columns(row)}
    if not scores:
        raise RecordProblem("no score")
    if not all(math.isfinite(score) for score in scores.values()):
        raise RecordProblem("a score that is not a finite number")
    return _ScoredReply(messages, text, scores)


def _compare(first: _ScoredReply, second: _ScoredReply) -> Pair:
    shared = [column for column in first.scores if column in second.scores]
    if not shared:
        raise RecordProblem("no score that the reply before it has too")
    margins = {column: first.scores[column] - second.scores[column] for column in shared}
    margins = {column: margin for column, margin in margins.items() if margin != 0}
    if not margins:
        checked(Pair(first.messages, first.text, second.text))  # equal replies are refused with that reason
        raise RecordProblem("scores that are all equal")
    if not all(math.isfinite(margin) for margin in margins.values()):
        raise RecordProblem("a score that is not a finite number")
    if next(iter(margins.values())) < 0:
        first, second = second, first
        margins = {column: -margin for column, margin in margins.items()}
    return checked(Pair(first.messages, first.text, second.text, margins=margins))


def _score_columns(row: Record) -> Iterator[str]:
    for key, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and not _ID_COLUMN.fullmatch(key):
            yield key


def _first_key(row: Record, keys: Sequence[str]) -> str | None:
    return next((key for key in keys if row.get(key) is not None), None)
