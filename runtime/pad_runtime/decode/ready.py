"""A further step of the same slots, on a run that is ready."""

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
    """The tokens that a step chose.

    Attributes:
        ids: an id for each slot, in the order of the slots; a view that the next step overwrites.
    """

    def __init__(self, ids: Sequence[int], trace: Callable[[], list[SequenceTrace]]) -> None:
        self.ids, self._trace = ids, trace

    def trace(self) -> list[SequenceTrace]:
        """The trace of each slot, copied; only of a step with `trace`, and only until the next step."""
        return self._trace()


class ReadyStep:
    """Steps of some slots, as long as nothing else happens to any of them.

    Args:
        slots: the slots of the steps.
        run: a run on their windows, loaded with their state.
        trace: gives the trace of the last step, by slot; None without traces.
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
        """Change a slot's mask of allowed tokens; False if this step was made without masks."""
        if self._allowed is None or self._runs_ahead:  # the next step may have been started with nothing masked
            return packed is None
        self._allowed[self.slots.index(slot)] = 0xFF if packed is None else packed
        self.run.put(contract.ALLOWED, self._allowed)
        self._runs_ahead = self._can_run_ahead and all(slot.allowed is None for slot in self.slots)
        return True

    def end(self) -> None:
        """End these steps, because a slot was changed: its next step is made anew."""
        self.run.discard()
        for slot in self.slots:
            slot.ready = None


def _untraced() -> list[SequenceTrace]:
    raise ValueError("the step was not asked for a trace")
