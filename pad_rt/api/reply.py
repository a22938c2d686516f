"""Replies as OpenAI's clients read them: whole, or chunk by chunk, out of the events of the generator."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import Any, TypeAlias

from pad_rt.api.request import ApiRequest
from pad_rt.engine.ticket import Event
from pad_rt.explain.choice import Candidate, weigh
from pad_rt.generator import Generator
from pad_rt.logprobs import TokenLogprobs
from pad_rt.result import FinishReason, Timing, Usage
from pad_runtime.bundle.manifest import Manifest

Record: TypeAlias = dict[str, Any]
_PREFIXES = {"chat": "chatcmpl", "text": "cmpl"}
_WHOLE = {"chat": "chat.completion", "text": "text_completion"}
_CHUNK = {"chat": "chat.completion.chunk", "text": "text_completion"}


def fingerprint_of(manifest: Manifest) -> str:
    """The `system_fingerprint` of a bundle's replies: the same seed gives the same reply as long as it stays."""
    return f"fp_{manifest.digest[:16]}"


class Reply:
    """The reply to one body.

    Choices are numbered as the tickets of `ApiRequest.submit`. A stream is `opening`, a `chunk` for each event as it
    comes, and `closing`.

    Args:
        request: the body.
        generator: that made the events; knows the texts of tokens.
        model: the name under which it is served.
        explains: whether the events have traces, to be told token by token.
        fingerprint: of the bundle, as `fingerprint_of` gives it.

    Attributes:
        id: of the reply.
        texts: so far, by choice.
    """

    def __init__(
        self, request: ApiRequest, generator: Generator, model: str, *, explains: bool = False, fingerprint: str = ""
    ) -> None:
        self.id = f"{_PREFIXES[request.kind]}-{uuid.uuid4().hex}"
        self._request, self._generator, self._explains = request, generator, explains
        self._about = {"created": int(time.time()), "model": model, "system_fingerprint": fingerprint or None}
        self._last: list[Event | None] = [None] * request.num_choices  # events, of those that ended
        self.texts = [""] * request.num_choices

    @property
    def has_ended(self) -> bool:
        """Whether all its choices have."""
        return all(self._last)

    @property
    def ends(self) -> list[tuple[Usage, Timing, FinishReason]]:
        """What the choices that ended took, and why they did."""
        return [
            (event.usage, event.timing, event.finish_reason)
            for event in self._last
            if event and event.usage and event.timing and event.finish_reason
        ]

    # -- whole --------------------------------------------------------------------------------------------------------

    def whole(self, events: Sequence[Sequence[Event]]) -> Record:
        """The object that is sent when all choices have ended.

        Args:
            events: of each choice, all of them.
        """
        choices = [self._choice(index, each, is_chunk=False) for index, each in enumerate(events)]
        return {**self._object(_WHOLE, choices), "usage": self._usage(), **self._pad()}

    # -- chunk by chunk -----------------------------------------------------------------------------------------------

    def opening(self) -> list[Record]:
        """What comes first: a chat's roles."""
        if self._request.kind == "text":
            return []
        return [
            self._chunk(
                {
                    "index": index,
                    "delta": {"role": "assistant", "content": ""},
                    "logprobs": None,
                    "finish_reason": None,
                }
            )
            for index in range(len(self._last))
        ]

    def chunk(self, index: int, event: Event) -> list[Record]:
        """What an event adds to a choice; nothing if its text is held back."""
        choice = self._choice(index, [event], is_chunk=True)
        if not (event.text or event.finish_reason or choice["logprobs"] or choice.get("pad")):
            return []
        is_last = self.has_ended and not self._request.include_usage
        return [self._chunk(choice) | (self._pad() if is_last else {})]

    def closing(self) -> list[Record]:
        """What comes last, if the client asks for it: the usage."""
        if not self._request.include_usage:
            return []
        return [{**self._object(_CHUNK, []), "usage": self._usage(), **self._pad()}]

    def _chunk(self, choice: Record) -> Record:
        return self._object(_CHUNK, [choice]) | ({"usage": None} if self._request.include_usage else {})

    # -- parts --------------------------------------------------------------------------------------------------------

    def _object(self, names: dict[str, str], choices: list[Record]) -> Record:
        return {"id": self.id, "object": names[self._request.kind], **self._about, "choices": choices}

    def _choice(self, index: int, events: Sequence[Event], *, is_chunk: bool) -> Record:
        text = "".join(event.text for event in events)
        choice = {
            "index": index,
            **self._content(text, is_chunk),
            "logprobs": self._logprobs(events, len(self.texts[index])),
            "finish_reason": events[-1].finish_reason,
        }
        if self._explains:
            choice["pad"] = {"tokens": [self._explained(event) for event in events]}
        if events[-1].finish_reason is not None:
            self._last[index] = events[-1]
        self.texts[index] += text
        return choice

    def _content(self, text: str, is_chunk: bool) -> Record:
        if self._request.kind == "text":
            return {"text": text}
        if is_chunk:
            return {"delta": {"content": text} if text else {}}
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _logprobs(self, events: Sequence[Event], offset: int) -> Record | None:
        """Of the reply's tokens, without the end of the turn; as each of the two kinds has them."""
        if self._request.top_logprobs is None:
            return None
        told = [each for event in events for each in event.logprobs[: len(event.token_ids)]]
        if self._request.kind == "chat":
            return {"content": [self._token_record(each) for each in told], "refusal": None} if told else None
        name = self._generator.token_text
        starts = accumulate((len(event.text) for event in events), initial=offset)
        return {
            "tokens": [name(each.token_id) for each in told],
            "token_logprobs": [each.logprob for each in told],
            "top_logprobs": [{name(id): logprob for id, logprob in each.likeliest} for each in told],
            "text_offset": [start for event, start in zip(events, starts, strict=False) for _ in event.token_ids],
        }

    def _token_record(self, each: TokenLogprobs) -> Record:
        likeliest = [self._named(id, logprob) for id, logprob in each.likeliest]
        return {**self._named(each.token_id, each.logprob), "top_logprobs": likeliest}

    def _named(self, token_id: int, logprob: float) -> Record:
        data = self._generator.token_bytes(token_id)
        return {"token": self._generator.token_text(token_id), "logprob": logprob, "bytes": list(data)}

    def _explained(self, event: Event) -> Record:
        """What the reward did to one token: the end of the turn, too, whose text is that which was held back."""
        choice = weigh(event.trace[0], event.logprobs[0].token_id)
        return {
            "id": choice.chosen.id,
            "text": event.text,
            "gain": round(choice.gain, 4),
            "changed": choice.changed,
            "candidates": [self._candidate(each) for each in choice.candidates],
        }

    def _candidate(self, candidate: Candidate) -> Record:
        return {
            "id": candidate.id,
            "text": self._generator.token_text(candidate.id),
            "base_probability": round(candidate.base_chance, 6),
            "guided_probability": round(candidate.guided_chance, 6),
            "base_logit": round(candidate.base_logit, 4),
            "reward": round(candidate.reward, 4),
            "score": round(candidate.score, 4),
        }

    def _usage(self) -> Record:
        """Tokens of the body: each prompt once, however many replies it has."""
        usages = [usage for usage, _, _ in self.ends]
        prompts = usages[:: self._request.n]
        read = sum(usage.prompt_tokens for usage in prompts)
        written = sum(usage.completion_tokens for usage in usages)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts)},
        }

    def _pad(self) -> Record:
        """The object "pad", for bodies that have one: the times of the first choice."""
        if self._request.guidance is None:
            return {}
        _, timing, _ = self.ends[0]
        return {"pad": {"timing": asdict(timing)}}
