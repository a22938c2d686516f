"""Sequences that a decoder decodes again and again, for timing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.slot import Slot
from pad_runtime.rows.plan import RowPlan
from pad_runtime.rows.sequence import Sampling


class Side(Protocol):
    """One side of a comparison."""

    def prefill(self) -> object:
        """Read the prompts anew, and choose the first tokens."""

    def step(self) -> object:
        """Choose the next ones."""


class Decoding:
    """The same prompts from their beginning, as often as they are prefilled.

    Args:
        decoder: has no other slots.
        plans: a sequence each.
        new_tokens: that will be decoded after a prefill, its own beside them.
        top_k: candidates; greedy.
    """

    def __init__(self, decoder: Decoder, plans: Iterable[RowPlan], *, new_tokens: int, top_k: int) -> None:
        self._decoder, self._plans = decoder, tuple(plans)
        self._new_tokens, self._sampling = new_tokens, Sampling(top_k=top_k)
        self._slots: tuple[Slot, ...] = ()

    def prefill(self) -> list[int]:
        """Read the prompts into new slots, and choose the first token of each sequence."""
        for slot in self._slots:
            self._decoder.close(slot)
        self._slots = tuple(
            self._decoder.open(plan.sequence(self._sampling), plan.longest + self._new_tokens) for plan in self._plans
        )
        for slot, plan in zip(self._slots, self._plans, strict=True):
            self._decoder.read(slot, dict(enumerate(plan.prompts)))
        return list(self._decoder.step(self._slots).ids)

    def step(self) -> list[int]:
        """Choose the next token of each sequence."""
        return list(self._decoder.step(self._slots).ids)
