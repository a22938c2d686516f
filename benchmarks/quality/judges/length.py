"""Concise or detailed."""

from __future__ import annotations

import re

from benchmarks.quality.judges.packages import textblob
from benchmarks.quality.judges.words import count_words


def minus_words(text: str) -> float:
    return -float(count_words(text))


def density(text: str) -> float:
    """Lexical density (Ure 1971): the share of nouns, adjectives, adverbs in -ly, full verbs, numbers."""
    tags = [(word, tag) for word, tag in textblob().tag(text) if re.search(r"\w", word)]
    return sum(tag.startswith(("NN", "JJ", "VB", "CD", "FW")) for _, tag in tags) / max(1, len(tags))
