"""Preference pairs in the layouts of other projects, and checks that hold for the rows of every layout.

A layout turns rows into pairs. A row that gives none is skipped, with a reason worded to follow "skipped 4 with".
"""

from __future__ import annotations

import functools
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pad_train.pairs.pair import NAME, Message, Pair

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Iterable[tuple[int, Row]]  # each with its line number, from 1
Skip: TypeAlias = Callable[[int, str], None]  # line number, reason
Read: TypeAlias = Callable[[Rows, str | None, Skip], Iterator[Pair]]

NEWS_PROMPT = "Write one sentence for a newspaper."
FILM_PROMPT = "Write a sentence about a film."

_ROLES = ("system", "user", "assistant")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_HH_MARK = re.compile(r"\n\n(Human|Assistant):")
_HELPSTEER_MARK = re.compile(r"(?:(?<!\n)\n+)?<extra_id_\d+>(System|User|Assistant)[ \t]*\n?")

_PROMPT_KEYS = ("prompt", "query")  # the first of these that a row has; RiC's query contains the reply
_REPLY_KEYS = ("response", "completion", "reply", "answer", "output", "text")
_ID_COLUMN = re.compile(r"(.*[_-])?(id|idx|index|row)", re.IGNORECASE)
_PKU_KEYS = {"prompt", "response_0", "response_1", "better_response_id", "safer_response_id"}
_ULTRAFEEDBACK_KEYS = {
    "completions", "instruction", "messages", "metadata", "models", "prompt_id", "source", "source_index",
    "chosen_model", "chosen_rating", "rejected_model", "rejected_rating", "score_chosen", "score_rejected",
    "chosen-model", "chosen-rating", "rejected-model", "rejected-rating",
}  # fmt: skip


class RowProblem(Exception):  # noqa: N818  (no error: the row is skipped and counted)
    """Why a row gives no pair."""


@dataclass(frozen=True)
class Layout:
    """The layout of a project's files of preferences.

    Attributes:
        name: name of the layout in messages.
        read: (rows, feature, skip) to pairs; `feature` is what chosen replies have more of, None if not given.
        has_features: whether the rows name their features, so that the user may not name one.
    """

    name: str
    read: Read
    has_features: bool = False


def row_by_row(read_row: Callable[[Row, str | None], Pair]) -> Read:
    """Make the reader of a layout with a pair in every row from a reader of one row, which may raise RowProblem."""

    @functools.wraps(read_row)
    def read(rows: Rows, feature: str | None, skip: Skip) -> Iterator[Pair]:
        for line, row in rows:
            try:
                pair = read_row(row, feature)
            except RowProblem as problem:
                skip(line, str(problem))
                continue
            yield pair

    return read


@row_by_row
def hh_rlhf(row: Row, feature: str | None) -> Pair:
    r"""Anthropic's hh-rlhf: {chosen, rejected}, whole dialogues "\n\nHuman: ...\n\nAssistant: ...".

    The last Assistant turn is the reply, and the turns before it, which must be the same in both, are the conversation.
    Text is stripped turn by turn. Lists of messages in place of the text are read alike.
    """
    (before, chosen), (before_rejected, rejected) = _split_dialogue(row, "chosen"), _split_dialogue(row, "rejected")
    _check_same(before, before_rejected)
    pair = checked(Pair(before, chosen, rejected, weights=_weights(feature)))
    _check_alternation(before)
    return pair


@row_by_row
def ultrafeedback(row: Row, feature: str | None) -> Pair:
    """UltraFeedback, binarized: {prompt, chosen, rejected} and other columns (source, ratings, models).

    A reply is text, or a list of messages that ends with the reply; the messages before it, if any, replace `prompt`.
    Ratings are not read, because they are of no particular feature.
    """
    (before, chosen), (before_rejected, rejected) = _split_turns(row, "chosen"), _split_turns(row, "rejected")
    _check_same(before, before_rejected)
    messages = before or read_prompt(row.get("prompt"))
    return checked(Pair(messages, chosen, rejected, weights=_weights(feature)))


