"""A reply that grows token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pad_rt.logprobs import TokenLogprobs
from pad_rt.result import FinishReason
from pad_rt.text.stopping import StopStrings
from pad_rt.text.stream_decoder import StreamDecoder
from pad_runtime.decode.trace import SequenceTrace


@dataclass
class Reply:
    """A reply so far. It ends at an end-of-turn id, a stop string, or its token limit.

    Attributes:
        eos: ids that end the turn; they are no part of the reply.
        max_new_tokens: the limit of this reply, which may be lower than its batch's.
        prompt_tokens: tokens of the base's prompt.
        special: text of each token that replies do not show; stop strings may contain it.
        text: the text that will not change any more.
    """

    eos: frozenset[int]
    max_new_tokens: int
    prompt_tokens: int
    decoder: StreamDecoder
    stop: StopStrings
    special: Mapping[int, str]
    token_ids: list[int] = field(default_factory=list)
    trace: list[SequenceTrace] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "length"
    ended: bool = False

    def push(self, token_id: int) -> str:
        """Append a token and return the text that became final with it."""
        piece = self._settle(token_id)
        self.text += piece
        return piece

    def _settle(self, token_id: int) -> str:
        special = self.special.get(token_id, "")
        if token_id in self.eos:
            self.ended, self.finish_reason = True, "stop"
            return self._flush(special)
        self.token_ids.append(token_id)
        piece, stopped = self.stop.push(self.decoder.push(token_id), special=special)
        if stopped:
            self.ended, self.finish_reason = True, "stop"
        elif len(self.token_ids) == self.max_new_tokens:
            self.ended = True
            return piece + self._flush()
        return piece

    def _flush(self, special: str = "") -> str:
        """The text held back until the end, which may complete a stop string, as may the special token at the end."""
        piece, stopped = self.stop.push(self.decoder.flush())
        if not stopped and special:
            rest, stopped = self.stop.push("", special=special)
            piece += rest
        if stopped:
            self.ended, self.finish_reason = True, "stop"
            return piece
        return piece + self.stop.flush()
