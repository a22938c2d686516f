"""What one step weighed, in numbers to read: each candidate with and without the reward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pad_rt.logprobs import REFUSED, log_softmax
from pad_runtime.decode.trace import SequenceTrace


@dataclass(frozen=True)
class Candidate:
    """A token that might have come next. Chances are among the candidates, at temperature 1.

    Attributes:
        id: the token.
        base_logit: z_base.
        reward: what was added, beta * R and any bias or penalty, counted from that of the base's first choice.
        base_chance, guided_chance: without and with what was added.
    """

    id: int
    base_logit: float
    reward: float
    base_chance: float
    guided_chance: float

    @property
    def score(self) -> float:
        """z_base + reward, by which candidates are ranked."""
        return self.base_logit + self.reward


@dataclass(frozen=True)
class Choice:
    """A token of a reply, and what stood beside it.

    Attributes:
        chosen: the token.
        favourite: the base's own first choice.
        candidates: best score first.
        gain: log of the chosen token's chance with the reward over its chance without.
    """

    chosen: Candidate
    favourite: Candidate
    candidates: tuple[Candidate, ...]
    gain: float

    @property
    def changed(self) -> bool:
        """Whether the base's first choice is another token."""
        return self.chosen.base_logit < self.favourite.base_logit


def weigh(trace: SequenceTrace, chosen: int) -> Choice:
    """What a step weighed.

        gain = log softmax_T(score)(a) - log softmax_T(z_base)(a)     a: the chosen token, T: the candidates

    Args:
        trace: of the step.
        chosen: id of the token that was chosen, one of the candidates.
    """
    allowed = trace.scores > REFUSED
    ids = trace.candidates[allowed].tolist()
    base, scores = (values[allowed].astype(np.float64) for values in (trace.base_logits, trace.scores))
    added = scores - base
    before, after = log_softmax(base), log_softmax(scores)
    first, own = int(base.argmax()), ids.index(chosen)
    candidates = [
        Candidate(*values)
        for values in zip(
            ids, base.tolist(), (added - added[first]).tolist(), np.exp(before), np.exp(after), strict=True
        )
    ]
    ranked = tuple(candidates[place] for place in np.argsort(-scores, kind="stable"))
    return Choice(candidates[own], candidates[first], ranked, float(after[own] - before[own]))
