"""Warm or distant: how the reader is spoken to."""

from __future__ import annotations

from benchmarks.quality.judges.words import per_100_words, phrases

_YOU = phrases("you, your, yours, yourself, yourselves")


def second_person(text: str) -> float:
    """Words of the second person per 100 words."""
    return per_100_words(_YOU, text)
