"""What a slot of a decoder must know, the same sequence in a decoder of its own, and counts of what a test has seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from pad_runtime.decode.slot import Slot
from pad_runtime.decode.trace import SequenceTrace
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.errors import OutOfMemoryError
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.sequence import SequenceSpec

Array = npt.NDArray[Any]


@dataclass(eq=False)
class Book:
    """What a slot must know.

    Attributes:
        slot: the slot.
        sequence, room: what it was opened with.
        prompts: token ids by prompt, chosen ones with them.
        step: tokens chosen since something was read.
        allowed: packed bits of the tokens that may be chosen.
        alone: the same sequence in a decoder of its own, from its last event on.
    """

    slot: Slot
    sequence: SequenceSpec
    room: int
    prompts: list[list[int]]
    step: int = 0
    allowed: Array | None = None
    alone: Alone | None = None

    @property
    def starts(self) -> bool:
        """Whether it can be stepped."""
        return all(self.prompts) and max(map(len, self.prompts)) <= self.room

    def happened(self) -> None:
        """Something else than a step: what goes on beside it begins anew."""
        self.alone = None

    def take_in(self, token: int) -> None:
        for prompt in self.prompts:
            prompt.append(token)
        self.step += 1


class Alone:
    """A sequence in a decoder of its own that has read all that it knows at once."""

    def __init__(self, bundle: Bundle, book: Book) -> None:
        self.decoder = bundle.decoder()
        self.slot = self.decoder.open(book.sequence, book.room)
        self.decoder.read(self.slot, dict(enumerate(book.prompts)))
        self.slot.step = book.step
        self.decoder.allow(self.slot, book.allowed)

    def next(self) -> int:
        return int(self.decoder.step([self.slot]).ids[0])

    def trace(self) -> SequenceTrace:
        (trace,) = self.decoder.step([self.slot], trace=True).trace()
        return trace


class LimitedMemory:
    """A device's memory, of which an allocation may be the last.

    Attributes:
        left: allocations that succeed; None: all.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self.left: int | None = None
        self.runs_ahead, self.ids, self.copy = memory.runs_ahead, memory.ids, memory.copy

    def zeros(self, *arguments: Any) -> Buffer:
        self._spend()
        return self._memory.zeros(*arguments)

    def upload(self, array: Array, *, host: bool = False) -> Buffer:
        self._spend()
        return self._memory.upload(array, host=host)

    def _spend(self) -> None:
        if self.left is not None:
            if self.left == 0:
                raise OutOfMemoryError("no memory", hint="this is a test")
            self.left -= 1


@dataclass
class Tally:
    """What a test has seen.

    Attributes:
        cases, tokens, checked, caches, near_ties: machines; tokens compared; of them, with torch's; rows whose caches
            were compared; and tokens that differ by no more than rounding.
        events: by name.
        difference: of caches, at most.
    """

    cases: int = 0
    tokens: int = 0
    checked: int = 0
    caches: int = 0
    near_ties: int = 0
    difference: float = 0.0
    events: dict[str, int] = field(default_factory=dict)

    def saw(self, event: str) -> None:
        self.events[event] = self.events.get(event, 0) + 1
