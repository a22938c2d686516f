"""Scorers of the shipped PersRM's pairs. None of their texts and word lists is used by a judge of the results."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent / "data"


def cheerful(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """AFINN valence a word, plus a sentiment classifier's log-odds (Pang and Lee's sentences)."""
    del prompts
    log_odds = _polarity().decision_function(list(replies))
    return [20 * _valence(reply) + float(value) for reply, value in zip(replies, log_odds, strict=True)]


def simple(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Log-odds that a sentence was written for elementary readers (OneStopEnglish), from word and sentence measures."""
    del prompts
    model, frequencies = _readability()
    return [float(value) for value in model.decision_function([_measures(reply, frequencies) for reply in replies])]


def concise(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Minus the number of words."""
    del prompts
    return [-float(len(reply.split())) for reply in replies]


@cache
def _lexicon() -> Any:
    from afinn import Afinn

    return Afinn()


def _valence(reply: str) -> float:
    return float(_lexicon().score(reply)) / max(5, len(reply.split()))


@cache
def _polarity() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    sides = [_lines(DATA / "sentence-polarity" / f"{side}.txt") for side in ("neg", "pos")]
    labels = [label for label, lines in enumerate(sides) for _ in lines]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=4.0))
    return model.fit([*sides[0], *sides[1]], labels)


@cache
def _readability() -> tuple[Any, Counter[str]]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = [json.loads(line) for line in _lines(DATA / "onestop-english" / "pairs.jsonl")]
    frequencies = Counter(word for row in rows for text in row.values() for word in _words(text))
    measures = [_measures(row[level], frequencies) for row in rows for level in ("elementary", "advanced")]
    model = make_pipeline(StandardScaler(), LogisticRegression())
    return model.fit(measures, [1, 0] * len(rows)), frequencies


def _measures(text: str, frequencies: Counter[str]) -> list[float]:
    """Mean word length, share of long words, mean log frequency, words a sentence."""
    words = _words(text) or ["a"]
    total = sum(frequencies.values())
    return [
        sum(map(len, words)) / len(words),
        sum(len(word) > 7 for word in words) / len(words),
        sum(math.log((frequencies[word] + 0.5) / total) for word in words) / len(words),
        len(words) / max(1, len(re.findall(r"[.!?](?:\s|$)", text))),
    ]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
