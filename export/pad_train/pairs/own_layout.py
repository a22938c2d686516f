"""Our own layout of a pair: the row that a pair is written as, and the pair that is read from a row."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from pad_train.pairs.layouts import Layout, record_by_record
from pad_train.pairs.pair import Pair
from pad_train.pairs.record import (
    Record,
    RecordProblem,
    check_feature,
    checked,
    read_flag,
    read_number,
    read_prompt,
    read_reply,
    read_weights,
)

_NEEDED = {"prompt", "chosen", "rejected"}
_OURS = {"preference", "weights", "scores", "chosen_finished", "rejected_finished"}


def is_ours(row: Record) -> bool:
    """Whether a row has the three keys of a pair, which others have too, and one that only ours have."""
    return may_be_ours(row) and bool(_OURS & row.keys())


def may_be_ours(row: Record) -> bool:
    """Whether a row has the three keys of a pair."""
    return row.keys() >= _NEEDED


def pair_to_record(pair: Pair) -> dict[str, Any]:
    """The row of our layout that is read back as this pair; a margin m becomes the scores [m, 0.0]."""
    messages = [dict(message) for message in pair.messages]
    plain = len(messages) == 1 and messages[0]["role"] == "user"
    row: dict[str, Any] = {
        "prompt": messages[0]["content"] if plain else messages,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }
    if pair.preference is not None:
        row["preference"] = pair.preference
    if pair.weights:
        row["weights"] = dict(pair.weights)
    if pair.margins:
        row["scores"] = {feature: [margin, 0.0] for feature, margin in pair.margins.items()}
    if not pair.chosen_finished:
        row["chosen_finished"] = False
    if not pair.rejected_finished:
        row["rejected_finished"] = False
    return row


@record_by_record
def _read_our_record(row: Record, feature: str | None) -> Pair:
    """Our layout: {prompt, chosen, rejected} and optional keys; a null counts as a missing key.

    `feature` (of NAME=PATH) is the feature that chosen has more of, if the row names no person.
    """
    unknown = [key for key in row if key not in _NEEDED | _OURS]
    if unknown:
        raise RecordProblem(f"the unknown key {reprlib.repr(unknown[0])}")
    weights, margins = read_weights(row.get("weights")), _read_scores(row.get("scores"))
    preference = row.get("preference")
    if preference is not None and not (isinstance(preference, str) and preference.strip()):
        raise RecordProblem("a preference that is empty or not text")
    if preference is None and not weights:
        if margins and not any(margins.values()):
            raise RecordProblem("scores that are all equal")
        if feature is not None and not margins:
            weights = {feature: 1.0}
    return checked(
        Pair(
            read_prompt(row.get("prompt")),
            read_reply(row, "chosen"),
            read_reply(row, "rejected"),
            preference=preference,
            weights=weights,
            margins=margins,
            chosen_finished=read_flag(row, "chosen_finished"),
            rejected_finished=read_flag(row, "rejected_finished"),
        )
    )


def _read_scores(value: Any) -> dict[str, float]:
    """Margins: the score of chosen minus that of rejected."""
    if value is None:
        return {}
    problem = RecordProblem("scores that are not two finite numbers by feature")
    if not isinstance(value, Mapping):
        raise problem
    margins = {}
    for feature, scores in value.items():
        if not isinstance(scores, list) or len(scores) != 2:
            raise problem
        margins[check_feature(feature)] = read_number(scores[0]) - read_number(scores[1])
    if not all(math.isfinite(margin) for margin in margins.values()):
        raise problem
    return margins


OWN_LAYOUT = Layout("PAD-RT", _read_our_record)
