"""Rows of the record: replies to users who want one trait, by both judges of it, beside the base plain and prompted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.quality import estimates
from benchmarks.quality.design import Asked
from benchmarks.quality.estimates import Array, bootstrap, rate
from benchmarks.quality.judges import Judge
from benchmarks.quality.methods import Cell
from benchmarks.quality.replies import JudgedReply
from benchmarks.quality.scores import Scores

CHECKS = ("on_topic", "grammatical", "varied", "sound")


def trait_row(scores: Scores, asked: Asked, number: int) -> dict[str, Any]:
    """One method for one user, on so many questions; several training seeds count as one, question by question."""
    greedy = Cell(method="base", max_new_tokens=asked.base.max_new_tokens)
    passed = {name: _passed(scores, asked.cells, greedy, name, number) for name in CHECKS}
    opinions = {}
    for judge in scores.judges(asked.trait.name):
        own = np.stack([scores.score(cell, judge, number) for cell in asked.cells], axis=-1)  # [questions, seeds]
        opinions[judge.name] = {
            "mean": rate(own),
            "base_mean": rate(scores.score(asked.base, judge, number)),
            "to_base": _held_against(scores, asked, asked.base, judge, passed["sound"], number),
            "to_prompted": _held_against(scores, asked, asked.prompted, judge, passed["sound"], number),
        }
    return {
        "feature": asked.trait.name,
        "weight": asked.weight,
        "method": asked.cells[0].method,
        **asked.setting,
        "questions": number,
        "seeds": len(asked.cells),
        "judges": opinions,
        "checks": {name: rate(values) for name, values in passed.items()},
        **texture(scores, asked.cells, asked.base, number),
    }


def _held_against(
    scores: Scores, asked: Asked, other: Cell, judge: Judge, sound: Array, number: int
) -> dict[str, Any] | None:
    """Wins over another cell, a tie as half: of all replies, at equal words, and of those that are sound; None for what
    is held against itself.
    """
    if other in asked.cells:
        return None
    won = np.stack([scores.wins(cell, other, judge, asked.weight, number) for cell in asked.cells], axis=-1)
    cut = [scores.equal_words(cell, other, judge, asked.weight, number) for cell in asked.cells]
    equal = None if cut[0] is None else np.stack([each for each in cut if each is not None], axis=-1)
    return {
        "win": rate(won),
        "ties": round(float(np.mean(won == 0.5)), 4),
        "equal_words": None if equal is None else rate(equal),
        "sound": rate(won * sound),
        "sound_equal_words": None if equal is None else rate(equal * sound),
        **({"win_by_seed": [round(float(value), 4) for value in won.mean(axis=0)]} if len(asked.cells) > 1 else {}),
    }


def _passed(scores: Scores, cells: Sequence[Cell], greedy: Cell, name: str, number: int) -> Array:
    """Whether replies pass a check [questions, seeds], 0 or 1."""
    return np.stack([getattr(scores.checks(cell, greedy, number), name) for cell in cells], axis=-1).astype(float)


def texture(scores: Scores, cells: Sequence[Cell], base: Cell, number: int) -> dict[str, Any]:
    """What the text is like, whatever it says."""
    own = [scores.replies(cell, number) for cell in cells]
    plain = scores.replies(base, number)
    repeats = [scores.repeats(cell, number) for cell in cells]

    def share(replies: Sequence[JudgedReply], what: Any) -> Array:
        return np.array([float(what(reply)) for reply in replies])

    def of_cells(what: Any) -> Array:
        return np.stack([share(replies, what) for replies in own], axis=-1)

    return {
        "perplexity_ratio": _perplexity_ratio(own, plain),
        "repeats": {name: rate(np.stack([each[name] for each in repeats], axis=-1)) for name in repeats[0]},
        "base_repeats": {name: rate(values) for name, values in scores.repeats(base, number).items()},
        "tokens": round(float(of_cells(lambda reply: reply.num_tokens).mean()), 2),
        "base_tokens": round(float(share(plain, lambda reply: reply.num_tokens).mean()), 2),
        "cut": round(float(of_cells(lambda reply: reply.cut).mean()), 4),
        "base_cut": round(float(share(plain, lambda reply: reply.cut).mean()), 4),
        "empty": round(float(of_cells(lambda reply: not reply.plain).mean()), 4),
    }


def _perplexity_ratio(own: Sequence[Sequence[JudgedReply]], plain: Sequence[JudgedReply]) -> list[float | None]:
    """Median over the base's median, of the questions all of whose replies were measured."""
    rows = [
        [reply.perplexity if reply.perplexity is not None else math.nan for reply in replies]
        for replies in zip(plain, *own, strict=True)
    ]
    values = np.array(rows, dtype=np.float64)  # [questions, base and seeds]
    values = values[~np.isnan(values).any(axis=1)]
    if not len(values):
        return [None, None, None]
    return bootstrap(estimates.median_ratio, values[:, 1:], values[:, :1]).rounded()