@row_by_row
def pku_safe_rlhf(row: Row, _: str | None) -> Pair:
    """PKU-SafeRLHF: {prompt, response_0, response_1, better_response_id, safer_response_id}.

    The better (more helpful) reply is chosen: its margin of `helpful` is 1, that of `harmless` 1 or -1.
    """
    better, safer = row.get("better_response_id"), row.get("safer_response_id")
    if not all(isinstance(value, int) and value in (0, 1) for value in (better, safer)):
        raise RowProblem("a better or safer reply that is neither 0 nor 1")
    chosen = read_reply(row, "response_1" if better else "response_0")
    rejected = read_reply(row, "response_0" if better else "response_1")
    margins = {"helpful": 1.0, "harmless": 1.0 if safer == better else -1.0}
    return checked(Pair(read_prompt(row.get("prompt")), chosen, rejected, margins=margins))


@row_by_row
def onestop_english(row: Row, feature: str | None) -> Pair:
    """OneStopEnglish: {advanced, elementary}, one sentence of the news for two kinds of reader.

    The elementary sentence is chosen, with more of the feature `simple` if no other is named. All prompts are the same.
    """
    chosen, rejected = read_reply(row, "elementary"), read_reply(row, "advanced")
    return checked(Pair(read_prompt(NEWS_PROMPT), chosen, rejected, weights=_weights(feature or "simple")))


@row_by_row
def sentence_polarity(row: Row, feature: str | None) -> Pair:
    """Pang and Lee's sentence polarity: line i of pos.txt and of neg.txt, here as {positive, negative}.

    The positive sentence is chosen, with more of the feature `cheerful` if no other is named. All prompts are the same.
    The two sentences are about different films.
    """
    chosen, rejected = read_reply(row, "positive"), read_reply(row, "negative")
    return checked(Pair(read_prompt(FILM_PROMPT), chosen, rejected, weights=_weights(feature or "cheerful")))


def scored_replies(rows: Rows, _: str | None, skip: Skip) -> Iterator[Pair]:
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
        except RowProblem as problem:
            skip(line, str(problem))
            continue
        yield pair
    for line in alone.values():
        skip(line, "no second reply to the prompt")


def find_layout(row: Row) -> Layout | None:
    """The layout of another project that a row's keys are of; None if they are of none."""
    if row.keys() >= _PKU_KEYS:
        return Layout("PKU-SafeRLHF", pku_safe_rlhf, has_features=True)
    if {"advanced", "elementary"} <= row.keys():
        return Layout("OneStopEnglish", onestop_english)
    if {"chosen", "rejected"} <= row.keys():
        if "prompt" not in row:
            return Layout("hh-rlhf", hh_rlhf)
        if _ULTRAFEEDBACK_KEYS & row.keys() or isinstance(row["chosen"], list):
            return Layout("UltraFeedback", ultrafeedback)
        return None
    if _first_key(row, _PROMPT_KEYS) and _first_key(row, _REPLY_KEYS) and next(_score_columns(row), None) is not None:
        return Layout("scored replies", scored_replies, has_features=True)
    return None


def checked(pair: Pair) -> Pair:
    """Return the pair if a PersRM can learn from it.

    Raises:
        RowProblem: the prompt is empty or does not end with a user turn, the replies are equal, or a text has a lone
            surrogate, which no tokenizer takes.
    """
    _check_prompt(pair.messages)
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
    return ({"role": "user", "content": value},) if isinstance(value, str) else _read_messages(value)


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
    """Return the name if a feature may have it.

    Raises:
        RowProblem: the name has other characters than letters, digits, '.', '_' and '-'.
    """
    if not NAME.fullmatch(name):
        raise RowProblem(f"the feature {reprlib.repr(name)}, which is not a name")
    return name


@dataclass(frozen=True)
class _ScoredReply:
    messages: tuple[Message, ...]
    text: str
    scores: Mapping[str, float]


