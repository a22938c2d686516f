"""`pad score`: what a reply is worth, as a table for a terminal or as an object for JSON."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict

from pad_rt.preference import Preference
from pad_rt.score.reply_score import ReplyScore

_LOG_PROB, _REWARD = "log-prob", "reward"
_NUMBER_WIDTH = 8  # "-1234.56"


def as_record(score: ReplyScore, preference: Preference | None) -> dict[str, object]:
    """A score as an object for JSON."""
    return {
        "logprob": score.logprob,
        "features": score.features,
        "reward": score.reward,
        "token_ids": score.token_ids,
        "per_token": [asdict(token) for token in score.per_token],
        "preference": None if preference is None else asdict(preference),
    }


def as_table(score: ReplyScore) -> str:
    """A score as a table, a token a line, with the sums and what the columns mean below."""
    tokens, count = score.per_token, len(score.per_token)
    guided = score.reward is not None
    names = [_LOG_PROB, *score.features, *([_REWARD] if guided else [])]
    rows = [
        [token.logprob, *token.features.values(), *([token.reward or 0.0] if guided else [])]  # a None is of all tokens
        for token in tokens
    ]
    sums = [score.logprob, *score.features.values(), *([score.reward or 0.0] if guided else [])]
    labels = [_quote(token.text) for token in tokens]
    total, mean = f"all {count} tokens" if count > 1 else "the one token", "mean"
    width = max(map(_columns, ("token", total, *labels)))
    widths = [max(_NUMBER_WIDTH, _columns(name)) for name in names]
    lines = [_line("token", names, width, widths)]
    lines += [_line(label, _numbers(row), width, widths) for label, row in zip(labels, rows, strict=True)]
    lines += ["", _line(total, _numbers(sums), width, widths)]
    lines.append(_line(mean, _numbers([value / count for value in sums]), width, widths))
    return "\n".join([*lines, "", *_key(list(score.features), guided=guided)])


def show(score: ReplyScore, preference: Preference | None, *, as_json: bool) -> None:
    """Print a score."""
    print(json.dumps(as_record(score, preference), ensure_ascii=False) if as_json else as_table(score))


def _key(features: Sequence[str], *, guided: bool) -> list[str]:
    """What the columns mean."""
    lines = [
        f"{_LOG_PROB}: how likely the base finds a token behind those above it, as a natural logarithm:"
        " 0 is certain, -2.30 one in ten"
    ]
    if features:
        lines.append(
            f"{', '.join(features)}: above 0 the token suits the feature better than it suits everybody, below 0 worse"
        )
    if guided:
        lines.append(f"{_REWARD}: the features, weighted by the preference; decoding adds beta times as much")
    return lines


def _quote(text: str) -> str:
    """A token's text, with its spaces and line feeds to be seen."""
    return json.dumps(text, ensure_ascii=False) if text else "(part of a character)"


def _numbers(values: Sequence[float]) -> list[str]:
    return [f"{values[0]:.2f}", *(f"{value:+.2f}" for value in values[1:])]


def _line(label: str, cells: Sequence[str], width: int, widths: Sequence[int]) -> str:
    padded = [" " * (size - _columns(cell)) + cell for cell, size in zip(cells, widths, strict=True)]
    return "  ".join([label + " " * (width - _columns(label)), *padded])


def _columns(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
