"""Errors of grammar, by Harper's rules."""

from __future__ import annotations

from functools import cache
from typing import Any

from benchmarks.quality.judges.words import MIN_WORDS, count_words

# A name or a technical term is no misspelling, length and register are judged elsewhere, and the beginnings of lines
# are no longer what they were when the markup is gone.
_NOT_GRAMMAR = frozenset(
    {
        "Capitalization",
        "Enhancement",
        "Formatting",
        "Readability",
        "Redundancy",
        "Regionalism",
        "Spelling",
        "Style",
        "Typo",
    }
)


def errors_per_100_words(text: str) -> float:
    """Harper's lints of agreement, word choice, repetition, punctuation and the like, per 100 words."""
    return 100 * _count(text) / max(MIN_WORDS, count_words(text))


@cache
def _count(text: str) -> int:
    return sum(lint.lint_kind not in _NOT_GRAMMAR for lint in _linter().lint(text, language="plaintext"))


@cache
def _linter() -> Any:
    from harper import Linter

    linter = Linter()
    # Looking for what a word might be is half of the time.
    linter.set_lint_config({**linter.get_lint_config(), "SpellCheck": False})
    return linter
