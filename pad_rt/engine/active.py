"""A request that has a slot of the decoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pad_rt.engine.ticket import Event, Ticket
from pad_rt.logprobs import TokenLogprobs, token_logprobs
from pad_rt.result import GenerationResult, Timing, Usage
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.slot import Slot
from pad_runtime.decode.trace import SequenceTrace

Part = dict[int, Sequence[int]]


@dataclass(eq=False)
class Active:
    """A request that is read, and then decoded.

    Attributes:
        ticket: its ticket.
        slot: its slot.
        unread: parts of its prompts that the decoder has not been given yet, in order.
        cached_tokens: of the base's prompt, that were in the cache already.
    """

    ticket: Ticket
    slot: Slot
    unread: deque[Part]
    cached_tokens: int

    @property
    def num_pending(self) -> int:
        """Tokens that the decoder was given and has not computed."""
        return sum(map(self.slot.num_pending, range(self.slot.sequence.num_prompts)))

    @property
    def is_reading(self) -> bool:
        """Whether it has no token of its reply yet."""
        return not self.ticket.clock.first

    def take(self, id: int, trace: SequenceTrace | None, decoder: Decoder) -> bool:
        """Take the token that a step chose into the reply, and give out the event; whether the reply has ended."""
        ticket, request = self.ticket, self.ticket.request
        reply = request.reply
        logprobs: tuple[TokenLogprobs, ...] = ()
        kept = (trace,) if trace is not None and request.keeps_trace else ()
        reply.trace += kept
        if trace is not None and request.logprobs is not None:
            logprobs = (token_logprobs(trace, id, request.sequence.sampling, request.logprobs),)
            reply.logprobs += logprobs
        known = len(reply.token_ids)
        piece = reply.push(id)
        ids = tuple(reply.token_ids[known:])
        if reply.ended:
            end = (reply.finish_reason, self._usage(), self._timing(decoder))
            ticket.finish(self._result(decoder), Event(piece, ids, *end, logprobs, kept))
            return True
        if request.allowed is not None:
            request.allowed.push(id)
            decoder.allow(self.slot, request.allowed.packed())
        ticket.put(Event(piece, ids, logprobs=logprobs, trace=kept))
        return False

    def _result(self, decoder: Decoder) -> GenerationResult:
        reply = self.ticket.request.reply
        return GenerationResult(
            text=reply.text,
            token_ids=tuple(reply.token_ids),
            finish_reason=reply.finish_reason,
            usage=self._usage(),
            timing=self._timing(decoder),
            trace=tuple(reply.trace),
            logprobs=tuple(reply.logprobs),
        )

    def _usage(self) -> Usage:
        reply = self.ticket.request.reply
        return Usage(reply.prompt_tokens, len(reply.token_ids), self.cached_tokens)

    def _timing(self, decoder: Decoder) -> Timing:
        return self.ticket.clock.timing(len(self.ticket.request.reply.token_ids), decoder.bytes_per_token)


def in_parts(prompts: Sequence[Sequence[int]], known: Mapping[int, int], size: int) -> Iterator[Part]:
    """What is to be read of prompts, `size` tokens of each at a time.

    Args:
        prompts: token ids, by prompt.
        known: tokens that the decoder knows already, by prompt; 0 where it is not named.
        size: of a part.
    """
    rest = {number: ids[known.get(number, 0) :] for number, ids in enumerate(prompts)}
    for start in range(0, max(map(len, rest.values())), size):
        parts = {number: ids[start : start + size] for number, ids in rest.items()}
        yield {number: ids for number, ids in parts.items() if ids}
