"""How long a text goes on before its words come again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

THRESHOLD = 0.72
MIN_FACTOR = 10  # words; two in three different ones among fewer say nothing


def mtld(text: str) -> float:
    """Measure of textual lexical diversity (McCarthy and Jarvis 2010), in words; the mean of both directions.

    MTLD = words / factors. A factor is a run of at least 10 words whose share of different ones has fallen to 0.72; of
    the last run a part counts: (1 - share) / (1 - 0.72). A text without a whole factor is too short to repeat itself:
    its MTLD is infinite.
    """
    words = re.findall(r"[\w']+", text.lower())
    return (_one_way(words, len(words)) + _one_way(reversed(words), len(words))) / 2


def _one_way(words: Iterable[str], number: int) -> float:
    whole, seen, run = 0, set[str](), 0
    for word in words:
        seen.add(word)
        run += 1
        if run >= MIN_FACTOR and len(seen) / run <= THRESHOLD:
            whole, seen, run = whole + 1, set(), 0
    if not whole:
        return math.inf
    part = (1 - len(seen) / run) / (1 - THRESHOLD) if run else 0.0
    return number / (whole + part)
