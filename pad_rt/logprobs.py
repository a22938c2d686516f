"""Log-probabilities of the tokens of a reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pad_runtime.decode.trace import SequenceTrace
from pad_runtime.rows.sequence import Sampling

if TYPE_CHECKING:
    from pad_rt.result import GenerationResult

REFUSED = -1e29  # scores of candidates that are not allowed are below
Array = npt.NDArray[np.float64]
BaseLogprobs = Callable[[Sequence[int], Sequence[int]], Sequence[float] | None]
"""Log-probabilities of a reply's ids behind a prompt's, over the vocabulary; None where the device does not tell."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of one token of a reply.

    Attributes:
        token_id: the token that was chosen.
        logprob: its log-probability in the distribution that was sampled: softmax(score / temperature) over the
            candidates that top_k, top_p and min_p leave. At temperature 0, which takes the likeliest one whatever its
            probability, those of temperature 1.
        likeliest: ids and log-probabilities of as many of these candidates as `logprobs` asks for, the likeliest first;
            fewer where fewer are left.
        base_logprob: log-probability of the token in the base, over the whole vocabulary and without any option. None
            in an event, before the reply has ended, and on a device that runs engines.
    """

    token_id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]
    base_logprob: float | None = None


def token_logprobs(trace: SequenceTrace, chosen: int, sampling: Sampling, count: int) -> TokenLogprobs:
    """Log-probabilities of a step.

    Args:
        trace: what the step weighed.
        chosen: the token that it chose.
        sampling: how it chose.
        count: candidates that are reported.
    """
    place = int(np.flatnonzero(trace.candidates == chosen)[0])
    logprobs = sampled_logprobs(trace.scores, sampling, place)
    order = np.argsort(-logprobs, kind="stable")[:count]
    likeliest = tuple((int(trace.candidates[at]), float(logprobs[at])) for at in order if np.isfinite(logprobs[at]))
    return TokenLogprobs(chosen, float(logprobs[place]), likeliest)


def sampled_logprobs(scores: npt.NDArray[np.float32], sampling: Sampling, chosen: int) -> Array:
    """Log-probabilities with which candidates are sampled, [k]; minus infinity for those that are left out.

    Args:
        scores: of the candidates, [k].
        sampling: temperature, top_p and min_p.
        chosen: place of the candidate that was chosen. It is among those that are left, however a limit is rounded.
    """
    temperature = float(np.float32(sampling.temperature)) or 1.0
    logits = np.where(scores > REFUSED, scores.astype(np.float64) / temperature, -np.inf)
    chances = np.exp(log_softmax(logits))
    order = np.argsort(-chances, kind="stable")
    before = np.empty_like(chances)  # what the likelier candidates have together
    before[order] = np.cumsum(chances[order]) - chances[order]
    is_kept = (before < sampling.top_p) & (chances >= sampling.min_p * chances.max())
    is_kept[chosen] = True
    return log_softmax(np.where(is_kept, logits, -np.inf))


def with_base(result: GenerationResult, prompt: Sequence[int], base_logprobs: BaseLogprobs) -> GenerationResult:
    """A result with the base's log-probabilities too."""
    values = base_logprobs(prompt, [each.token_id for each in result.logprobs])
    if values is None:
        return result
    pairs = zip(result.logprobs, values, strict=True)
    return replace(result, logprobs=tuple(replace(each, base_logprob=float(value)) for each, value in pairs))


def log_softmax(logits: Array) -> Array:
    """Log-probabilities of logits, any of which but not all may be minus infinity."""
    shifted = logits - logits.max()
    normalised: Array = shifted - np.log(np.exp(shifted).sum())
    return normalised
