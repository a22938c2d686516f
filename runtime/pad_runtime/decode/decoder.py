"""The decoder: sequences that join, go on, fork and leave, over one KV arena.

What a sequence decodes never depends on the other slots of a step, on the parts in which its prompts were read, or on
what its cache rows held before. A slot has token ids, and the KV cache of a part of them; the other tokens are pending,
and are read when they are needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_runtime.adapters.recent import Recent
from pad_runtime.bundle import contract
from pad_runtime.bundle.held_file import BundleFiles
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.cancellation import Cancellation
from pad_runtime.decode.arena import KvArena
from pad_runtime.decode.batches import next_batch, row_origins
from pad_runtime.decode.binder import Binder
from pad_runtime.decode.limits import Limits
from pad_runtime.decode.reader import Reader
from pad_runtime.decode.ready import Chosen, ReadyStep
from pad_runtime.decode.run import Run
from pad_runtime.decode.saved_slot import SavedSlot
from pad_runtime.decode.slot import Slot
from pad_runtime.decode.trace import split_trace, trace_shapes
from pad_runtime.devices.binding import is_on_host
from pad_runtime.devices.ids import BYTES_PER_ID
from pad_runtime.devices.provider import Graph, Provider
from pad_runtime.errors import OutOfMemoryError, PadError, PromptError
from pad_runtime.rows.sequence import SequenceSpec

_GROWTH, _CAPTURED_GROWTH = 64, 256  # positions; with another capacity a step is captured anew
_KEPT_RUNS, _KEPT_CAPTURES = 4, 16  # runs that other sequences can go on with, in the same rows of the arena
Array = npt.NDArray[Any]


class Decoder:
    """Decodes the sequences of one bundle. One thread at a time may use it; `close` may come from any.

    Args:
        graph: opens a graph of the bundle by its name.
        manifest, files: the bundle's.
        provider: what runs its graphs.

    Attributes:
        bytes_per_token: that come back from the device for each token of a sequence.
    """

    bytes_per_token = BYTES_PER_ID

    def __init__(
        self, graph: Callable[[str], Graph], manifest: Manifest, files: BundleFiles, provider: Provider
    ) -> None:
        memory = provider.memory
        self._manifest, self._freezes = manifest, provider.freezes_host_inputs
        self._limits = Limits(manifest)
        self._arena = KvArena(manifest, memory, growth=_growth(provider, manifest), before_resize=self._let_go)
        self._binder = Binder(graph, manifest, files, memory, self._arena, captures=self._freezes)
        self._reader = Reader(self._binder, rows_together=manifest.dialect == "standard")
        self._runs: Recent[tuple[object, ...], Run] = Recent(_KEPT_CAPTURES if self._freezes else _KEPT_RUNS)
        self._slots: set[Slot] = set()
        self._closed: deque[Slot] = deque()

    @property
    def ahead(self) -> bool:
        """Whether the device runs a step while the host has the ids of the one before."""
        return self._binder.memory.runs_ahead

    # -- slots --------------------------------------------------------------------------------------------------------

    def open(self, sequence: SequenceSpec, room: int) -> Slot:
        """Take rows of the arena for a sequence; nothing is computed.

        Args:
            sequence: what is to be decoded.
            room: positions that its longest prompt may come to, the reply included.

        Raises:
            PromptError: the bundle has not as much.
            OptionError: it does not choose in such a way.
        """
        self._collect()
        self._limits.check_sequence(sequence)
        self._limits.check_room(room)
        slot = Slot(sequence, self._arena.lend(sequence), room)
        self._slots.add(slot)
        return slot

    def read(self, slot: Slot, ids: Mapping[int, Sequence[int]], cancellation: Cancellation | None = None) -> None:
        """Append tokens to prompts of a slot; a reply begins behind them.

        What was appended to them before is computed now, and the new tokens by what comes next: so a prompt is read in
        parts by as many calls, and the step after the last one reads the last part first.

        Args:
            slot: one of this decoder.
            ids: new tokens by prompt.
            cancellation: ends the computation before the graph's next operator.

        Raises:
            PromptError: there is no such prompt, no room, or no such token; nothing is appended.
            OutOfMemoryError: the caches or the computation do not fit.
            CancelledError: it was cancelled; nothing is appended.
        """
        self._check([slot])
        new = {prompt: self._limits.token_ids(part) for prompt, part in ids.items() if len(part)}
        slot.check_room(new)
        if not new:
            return
        # A single pending token, as there is behind a reply, is read with what follows: a run of its own is as dear.
        pending = {prompt: slot.lengths[prompt] for prompt in new if slot.num_pending(prompt) > 1}
        self._compute(slot, pending, cancellation or Cancellation())
        self._touch(slot)
        slot.append(new)

    def rewind(self, slot: Slot, lengths: Mapping[int, int]) -> None:
        """Forget tokens at the end of prompts.

        Args:
            slot: one of this decoder.
            lengths: tokens that stay, by prompt.

        Raises:
            PromptError: there is no such prompt, or it has fewer; nothing is forgotten.
        """
        self._check([slot])
        slot.cut(lengths)
        self._touch(slot)

    def fork(self, slot: Slot, sequence: SequenceSpec | None = None) -> Slot:
        """Open another slot that knows what a slot knows, with a copy of its cache.

        Args:
            slot: where it goes on from.
            sequence: of the new slot; None is the same. A prompt keeps its cache where all rows that read it in the new
                sequence are rows of the old one; elsewhere every row reads it again, one that both have among them.
                Tokens of prompts that the new sequence has not are not carried over.

        Raises:
            OptionError: the bundle does not choose in such a way.
            OutOfMemoryError: the caches do not fit.
        """
        self._check([slot])
        sequence = sequence or slot.sequence
        other = self.open(sequence, slot.room)
        other.take_over(slot)
        origins = [row_origins(slot.sequence, sequence, trunk) for trunk in range(len(self._manifest.trunks))]
        try:
            self._gather([slot])
        except OutOfMemoryError:
            self.close(other)
            raise
        known = {row for row in sequence.rows if row in slot.sequence.rows}
        for prompt in range(min(sequence.num_prompts, slot.sequence.num_prompts)):
            if all(row in known for row in sequence.rows if row.prompt == prompt):
                other.lease.cached[prompt] = slot.lease.cached[prompt]
        self._arena.fork(slot.lease, other.lease, origins)
        return other

    def adopt(self, slot: Slot, sequence: SequenceSpec) -> None:
        """Go on with another sequence in a slot, as `fork` would: another preference, or another way to choose.

        A reply begins: steps are counted anew.

        Raises:
            OptionError, OutOfMemoryError: as `fork`; the slot has the sequence that it had.
        """
        self._check([slot])
        self._limits.check_sequence(sequence)
        self._touch(slot)
        if sequence.rows == slot.sequence.rows:
            slot.change(sequence)
        else:
            other = self.fork(slot, sequence)
            slot.trade(other)
            self.close(other)

    def allow(self, slot: Slot, packed: npt.NDArray[np.uint8] | None) -> None:
        """Say which tokens a slot may choose next, and from then on until this is called again.

        Args:
            slot: one of this decoder.
            packed: a bit for each token of the vocabulary, [ceil(V / 8)] uint8, least significant first; None: all.

        Raises:
            OptionError: other bits, or none that is set; what was allowed still is.
        """
        self._check([slot])
        slot.allowed = None if packed is None else self._limits.allowed(packed)
        if slot.ready is not None and not slot.ready.allow(slot, slot.allowed):
            self._touch(slot)

    def resize(self, slot: Slot, room: int) -> None:
        """Give a slot another room.

        Args:
            slot: one of this decoder.
            room: as `open` takes it.

        Raises:
            PromptError: the bundle has not as much, or the slot has more tokens.
        """
        self._check([slot])
        self._limits.check_room(room)
        self._touch(slot)
        slot.resize(room)

    def park(self, slot: Slot) -> None:
        """Give a slot's cache rows back and keep its tokens, which are read again when the slot goes on."""
        self._check([slot])
        self._park(slot)

    def release(self) -> None:
        """Give the memory of all caches back; slots that are open are parked."""
        self._collect()
        for slot in list(self._slots):
            self._park(slot)
        self._arena.release()

    def cache_bytes(self, sequence: SequenceSpec, room: int) -> int:
        """Bytes of the KV caches of a sequence that has a room; in company, all rows have the largest room."""
        return self._arena.num_bytes(sequence, room)

    def close(self, slot: Slot) -> None:
        """Give a slot's rows back; closing one again does nothing. From any thread, at any time."""
        self._closed.append(slot)

    def save(self, slot: Slot, lengths: Mapping[int, int] | None = None) -> SavedSlot:
        """A copy of what a slot knows, on the host.

        Args:
            slot: one of this decoder.
            lengths: tokens that are saved, by prompt, as if the slot were rewound; all where a prompt is not named.
        """
        self._check([slot])
        kept = [min(length, (lengths or {}).get(prompt, length)) for prompt, length in enumerate(slot.lengths)]
        cached = [max(0, min(filled, length - 1)) for filled, length in zip(slot.lease.cached, kept, strict=True)]
        rows = self._arena.filled(replace(slot.lease, cached=cached))
        return SavedSlot(
            rows=slot.sequence.rows,
            ids=tuple(tuple(slot.ids(prompt, 0, length)) for prompt, length in enumerate(kept)),
            cached=tuple(cached),
            caches={name: row.read() for name, row in rows.items()},
        )

    def restore(self, saved: SavedSlot, sequence: SequenceSpec, room: int) -> Slot:
        """Open a slot that knows what a saved one knew; nothing is computed, and a reply begins.

        Args:
            saved: of a decoder of the same bundle, on any device.
            sequence: of the same rows.
            room: as of `open`.

        Raises:
            PromptError: it is of other rows or of another bundle, or there is no room for its tokens.
            OptionError, OutOfMemoryError: as `open` and `step`.
        """
        if saved.rows != sequence.rows or not len(saved.ids) == len(saved.cached) == sequence.num_prompts:
            raise PromptError(f"a saved slot of {len(saved.rows)} rows", expected="the rows of the sequence")
        slot = self.open(sequence, room)
        try:
            self._take_in(slot, saved)
        except PadError:
            self.close(slot)
            raise
        return slot

    # -- steps --------------------------------------------------------------------------------------------------------

    def step(self, slots: Sequence[Slot], *, trace: bool = False, cancellation: Cancellation | None = None) -> Chosen:
        """Choose one token for each slot; what is not in their caches yet is read first.

        Args:
            slots: each once, with something read; the same ones again are a run that is ready.
            trace: also keep what was weighed.
            cancellation: ends the reading of prompts before the graph's next operator.

        Raises:
            PromptError: a slot has nothing read, or no room left.
            OptionError: more slots than the bundle's max_batch.
            OutOfMemoryError: the caches or the computation do not fit.
            CancelledError: it was cancelled; no slot has a further token.
        """
        if self._closed:
            self._collect()
        slots = tuple(slots)
        ready = slots[0].ready if slots else None
        if ready is not None and ready.slots == slots and ready.is_traced == trace and not ready.has_ended:
            return ready.step()
        return self._step_anew(slots, trace, cancellation or Cancellation())

    def cache(self, slot: Slot, row: int, layer: int) -> tuple[Array, Array]:
        """Copies of what a row of a slot has cached in a layer: keys and values [kv_heads, length, head_dim].

        Raises:
            PromptError: it has nothing there.
        """
        self._check([slot])
        planned = slot.sequence.rows[row]
        if not slot.lease.cached[planned.prompt]:
            raise PromptError(f"row {row} of a slot with nothing in the cache", expected="a slot that was stepped")
        return self._arena.read(slot.lease, planned.trunk, slot.sequence.rows_on(planned.trunk).index(row), layer)

    def _step_anew(self, slots: tuple[Slot, ...], trace: bool, cancellation: Cancellation) -> Chosen:
        """A step of slots that were not stepped together just now."""
        self._check(slots)
        self._limits.check_batch(len(slots))
        for slot in slots:
            _check_steps(slot)
        plain = not trace and all(slot.sequence.is_plain for slot in slots)
        name = contract.BASE_GRAPH if plain else contract.STEP_GRAPH
        for slot in slots:
            self._compute(slot, {prompt: length - 1 for prompt, length in enumerate(slot.lengths)}, cancellation)
        return self._ready(name, slots, trace).step()

    def _ready(self, name: str, slots: tuple[Slot, ...], trace: bool) -> ReadyStep:
        """The step of slots with one pending token a prompt, which lie side by side."""
        ready = slots[0].ready
        if ready is not None and ready.slots == slots and ready.is_traced == trace and not ready.has_ended:
            return ready
        for slot in slots:
            self._touch(slot)
        # Where steps are captured, few windows: a copy of another slot's cache is cheaper than a further capture.
        ordered = self._gather(slots, in_front=self._freezes)
        binder, graph = self._binder, self._binder.graph(name)
        batch = next_batch(slots, ordered, len(binder.trunks(name)))
        arrays, adapters = binder.arrays(name, batch, capacity=binder.capacity), binder.adapters(name, batch)
        windows = binder.windows(name, ordered)
        shapes = trace_shapes(batch) if trace else {}
        sizes = [(each, array.shape) for each, array in arrays.items()]
        # A run keeps its adapters, and as long as it is kept, their ids are no others'.
        key = (name, windows, trace, *map(id, adapters.values()), *sizes)
        if self._freezes:
            on_host = [array for each, array in arrays.items() if is_on_host(graph, each)]
            key += tuple(array.tobytes() for array in on_host)

        def make() -> Run:
            return Run(
                graph,
                binder.memory,
                caches=binder.caches(windows),
                adapters=adapters,
                arrays=arrays,
                state=binder.state(name),
                trace=shapes,
            )

        try:
            run = self._runs.get(key, make)
        except OutOfMemoryError:  # others are kept for what may come, and hold buffers
            self._runs.clear()
            run = self._runs.get(key, make)
        for slot in [slot for slot in self._slots if slot.ready is not None and slot.ready.run is run]:
            self._touch(slot)
        run.load(arrays)
        masked = any(slot.allowed is not None for slot in slots)
        return ReadyStep(
            slots,
            run,
            trace=(lambda: split_trace(batch, run.trace())) if trace else None,
            allowed=arrays[contract.ALLOWED] if masked else None,
        )

    def _take_in(self, slot: Slot, saved: SavedSlot) -> None:
        """Give a new slot the tokens and the caches of a saved one."""
        new = {prompt: self._limits.token_ids(ids) for prompt, ids in enumerate(saved.ids) if ids}
        slot.check_room(new)
        slot.append(new)
        for prompt, (cached, length) in enumerate(zip(saved.cached, slot.lengths, strict=True)):
            if cached not in range(max(length, 1)):
                raise PromptError(f"{cached} cached tokens of prompt {prompt}", expected=f"fewer than its {length}")
        self._gather([slot])
        slot.lease.cached[:] = saved.cached
        rows = self._arena.filled(slot.lease)
        odd = sorted(rows.keys() ^ saved.caches.keys())
        if odd:
            raise PromptError(f"a saved slot with other caches, such as {odd[0]}", expected="those of this bundle")
        for name, row in rows.items():
            array = saved.caches[name]
            if (array.shape, array.dtype) != (row.shape, row.dtype):
                raise PromptError(
                    f"{name} as {list(array.shape)} {array.dtype}", expected=f"{list(row.shape)} {row.dtype}"
                )
        for name, row in rows.items():
            row.write(saved.caches[name])

    def _compute(self, slot: Slot, lengths: Mapping[int, int], cancellation: Cancellation) -> None:
        """Bring the caches of a slot's prompts up to lengths, where they are shorter."""
        cached = slot.lease.cached
        new = {prompt: length for prompt, length in lengths.items() if length > cached[prompt]}
        for prompt, length in new.items():
            if length - cached[prompt] == 1:  # one token alone is rounded in another way than several
                cached[prompt] = max(0, cached[prompt] - 1)
        if new:
            self._touch(slot)
            self._gather([slot])
            self._reader.fill(slot, new, cancellation)

    def _park(self, slot: Slot) -> None:
        if not slot.lease.is_free:
            self._touch(slot)
            self._arena.give_back(slot.lease)
            slot.lease.cached[:] = [0] * len(slot.lease.cached)

    # -- housekeeping -------------------------------------------------------------------------------------------------

    def _gather(self, slots: Sequence[Slot], *, in_front: bool = False) -> list[Slot]:
        """Have slots lie side by side, in memory; they are returned in the order in which they lie."""
        for slot in slots:
            if slot.lease.is_free:  # it was parked
                slot.lease = self._arena.lend(slot.sequence)
        before = {slot: slot.lease.first for slot in self._slots}
        by_lease = {slot.lease: slot for slot in slots}
        room = max(slot.room for slot in self._slots if not slot.lease.is_free)
        leases = self._arena.gather(by_lease, room, in_front=in_front)
        for slot, first in before.items():
            if slot.lease.first != first:
                self._touch(slot)
        return [by_lease[lease] for lease in leases]

    def _touch(self, slot: Slot) -> None:
        """End the ready step that a slot is in, if it is in one: the slot has changed, or is about to."""
        if slot.ready is not None:
            slot.ready.end()

    def _let_go(self) -> None:
        """Drop whatever is bound to the buffers of the arena."""
        for slot in self._slots:
            self._touch(slot)
        self._runs.clear()
        self._reader.let_go()

    def _collect(self) -> None:
        """Give back the rows of the slots that were closed."""
        while self._closed:
            slot = self._closed.popleft()
            if slot in self._slots:
                self._slots.remove(slot)
                self._touch(slot)
                if not slot.lease.is_free:
                    self._arena.give_back(slot.lease)

    def _check(self, slots: Sequence[Slot]) -> None:
        self._collect()
        if not slots:
            raise PromptError("no slots", expected="at least one")
        if len(set(slots)) < len(slots):
            raise PromptError("a slot twice in one step", expected="each once")
        if any(slot not in self._slots for slot in slots):
            raise PromptError("a slot that was closed", expected="one that is open in this decoder")


def _growth(provider: Provider, manifest: Manifest) -> int:
    """Positions by which caches grow."""
    if provider.fixes_capacity:
        return manifest.max_length
    return _CAPTURED_GROWTH if provider.freezes_host_inputs else _GROWTH


def _check_steps(slot: Slot) -> None:
    if min(slot.lengths) < 1:
        raise PromptError("a slot with an empty prompt", expected="at least one token read")
    if slot.num_steps_left < 1:
        raise PromptError(f"a sequence of {max(slot.lengths)} tokens", expected=f"at most {slot.room}, its room")
