"""The KV arena: which cache rows belong to which sequence.

A trunk's layers below the first adapter keep a cache row for each prompt, the others one for each row of a sequence. A
lease is the cache rows of one sequence, side by side in every cache; a graph's cache inputs are windows over the
leases that a run steps together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.decode.kv_group import FilledRow, KvGroup, Move, Window
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.errors import OutOfMemoryError
from pad_runtime.rows.sequence import SequenceSpec

Array = npt.NDArray[Any]
_SIDES = (0, 1)  # of a trunk: below its first adapter, and above it
_ROOMY = 4  # an idle arena that is so many times larger than was needed lately is made anew


class _Lately:
    """The most that was needed lately: at every look that needs less, it falls by half."""

    def __init__(self) -> None:
        self._most = 0

    def look(self, needed: int) -> int:
        self._most = max(needed, self._most // 2)
        return self._most


@dataclass(eq=False)
class Lease:
    """Rows of the arena.

    Attributes:
        prompts: by trunk, the prompts of the sequence that have a row below the first adapter, in order.
        rows: by trunk, the prompt of each row above it, in order.
        cached: positions that are filled, by prompt of the sequence.
        first: by trunk, the first row below and the first above.
        is_free: whether it was given back.
    """

    prompts: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[int, ...], ...]
    cached: list[int]
    first: list[tuple[int, int]] = field(default_factory=list)
    is_free: bool = False

    @property
    def widths(self) -> tuple[tuple[int, int], ...]:
        """Rows below and above the first adapter, by trunk."""
        return tuple(zip(map(len, self.prompts), map(len, self.rows), strict=True))

    def lengths(self, trunk: int) -> tuple[list[int], list[int]]:
        """Filled positions of each of its rows, below and above."""
        return [self.cached[prompt] for prompt in self.prompts[trunk]], [self.cached[row] for row in self.rows[trunk]]


class KvArena:
    """Leases over the caches of all trunks.

    Args:
        manifest: sizes of the trunks.
        memory: makes the buffers.
        growth: positions by which the capacity grows, up to the bundle's max_length.
        before_resize: called before buffers are made anew, or when their content is lost: what is bound to them lets
            go of them.

    Attributes:
        capacity: positions of each cache.
    """

    def __init__(
        self, manifest: Manifest, memory: DeviceMemory, *, growth: int, before_resize: Callable[[], object]
    ) -> None:
        self._manifest, self._growth, self._before_resize = manifest, growth, before_resize
        dtype = manifest.dtype
        self._groups = [
            (
                KvGroup(memory, trunk, range(trunk.prompt_layers), dtype),
                KvGroup(memory, trunk, range(trunk.prompt_layers, trunk.num_layers), dtype),
            )
            for trunk in manifest.trunks
        ]
        self._spare = [KvGroup(memory, trunk, range(trunk.num_layers), dtype) for trunk in manifest.trunks]
        self._order: list[Lease] = []
        self._rows_lately = [(_Lately(), _Lately()) for _ in manifest.trunks]
        self._capacity_lately = _Lately()
        self.capacity = 0

    # -- leases -------------------------------------------------------------------------------------------------------

    def lend(self, sequence: SequenceSpec) -> Lease:
        """Rows for a sequence: those of a lease of the same widths that was given back, or new ones at the end."""
        trunks = range(len(self._manifest.trunks))
        lease = Lease(
            prompts=tuple(sequence.prompts_on(trunk) for trunk in trunks),
            rows=tuple(tuple(sequence.rows[row].prompt for row in sequence.rows_on(trunk)) for trunk in trunks),
            cached=[0] * sequence.num_prompts,
        )
        for number, other in enumerate(self._order):
            if other.is_free and other.widths == lease.widths:
                lease.first, self._order[number] = other.first, lease
                return lease
        self._order.append(lease)
        lease.first = self._place(self._order)[lease]
        return lease

    def give_back(self, lease: Lease) -> None:
        """Free its rows."""
        lease.is_free = True
        while self._order and self._order[-1].is_free:
            self._order.pop()

    def gather(self, leases: Iterable[Lease], room: int, *, in_front: bool = False) -> list[Lease]:
        """Have memory for all leases, each row with a capacity of at least `room`, and have some lie side by side.

        Args:
            leases: those that are to lie side by side.
            room: positions.
            in_front: before all others, so that as many rows are the same window whoever has them.

        Returns:
            These leases in the order in which they lie.

        Raises:
            OutOfMemoryError: the caches do not fit; no lease has anything cached any more.
        """
        chosen = set(leases)
        order = self._gathered(chosen, in_front)
        placed = self._place(order)
        kept = [lease for lease in order if not lease.is_free and any(lease.cached)]
        moves = [
            tuple([move for lease in kept for move in _moves(lease, placed[lease], trunk, side)] for side in _SIDES)
            for trunk in range(len(self._groups))
        ]
        try:
            self._apply(order, moves, room)
        except OutOfMemoryError:
            self._before_resize()
            for lease in order:
                lease.cached[:] = [0] * len(lease.cached)
            raise
        for lease, first in placed.items():
            lease.first = first
        self._order = order
        return [lease for lease in order if lease in chosen]

    def fork(self, source: Lease, target: Lease, rows: Sequence[Sequence[int | None]]) -> None:
        """Copy the filled part of a lease to another one's rows; both are in memory.

        Args:
            source, target: leases.
            rows: by trunk, the row of `source` that each row of `target` is a copy of.
        """
        for trunk, (below, above) in enumerate(self._groups):
            (from_below, from_above), (to_below, to_above) = source.first[trunk], target.first[trunk]
            below.move(
                [
                    Move(from_below + source.prompts[trunk].index(prompt), to_below + number, target.cached[prompt])
                    for number, prompt in enumerate(target.prompts[trunk])
                    if target.cached[prompt]
                ]
            )
            above.move(
                [
                    Move(from_above + origin, to_above + number, target.cached[target.rows[trunk][number]])
                    for number, origin in enumerate(rows[trunk])
                    if origin is not None
                ]
            )

    def release(self) -> None:
        """Let all buffers go; no lease is in use."""
        self._before_resize()
        for group in (*(group for groups in self._groups for group in groups), *self._spare):
            group.release()
        self.capacity = 0

    def num_bytes(self, sequence: SequenceSpec, room: int) -> int:
        """Bytes of the rows of a sequence, with a capacity of at least `room`."""
        capacity = self._capacity_of(room)
        return sum(
            capacity
            * (
                below.position_bytes * len(sequence.prompts_on(trunk))
                + above.position_bytes * len(sequence.rows_on(trunk))
            )
            for trunk, (below, above) in enumerate(self._groups)
        )

    def _capacity_of(self, room: int) -> int:
        return min(-(-room // self._growth) * self._growth, self._manifest.max_length)

    # -- windows ------------------------------------------------------------------------------------------------------

    def window(self, leases: Sequence[Lease], trunk: int) -> tuple[Window, Window] | None:
        """What leases that lie side by side have on a trunk, below and above; None where they have nothing there."""
        widths = [lease.widths[trunk] for lease in leases]
        below, above = (sum(width[side] for width in widths) for side in _SIDES)
        if not above:
            return None
        first = min(lease.first[trunk] for lease in leases)
        return Window(first[0], below), Window(first[1], above)

    def row_window(self, lease: Lease, trunk: int, number: int) -> tuple[Window, Window]:
        """One row of a lease on a trunk, and the row of the prompt that it reads."""
        below, above = lease.first[trunk]
        return Window(below + lease.prompts[trunk].index(lease.rows[trunk][number]), 1), Window(above + number, 1)

    def read(self, lease: Lease, trunk: int, number: int, layer: int) -> tuple[Array, Array]:
        """Copies of keys and values of one row in a layer, [kv_heads, length, head_dim] each."""
        info = self._manifest.trunks[trunk]
        side, at = layer >= info.prompt_layers, contract.trunk_prefix(info.name)
        row = self.row_window(lease, trunk, number)[side].first
        filled = self._groups[trunk][side].filled(row, lease.cached[lease.rows[trunk][number]])
        return filled[at + contract.past_key(layer)].read(), filled[at + contract.past_value(layer)].read()

    def filled(self, lease: Lease) -> dict[str, FilledRow]:
        """All that a lease has cached, by name: `past_key_values.0.key.1` is in that cache of the base the lease's
        row 1, counted among its rows there.
        """
        return {
            f"{name}.{number}": row
            for trunk, groups in enumerate(self._groups)
            for group, first, lengths in zip(groups, lease.first[trunk], lease.lengths(trunk), strict=True)
            for number, length in enumerate(lengths)
            if length
            for name, row in group.filled(first + number, length).items()
        }

    def buffers(self, trunk: int, windows: tuple[Window, Window] | None) -> tuple[dict[str, Buffer], dict[str, Buffer]]:
        """Cache inputs and outputs of a trunk; without windows those of a spare row that nobody reads."""
        if windows is None:
            spare, row = self._spare[trunk], Window(0, 1)
            if spare.capacity != self.capacity:
                spare.resize(1, self.capacity, ())
            return spare.inputs(row), spare.outputs(row)
        inputs, outputs = dict[str, Buffer](), dict[str, Buffer]()
        for group, window in zip(self._groups[trunk], windows, strict=True):
            inputs |= group.inputs(window)
            outputs |= group.outputs(window)
        return inputs, outputs

    # -- order --------------------------------------------------------------------------------------------------------

    def _gathered(self, chosen: set[Lease], in_front: bool) -> list[Lease]:
        """All leases, the chosen ones side by side: with as few moves as trading places gives, or else packed anew."""
        order = list(self._order)
        start = 0 if in_front else next(number for number, lease in enumerate(order) if lease in chosen)
        for place in range(start, start + len(chosen)):
            if order[place] in chosen:
                continue
            widths = order[place].widths
            others = range(place + 1, len(order))
            fitting = (other for other in others if order[other] in chosen and order[other].widths == widths)
            other = next(fitting, None)
            if other is None:
                live = [lease for lease in order if not lease.is_free]
                return [lease for lease in live if lease in chosen] + [lease for lease in live if lease not in chosen]
            order[place], order[other] = order[other], order[place]
        while order[-1].is_free:
            order.pop()
        return order

    def _place(self, order: Sequence[Lease]) -> dict[Lease, list[tuple[int, int]]]:
        """First rows of every lease where they lie in that order."""
        ends = [(0, 0)] * len(self._groups)
        placed = {}
        for lease in order:
            placed[lease] = ends
            ends = [(below + n, above + r) for (below, above), (n, r) in zip(ends, lease.widths, strict=True)]
        return placed

    def _apply(self, order: Sequence[Lease], moves: Sequence[tuple[list[Move], ...]], room: int) -> None:
        """Make or keep the buffers, and move what is in them.

        Leases that join one by one have half as many rows again made at a time; whatever is made with nothing in the
        arena has the rows that are needed. Rows and capacity that were needed lately are kept.
        """
        capacity = self._capacity_of(room)
        idle = not any(move for trunk in moves for side in trunk for move in side)
        if not idle or self.capacity < _ROOMY * self._capacity_lately.look(capacity):
            capacity = max(capacity, self.capacity)
        needed = [
            tuple(sum(lease.widths[trunk][side] for lease in order) for side in _SIDES)
            for trunk in range(len(self._groups))
        ]
        for trunk, (groups, widths, sides) in enumerate(zip(self._groups, needed, moves, strict=True)):
            for group, width, side, lately in zip(groups, widths, sides, self._rows_lately[trunk], strict=True):
                if not group.has_layers:
                    continue
                roomy = idle and group.num_rows >= _ROOMY * lately.look(width)
                if capacity == group.capacity and width <= group.num_rows and not roomy:
                    group.move(side)
                elif width:
                    self._before_resize()
                    joins = not idle and width > group.num_rows
                    group.resize(max(width, group.num_rows * 3 // 2) if joins else width, capacity, side)
                elif group.num_rows:
                    self._before_resize()
                    group.release()
        self.capacity = capacity


def _moves(lease: Lease, placed: Sequence[tuple[int, int]], trunk: int, side: int) -> list[Move]:
    source, target = lease.first[trunk][side], placed[trunk][side]
    return [Move(source + number, target + number, length) for number, length in enumerate(lease.lengths(trunk)[side])]
