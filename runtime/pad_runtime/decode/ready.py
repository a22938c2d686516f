"""A step of the same slots again: a run that is ready to go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pad_runtime.bundle import contract
from pad_runtime.decode.run import Run
from pad_runtime.decode.trace import SequenceTrace

if TYPE_CHECKING:
    from pad_runtime.decode.slot import Slot


class Chosen:
    """What a step chose.

    Attributes:
        ids: one for each slot, in the order in which the slots were given; a view that the next step overwrites.
    """

    def __init__(self, ids: Sequence[int], trace: Callable[[], list[SequenceTrace]]) -> None:
        self.ids, self._trace = ids, trace

    def trace(self) -> list[SequenceTrace]:
        """Copies of what the step weighed, by slot; of a step that was asked for it, until the next one."""
        return self._trace()


class ReadyStep:
    """Steps of some slots, as long as nothing else happens to any of them.

    Args:
        slots: whose tokens it chooses.
        run: on their windows, loaded with what they know.
        trace: what the run weighed last, by slot; None where it was not asked for.
        allowed: packed bits of the tokens that may be chosen, [slots, ceil(V / 8)]; None where all may.
    """

    def __init__(
        self,
        slots: tuple[Slot, ...],
        run: Run,
        *,
        trace: Callable[[], list[SequenceTrace]] | None,
        allowed: npt.NDArray[np.uint8] | None,
    ) -> None:
        self.slots, self.is_traced, self.run = slots, trace is not None, run
        self._allowed = allowed
        self._can_run_ahead = run.ahead and trace is None
        self._runs_ahead = self._can_run_ahead and allowed is None
        self._left = min(slot.num_steps_left for slot in slots)
        self._chosen = Chosen((), trace or _untraced)
        for slot in slots:
            slot.ready = self

    @property
    def has_ended(self) -> bool:
        """Whether a slot's room is full, or its noise used up."""
        return self._left == 0

    def step(self) -> Chosen:
        """One token for each slot."""
        left = self._left = self._left - 1
        chosen = self._chosen
        chosen.ids = self.run.step(run_ahead=self._runs_ahead and left > 0)
        for slot, id in zip(self.slots, chosen.ids, strict=True):
            slot.advance(id)
        return chosen

    def allow(self, slot: Slot, packed: npt.NDArray[np.uint8] | None) -> bool:
        """Change what a slot may choose next; False where this step was not made for that."""
        if self._allowed is None or self._runs_ahead:  # the next step may have been started with nothing masked
            return packed is None
        self._allowed[self.slots.index(slot)] = 0xFF if packed is None else packed
        self.run.put(contract.ALLOWED, self._allowed)
        self._runs_ahead = self._can_run_ahead and all(slot.allowed is None for slot in self.slots)
        return True

    def end(self) -> None:
        """Something happened to one of the slots: their next step is made anew."""
        self.run.discard()
        for slot in self.slots:
            slot.ready = None


def _untraced() -> list[SequenceTrace]:
    raise ValueError("the step was not asked for a trace")
