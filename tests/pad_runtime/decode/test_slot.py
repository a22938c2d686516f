"""A slot by itself: the tokens that it knows, what of them is in the cache, and what is left to choose."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from pad_runtime.decode.arena import Lease
from pad_runtime.decode.slot import Slot
from pad_runtime.errors import PromptError
from pad_runtime.rows.noise import STEPS_DRAWN
from pad_runtime.rows.row import Reading, Row
from pad_runtime.rows.sequence import Sampling, SequenceSpec
from tests.support.error_checks import refused

GUIDED = SequenceSpec((Row(0, 0), Row(0, 1, 0)), (Reading(0, (), 1.0), Reading(1, (), 1.0)), Sampling(top_k=4))


def slot_of(sequence: SequenceSpec = GUIDED, room: int = 12) -> Slot:
    prompts = tuple(row.prompt for row in sequence.rows)
    return Slot(sequence, Lease((prompts,), (prompts,), [0] * len(prompts)), room)


def append(slot: Slot, **prompts: tuple[int, ...]) -> None:
    """p0=(...), p1=(...)"""
    slot.append({int(name[1:]): array("q", ids) for name, ids in prompts.items()})


def all_ids(slot: Slot) -> list[list[int]]:
    return [list(slot.ids(prompt)) for prompt in range(len(slot.lengths))]


def pending(slot: Slot) -> list[int]:
    return [length - cached for length, cached in zip(slot.lengths, slot.lease.cached, strict=True)]


def test_what_is_chosen_belongs_to_all_prompts() -> None:
    slot = slot_of()
    assert slot.is_fresh
    append(slot, p0=(1, 2, 3), p1=(4,))
    assert pending(slot) == [3, 1]
    slot.advance(7)
    slot.advance(8)
    assert all_ids(slot) == [[1, 2, 3, 7, 8], [4, 7, 8]]
    assert slot.lease.cached == [4, 2], "all but the newest"
    assert pending(slot) == [1, 1]
    assert (slot.lengths, slot.step, slot.is_fresh) == ((5, 3), 2, False)
    append(slot, p1=(9,))
    assert (slot.lengths, slot.step) == ((5, 4), 0), "a reply begins"
    assert pending(slot) == [1, 2]
    assert [list(slot.ids(1, start, stop)) for start, stop in ((1, None), (0, 2), (2, 99))] == [
        [7, 8, 9],
        [4, 7],
        [8, 9],
    ]


def test_a_cut_leaves_a_token_to_begin_with() -> None:
    slot = slot_of()
    append(slot, p0=(1, 2, 3), p1=(4,))
    for token in (7, 8, 9):
        slot.advance(token)
    slot.cut({0: 5})
    assert all_ids(slot) == [[1, 2, 3, 7, 8], [4, 7, 8, 9]]
    assert slot.lease.cached == [4, 3]
    assert slot.step == 2, "a token of the base's prompt less was chosen"
    slot.cut({0: 5, 1: 4})
    assert (slot.lengths, slot.lease.cached) == ((5, 4), [4, 3]), "as many as there are: nothing changes"
    slot.cut({0: 1, 1: 0})
    assert (all_ids(slot), slot.lease.cached, slot.step) == ([[1], []], [0, 0], 0)
    append(slot, p0=(5,), p1=(6,))
    assert all_ids(slot) == [[1, 5], [6]]


def test_what_is_refused_changes_nothing() -> None:
    slot = slot_of(room=4)
    append(slot, p0=(1, 2, 3), p1=(4,))
    slot.check_room({0: (1,), 1: (1, 2, 3)})
    with refused(PromptError, given="a prompt of 5 tokens", expected="at most 4, the room of its sequence"):
        slot.check_room({1: (1,), 0: (1, 2)})
    with refused(PromptError, given="prompt 2", expected="0 to 1, those of its sequence"):
        slot.check_room({2: (1,)})
    with refused(PromptError, given="a length of 2", expected="0 to 1, the tokens of prompt 1"):
        slot.cut({0: 1, 1: 2})
    with refused(PromptError, given="prompt -1", expected="0 to 1, those of its sequence"):
        slot.cut({-1: 0})
    assert all_ids(slot) == [[1, 2, 3], [4]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_room_and_the_noise_that_is_drawn_say_how_many_steps_are_left(temperature: float) -> None:
    """The last token needs no position; where it samples, a further block of noise is another array."""
    sequence = replace(GUIDED, sampling=Sampling(top_k=4, temperature=temperature))
    slot = slot_of(sequence)
    append(slot, p0=(1, 2, 3), p1=(4,))
    assert slot.num_steps_left == 12 + 1 - 3
    for left in range(9, -1, -1):
        slot.advance(5)
        assert slot.num_steps_left == left
    long = slot_of(sequence, room=3 * STEPS_DRAWN)
    append(long, p0=(1,), p1=(1,))
    assert long.num_steps_left == (STEPS_DRAWN if temperature else 3 * STEPS_DRAWN)
    for _ in range(STEPS_DRAWN):
        long.advance(5)
    assert long.num_steps_left == (STEPS_DRAWN if temperature else 2 * STEPS_DRAWN)


def test_one_slot_takes_over_what_another_knows() -> None:
    """Token ids and steps; afterwards each goes on by itself. Of a sequence with fewer prompts, those that it has."""
    slot = slot_of()
    append(slot, p0=(1, 2, 3), p1=(4,))
    slot.advance(7)
    other, plain = slot_of(), slot_of(SequenceSpec(GUIDED.rows[:1], GUIDED.readings[:1], GUIDED.sampling))
    for each in (other, plain):
        each.take_over(slot)
        assert each.step == 1
        assert each.is_fresh, "the cache is not the slot's to copy"
    other.advance(9)
    assert all_ids(slot) == [[1, 2, 3, 7], [4, 7]]
    assert all_ids(other) == [[1, 2, 3, 7, 9], [4, 7, 9]]
    assert all_ids(plain) == [[1, 2, 3, 7]]
    narrow = slot_of()
    narrow.take_over(plain)
    assert narrow.lengths == (4, 0)
    slot.trade(plain)
    assert (slot.sequence, all_ids(slot), slot.step) == (
        replace(GUIDED, rows=GUIDED.rows[:1], readings=GUIDED.readings[:1]),
        [[1, 2, 3, 7]],
        0,
    )
    assert all_ids(plain) == [[1, 2, 3, 7], [4, 7]]