def _read_scored_reply(row: Row) -> _ScoredReply:
    prompt = row.get(_first_key(row, _PROMPT_KEYS) or "prompt")
    if isinstance(prompt, str):
        messages = _split_marked(prompt)
        _check_alternation(messages)
    else:
        messages = read_prompt(prompt)
    _check_prompt(messages)
    text = read_reply(row, _first_key(row, _REPLY_KEYS) or "response")
    scores = {check_feature(column): read_number(row[column]) for column in _score_columns(row)}
    if not scores:
        raise RowProblem("no score")
    if not all(math.isfinite(score) for score in scores.values()):
        raise RowProblem("a score that is not a finite number")
    return _ScoredReply(messages, text, scores)


def _compare(first: _ScoredReply, second: _ScoredReply) -> Pair:
    shared = [column for column in first.scores if column in second.scores]
    if not shared:
        raise RowProblem("no score that the reply before it has too")
    margins = {column: first.scores[column] - second.scores[column] for column in shared}
    margins = {column: margin for column, margin in margins.items() if margin != 0}
    if not margins:
        checked(Pair(first.messages, first.text, second.text))  # equal replies are refused with that reason
        raise RowProblem("scores that are all equal")
    if not all(math.isfinite(margin) for margin in margins.values()):
        raise RowProblem("a score that is not a finite number")
    if next(iter(margins.values())) < 0:
        first, second = second, first
        margins = {column: -margin for column, margin in margins.items()}
    return checked(Pair(first.messages, first.text, second.text, margins=margins))


def _score_columns(row: Row) -> Iterator[str]:
    for key, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and not _ID_COLUMN.fullmatch(key):
            yield key


def _first_key(row: Row, keys: Sequence[str]) -> str | None:
    return next((key for key in keys if row.get(key) is not None), None)


def _weights(feature: str | None) -> dict[str, float]:
    return {} if feature is None else {feature: 1.0}


def _split_dialogue(row: Row, key: str) -> tuple[tuple[Message, ...], str]:
    """The turns of a dialogue but the last, and the text of the last."""
    if not isinstance(row.get(key), str):
        return _split_turns(row, key)
    turns = _split_hh(row[key])
    if turns is None:
        raise RowProblem(f"{key} that is no dialogue of Human and Assistant")
    return _split_turns({key: turns}, key)


def _split_turns(row: Row, key: str) -> tuple[tuple[Message, ...], str]:
    """The turns of a list but the last, and the text of the last; for plain text, no turns and the text."""
    value = row.get(key)
    if not isinstance(value, list):
        return (), read_reply(row, key)
    messages = _read_messages(value)
    if not messages or messages[-1]["role"] != "assistant":
        raise RowProblem("a last turn that is not the assistant's")
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


def _split_marked(text: str) -> tuple[Message, ...]:
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


def _read_messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise RowProblem("a prompt that is neither text nor messages")
    messages = []
    for message in value:
        if (
            not isinstance(message, Mapping)
            or message.keys() != {"role", "content"}
            or message["role"] not in _ROLES
            or not isinstance(message["content"], str)
        ):
            raise RowProblem('a message that is not {"role": system, user or assistant, "content": text}')
        messages.append({"role": message["role"], "content": message["content"]})
    return tuple(messages)


def _check_prompt(messages: Sequence[Message]) -> None:
    if not messages:
        raise RowProblem("an empty prompt")
    if messages[-1]["role"] != "user":
        raise RowProblem("a last turn that is not the user's")
    if not messages[-1]["content"].strip():
        raise RowProblem("an empty prompt")


def _check_same(before: Sequence[Message], before_rejected: Sequence[Message]) -> None:
    if before != before_rejected:
        raise RowProblem("dialogues that differ before the last turn")


def _check_alternation(messages: Sequence[Message]) -> None:
    """Refuse turns that do not alternate: a mark inside a turn's text was taken for the beginning of a turn."""
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if any(role != _ROLES[1 + index % 2] for index, role in enumerate(roles)):
        raise RowProblem("turns that do not alternate")
