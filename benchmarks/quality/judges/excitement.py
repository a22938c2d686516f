"""Enthusiastic or calm: exclamation."""

from __future__ import annotations

import re

from benchmarks.quality.judges.words import per_100_words

_EXCLAMATION = re.compile(r"!")


def exclamations(text: str) -> float:
    """Exclamation marks per 100 words."""
    return per_100_words(_EXCLAMATION, text)
