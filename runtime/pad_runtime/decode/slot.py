"""A slot: one sequence in a decoder, its tokens, and its cache rows of the KV arena."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pad_runtime.decode.arena import Lease
from pad_runtime.errors import PromptError
from pad_runtime.rows.noise import NoiseTape
from pad_runtime.rows.sequence import SequenceSpec

if TYPE_CHECKING:
    from pad_runtime.decode.ready import ReadyStep


class Slot:
    """One sequence in a decoder, which alone changes it.

    Attributes:
        sequence: what is decoded.
        room: positions that its longest prompt may come to.
        lease: its cache rows; `lease.cached` says how many tokens of each prompt are in the cache.
        step: tokens chosen since the last `read`.
        noise: noise of the sequence's seed.
        allowed: packed bits of the tokens that may be chosen next; None: all.
        ready: the ready step that the slot is part of, if any.
    """

    def __init__(self, sequence: SequenceSpec, lease: Lease, room: int) -> None:
        self.sequence, self.lease, self.room = sequence, lease, room
        self.step = 0
        self.noise = NoiseTape(sequence.sampling)
        self.allowed: npt.NDArray[np.uint8] | None = None
        self.ready: ReadyStep | None = None
        # One place more than the room: the last token that is chosen needs none in the cache.
        self._ids = [array("q", bytes(8 * (room + 1))) for _ in range(sequence.num_prompts)]
        self._known = [0] * sequence.num_prompts

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each prompt, chosen ones counted."""
        return tuple(self._known)

    @property
    def is_fresh(self) -> bool:
        """Whether none of its tokens is in the cache."""
        return not any(self.lease.cached)

    @property
    def num_steps_left(self) -> int:
        """Tokens that can be chosen before the room is full, or before more noise must be drawn."""
        left = self.room + 1 - max(self._known)
        if self.sequence.sampling.temperature == 0.0:
            return left
        return min(left, len(self.noise.steps(self.step)) - self.step)

    def num_pending(self, prompt: int) -> int:
        """Tokens of a prompt that are not in the cache."""
        return self._known[prompt] - self.lease.cached[prompt]

    def ids(self, prompt: int, start: int = 0, stop: int | None = None) -> Sequence[int]:
        """Token ids of a prompt, chosen ones with it."""
        known = self._known[prompt]
        return self._ids[prompt][start : known if stop is None else min(stop, known)]

    def check_room(self, new: Mapping[int, Sequence[int]]) -> None:
        """Whether prompts can go on with so many tokens.

        Raises:
            PromptError: there is no such prompt, or no room.
        """
        self._check_prompts(new)
        for prompt, ids in new.items():
            length = self._known[prompt] + len(ids)
            if length > self.room:
                raise PromptError(
                    f"a prompt of {length} tokens", expected=f"at most {self.room}, the room of its sequence"
                )

    def append(self, new: Mapping[int, array[int]]) -> None:
        """Let prompts go on, which have room; a reply begins behind them."""
        for prompt, ids in new.items():
            known = self._known[prompt]
            self._ids[prompt][known : known + len(ids)] = ids
            self._known[prompt] = known + len(ids)
        self.step = 0

    def advance(self, chosen: int) -> None:
        """Note a step: all pending tokens are in the cache now, and the chosen token is pending."""
        known, cached = self._known, self.lease.cached
        for prompt, ids in enumerate(self._ids):
            cached[prompt] = known[prompt]
            ids[known[prompt]] = chosen
            known[prompt] += 1
        self.step += 1

    def cut(self, lengths: Mapping[int, int]) -> None:
        """Forget prompts' tokens from a length on. At least one is read again, for a step begins with a token.

        Raises:
            PromptError: there is no such prompt, or it has fewer; nothing is forgotten.
        """
        self._check_prompts(lengths)
        for prompt, length in lengths.items():
            known = self._known[prompt]
            if not 0 <= length <= known:
                raise PromptError(f"a length of {length}", expected=f"0 to {known}, the tokens of prompt {prompt}")
        cached = self.lease.cached
        for prompt, length in lengths.items():
            forgotten = self._known[prompt] - length
            if forgotten:
                self._known[prompt] = length
                cached[prompt] = max(0, min(cached[prompt], length - 1))
                if prompt == 0:
                    self.step = max(0, self.step - forgotten)

    def resize(self, room: int) -> None:
        """Have another room.

        Raises:
            PromptError: a prompt has more tokens.
        """
        least = max(self._known) - 1
        if room < least:
            raise PromptError(f"a room of {room} tokens", expected=f"{least} or more, as the slot has tokens")
        for number, ids in enumerate(self._ids):
            kept = ids[: self._known[number]]
            self._ids[number] = kept + array("q", bytes(8 * (room + 1 - len(kept))))
        self.room = room

    def take_over(self, other: Slot) -> None:
        """Know the tokens that another slot knows, as far as their prompts have the same numbers, and go on there."""
        for mine, theirs in zip(range(len(self._ids)), other._ids, strict=False):
            self._ids[mine] = theirs[:]
            self._known[mine] = other._known[mine]
        self.step, self.allowed = other.step, other.allowed

    def _check_prompts(self, prompts: Iterable[int]) -> None:
        for prompt in prompts:
            if prompt not in range(len(self._known)):
                raise PromptError(f"prompt {prompt}", expected=f"0 to {len(self._known) - 1}, those of its sequence")

    def change(self, sequence: SequenceSpec) -> None:
        """Another sequence of the same rows."""
        self.sequence, self.noise, self.step = sequence, NoiseTape(sequence.sampling), 0

    def trade(self, other: Slot) -> None:
        """Trade sequence, rows of the arena and tokens with another slot, and begin a reply."""
        self.sequence, other.sequence = other.sequence, self.sequence
        self.lease, other.lease = other.lease, self.lease
        self._ids, other._ids = other._ids, self._ids
        self._known, other._known = other._known, self._known
        self.change(self.sequence)
