"""Cheerful or critical: two lexica of feelings, made from different texts by different people."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from benchmarks.quality.judges.packages import textblob

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def vader(text: str) -> float:
    """VADER's compound score (Hutto and Gilbert 2014), -1 to 1, the mean over sentences.

    Over a whole text it would grow with the length: the score is a saturated sum.
    """
    sentences = _SENTENCE.split(text)
    return float(sum(_vader().polarity_scores(sentence)["compound"] for sentence in sentences)) / len(sentences)


def polarity(text: str) -> float:
    """Polarity, -1 to 1, by the lexicon of Pattern (De Smedt and Daelemans 2012): adjectives of product reviews."""
    return float(textblob().sentiment(text)[0])
