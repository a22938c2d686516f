"""Judges that never saw the PersRM's training text; each scores replies, higher for more of its feature.

An empty reply has no score (NaN): see `estimates.outcomes` for how it is counted.
"""

from __future__ import annotations

import json
import math
import random
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.quality.replies import JudgedReply

DATA = Path(__file__).resolve().parent / "data"
LEVELS = DATA.parents[2] / "demo" / "training" / "data" / "onestop-english" / "pairs.jsonl"
Scorer = Callable[[Sequence[str]], list[float]]


@dataclass(frozen=True)
class Judge:
    """One opinion on one feature.

    Attributes:
        name: of the instrument, with its unit.
        feature: what it judges.
        primary: the one that win rates are quoted by.
        score: higher is more of the feature.
        check: what its sanity check found, as a sentence.
        equal_words: whether replies can also be held side by side at equal length.
    """

    name: str
    feature: str
    primary: bool
    score: Callable[[Sequence[JudgedReply]], list[float]]
    check: str
    equal_words: bool = True

    def __call__(self, replies: Sequence[JudgedReply]) -> npt.NDArray[np.float64]:
        scores = self.score(replies)
        return np.array(
            [value if re.search(r"\w", reply.text) else math.nan for value, reply in zip(scores, replies, strict=True)]
        )


def load_judges(*, data: Path = DATA, levels: Path = LEVELS) -> list[Judge]:
    """All judges, the primary one of each feature first.

    Args:
        data: with sentence-polarity/: half of the corpus, the half that was kept out of all training.
        levels: sentences told in two levels of English. They only check the readability formulas, which learn nothing.
    """
    positive, negative = (_read_sentences(data / "sentence-polarity" / f"{name}.txt") for name in ("pos", "neg"))
    vader, linear = vader_compound(), train_linear(positive, negative)
    held_out = cross_validate(positive, negative)
    pairs = _read_levels(levels)
    return [
        Judge("VADER compound", "cheerful", True, of_text(vader), _sign_check(vader, positive, negative)),
        Judge("TF-IDF + logistic regression, log-odds", "cheerful", False, of_text(linear), held_out),
        Judge(
            "minus Flesch-Kincaid grade",
            "simple",
            True,
            of_text(minus_grade, sentences=True),
            _order_check(minus_grade, pairs),
        ),
        Judge(
            "minus Dale-Chall score",
            "simple",
            False,
            of_text(minus_dale_chall, sentences=True),
            _order_check(minus_dale_chall, pairs),
        ),
        Judge("minus tokens", "concise", True, minus_tokens, "a count: exact up to the cap", equal_words=False),
        Judge("minus words", "concise", False, of_text(minus_words), "a count: exact", equal_words=False),
    ]


def of_text(scorer: Scorer, *, sentences: bool = False) -> Callable[[Sequence[JudgedReply]], list[float]]:
    """A judge of replies from a scorer of texts; `sentences` leaves out what the cap broke off in mid-sentence."""
    return lambda replies: scorer([reply.sentences if sentences else reply.plain for reply in replies])


def vader_compound() -> Scorer:
    """VADER's compound score, -1 to 1: a lexicon of feelings with rules for negation and emphasis."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return lambda texts: [float(analyzer.polarity_scores(text)["compound"]) for text in texts]


def train_linear(positive: Sequence[str], negative: Sequence[str]) -> Scorer:
    """Log-odds of "positive" by a logistic regression over TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    features = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = make_pipeline(features, LogisticRegression(C=4.0, max_iter=1000))
    model.fit([*positive, *negative], [1] * len(positive) + [0] * len(negative))
    return lambda texts: [float(value) for value in model.decision_function(list(texts))]


def cross_validate(positive: Sequence[str], negative: Sequence[str], *, folds: int = 5) -> str:
    """Accuracy of `train_linear` on sentences it was not trained on."""
    right = total = 0
    mixed = [random.Random(0).sample(list(texts), len(texts)) for texts in (positive, negative)]
    for fold in range(folds):
        seen = [[text for index, text in enumerate(texts) if index % folds != fold] for texts in mixed]
        scorer = train_linear(*seen)
        for texts, sign in zip(mixed, (1, -1), strict=True):
            scores = scorer(texts[fold::folds])
            right += sum(score * sign > 0 for score in scores)
            total += len(scores)
    return f"{right / total:.0%} of {total} film sentences right, {folds}-fold held out"


def minus_grade(texts: Sequence[str]) -> list[float]:
    """Minus the Flesch-Kincaid grade: words a sentence, syllables a word."""
    return [-float(_textstat().flesch_kincaid_grade(text)) for text in texts]


def minus_dale_chall(texts: Sequence[str]) -> list[float]:
    """Minus the Dale-Chall score: words a sentence, share of words that fourth-graders do not know."""
    return [-float(_textstat().dale_chall_readability_score(text)) for text in texts]


def minus_tokens(replies: Sequence[JudgedReply]) -> list[float]:
    """Minus the tokens; all replies that reach the cap are equally long, and tie."""
    return [-float(reply.num_tokens) for reply in replies]


def minus_words(texts: Sequence[str]) -> list[float]:
    return [-float(len(text.split())) for text in texts]


def _textstat() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
        import textstat
    return textstat.textstat


def _read_sentences(path: Path) -> list[str]:
    """Film-review sentences; the corpus has spaces before punctuation and no capitals."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [re.sub(r" ([,.;:!?'])", r"\1", line).strip() for line in lines if line.strip()]


def _sign_check(scorer: Scorer, positive: Sequence[str], negative: Sequence[str]) -> str:
    signed = [*scorer(positive), *(-score for score in scorer(negative))]
    right, wrong = (sum(sign * score > 0 for score in signed) / len(signed) for sign in (1, -1))
    return f"{right:.0%} of {len(signed)} film sentences right, {wrong:.0%} wrong, {1 - right - wrong:.0%} undecided"


def _order_check(scorer: Scorer, pairs: Sequence[tuple[str, str]]) -> str:
    """How often a scorer orders an easier and a harder telling of the same sentence."""
    if not pairs:
        return "not checked: no sentence pairs"
    easy, hard = (scorer([pair[side] for pair in pairs]) for side in (0, 1))
    right = sum(a > b for a, b in zip(easy, hard, strict=True))
    wrong = sum(a < b for a, b in zip(easy, hard, strict=True))
    return (
        f"{right / len(pairs):.0%} of {len(pairs)} news sentences in two levels right, {wrong / len(pairs):.0%} wrong"
    )


def _read_levels(path: Path, *, number: int = 400) -> list[tuple[str, str]]:
    """Elementary and advanced telling of news sentences; an even sample of the file."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(row["elementary"], row["advanced"]) for row in rows[:: max(1, len(rows) // number)]]
