"""Reading: runs that fill the caches of slots."""

from __future__ import annotations

from collections.abc import Mapping

from pad_runtime.bundle import contract
from pad_runtime.cancellation import Cancellation, run_or_cancel
from pad_runtime.decode.batches import next_batch, rows_in_turn
from pad_runtime.decode.binder import Binder, Windows
from pad_runtime.decode.slot import Slot
from pad_runtime.devices.binding import bind, upload
from pad_runtime.rows.batch import Batch


class Reader:
    """Reads prompts of slots that have memory in the arena.

    Args:
        binder: binds the graphs.
        rows_together: whether attention takes several new tokens behind a cache for all rows at once.
    """

    def __init__(self, binder: Binder, *, rows_together: bool) -> None:
        self._binder, self._rows_together = binder, rows_together
        self._last: object = None

    def fill(self, slot: Slot, lengths: Mapping[int, int], cancellation: Cancellation) -> None:
        """Bring caches of a slot up to lengths, by prompt; each is longer than what is cached.

        All rows read at once where all prompts go on. Behind a cache, GroupQueryAttention takes several new tokens for
        one row at a time; the standard dialect's attention takes all rows, as long as each has positions for as many
        as the longest brings.
        """
        name = contract.BASE_GRAPH if slot.sequence.is_plain else contract.STEP_GRAPH
        num_trunks = len(self._binder.trunks(name))
        cached = slot.lease.cached
        padded = max(cached) + max(length - cached[prompt] for prompt, length in lengths.items())
        together = (
            len(lengths) == slot.sequence.num_prompts
            and (slot.is_fresh or self._rows_together)
            and padded <= self._binder.capacity
        )
        for rows in [None] if together else rows_in_turn(slot.sequence, num_trunks, lengths):
            batch = next_batch((slot,), (slot,), num_trunks, lengths=lengths, rows=rows)
            self._run(name, batch, self._binder.windows(name, (slot,), rows=rows), cancellation)
        for prompt, length in lengths.items():
            cached[prompt] = length

    def let_go(self) -> None:
        """Drop the buffers of the last run."""
        self._last = None

    def _run(self, name: str, batch: Batch, windows: Windows, cancellation: Cancellation) -> None:
        """Run a graph once; the ids that it chooses are nobody's."""
        graph, memory = self._binder.graph(name), self._binder.memory
        inputs, outputs = self._binder.caches(windows)
        inputs |= self._binder.adapters(name, batch) | upload(graph, memory, self._binder.arrays(name, batch))
        ids = memory.ids(len(batch.members))
        outputs |= {contract.NEXT_IDS: ids.buffer}
        run = ids.bind(bind(graph, inputs, outputs, repeated=False, cancellation=cancellation))
        self._last = (inputs, outputs, run)  # until the next run, for freeing device memory waits for this one
        run_or_cancel(run, cancellation, "the reading of a prompt", returns_at_once=ids.ahead)
        ids.take()
