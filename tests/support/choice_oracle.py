"""What a slot's step chooses, in NumPy and float64, and how far that is from another choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_runtime.rows.sequence import Sampling, SequenceSpec
from tests.support.hand_fed import Asked
from tests.support.step_formula import control

Array = npt.NDArray[Any]
_BLOCK = 256  # steps of noise that are drawn at once


@dataclass(frozen=True)
class Choice:
    """What is chosen.

    Attributes:
        id: the token.
        margin: how far the numbers are from those by which another would be chosen.
        values: by candidate, what the largest of is chosen; of those that cannot be, -inf.
    """

    id: int
    margin: float
    values: dict[int, float]


def weigh(
    sequence: SequenceSpec,
    logits: Callable[[int], Array],
    *,
    prompt: Sequence[int],
    chosen: Sequence[int],
    allowed: Array | None,
    ends: Sequence[int],
) -> tuple[Array, Array, float]:
    """Candidates and their scores, best base logit first; and how far the last one is from the next.

    Args:
        sequence: readings and controls.
        logits: by reading, over the vocabulary.
        prompt, chosen: the base's prompt, and the tokens chosen since.
        allowed: packed bits of the tokens that may be chosen; None: all.
        ends: tokens that are candidates at every step where they are offered.
    """
    z = logits(0).astype(np.float64)
    controls = sequence.controls
    asked = Asked(
        rows=(),
        bias=controls.bias,
        allowed=None
        if allowed is None
        else np.flatnonzero(np.unpackbits(allowed, bitorder="little")[: len(z)]).tolist(),
        repetition_penalty=controls.repetition_penalty,
        presence_penalty=controls.presence_penalty,
        frequency_penalty=controls.frequency_penalty,
        history=(prompt, ()),
    )
    controlled = control(z, asked, chosen)
    order = controlled.copy()
    if sequence.sampling.offer_end:
        order[list(ends)] += 1e9
    ranked = np.argsort(-order, kind="stable")
    k = sequence.sampling.top_k
    candidates, after = ranked[:k], ranked[k : k + 1]
    closed = len(after) and np.isfinite(order[candidates[-1]])
    margin = float(order[candidates[-1]] - order[after[0]]) if closed else np.inf
    scores = sequence.readings[0].coefficient * z
    for number, reading in enumerate(sequence.readings[1:], 1):
        scores = scores + reading.coefficient * logits(number)
    with np.errstate(invalid="ignore"):
        scores = np.where(np.isfinite(controlled), scores + controlled - z, -np.inf)
    return candidates, scores[candidates], margin


def choose(candidates: Array, scores: Array, sampling: Sampling, step: int) -> Choice:
    """The choice among scored candidates; their order among equals is the given one."""
    order = np.argsort(-scores, kind="stable")
    ids, ordered = candidates[order], scores[order].astype(np.float64)
    if sampling.temperature == 0.0:
        return _best(ids, ordered, np.inf)
    live = np.isfinite(ordered)
    scaled = np.where(live, (ordered - ordered[0]) / sampling.temperature, -np.inf)
    chances = np.exp(scaled) / np.exp(scaled).sum()
    before = np.cumsum(chances) - chances
    top_p = sampling.top_p if sampling.top_p < 1.0 else 2.0
    inside = live & (before < top_p) & (chances >= sampling.min_p * chances[0])
    limits = np.abs(np.concatenate([before - top_p, chances - sampling.min_p * chances[0]]))[
        np.concatenate([chances, chances]) > 1e-5
    ]
    shaken = ordered + sampling.temperature * gumbel(sampling, step)[: len(ordered)]
    return _best(ids, np.where(inside, shaken, -np.inf), float(limits.min()))


def gumbel(sampling: Sampling, step: int) -> Array:
    """The noise of one step, [top_k]: standard Gumbel of the seed's Philox, in blocks of steps."""
    generator = np.random.Generator(np.random.Philox(sampling.seed))
    blocks = [generator.gumbel(size=(_BLOCK, sampling.top_k)) for _ in range(step // _BLOCK + 1)]
    noise: Array = blocks[-1][step % _BLOCK].astype(np.float32)
    return noise


def _best(ids: Array, values: Array, margin: float) -> Choice:
    ranked = np.sort(values)[::-1]
    if len(ranked) > 1:
        margin = min(margin, float(ranked[0] - ranked[1]))
    found = dict(zip(ids.tolist(), values.tolist(), strict=True))
    return Choice(int(ids[values.argmax()]), margin, found)
