"""The engine: requests of all threads join one running batch, go on side by side, and leave it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from pad_rt.engine.active import Active, in_parts
from pad_rt.engine.kept import KeptSlots, Prefix, find_prefix
from pad_rt.engine.ticket import Ticket, cancelled
from pad_rt.request import Request
from pad_runtime.cancellation import Cancellation
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.slot import Slot
from pad_runtime.errors import CancelledError, DeviceError, OptionError, OutOfMemoryError, PadError, QueueFullError

T = TypeVar("T")
_NAME = "pad-engine"  # of its thread
_LOOK_EVERY_S = 0.1  # on some systems a wait without a timeout cannot be interrupted
_PART = 512  # tokens of a prompt that are read at a time
_SHORT_PART, _SHORT_PART_AHEAD = 32, 128  # the same while replies go on, which wait for it: of a CPU, and of a GPU
_WORTHWHILE = 16  # tokens of a prompt that another request has read, or is reading just now


class Engine:
    """One decoder for all requests. Its thread lives as long as there is work.

    Between two steps of the replies that go on, the engine lets requests in, reads a part of a prompt, and lets go of
    the requests that ended or were cancelled.

    Args:
        decoder: the engine's thread alone uses it.
        max_running: requests that are decoded side by side.
        max_waiting: requests that wait for a slot.
        max_bytes: of the KV caches of running requests; None is no limit.
        kept_bytes: of the KV caches that are kept for further prompts.

    Attributes:
        kept: the slots that are kept; for jobs, on the engine's thread.
    """

    def __init__(
        self, decoder: Decoder, *, max_running: int, max_waiting: int, max_bytes: int | None, kept_bytes: int
    ) -> None:
        self._decoder, self._max_bytes = decoder, max_bytes
        self._max_running = self._limit = max_running
        self._max_waiting = max_waiting
        self.kept = KeptSlots(decoder, max_slots=max_running, max_bytes=kept_bytes)
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._jobs: deque[tuple[Callable[[Decoder], Any], Future[Any]]] = deque()
        self._parked: deque[Active] = deque()
        self._active: list[Active] = []
        self._has_cancels = False
        self._has_lost = False
        self._closed: Future[None] | None = None
        self._thread: threading.Thread | None = None

    # -- from any thread ----------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], called: float, *, wait: bool) -> list[Ticket]:
        """Let requests queue.

        Args:
            requests: what is asked for.
            called: when the call came, by `time.perf_counter`.
            wait: while too many wait already, wait for a place.

        Raises:
            QueueFullError: too many wait already, and `wait` is False; none of the requests is taken.
            OptionError: `wait` is False, and there are more requests than may ever wait.
            OutOfMemoryError: a request takes more memory than all together may.
            PadError: the engine was closed.
        """
        for request in requests:
            self._check_size(request)
        if not wait and len(requests) > self._max_waiting:
            raise OptionError(f"{len(requests)} requests at once", expected=f"at most max_waiting, {self._max_waiting}")
        tickets = [Ticket(request, called) for request in requests]
        for ticket in tickets:
            ticket.cancellation.on_want(self._note_cancel)
        rest = deque(tickets)
        try:
            with self._changed:
                if not wait and len(self._waiting) + len(tickets) > self._max_waiting:
                    raise QueueFullError(
                        f"{len(self._waiting)} requests that wait",
                        expected=f"at most {self._max_waiting}",
                        hint="try again later, or load with a larger max_waiting",
                    )
                while rest:
                    self._check_open()
                    while rest and len(self._waiting) < self._max_waiting:
                        self._waiting.append(rest.popleft())
                    self._start()
                    if rest:
                        self._changed.wait(_LOOK_EVERY_S)
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return tickets

    def run(self, job: Callable[[Decoder], T]) -> T:
        """Have the engine's thread call `job` between two steps; returns what it returns, and raises what it raises."""
        done = Future[T]()
        with self._changed:
            self._check_open()
            self._jobs.append((job, done))
            self._start()
        return _wait(done)

    def close(self) -> None:
        """Cancel all requests and give back all memory, before it returns; a closed engine takes no requests."""
        with self._changed:
            if self._closed is None:
                self._closed = Future[None]()
                self._jobs.append((self._release, self._closed))
                self._start()
        _wait(self._closed)

    def _release(self, decoder: Decoder) -> None:
        for ticket in self._tickets():
            ticket.cancel()
        self._drop_cancelled()
        self.kept.clear()
        decoder.release()

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return len(self._active)

    def _check_size(self, request: Request) -> None:
        size = self._decoder.cache_bytes(request.sequence, request.room)
        if self._max_bytes is not None and size > self._max_bytes:
            raise OutOfMemoryError(
                f"a request of {size / 2**20:,.1f} MiB of KV cache",
                expected=f"at most {self._max_bytes / 2**20:,.1f}, the max_cache_mib",
                hint="use a shorter prompt or fewer new tokens, or load with a larger max_cache_mib",
            )

    def _check_open(self) -> None:
        if self._closed is not None:
            raise PadError("a generator that was closed", expected="one that is open", hint="load the bundle again")

    def _tickets(self) -> list[Ticket]:
        return [*self._waiting, *(active.ticket for active in (*self._active, *self._parked))]

    def _note_cancel(self) -> None:
        self._has_cancels = True

    def _start(self) -> None:
        """Have a thread; the lock is held."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = threading.Thread(target=self._work, name=_NAME)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            raise DeviceError(
                "no thread for the engine", hint="the system gives this process no more threads"
            ) from None

    # -- on the engine's thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._has_work():
                if not threading.main_thread().is_alive() and _nobody_waits():
                    for ticket in self._tickets():
                        ticket.cancel()
                self._turn()
        except BaseException as error:
            self._abandon(error)
            raise

    def _has_work(self) -> bool:
        """Whether there is any; without, this thread is no longer the engine's."""
        with self._changed:
            if self._waiting or self._active or self._parked or self._jobs:
                return True
            self._thread = None
            return False

    def _abandon(self, error: BaseException) -> None:
        """This thread ends by an error that it cannot serve: nobody may wait for it."""
        known = error if isinstance(error, Exception) else RuntimeError(f"the engine ended: {error!r}")
        with self._changed:
            tickets, jobs = self._tickets(), list(self._jobs)
            for held in (self._waiting, self._active, self._parked, self._jobs):
                held.clear()
            self._thread = None
            self._changed.notify_all()
        for ticket in tickets:
            ticket.fail(known)
        for _, done in jobs:
            done.set_exception(known)

    def _turn(self) -> None:
        """One step, and what comes before it."""
        try:
            self._drop_cancelled()
            self._run_jobs()
            self._admit()
            self._step()
        except CancelledError:
            self._has_cancels = True
        except OutOfMemoryError as error:
            self._make_room(error)
        except Exception as error:  # whatever a device's library raises: the requests fail, the engine does not
            self._fail_all(error)

    def _run_jobs(self) -> None:
        while self._jobs:
            self._drop_cancelled()  # what was wanted before a job comes before it
            job, done = self._jobs.popleft()
            try:
                done.set_result(job(self._decoder))
            except BaseException as error:
                done.set_exception(error)

    def _drop_cancelled(self) -> None:
        if not self._has_cancels:
            return
        self._has_cancels = False
        with self._changed:
            dropped = [ticket for ticket in self._waiting if ticket.cancellation.is_wanted]
            for ticket in dropped:
                self._waiting.remove(ticket)
            self._changed.notify_all()
        leaving = [active for active in (*self._active, *self._parked) if active.ticket.cancellation.is_wanted]
        for ticket in (*dropped, *(active.ticket for active in leaving)):
            ticket.fail(cancelled())
        for active in leaving:
            self._leave(active)

    # -- joining ------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give slots to the requests that waited longest, as long as there is room for the next."""
        while self._parked and self._fits(self._parked[0].ticket.request):
            self._active.append(self._parked.popleft())
        while self._waiting and not self._parked and self._fits(self._waiting[0].request):
            with self._changed:
                ticket = self._waiting.popleft()
                self._changed.notify_all()
            try:
                prefix = self._find_prefix(ticket.request)
                if prefix is not None and prefix.later >= prefix.num_tokens + _WORTHWHILE:
                    self._waiting.appendleft(ticket)
                    return
                self._active.append(self._open(ticket, prefix))
            except Exception as error:  # this request's own fault, or its memory's
                ticket.fail(error)

    def _fits(self, request: Request) -> bool:
        """Whether a request can join those that are running."""
        if len(self._active) >= self._limit:
            return False
        if self._max_bytes is None or not self._active:
            return True
        joined = [request, *(active.ticket.request for active in self._active)]
        room = max(each.room for each in joined)
        return sum(self._decoder.cache_bytes(each.sequence, room) for each in joined) <= self._max_bytes

    def _find_prefix(self, request: Request) -> Prefix | None:
        """The slot that has, or will have, most of a request's prompts in its cache."""
        sequence, prompts = request.sequence, [np.array(ids) for ids in request.prompts]
        found = [find_prefix(slot, sequence, prompts) for slot in self.kept]
        for active in self._active:
            whole = active.ticket.request.prompts if active.is_reading else None
            found.append(find_prefix(active.slot, sequence, prompts, whole))
        best = max(found, key=lambda prefix: max(prefix.num_tokens, prefix.later), default=None)
        return best if best and max(best.num_tokens, best.later) >= _WORTHWHILE else None

    def _open(self, ticket: Ticket, prefix: Prefix | None) -> Active:
        """Give a request a slot, which may know the beginning of its prompts."""
        decoder, request = self._decoder, ticket.request
        begun = self._go_on(prefix, request) if prefix and prefix.num_tokens >= _WORTHWHILE else None
        self.kept.shrink(max(request.room, self._room), is_strict=self._max_bytes is not None)
        slot, known = begun or (decoder.open(request.sequence, request.room), {})
        try:
            decoder.allow(slot, None if request.allowed is None else request.allowed.packed())
        except Exception:
            decoder.close(slot)
            raise
        ticket.clock.admit()
        parts = deque(in_parts(request.prompts, known, self._short_part if self._active else _PART))
        return Active(ticket, slot, parts, cached_tokens=known.get(0, 0))

    def _go_on(self, prefix: Prefix, request: Request) -> tuple[Slot, dict[int, int]] | None:
        """A slot that begins as another does: that slot, if it is kept and has little else; or a fork of it.

        Returns:
            The slot and the tokens that it knows, by prompt; None if there is no memory for both.
        """
        decoder, source = self._decoder, prefix.slot
        known = {number: prefix.lengths.get(number, 0) for number in range(request.sequence.num_prompts)}
        takes_over = source in self.kept and 2 * prefix.num_tokens >= sum(source.lengths)
        try:
            slot = source if takes_over else decoder.fork(source, request.sequence)
            decoder.adopt(slot, request.sequence)
        except OutOfMemoryError:  # nothing is cached any more
            return None
        if takes_over:
            self.kept.take(source)
        decoder.rewind(slot, known)
        decoder.resize(slot, request.room)
        return slot, known

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Read a part of a prompt, and choose a token for every request whose prompts are read."""
        going = [active for active in self._active if not active.is_reading]
        joining = self._read(self._short_part if going else _PART)
        stepped = going + joining
        if not stepped:
            return
        reading = stepped if self._has_lost else joining  # those that may have more to read than a token
        cancellation = Cancellation()
        for active in reading:
            active.ticket.cancellation.on_want(cancellation.want)
        trace = any(active.ticket.request.wants_trace for active in stepped)
        start = time.perf_counter()
        try:
            chosen = self._decoder.step([active.slot for active in stepped], trace=trace, cancellation=cancellation)
        except (CancelledError, OutOfMemoryError):
            raise
        except Exception as error:  # more likely of those that are new
            for active in joining or stepped:
                self._fail(active, error)
            return
        self._has_lost = False
        traces = chosen.trace() if trace else [None] * len(stepped)
        ids, took = tuple(chosen.ids), time.perf_counter() - start
        for active, id, weighed in zip(stepped, ids, traces, strict=True):
            active.ticket.clock.tick(took)
            try:
                has_ended = active.take(id, weighed, self._decoder)
            except Exception as error:  # no token is allowed, for example
                self._fail(active, error)
            else:
                if has_ended:
                    self._leave(active)

    def _read(self, budget: int) -> list[Active]:
        """Read about so many tokens of prompts; returns the requests that the next step takes in.

        A prompt that is not read to its end comes last the next time: a short one does not wait for a long one.
        """
        joining: list[Active] = []
        left = budget
        for active in [active for active in self._active if active.is_reading]:
            num_unread = len(active.unread)
            while active.unread:
                cost = active.num_pending
                if cost > left and left < budget:
                    if len(active.unread) < num_unread:
                        self._active.remove(active)
                        self._active.append(active)
                    return joining
                try:
                    self._decoder.read(active.slot, active.unread[0], active.ticket.cancellation)
                except (CancelledError, OutOfMemoryError):
                    raise
                except Exception as error:  # a file that it alone calls on, for example
                    self._fail(active, error)
                    return joining
                active.unread.popleft()
                left -= cost
            if active.num_pending > left and left < budget:
                return joining
            left -= active.num_pending
            joining.append(active)
        return joining

    def _leave(self, active: Active, *, keep: bool = True) -> None:
        """A request gives up its slot, whose cache is kept for prompts that begin alike."""
        (self._parked if active in self._parked else self._active).remove(active)
        self._limit = min(self._max_running, self._limit + 1)
        if keep and any(active.slot.lease.cached):
            self.kept.put(active.slot, active.ticket.request.owner, self._room)
        else:
            self._decoder.close(active.slot)

    def _fail(self, active: Active, error: Exception) -> None:
        """A request ends by an error of its own."""
        active.ticket.fail(error)
        self._leave(active, keep=False)

    @property
    def _short_part(self) -> int:
        return _SHORT_PART_AHEAD if self._decoder.ahead else _SHORT_PART

    @property
    def _room(self) -> int:
        """The largest room of the requests that run; 0 without any."""
        return max((active.slot.room for active in self._active), default=0)

    def _make_room(self, error: OutOfMemoryError) -> None:
        """Memory is out: kept slots go, then requests wait again, the latest first; alone, a request fails."""
        self._has_lost = True
        if self.kept.clear():
            return
        if len(self._active) > 1:
            latest = self._active.pop()
            self._decoder.park(latest.slot)
            self._parked.appendleft(latest)
            self._limit = len(self._active)
            return
        for active in list(self._active):
            self._fail(active, error)

    def _fail_all(self, error: Exception) -> None:
        """End all requests that have slots."""
        for active in (*self._active, *self._parked):
            self._fail(active, error)


def _wait(done: Future[T]) -> T:
    """What a future comes to."""
    while True:
        try:
            return done.result(_LOOK_EVERY_S)
        except TimeoutError:
            if done.done():
                return done.result()


def _nobody_waits() -> bool:
    """Whether no thread but engines' is left for which the interpreter waits when it ends."""
    return all(thread.daemon or thread.name == _NAME or not thread.is_alive() for thread in threading.enumerate())
