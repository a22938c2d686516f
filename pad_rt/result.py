"""The result of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pad_rt.logprobs import TokenLogprobs
from pad_runtime.decode.trace import SequenceTrace

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Timing:
    """Where the time of one request went, in seconds.

    Attributes:
        queue_s: from the call until the request had a slot: encoding, and waiting for others.
        prefill_s: from then to the first token: reading the prompts, and choosing.
        first_token_s: from the call to the first token.
        step_s: median time from a token to the next, the steps of others that come between included; 0 where there was
            one token.
        between_s: the part of step_s in which the decoder did not step: ids to text, and parts of others' prompts.
        tokens_per_s: tokens of the reply over the time in which the request had a slot.
        bytes_to_host_per_token: bytes read back from the device for each token of a sequence.
    """

    queue_s: float
    prefill_s: float
    first_token_s: float
    step_s: float
    between_s: float
    tokens_per_s: float
    bytes_to_host_per_token: int


@dataclass(frozen=True)
class Usage:
    """Tokens of one sequence.

    Attributes:
        prompt_tokens: tokens of the base's prompt; a PersRM's prompt does not count.
        completion_tokens: tokens of the reply, without the end-of-turn token.
        cached_tokens: tokens of the base's prompt that were in the KV cache already, from an earlier request.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class GenerationResult:
    """One generated reply.

    Attributes:
        text: the reply, without the end-of-turn token and cut before a stop string.
        token_ids: the chosen ids, without the end-of-turn token; those of a stop string are included.
        finish_reason: "stop" if the reply ended at an end-of-turn token or a stop string; "length" if it was cut, at
            max_new_tokens or at the bundle's max_length.
        usage: tokens of prompt and reply.
        timing: times of the request.
        trace: with `trace=True`, one `SequenceTrace` a chosen token (the end-of-turn token too): candidates [k],
            base_logits [k], reading_logits [readings - 1, k] and scores [k]; row_logits [readings, k] are the logits
            of all readings, the base's first.
        logprobs: with `logprobs` in the config, one `TokenLogprobs` a chosen token (the end-of-turn token too).
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    trace: tuple[SequenceTrace, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()

    def describe_cut(self, max_new_tokens: int) -> str:
        """Say to a user which limit cut a reply of `finish_reason` "length": the option's or the bundle's."""
        count = self.usage.completion_tokens
        return (
            f"cut at {count} tokens ({'--max-new-tokens' if count == max_new_tokens else 'max_length of the bundle'})"
        )
