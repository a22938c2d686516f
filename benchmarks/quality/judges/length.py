"""Concise or detailed: how much is said, and how soon."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.quality.embedding import shared_embedder
from benchmarks.quality.judges.words import count_words
from benchmarks.quality.replies import JudgedReply

HEAD = 16  # words


def minus_words(text: str) -> float:
    return -float(count_words(text))


def said_at_once(replies: Sequence[JudgedReply]) -> list[float]:
    """Cosine (MiniLM) of a reply's first 16 words with all of it: 1 where what follows adds nothing.

    No count of words: of replies equally long, the one that opens with its point and stays with it is higher. So is one
    that repeats its opening, which is for soundness to see.
    """
    embed = shared_embedder()
    whole, head = (embed(texts) for texts in ([one.plain for one in replies], [_head(one) for one in replies]))
    return [float(value) for value in np.sum(whole * head, axis=1)]


def _head(reply: JudgedReply) -> str:
    return " ".join(reply.plain.split()[:HEAD])
