"""Lists or prose: how a reply is laid out."""

from __future__ import annotations

from functools import cache
from typing import Any

from benchmarks.quality.judges.words import MIN_WORDS, count_words
from benchmarks.quality.replies import JudgedReply


@cache
def _markdown() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark")


def list_share(reply: JudgedReply) -> float:
    """Share of the lines with text that belong to items of a list, by CommonMark's rules.

    Bullets that CommonMark does not know (•) are read as dashes.
    """
    lines = reply.text.replace("•", "-").splitlines()
    texts = {number for number, line in enumerate(lines) if line.strip()}
    listed = {
        number
        for token in _markdown().parse("\n".join(lines))
        if token.type == "list_item_open"
        for number in range(*token.map)
    }
    return len(texts & listed) / max(1, len(texts))


def line_breaks(reply: JudgedReply) -> float:
    """Lines with text after the first, per 100 words."""
    lines = [line for line in reply.text.splitlines() if line.strip()]
    return 100 * max(0, len(lines) - 1) / max(MIN_WORDS, count_words(reply.plain))
