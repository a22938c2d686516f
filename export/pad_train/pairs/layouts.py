"""Preference pairs in the layouts of other projects: a layout turns rows into pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from pad_train.pairs.dialogue import check_alternation, check_same, split_dialogue, split_turns
from pad_train.pairs.pair import Pair
from pad_train.pairs.record import Record, RecordProblem, Records, Skip, checked, read_prompt, read_reply
from pad_train.pairs.scored_replies import is_scored, scored_replies

Read: TypeAlias = Callable[[Records, str | None, Skip], Iterator[Pair]]

NEWS_PROMPT = "Write one sentence for a newspaper."
FILM_PROMPT = "Write a sentence about a film."

_PKU_KEYS = {"prompt", "response_0", "response_1", "better_response_id", "safer_response_id"}
_ULTRAFEEDBACK_KEYS = {
    "completions", "instruction", "messages", "metadata", "models", "prompt_id", "source", "source_index",
    "chosen_model", "chosen_rating", "rejected_model", "rejected_rating", "score_chosen", "score_rejected",
    "chosen-model", "chosen-rating", "rejected-model", "rejected-rating",
}  # fmt: skip


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


def record_by_record(read_record: Callable[[Record, str | None], Pair]) -> Read:
    """Make the reader of a layout with a pair in every row from a reader of one row, which may raise RecordProblem."""

    @functools.wraps(read_record)
    def read(rows: Records, feature: str | None, skip: Skip) -> Iterator[Pair]:
        for line, row in rows:
            try:
                pair = read_record(row, feature)
            except RecordProblem as problem:
                skip(line, str(problem))
                continue
            yield pair

    return read


@record_by_record
def hh_rlhf(row: Record, feature: str | None) -> Pair:
    r"""Anthropic's hh-rlhf: {chosen, rejected}, whole dialogues "\n\nHuman: ...\n\nAssistant: ...".

    The last Assistant turn is the reply, and the turns before it, which must be the same in both, are the conversation.
    Text is stripped turn by turn. Lists of messages in place of the text are read alike.
    """
    (before, chosen), (before_rejected, rejected) = split_dialogue(row, "chosen"), split_dialogue(row, "rejected")
    check_same(before, before_rejected)
    pair = checked(Pair(before, chosen, rejected, weights=_weights(feature)))
    check_alternation(before)
    return pair


@record_by_record
def ultrafeedback(row: Record, feature: str | None) -> Pair:
    """UltraFeedback, binarized: {prompt, chosen, rejected} and other columns (source, ratings, models).

    A reply is text, or a list of messages that ends with the reply; the messages before it, if any, replace `prompt`.
    Ratings are not read, because they are of no particular feature.
    """
    (before, chosen), (before_rejected, rejected) = split_turns(row, "chosen"), split_turns(row, "rejected")
    check_same(before, before_rejected)
    messages = before or read_prompt(row.get("prompt"))
    return checked(Pair(messages, chosen, rejected, weights=_weights(feature)))


@record_by_record
def pku_safe_rlhf(row: Record, _: str | None) -> Pair:
    """PKU-SafeRLHF: {prompt, response_0, response_1, better_response_id, safer_response_id}.

    The better (more helpful) reply is chosen: its margin of `helpful` is 1, that of `harmless` 1 or -1.
    """
    better, safer = row.get("better_response_id"), row.get("safer_response_id")
    if not all(isinstance(value, int) and value in (0, 1) for value in (better, safer)):
        raise RecordProblem("a better or safer reply that is neither 0 nor 1")
    chosen = read_reply(row, "response_1" if better else "response_0")
    rejected = read_reply(row, "response_0" if better else "response_1")
    margins = {"helpful": 1.0, "harmless": 1.0 if safer == better else -1.0}
    return checked(Pair(read_prompt(row.get("prompt")), chosen, rejected, margins=margins))


@record_by_record
def onestop_english(row: Record, feature: str | None) -> Pair:
    """OneStopEnglish: {advanced, elementary}, one sentence of the news for two kinds of reader.

    The elementary sentence is chosen, with more of the feature `simple` if no other is named. All prompts are the same.
    """
    chosen, rejected = read_reply(row, "elementary"), read_reply(row, "advanced")
    return checked(Pair(read_prompt(NEWS_PROMPT), chosen, rejected, weights=_weights(feature or "simple")))


@record_by_record
def sentence_polarity(row: Record, feature: str | None) -> Pair:
    """Pang and Lee's sentence polarity: line i of pos.txt and of neg.txt, here as {positive, negative}.

    The positive sentence is chosen, with more of the feature `cheerful` if no other is named. All prompts are the same.
    The two sentences are about different films.
    """
    chosen, rejected = read_reply(row, "positive"), read_reply(row, "negative")
    return checked(Pair(read_prompt(FILM_PROMPT), chosen, rejected, weights=_weights(feature or "cheerful")))


def find_layout(row: Record) -> Layout | None:
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
    if is_scored(row):
        return Layout("scored replies", scored_replies, has_features=True)
    return None


def _weights(feature: str | None) -> dict[str, float]:
    return {} if feature is None else {feature: 1.0}
