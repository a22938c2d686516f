"""Utilities of all ways into figures with intervals over questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality import estimates
from benchmarks.quality.estimates import Array, bootstrap, outcomes
from benchmarks.quality.replies import JudgedReply
from pad_train.pairs.pair_choice import repeats_itself


def rows_of_ways(
    utilities: Mapping[str, Array], replies: Mapping[str, Sequence[JudgedReply]], *, base: str, reference: str
) -> list[dict[str, Any]]:
    """One row a way.

    Args:
        utilities: [questions, users], by way.
        replies: of every question and user, by way.
        base: the way whose perplexity is 1.
        reference: the way that others are held against.
    """
    names = list(utilities)
    stacked = np.stack([utilities[name] for name in names], axis=-1)  # [questions, users, ways]
    rows = []
    for index, name in enumerate(names):
        own = utilities[name]
        won = {other: outcomes(own, utilities[other]).mean(axis=1) for other in (reference, base)}
        rows.append(
            {
                "way": name,
                "utility": bootstrap(_mean_of_all, own).rounded(),
                "gain_over_reference": bootstrap(_mean_gain, own, utilities[reference]).rounded(),
                "regret": bootstrap(lambda sample, index=index: _regret(sample, index), stacked).rounded(),
                "win_over_reference": bootstrap(estimates.mean, won[reference]).rounded(),
                "win_over_base": bootstrap(estimates.mean, won[base]).rounded(),
                **_texture(replies[name], replies[base]),
            }
        )
    return rows


def _texture(replies: Sequence[JudgedReply], base: Sequence[JudgedReply]) -> dict[str, Any]:
    own, plain = (np.array([one.perplexity for one in side if one.perplexity]) for side in (replies, base))
    return {
        "perplexity_ratio": round(float(np.median(own) / np.median(plain)), 3),
        "repeats": round(float(np.mean([repeats_itself(one.text) for one in replies])), 4),
        "tokens": round(float(np.mean([one.num_tokens for one in replies])), 1),
    }


def _mean_of_all(values: Array) -> Array:
    mean: Array = values.mean(axis=(-2, -1))
    return mean


def _mean_gain(own: Array, other: Array) -> Array:
    return _mean_of_all(own - other)


def _regret(sample: Array, index: int) -> Array:
    """Mean over users of (the best way's mean utility - this way's); [..., questions, users, ways]."""
    means = sample.mean(axis=-3)  # [..., users, ways]
    regret: Array = (means.max(axis=-1) - means[..., index]).mean(axis=-1)
    return regret
