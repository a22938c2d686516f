"""What slots read next, as batches: pure, with no device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from pad_runtime.decode.slot import Slot
from pad_runtime.rows.batch import Batch, Member, PromptPart, RowPart, TrunkPart
from pad_runtime.rows.row import Row
from pad_runtime.rows.sequence import SequenceSpec


def next_batch(
    slots: Sequence[Slot],
    ordered: Sequence[Slot],
    num_trunks: int,
    *,
    lengths: Mapping[int, int] | None = None,
    rows: Sequence[int] | None = None,
) -> Batch:
    """What slots read next.

    Args:
        slots: in the order of the chosen ids.
        ordered: the same in the order of the arena.
        num_trunks: of the graph.
        lengths: tokens of each prompt up to which it is read, of one slot whose cache is filled; None reads all that is
            pending and chooses.
        rows: the one row that runs on each trunk, -1 for none; None runs all of them.
    """
    parts = tuple(
        _trunk_part(trunk, [(slots.index(slot), slot) for slot in ordered], lengths, rows[trunk] if rows else None)
        for trunk in range(num_trunks)
    )
    return Batch(tuple(map(_member, slots)), parts, scores=lengths is None)


def _member(slot: Slot) -> Member:
    begun = slot.lengths[0] - slot.step
    return Member(slot.sequence, slot.step, slot.ids(0, 0, begun), slot.ids(0, begun), slot.noise, slot.allowed)


def _trunk_part(
    trunk: int, ordered: Sequence[tuple[int, Slot]], lengths: Mapping[int, int] | None, only: int | None
) -> TrunkPart:
    """What slots read on a trunk. Where they have no row there, one row reads one token: an input is never empty."""
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
                stop = None if lengths is None else lengths[row.prompt]
                prompts.append(PromptPart(number, slot.ids(row.prompt, cached, stop), cached))
            rows.append(RowPart(number, index, row, places[row.prompt]))
    if not rows:
        return TrunkPart((PromptPart(0, (0,), 0),), (RowPart(0, -1, Row(trunk, 0), 0),))
    return TrunkPart(tuple(prompts), tuple(rows))


def rows_in_turn(sequence: SequenceSpec, num_trunks: int, prompts: Mapping[int, int]) -> list[list[int]]:
    """Rows whose prompts have new tokens, one of each trunk at a time; -1 where a trunk has no more of them."""
    waiting = [
        [row for row in sequence.rows_on(trunk) if sequence.rows[row].prompt in prompts] for trunk in range(num_trunks)
    ]
    return [list(turn) for turn in zip_longest(*waiting, fillvalue=-1)]


def row_origins(source: SequenceSpec, target: SequenceSpec, trunk: int) -> list[int | None]:
    """For each row of the target on a trunk, the place of the same row in the source; None if it has none."""
    places = {source.rows[row]: number for number, row in enumerate(source.rows_on(trunk))}
    return [places.get(target.rows[row]) for row in target.rows_on(trunk)]
