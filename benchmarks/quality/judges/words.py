"""Rates of words and phrases in a text."""

from __future__ import annotations

import re

MIN_WORDS = 20  # a shorter text is taken for so long: one hit in two words is no rate of 50


def count_words(text: str) -> int:
    return len(text.split())


def straight(text: str) -> str:
    """The text with typewriter's apostrophes."""
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def phrases(listed: str) -> re.Pattern[str]:
    """Matches any word or phrase of a list with commas, in any case, longer ones first, no part of a word."""
    texts = sorted((" ".join(text.split()) for text in listed.split(",")), key=len, reverse=True)
    joined = "|".join(re.escape(text).replace(r"\ ", r"\s+") for text in texts)
    return re.compile(rf"(?<![\w'])(?:{joined})(?!\w)", re.IGNORECASE)


def per_100_words(pattern: re.Pattern[str], text: str) -> float:
    """Matches per 100 words of the text, but at least `MIN_WORDS`."""
    return 100 * len(pattern.findall(straight(text))) / max(MIN_WORDS, count_words(text))
