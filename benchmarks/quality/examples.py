"""Replies to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.quality.design import MAIN, Design
from benchmarks.quality.scores import Scores
from benchmarks.quality.traits import wanted


def examples(scores: Scores, design: Design, questions: Sequence[str]) -> list[dict[str, Any]]:
    """Questions with the greedy replies of the base, and of each method of the main part for every user."""
    number = len(questions)
    base = {f"{cap} tokens": scores.replies(design.base(cap), number) for cap in design.caps}
    told: dict[str, dict[str, Any]] = {}
    for trait, weight in design.users:
        cells = {method: design.cell(method, {trait.name: weight}) for method in MAIN}
        told[wanted(trait.name, weight)] = {name: scores.replies(cell, number) for name, cell in cells.items()}
    return [
        {
            "prompt": question,
            "base": {cap: replies[index].text for cap, replies in base.items()},
            "replies": {
                user: {method: replies[index].text for method, replies in methods.items()}
                for user, methods in told.items()
            },
        }
        for index, question in enumerate(questions)
    ]
