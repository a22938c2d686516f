"""Kept slots: the KV caches of replies that ended, for prompts that begin with the same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.slot import Slot
from pad_runtime.rows.sequence import SequenceSpec

Ids = Sequence[int] | npt.NDArray[np.int64]
Prompts = Sequence[Ids]


@dataclass(frozen=True)
class Prefix:
    """What a slot has cached of the prompts of a request.

    Attributes:
        slot: the slot.
        lengths: cached tokens that are the same, by prompt.
        later: tokens that will be the same once the slot has read all that is to be read.
    """

    slot: Slot
    lengths: Mapping[int, int]
    later: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that need not be read."""
        return sum(self.lengths.values())


def find_prefix(slot: Slot, sequence: SequenceSpec, prompts: Prompts, whole: Prompts | None = None) -> Prefix:
    """What a slot has cached of a request's prompts.

    Args:
        slot: any slot of the decoder.
        sequence: of the request.
        prompts: its token ids, by prompt.
        whole: token ids by prompt that the slot will have, where it is still reading.
    """
    rows = set(slot.sequence.rows)
    lengths, later = dict[int, int](), 0
    for number, ids in enumerate(prompts):
        if number < slot.sequence.num_prompts and all(row in rows for row in sequence.rows if row.prompt == number):
            cached = slot.lease.cached[number]
            lengths[number] = min(cached, _num_common(slot.ids(number), ids))
            if whole is not None:
                later += _num_common(whole[number], ids)
    return Prefix(slot, lengths, later)


class KeptSlots:
    """Slots of a decoder that nobody decodes, oldest first.

    Args:
        decoder: theirs.
        max_slots: how many are kept.
        max_bytes: of their KV caches together; the latest slot is kept in any case.
    """

    def __init__(self, decoder: Decoder, *, max_slots: int, max_bytes: int) -> None:
        self._decoder, self._max_slots, self._max_bytes = decoder, max_slots, max_bytes
        self._owners: dict[Slot, object] = {}

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._owners)

    def put(self, slot: Slot, owner: object = None, room: int = 0) -> None:
        """Keep a slot, whose reply has ended, with no more room than it has tokens; `room` as for `shrink`."""
        self._decoder.resize(slot, min(slot.room, max(slot.lengths)))
        self._owners[slot] = owner
        self.shrink(room)

    def take(self, slot: Slot) -> None:
        """A slot is decoded again."""
        del self._owners[slot]

    def forget(self, owner: object) -> None:
        """Close the slots of an owner."""
        self._close([slot for slot, its in self._owners.items() if its is owner])

    def clear(self) -> bool:
        """Close all slots; whether there were any."""
        had = bool(self._owners)
        self._close(list(self._owners))
        return had

    def shrink(self, room: int = 0, *, is_strict: bool = False) -> None:
        """Close the oldest slots until the others are within the limits; without a request that runs, one is kept.

        Args:
            room: the largest of the requests that run; 0 where there are none.
            is_strict: close slots with more tokens, too, for they would lengthen the cache rows of the requests.
        """
        if is_strict:
            self._close([slot for slot in self._owners if slot.room > room])
        while len(self._owners) > (0 if room else 1):
            largest = max(room, *(slot.room for slot in self._owners))
            size = sum(self._decoder.cache_bytes(slot.sequence, largest) for slot in self._owners)
            if size <= self._max_bytes and len(self._owners) <= self._max_slots:
                return
            self._close([next(iter(self._owners))])

    def _close(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            del self._owners[slot]
            self._decoder.close(slot)


def _num_common(some: Ids, other: Ids) -> int:
    """Tokens at the beginning that are the same."""
    length = min(len(some), len(other))
    differs = np.flatnonzero(np.asarray(some[:length]) != np.asarray(other[:length]))
    return int(differs[0]) if len(differs) else length
