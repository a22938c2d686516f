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

_MAY = _any_of(
    "may might could would perhaps possible possibly probable probably commonly frequently mainly sometimes usually"
)
_MUST = _any_of("must always never certainly definitely clearly obviously will cannot")


def cheerful(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Praise by two classifiers that read Pang and Lee's sentences, and the happiness of words by labMT, one sd each.

    A word is rated by people, a classifier has learned words (TF-IDF) or sentences (MiniLM). The factors keep the sum
    within a rank correlation of .5 with each judge.
    """
    embed, happiness = shared_embedder(), _happiness()
    words, sentences = _polarity()
    parts = [_sentences(reply) for reply in replies]
    flat = iter(sentences.decision_function(embed([each for some in parts for each in some])))
    scores = []
    for reply, own, odds in zip(replies, parts, words.decision_function(list(replies)), strict=True):
        praise = sum(float(next(flat)) for _ in own) / len(own)
        rated = [happiness[word] for word in _words(reply) if word in happiness]
        scores.append(praise / 1.4 + float(odds) / 1.8 + 2.4 * sum(rated) / max(8, len(_words(reply))))
    return scores


def simple(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Minus the rare words in a hundred, by wordfreq, and a sixth of the words in a sentence."""
    from wordfreq import zipf_frequency

    return [
        -_in_hundred(sum(zipf_frequency(word, "en") < RARE for word in _words(reply)), reply)
        - len(_words(reply)) / max(1, len(_SENTENCE_END.findall(reply))) / 6
        for reply in replies
    ]


def concise(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Minus the number of sentences; a line of a list is one, too, and so is a sentence that was cut off."""
    return [-float(sum(bool(re.search(r"\w", part)) for part in _SENTENCE_END.split(reply))) for reply in replies]


def formal(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Words with a Latinate ending in a hundred, and those that join sentences in writing, counted thrice."""
    ends, joins = _rates(_LATINATE, replies), _rates(_JOINING, replies)
    return [end + 3 * join for end, join in zip(ends, joins, strict=True)]


def hedged(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Words of possibility minus words of certainty in a hundred."""
    return [may - must for may, must in zip(_rates(_MAY, replies), _rates(_MUST, replies), strict=True)]


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


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _sentences(text: str) -> list[str]:
    """Those with more than three words, or the text if it has none."""
    return [part for part in re.split(r"(?<=[.!?])\s+|\n", text) if len(part.split()) > 3] or [text]


@cache
def _happiness() -> dict[str, float]:
    """A word's rating minus the middle one, -4 to 4."""
    lines = (DATA / "labmt" / "happiness.tsv").read_text(encoding="utf-8").splitlines()
    return {word: float(rating) - 5 for word, rating in (line.split("\t") for line in lines)}


@cache
def _polarity() -> tuple[Any, Any]:
    """Two classifiers of praise and blame: of a reply by its words, and of a sentence's embedding."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    sides = [
        (DATA / "sentence-polarity" / f"{side}.txt").read_text(encoding="utf-8").splitlines() for side in ("neg", "pos")
    ]
    lines = [line for side in sides for line in side]
    labels = [label for label, side in enumerate(sides) for _ in side]
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=4.0))
    spaced = [re.sub(r" ([,.;:!?'])", r"\1", line).strip().capitalize() for line in lines]
    sentences = LogisticRegression(C=10.0, max_iter=2000)
    return words.fit(lines, labels), sentences.fit(shared_embedder()(spaced), labels)
