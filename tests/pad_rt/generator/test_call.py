"""A call and its turns at the decoder: long prompts in parts, and an end that is seen when the turn comes."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pad_rt.call import Call
from pad_runtime.errors import CancelledError


class Reply:
    """Ends after two tokens."""

    def __init__(self) -> None:
        self.count = 0

    def push(self, id: int) -> str:
        self.count += 1
        return str(id)

    @property
    def ended(self) -> bool:
        return self.count == 2


class Recorder:
    """A decoder that chooses ones, and notes what it was asked and whether the lock was held."""

    bytes_per_token, ahead = 8, False

    def __init__(self, lock: threading.Lock) -> None:
        self.lock, self.events = lock, list[Any]()

    def open(self, sequence: Any, room: int) -> object:
        return object()

    def read(self, slot: object, ids: dict[int, tuple[int, ...]], cancellation: Any) -> None:
        assert self.lock.locked()
        self.events.append({number: len(part) for number, part in ids.items()})

    def step(self, slots: tuple[object, ...], **options: Any) -> Any:
        assert self.lock.locked()
        self.events.append("step")
        return SimpleNamespace(ids=[1] * len(slots))

    def close(self, slot: object) -> None:
        self.events.append("close")


def make_call(*prompts: int) -> tuple[Call, Recorder, threading.Lock]:
    lock = threading.Lock()
    request: Any = SimpleNamespace(
        sequence=None, room=9, prompts=tuple((5,) * count for count in prompts), reply=Reply()
    )
    return Call([request], trace=False, started=time.perf_counter()), Recorder(lock), lock


@pytest.mark.parametrize(
    ("prompts", "parts"),
    [
        ((7,), [{0: 7}]),
        ((512, 3), [{0: 512, 1: 3}]),
        ((513, 3), [{0: 512, 1: 3}, {0: 1}]),
        ((100, 1200), [{0: 100, 1: 512}, {1: 512}, {1: 176}]),
    ],
)
def test_long_prompts_are_read_in_parts(prompts: tuple[int, ...], parts: list[dict[int, int]]) -> None:
    """A short one as a whole, with which the first step begins."""
    call, decoder, lock = make_call(*prompts)
    pieces: Any = call.pieces(decoder, lock)  # type: ignore[arg-type]
    assert list(pieces) == [(0, "1")] * 2
    assert [event for event in decoder.events if event != "close"] == [*parts, "step", "step"]
    assert not lock.locked()


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_call_that_waits_for_its_turn_ends_when_the_turn_comes(done: int) -> None:
    """Cancelled while another call has the lock, before the first part, the second, or the step: no more is run."""
    call, decoder, lock = make_call(600)

    class Turns:
        """The lock, of which another call has the turn before some take."""

        taken = -1  # the first is for opening

        def __enter__(self) -> None:
            if self.taken == done:
                call.cancellation.want()
            self.taken += 1
            lock.acquire()

        def __exit__(self, *error: object) -> None:
            lock.release()

    with pytest.raises(CancelledError):
        list(call.pieces(decoder, Turns()))  # type: ignore[arg-type]
    assert decoder.events == [*[{0: 512}, {0: 88}][:done], "close"]
