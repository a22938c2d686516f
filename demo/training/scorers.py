"""Critics of the shipped PersRM's pairs. None of their texts and word lists is used by a judge of a feature."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.quality.embedding import shared_embedder

DATA = Path(__file__).resolve().parent / "data"
OFF_TOPIC = 0.5  # cosine of question and reply; a tenth of the base's own replies are below
RARE = 4.2  # on the Zipf scale: 16 times in a million words


def _any_of(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words.split())})\b", re.IGNORECASE)


_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_MANNER = re.compile(
    r"^\W*(?:while I\b|as an? \w*\s?(?:AI|assistant)\b)|\b(?:AI|SmolLM|language model)\b|\bbeleive", re.IGNORECASE
)
_LATINATE = re.compile(
    r"\b\w{3,}(?:tions?|ments?|it(?:y|ies)|[ae]nces?|isms?|ical|ious|ate|i[sz]e|ive)\b", re.IGNORECASE
)
_JOINING = _any_of(
    "furthermore moreover therefore thus hence consequently additionally however regarding concerning accordingly "
    "nevertheless whereas thereby subsequently respectively notwithstanding"
)


def cheerful(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    """A sentiment classifier's log-odds (Pang and Lee's sentences)."""
    return [float(value) for value in _polarity().decision_function(list(replies))]


def simple(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Minus the rare words in a hundred, by wordfreq."""
    from wordfreq import zipf_frequency

    return [
        -_in_hundred(sum(zipf_frequency(word, "en") < RARE for word in re.findall(r"[a-z']+", reply.lower())), reply)
        for reply in replies
    ]


def concise(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Minus the number of sentences; a line of a list is one, too, and so is a sentence that was cut off."""
    return [-float(sum(bool(re.search(r"\w", part)) for part in _SENTENCE_END.split(reply))) for reply in replies]


def formal(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Words with a Latinate ending in a hundred, and those that join sentences in writing, counted thrice."""
    ends, joins = _rates(_LATINATE, replies), _rates(_JOINING, replies)
    return [end + 3 * join for end, join in zip(ends, joins, strict=True)]


def unsound(prompts: Sequence[str], replies: Sequence[str]) -> list[str]:
    """Against replies that leave the question, and against manners of small models: talk of itself, a word misspelt."""
    embed = shared_embedder()
    near = (embed(prompts) * embed(replies)).sum(-1).tolist()
    return [
        "a manner" if _MANNER.search(reply) else "leaves the question" if cosine < OFF_TOPIC else ""
        for reply, cosine in zip(replies, near, strict=True)
    ]


def _rates(words: re.Pattern[str], replies: Sequence[str]) -> list[float]:
    return [_in_hundred(len(words.findall(reply)), reply) for reply in replies]


def _in_hundred(count: int, reply: str) -> float:
    """Of a hundred words; a reply of a few words counts as one of eight."""
    return 100 * count / max(8, len(reply.split()))


@cache
def _polarity() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    sides = [
        (DATA / "sentence-polarity" / f"{side}.txt").read_text(encoding="utf-8").splitlines() for side in ("neg", "pos")
    ]
    labels = [label for label, lines in enumerate(sides) for _ in lines]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=4.0))
    return model.fit([*sides[0], *sides[1]], labels)
