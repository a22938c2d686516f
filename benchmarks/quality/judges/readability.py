"""Simple or academic: readability formulas."""

from __future__ import annotations

from benchmarks.quality.judges.packages import textstat


def minus_grade(text: str) -> float:
    """Minus the Flesch-Kincaid grade (Kincaid et al. 1975): words a sentence, syllables a word."""
    return -float(textstat().flesch_kincaid_grade(text))


def minus_dale_chall(text: str) -> float:
    """Minus the Dale-Chall score (1948): words a sentence, share of words that fourth-graders do not know."""
    return -float(textstat().dale_chall_readability_score(text))
