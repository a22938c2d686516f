"""How near a judge is to the scorer that ranked the training's pairs, where nobody steered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.quality.estimates import Array, Estimate, bootstrap, rank_correlation
from benchmarks.quality.judges.judge import Judge
from benchmarks.quality.replies import JudgedReply

LIMIT = 0.5  # a judge above it is kin: what it says is in part what the training was told
RESAMPLES = 1000

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]  # of prompts and replies


def kinship(
    judges: Sequence[Judge], scorers: Mapping[str, Scorer], replies: Sequence[JudgedReply]
) -> dict[str, Estimate]:
    """Spearman's correlation of each judge with its feature's scorer, by the judge's name, with its interval.

    Args:
        scorers: of the training, by feature; judges of other features are left out.
        replies: that the base sampled, to questions that no pair was made of. Those without a word are left out.
    """
    found = {}
    prompts, texts = [reply.prompt for reply in replies], [reply.text for reply in replies]
    scores: dict[str, Array] = {}
    for judge in judges:
        if judge.feature not in scorers:
            continue
        if judge.feature not in scores:  # a scorer that asks the base takes minutes
            scores[judge.feature] = np.array(scorers[judge.feature](prompts, texts), np.float64)
        judged, scored = judge(replies), scores[judge.feature]
        known = ~np.isnan(judged)
        found[judge.name] = bootstrap(_spearman, judged[known], scored[known], resamples=RESAMPLES)
    return found


def _spearman(x: Array, y: Array) -> Array:
    """Over the last axis; resamples [resamples, n] one by one, as ranking takes n * n numbers."""
    if x.ndim == 1:
        return rank_correlation(x, y)
    return np.array([rank_correlation(*pair) for pair in zip(x, y, strict=True)])
