"""One call of a generator: its requests in the decoder, and the clock."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from pad_rt.request import Request
from pad_rt.result import GenerationResult, Timing, Usage
from pad_runtime.cancellation import Cancellation
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.slot import Slot
from pad_runtime.errors import CancelledError

_PART = 512  # tokens of a prompt that are read at a time: other calls take their turns in between


@dataclass
class Call:
    """Replies that are made together.

    Attributes:
        requests: what is asked for.
        trace: whether what each step weighed is kept.
        started: when the call came, by `time.perf_counter`.
        cancellation: ends the call: the reading of a prompt at once, and else when its turn comes.
    """

    requests: list[Request]
    trace: bool
    started: float
    cancellation: Cancellation = field(default_factory=Cancellation)
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    bytes_per_token: int = 0
    step_times: list[float] = field(default_factory=list)

    def pieces(self, decoder: Decoder, lock: threading.Lock) -> Generator[tuple[int, str], None, None]:
        """Pieces: ids to text that is final, reply by reply, until every reply has ended.

        Args:
            decoder: takes the requests; a reply that ends leaves it.
            lock: held while the decoder works.

        Raises:
            CancelledError: it was cancelled.
        """
        slots: dict[Slot, int] = {}
        try:
            with lock:
                for number, request in enumerate(self.requests):
                    slots[decoder.open(request.sequence, request.room)] = number
            with closing(self._token_ids(decoder, lock, slots)) as chosen:
                for number, id in chosen:
                    piece = self.requests[number].reply.push(id)
                    if piece:
                        yield number, piece
        finally:
            for slot in slots:
                decoder.close(slot)

    def _token_ids(
        self, decoder: Decoder, lock: threading.Lock, slots: dict[Slot, int]
    ) -> Generator[tuple[int, int], None, None]:
        """Token ids: one a step for every reply that goes on."""
        clock = time.perf_counter
        waiting = tuple(slots)
        start = last = clock()
        self._read(decoder, lock, slots)
        self.bytes_per_token = decoder.bytes_per_token
        is_first = True
        while waiting:
            if not decoder.ahead:  # a CPU: time the step alone; a device that runs ahead: from ids to ids
                last = clock()
            with lock:
                self._check_wanted()
                chosen = decoder.step(waiting, trace=self.trace, cancellation=self.cancellation)
                traces = chosen.trace() if self.trace else ()
                ids = tuple(chosen.ids)
            now = clock()
            if is_first:
                self.prefill_s, self.first_token_s, is_first = now - start, now - self.started, False
            else:
                self.step_times.append(now - last)
            last = now
            for slot, trace in zip(waiting, traces, strict=False):
                self.requests[slots[slot]].reply.trace.append(trace)
            for slot, id in zip(waiting, ids, strict=True):
                yield slots[slot], id
            ended = [slot for slot in waiting if self.requests[slots[slot]].reply.ended]
            if ended:
                for slot in ended:
                    decoder.close(slot)
                waiting = tuple(slot for slot in waiting if slot not in ended)

    def _read(self, decoder: Decoder, lock: threading.Lock, slots: dict[Slot, int]) -> None:
        """Read the prompts, but for the last part of each, which the first step takes in."""
        for slot, number in slots.items():
            for part in _parts(self.requests[number].prompts):
                with lock:
                    self._check_wanted()
                    decoder.read(slot, part, self.cancellation)

    def _check_wanted(self) -> None:
        if self.cancellation.is_wanted:
            raise CancelledError("the call was cancelled")

    def results(self) -> list[GenerationResult]:
        """The replies, which have ended."""
        timing = self._timing()
        return [
            GenerationResult(
                text=reply.text,
                token_ids=tuple(reply.token_ids),
                finish_reason=reply.finish_reason,
                usage=Usage(reply.prompt_tokens, len(reply.token_ids)),
                timing=timing,
                trace=tuple(reply.trace),
            )
            for reply in (request.reply for request in self.requests)
        ]

    def _timing(self) -> Timing:
        """The figures of the whole call."""
        num_tokens = sum(len(request.reply.token_ids) for request in self.requests)
        return Timing(
            prefill_s=self.prefill_s,
            first_token_s=self.first_token_s,
            step_s=statistics.median(self.step_times) if self.step_times else 0.0,
            tokens_per_s=num_tokens / (self.prefill_s + sum(self.step_times)),
            bytes_to_host_per_token=self.bytes_per_token,
        )


def _parts(prompts: Sequence[tuple[int, ...]]) -> Iterator[dict[int, tuple[int, ...]]]:
    """Prompts by number, as many tokens of each at a time."""
    for start in range(0, max(map(len, prompts)), _PART):
        parts = {number: ids[start : start + _PART] for number, ids in enumerate(prompts)}
        yield {number: ids for number, ids in parts.items() if ids}
