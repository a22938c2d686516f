"""The decoder: sequences that join, go on, fork and leave, over one KV arena.

What a sequence decodes never depends on who else is in the batch, on the parts in which its prompts were read, or on
what was in its rows before. What a slot knows are token ids; what it has in the cache is a part of them, and whatever
is missing there is read when it is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_runtime.adapters.factors import LoraFactors
from pad_runtime.adapters.heads import FeatureHeads
from pad_runtime.adapters.persrm_files import PersrmFiles
from pad_runtime.adapters.recent import Recent
from pad_runtime.bundle import contract
from pad_runtime.bundle.held_file import BundleFiles
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.cancellation import Cancellation, run_interruptibly
from pad_runtime.decode.arena import KvArena
from pad_runtime.decode.inputs import InputBuilder
from pad_runtime.decode.kv_group import Window
from pad_runtime.decode.ready import Chosen, ReadyStep
from pad_runtime.decode.run import Run
from pad_runtime.decode.slot import Slot
from pad_runtime.decode.trace import SequenceTrace, split_trace, trace_shapes
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.ids import BYTES_PER_ID
from pad_runtime.devices.provider import Graph, Provider
from pad_runtime.errors import CancelledError, OutOfMemoryError, PromptError
from pad_runtime.rows.batch import Batch, Member, PromptPart, RowPart, TrunkPart
from pad_runtime.rows.row import Row
from pad_runtime.rows.sequence import Sequence as RowSequence

_PADDED = 1.5  # times the tokens of prompts that are read together
_KEPT_RUNS = 16  # bound to windows of the arena, for further sequences in the same places
Array = npt.NDArray[Any]
_Windows = tuple[tuple[Window, Window] | None, ...]  # by trunk: below and above the first adapter


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
        self._graph, self._manifest, self._provider = graph, manifest, provider
        self._memory = provider.memory
        persrms = PersrmFiles(files, manifest)
        self._factors = LoraFactors(persrms, manifest, self._memory)
        self._builder = InputBuilder(manifest, self._factors, FeatureHeads(persrms, manifest))
        self._arena = KvArena(
            manifest,
            self._memory,
            captures=provider.freezes_host_inputs,
            fixed=provider.fixes_capacity,
            before_resize=self._let_go,
        )
        self._runs: Recent[tuple[object, ...], Run] = Recent(_KEPT_RUNS)
        self._slots: set[Slot] = set()
        self._closed: deque[Slot] = deque()
        self._last_reading: object = None

    @property
    def ahead(self) -> bool:
        """Whether the device runs a step while the host has the ids of the one before."""
        return self._memory.runs_ahead

    # -- slots --------------------------------------------------------------------------------------------------------

    def open(self, sequence: RowSequence, room: int) -> Slot:
        """Take rows of the arena for a sequence; nothing is computed.

        Args:
            sequence: what is to be decoded.
            room: positions that its longest prompt may come to, the reply included.

        Raises:
            PromptError: the bundle has not as much.
        """
        self._collect()
        if not 1 <= room <= self._manifest.max_length:
            raise PromptError(f"a room of {room} tokens", expected=f"1 to {self._manifest.max_length}")
        slot = Slot(sequence, self._arena.lend(sequence), room)
        self._slots.add(slot)
        return slot

    def read(self, slot: Slot, ids: Mapping[int, Sequence[int]], cancellation: Cancellation | None = None) -> None:
        """Append tokens to prompts of a slot; a reply begins behind them.

        What was appended to them before is computed now, and the new tokens by what comes next: so a prompt is read in
        parts by as many calls, and the step after the last one takes in the last part and chooses at once.

        Args:
            slot: whose prompts.
            ids: new tokens by prompt.
            cancellation: ends the computation before the graph's next operator.

        Raises:
            PromptError: there is no room.
            OutOfMemoryError: the caches or the computation do not fit.
            CancelledError: it was cancelled; the slot knows what it knew before.
        """
        self._collect()
        self._check([slot])
        new = {prompt: part for prompt, part in ids.items() if len(part)}
        slot.check_room(new)
        self._compute(slot, {prompt: slot.lengths[prompt] for prompt in new}, cancellation)
        self._touch(slot)
        slot.append(new)
        slot.step = 0

    def rewind(self, slot: Slot, lengths: Mapping[int, int]) -> None:
        """Forget tokens at the end of prompts.

        Args:
            slot: whose prompts.
            lengths: tokens that stay, by prompt.

        Raises:
            PromptError: a prompt has fewer.
        """
        self._check([slot])
        self._touch(slot)
        slot.cut(lengths)

    def fork(self, slot: Slot, sequence: RowSequence | None = None) -> Slot:
        """Open another slot that knows what a slot knows, with a copy of its cache.

        Args:
            slot: where it goes on from.
            sequence: of the new slot; None is the same. A prompt keeps its cache where the rows that read it are rows
                of both sequences; elsewhere it will be computed again.

        Raises:
            OutOfMemoryError: the caches do not fit.
        """
        self._collect()
        self._check([slot])
        sequence = sequence or slot.sequence
        other = self.open(sequence, slot.room)
        other.take_ids(slot)
        origins = [_origins(slot.sequence, sequence, trunk) for trunk in range(len(self._manifest.trunks))]
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

    def adopt(self, slot: Slot, sequence: RowSequence) -> None:
        """Go on with another sequence in a slot, as `fork` would: another preference, or another way to choose.

        A reply begins: steps are counted anew.
        """
        self._check([slot])
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
            slot: whose.
            packed: a bit for each token of the vocabulary, [ceil(V / 8)], least significant first; None: all.
        """
        self._check([slot])
        slot.allowed = packed
        if slot.ready is not None and not slot.ready.allow(slot, packed):
            self._touch(slot)

    def close(self, slot: Slot) -> None:
        """Give a slot's rows back; closing one again does nothing. From any thread, at any time."""
        self._closed.append(slot)

    # -- steps --------------------------------------------------------------------------------------------------------

    def step(self, slots: Sequence[Slot], *, trace: bool = False, cancellation: Cancellation | None = None) -> Chosen:
        """Choose one token for each slot; what is not in their caches yet is read first.

        Args:
            slots: each once, with something read; the same ones again are a run that is ready.
            trace: also keep what was weighed.
            cancellation: ends the reading of prompts before the graph's next operator.

        Raises:
            PromptError: a slot has nothing read, or no room left.
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
        """Copies of what a row of a slot has cached in a layer: keys and values [kv_heads, length, head_dim]."""
        planned = slot.sequence.rows[row]
        return self._arena.read(slot.lease, planned.trunk, slot.sequence.rows_on(planned.trunk).index(row), layer)

    def _step_anew(self, slots: tuple[Slot, ...], trace: bool, cancellation: Cancellation) -> Chosen:
        """A step of slots that were not stepped together just now."""
        self._check(slots)
        for slot in slots:
            _check_steps(slot)
        plain = not trace and all(slot.sequence.is_plain for slot in slots)
        name = contract.BASE_GRAPH if plain else contract.STEP_GRAPH
        for slot in slots:
            if not slot.is_fresh:
                self._compute(slot, {prompt: length - 1 for prompt, length in enumerate(slot.lengths)}, cancellation)
        groups = _alike(self._gather(slots))
        if not any(group[0].is_fresh for group in groups):
            return self._ready(name, slots, trace).step()
        chosen: dict[Slot, int] = {}
        traces: dict[Slot, SequenceTrace] = {}
        for group in groups:
            fresh = group[0].is_fresh
            step = (
                self._read_and_choose(name, group, trace, cancellation)
                if fresh
                else self._ready(name, group, trace).step()
            )
            chosen |= dict(zip(group, step.ids, strict=True))
            if trace:
                traces |= dict(zip(group, step.trace(), strict=True))
            if fresh:
                for slot in group:
                    slot.advance(chosen[slot])
        return Chosen([chosen[slot] for slot in slots], lambda: [traces[slot] for slot in slots])

    def _ready(self, name: str, slots: tuple[Slot, ...], trace: bool) -> ReadyStep:
        """The step of slots with one pending token a prompt, which lie side by side."""
        ready = slots[0].ready
        if ready is not None and ready.slots == slots and ready.is_traced == trace and not ready.has_ended:
            return ready
        for slot in slots:
            self._touch(slot)
        graph = self._graph(name)
        leases = self._gather(slots)
        batch = self._batch(name, slots, leases)
        arrays = self._builder.arrays(batch, _names(graph), capacity=self._arena.capacity)
        windows = self._windows(name, leases)
        shapes = trace_shapes(batch) if trace else {}
        key = (name, windows, batch.active, trace, *((each, array.shape) for each, array in arrays.items()))
        if self._provider.freezes_host_inputs:  # a captured step has read its host inputs for good
            key += tuple(
                array.tobytes() for each, array in arrays.items() if each.rpartition(".")[2] in graph.host_inputs
            )

        def make() -> Run:
            return Run(
                graph,
                self._memory,
                caches=self._caches(windows),
                factors=self._factors.buffers(batch.active) if name == contract.STEP_GRAPH else {},
                arrays=arrays,
                state=self._state(name),
                trace=shapes,
            )

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

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read_and_choose(self, name: str, slots: tuple[Slot, ...], trace: bool, cancellation: Cancellation) -> Chosen:
        """Read all that is pending of slots with nothing in the cache, side by side, and choose their first tokens."""
        chosen: list[int] = []
        traces: list[SequenceTrace] = []
        for group in _even(slots):
            batch = self._batch(name, group, group)
            ids, weighed = self._run(name, batch, self._windows(name, group), trace, cancellation)
            chosen += ids
            traces += split_trace(batch, weighed) if trace else []
        return Chosen(chosen, lambda: traces)

    def _compute(self, slot: Slot, lengths: Mapping[int, int], cancellation: Cancellation | None) -> None:
        """Bring prompts' caches up to lengths.

        A prompt with nothing in the cache is read by all its rows at once. Behind a cache, GroupQueryAttention takes
        several new tokens for one row at a time; the standard dialect's attention takes all rows.
        """
        cached = slot.lease.cached
        new = {prompt: length for prompt, length in lengths.items() if length > cached[prompt]}
        if not new:
            return
        self._touch(slot)
        self._gather([slot])
        name = contract.BASE_GRAPH if slot.sequence.is_plain else contract.STEP_GRAPH
        together = self._manifest.dialect == "standard" or (slot.is_fresh and len(new) == slot.sequence.num_prompts)
        for rows in [None] if together else self._one_by_one(slot, new):
            batch = self._batch(name, (slot,), [slot], lengths=new, rows=rows)
            self._run(name, batch, self._windows(name, [slot], rows=rows), False, cancellation or Cancellation())
        for prompt, length in new.items():
            cached[prompt] = length

    def _one_by_one(self, slot: Slot, new: Collection[int]) -> list[list[int]]:
        """Rows in turn, by trunk: those whose prompts have new tokens; a trunk with no more of them repeats a row."""
        rows = slot.sequence.rows
        by_trunk = [
            [row for row in slot.sequence.rows_on(trunk) if rows[row].prompt in new]
            for trunk in range(len(self._manifest.trunks))
        ]
        first = [slot.sequence.rows_on(trunk)[:1] for trunk in range(len(self._manifest.trunks))]
        turns = max(map(len, by_trunk))
        return [
            [
                (waiting[turn : turn + 1] or list(spare) or [-1])[0]
                for waiting, spare in zip(by_trunk, first, strict=True)
            ]
            for turn in range(turns)
        ]

    def _run(
        self, name: str, batch: Batch, windows: _Windows, trace: bool, cancellation: Cancellation
    ) -> tuple[list[int], dict[str, Array]]:
        """Run a graph once; the chosen ids, and what was weighed."""
        graph, memory = self._graph(name), self._memory
        inputs, outputs = self._caches(windows)
        inputs |= self._factors.buffers(batch.active) if name == contract.STEP_GRAPH else {}
        for each, array in self._builder.arrays(batch, _names(graph), capacity=None).items():
            inputs[each] = memory.upload(array, host=each.rpartition(".")[2] in graph.host_inputs)
        ids = memory.ids(len(batch.members))
        weighed = {each: memory.zeros(*kind) for each, kind in trace_shapes(batch).items()} if trace else {}
        outputs |= {contract.NEXT_IDS: ids.buffer, **weighed}
        bound = {value.name: outputs[value.name] for value in graph.outputs if value.name in outputs}
        ordered = {value.name: inputs[value.name] for value in graph.inputs}
        run = ids.bind(graph.bind(ordered, bound, repeated=False, cancellation=cancellation))
        self._last_reading = (ordered, bound, run)  # kept until the next one: to free them is to wait for the device
        try:
            if ids.ahead:  # the run is put on the device's stream and returns at once
                run()
            else:
                run_interruptibly(run, cancellation)
        except Exception:  # whatever the library raises when it is told to end
            if cancellation.is_wanted:
                raise CancelledError("the reading of a prompt was cancelled") from None
            raise
        if cancellation.is_wanted:
            raise CancelledError("the reading of a prompt was cancelled")
        return list(ids.take()), {each: buffer.read() for each, buffer in weighed.items()}

    # -- from slots to batches ----------------------------------------------------------------------------------------

    def _batch(
        self,
        name: str,
        slots: Sequence[Slot],
        ordered: Sequence[Slot],
        *,
        lengths: Mapping[int, int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> Batch:
        """What slots read next.

        Args:
            name: the graph.
            slots: in the order of the chosen ids.
            ordered: in the order of the arena.
            lengths: tokens of each prompt up to which it is read, of one slot whose cache is filled; None reads all
                that is pending and chooses.
            rows: the one row that runs on each trunk, -1 for none; None runs all of them.
        """
        trunks = range(1 if name == contract.BASE_GRAPH else len(self._manifest.trunks))
        parts = tuple(
            _trunk_part(trunk, [(slots.index(slot), slot) for slot in ordered], lengths, rows[trunk] if rows else None)
            for trunk in trunks
        )
        members = tuple(
            Member(
                slot.sequence,
                slot.step,
                slot.ids(0, 0, slot.lengths[0] - slot.step),
                slot.ids(0, slot.lengths[0] - slot.step),
                slot.noise,
                slot.allowed,
            )
            for slot in slots
        )
        return Batch(members, parts, scores=lengths is None)

    def _windows(self, name: str, slots: Iterable[Slot], *, rows: Sequence[int] | None = None) -> _Windows:
        trunks = range(1 if name == contract.BASE_GRAPH else len(self._manifest.trunks))
        leases = [slot.lease for slot in slots]
        if rows is None:
            return tuple(self._arena.window(leases, trunk) for trunk in trunks)
        (slot,) = slots
        return tuple(
            None if rows[trunk] < 0 else self._arena.row_window(leases[0], trunk, _number(slot.sequence, rows[trunk]))
            for trunk in trunks
        )

    def _caches(self, windows: _Windows) -> tuple[dict[str, Buffer], dict[str, Buffer]]:
        inputs, outputs = dict[str, Buffer](), dict[str, Buffer]()
        for trunk, window in enumerate(windows):
            of_trunk = self._arena.buffers(trunk, window)
            inputs |= of_trunk[0]
            outputs |= of_trunk[1]
        return inputs, outputs

    def _state(self, name: str) -> dict[str, str]:
        """The output that becomes an input of the next step, by input name."""
        state = {contract.STEP: contract.NEXT_STEP, contract.WRITTEN: contract.NEXT_WRITTEN}
        for trunk in self._manifest.trunks[: 1 if name == contract.BASE_GRAPH else None]:
            at = contract.trunk_prefix(trunk.name)
            state[at + contract.INPUT_IDS] = at + contract.NEXT_INPUT_IDS
            state[at + contract.SEQLENS_K] = at + contract.NEXT_SEQLENS_K
        return state

    # -- housekeeping -------------------------------------------------------------------------------------------------

    def _gather(self, slots: Sequence[Slot]) -> list[Slot]:
        """Have slots lie side by side, in memory; they are returned in the order in which they lie."""
        before = {slot: slot.lease.first for slot in self._slots}
        by_lease = {slot.lease: slot for slot in slots}
        leases = self._arena.gather(by_lease, max(slot.room for slot in self._slots))
        for slot, first in before.items():
            if slot.lease.first != first:
                self._touch(slot)
        return [by_lease[lease] for lease in leases]

    def _touch(self, slot: Slot) -> None:
        """What is ready for a slot is so no more."""
        if slot.ready is not None:
            slot.ready.end()

    def _let_go(self) -> None:
        """Drop whatever is bound to the buffers of the arena."""
        for slot in self._slots:
            self._touch(slot)
        self._runs.clear()
        self._last_reading = None

    def _collect(self) -> None:
        """Give back the rows of the slots that were closed."""
        while self._closed:
            slot = self._closed.popleft()
            if not slot.is_closed:
                self._touch(slot)
                slot.is_closed = True
                self._slots.discard(slot)
                self._arena.give_back(slot.lease)

    def _check(self, slots: Sequence[Slot]) -> None:
        if not slots:
            raise PromptError("no slots", expected="at least one")
        if len(set(slots)) < len(slots):
            raise PromptError("a slot twice in one step", expected="each once")
        if any(slot not in self._slots for slot in slots):
            raise PromptError("a slot that was closed", expected="one that is open in this decoder")


def _check_steps(slot: Slot) -> None:
    if min(slot.lengths) < 1:
        raise PromptError("a slot with an empty prompt", expected="at least one token read")
    if slot.num_steps_left < 1:
        raise PromptError(f"a sequence of {max(slot.lengths)} tokens", expected=f"at most {slot.room}, its room")


def _trunk_part(
    trunk: int, ordered: Sequence[tuple[int, Slot]], lengths: Mapping[int, int] | None, only: int | None
) -> TrunkPart:
    """What slots read on a trunk; where they have no row there, one row reads a token that nobody looks at."""
    prompts: list[PromptPart] = []
    rows: list[RowPart] = []
    for number, slot in ordered:
        places: dict[int, int] = {}
        for index in slot.sequence.rows_on(trunk):
            if only is not None and index != only:
                continue
            row = slot.sequence.rows[index]
            if row.prompt not in places:
                places[row.prompt] = len(prompts)
                cached = slot.lease.cached[row.prompt]
                # A prompt that has nothing to read computes its next token ahead, which counts for nothing.
                stop = None if lengths is None else max(lengths.get(row.prompt, 0), cached + 1)
                prompts.append(PromptPart(number, slot.ids(row.prompt, cached, stop) or (0,), cached))
            rows.append(RowPart(number, index, row, places[row.prompt]))
    if not rows:
        return TrunkPart((PromptPart(0, (0,), 0),), (RowPart(0, -1, Row(trunk, 0), 0),))
    return TrunkPart(tuple(prompts), tuple(rows))


def _number(sequence: RowSequence, row: int) -> int:
    """The place of a row among those of its trunk."""
    return sequence.rows_on(sequence.rows[row].trunk).index(row)


def _origins(source: RowSequence, target: RowSequence, trunk: int) -> list[int | None]:
    """By row of the target on a trunk: the same row's place in the source."""
    places = {source.rows[row]: number for number, row in enumerate(source.rows_on(trunk))}
    return [places.get(target.rows[row]) for row in target.rows_on(trunk)]


def _alike(slots: Sequence[Slot]) -> list[tuple[Slot, ...]]:
    """Neighbours in the arena that are all fresh, or all not."""
    return [tuple(group) for _, group in groupby(slots, key=lambda slot: slot.is_fresh)]


def _even(slots: tuple[Slot, ...]) -> list[tuple[Slot, ...]]:
    """All at once, unless that would be padding for the most part of it."""
    lengths = [max(slot.lengths) for slot in slots]
    return [slots] if max(lengths) * len(slots) <= _PADDED * sum(lengths) else [(slot,) for slot in slots]


def _names(graph: Graph) -> Collection[str]:
    return {value.name for value in graph.inputs}
