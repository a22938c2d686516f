"""A ticket: one request in the engine, seen from the thread that wants its reply."""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from pad_rt.logprobs import TokenLogprobs, with_base
from pad_rt.request import Request
from pad_rt.result import FinishReason, GenerationResult, Timing, Usage
from pad_runtime.cancellation import Cancellation
from pad_runtime.decode.trace import SequenceTrace
from pad_runtime.errors import CancelledError

_LOOK_EVERY_S = 0.1  # on some systems a wait without a timeout cannot be interrupted


@dataclass(frozen=True, slots=True)
class Event:
    """What a step of the engine gave a request.

    Attributes:
        text: that became final, "" while a character is incomplete or a stop string may have begun.
        token_ids: that were chosen; the end of the turn is none of them.
        finish_reason: of the last event; None before.
        usage, timing: of the last event; None before.
        logprobs: of the chosen token, the end of the turn too, if the request asks for them; without the base's.
        trace: what the step weighed, with `trace=True`, the choice of the end of the turn too.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    trace: tuple[SequenceTrace, ...] = ()


@dataclass
class Clock:
    """When what happened to a request, by `time.perf_counter`.

    Attributes:
        called: the call came.
        admitted: it got a slot.
        first: its first token was chosen.
        last: its latest token was.
        intervals: seconds between tokens.
        between: the part of them in which the decoder did not step.
    """

    called: float
    admitted: float = 0.0
    first: float = 0.0
    last: float = 0.0
    intervals: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def admit(self) -> None:
        """It got a slot."""
        self.admitted = time.perf_counter()

    def tick(self, step_s: float) -> None:
        """A token was chosen, by a step that took so long."""
        now = time.perf_counter()
        if self.first:
            self.intervals.append(now - self.last)
            self.between.append(now - self.last - step_s)
        else:
            self.first = now
        self.last = now

    def timing(self, num_tokens: int, bytes_per_token: int) -> Timing:
        """The figures of a reply of so many tokens that has ended."""
        return Timing(
            queue_s=self.admitted - self.called,
            prefill_s=self.first - self.admitted,
            first_token_s=self.first - self.called,
            step_s=statistics.median(self.intervals or [0.0]),
            between_s=statistics.median(self.between or [0.0]),
            tokens_per_s=num_tokens / (self.last - self.admitted),
            bytes_to_host_per_token=bytes_per_token,
        )


class Ticket(Iterator[Event]):
    """An iterator over the events of one request. One thread may iterate; any may cancel, or wait for the result.

    Made by `Generator.submit`.
    """

    def __init__(self, request: Request, called: float) -> None:
        self.request, self.clock, self.cancellation = request, Clock(called), Cancellation()
        self._events = queue.SimpleQueue[Event | None]()
        self._ended = threading.Event()
        self._result: GenerationResult | None = None
        self._failure: Exception | None = None
        self._listener: Callable[[], object] = _nobody

    # -- for those who want the reply ---------------------------------------------------------------------------------

    def __next__(self) -> Event:
        """Wait for the next event; a request that was cancelled has no further ones.

        Raises:
            PadError: the request failed.
        """
        event = self._wait()
        if event is not None:
            return event
        self._events.put(None)  # for whoever asks again
        if self._failure is not None and not self.cancellation.is_wanted:
            raise self._failure
        raise StopIteration

    def cancel(self) -> None:
        """End the reply here: a step of the decoder ends first, the reading of a prompt ends at the next operator."""
        self.cancellation.want()

    def result(self) -> GenerationResult:
        """Wait for the end, and return the whole reply.

        Raises:
            CancelledError: the request was cancelled before the reply ended.
            PadError: the request failed.
        """
        while not self._ended.wait(_LOOK_EVERY_S):
            pass
        if self._failure is not None:
            raise self._failure
        return self._whole

    @cached_property
    def _whole(self) -> GenerationResult:
        """The result with what is computed behind the reply, on the thread that waits for it."""
        result, request = self._result, self.request
        assert result is not None
        if request.logprobs is None or request.base_logprobs is None:
            return result
        return with_base(result, request.prompts[0], request.base_logprobs)

    @property
    def was_admitted(self) -> bool:
        """Whether it has, or had, a place in the batch."""
        return self.clock.admitted > 0

    @property
    def has_ended(self) -> bool:
        """Whether `result` returns, or raises, at once."""
        return self._ended.is_set()

    def poll(self) -> Event | None:
        """The next event if there is one now; None also behind the last one."""
        try:
            event = self._events.get_nowait()
        except queue.Empty:
            return None
        if event is None:
            self._events.put(None)
        return event

    def listen(self, listener: Callable[[], object]) -> None:
        """Have `listener` called on the engine's thread at each event from now on, and at the end; it may not wait."""
        self._listener = listener
        listener()

    def _wait(self) -> Event | None:
        while True:
            try:
                return self._events.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                continue

    # -- for the engine -----------------------------------------------------------------------------------------------

    def put(self, event: Event) -> None:
        """Give out an event."""
        self._events.put(event)
        self._tell()

    def finish(self, result: GenerationResult, last: Event) -> None:
        """Give out the last event, and the reply."""
        self._result = result
        self._end(last)

    def fail(self, error: Exception) -> None:
        """End without a reply."""
        if not self._ended.is_set():
            self._failure = error.with_traceback(None)  # which would keep the engine in memory
            self._end(None)

    def _end(self, last: Event | None) -> None:
        if last is not None:
            self._events.put(last)
        self._events.put(None)
        self.cancellation.forget()  # what it would end, a whole decoder with it, may go
        self._ended.set()
        self._tell()

    def _tell(self) -> None:
        with suppress(Exception):  # a listener's own fault is not the engine's
            self._listener()


def cancelled() -> CancelledError:
    """The error of a request that was cancelled."""
    return CancelledError("the request was cancelled before its reply ended", hint="the text so far is in its events")


def _nobody() -> None:
    """Listens to nothing."""
