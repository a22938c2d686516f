"""Slots of one decoder: they join, leave, go back, fork and are refused, and each decodes as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.slot import Slot
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.errors import OutOfMemoryError, PromptError
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import Reward, plan_rows
from pad_runtime.rows.sequence import Controls
from tests.support.error_checks import refused
from tests.support.guided_steps import NUM_STEPS, PROMPTS, Asked, ask, open_slots, run, step_together

NUM_TOKENS = 16


@pytest.fixture
def mixed(bundle: Bundle) -> list[Asked]:
    """Guided and plain, greedy and sampled, k of 5 and of 40, with and without controls."""
    manifest = bundle.manifest
    controls = Controls(bias={7: 3.0}, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1)
    return [
        *ask(manifest, 0, top_k=5),
        *ask(manifest, 1, top_k=40, temperature=2.0, seed=5),
        *ask(manifest, 2, guided=False),
        *ask(manifest, 0, guided=False, top_k=40, temperature=1.5, top_p=0.9, min_p=0.05, seed=9),
        *ask(manifest, 1, controls=controls),
        *ask(manifest, 2, beta=2.5, temperature=0.8, seed=1),
    ]


@pytest.fixture
def alone(bundle: Bundle, mixed: list[Asked]) -> list[list[int]]:
    """What each chooses in a decoder that has nothing else."""
    found = [run(bundle.decoder(), [each], NUM_STEPS)[0] for each in mixed]
    assert len(set(map(tuple, found))) == len(found)
    return found


def test_unlike_sequences_side_by_side(decoder: Decoder, mixed: list[Asked], alone: list[list[int]]) -> None:
    assert run(decoder, mixed) == alone
    for pair in ((0, 2), (1, 3), (0, 1), (3, 2), (4, 1)):
        assert run(decoder, [mixed[number] for number in pair]) == [alone[number] for number in pair]


def test_slots_join_and_leave(decoder: Decoder, mixed: list[Asked], alone: list[list[int]]) -> None:
    """One more at every third step, and the one that ended leaves; nobody else says anything else."""
    waiting, going = list(enumerate(mixed)), dict[Slot, int]()
    found: dict[int, list[int]] = {number: [] for number in range(len(mixed))}
    for turn in range(100):
        if waiting and turn % 3 == 0:
            number, each = waiting.pop(0)
            going[each.open(decoder)] = number
        if not going:
            break
        slots = list(going) if turn % 2 else list(going)[::-1]
        for slot, id in zip(slots, tuple(decoder.step(slots).ids), strict=True):
            found[going[slot]].append(id)
            if len(found[going[slot]]) == NUM_TOKENS:
                decoder.close(slot)
                del going[slot]
    assert list(found.values()) == [ids[:NUM_TOKENS] for ids in alone]


def test_slots_take_turns(decoder: Decoder, mixed: list[Asked], alone: list[list[int]]) -> None:
    slots = open_slots(decoder, mixed)
    found: list[list[int]] = [[] for _ in slots]
    for turn in range(30):
        chosen = [number for number in range(len(slots)) if (turn + number) % (2 + number % 3)]
        for number, id in zip(chosen, list(decoder.step([slots[n] for n in chosen]).ids), strict=True):
            found[number].append(id)
    assert all(ids == whole[: len(ids)] for ids, whole in zip(found, alone, strict=True))
    assert min(map(len, found)) > 10


@pytest.mark.parametrize("parts", [(1, 1, 1, 1, 1, 1, 1), (3, 4), (6, 1), (2, 2, 3)])
def test_a_prompt_is_read_in_parts(
    bundle: Bundle, decoder: Decoder, mixed: list[Asked], alone: list[list[int]], parts: tuple[int, ...]
) -> None:
    slots = []
    for each in mixed:
        slot = decoder.open(each.sequence, each.room)
        at = 0
        for size in parts:
            decoder.read(slot, {prompt: ids[at : at + size] for prompt, ids in enumerate(each.prompts)})
            at += size
        slots.append(slot)
    assert [slot.lengths for slot in slots] == [tuple(map(len, each.prompts)) for each in mixed]
    assert step_together(decoder, slots, NUM_TOKENS) == [ids[:NUM_TOKENS] for ids in alone]


def test_a_conversation_goes_on(bundle: Bundle, decoder: Decoder, mixed: list[Asked]) -> None:
    """A reply, another turn, another reply: as if all of it had been the prompt; noise begins anew."""
    for each in mixed[:4]:
        slot = replace(each, room=200).open(decoder)
        (first,) = step_together(decoder, [slot], 5)
        turn = (30, 31, 32)
        decoder.read(slot, dict.fromkeys(range(len(each.prompts)), turn))
        assert slot.step == 0
        (second,) = step_together(decoder, [slot], 5)
        grown = tuple((*ids, *first, *turn) for ids in each.prompts)
        assert [second] == run(bundle.decoder(), [Asked(each.sequence, grown, 200)], 5)
        without = tuple((*ids, *turn) for ids in each.prompts)  # control: the first reply forgotten
        assert [second] != run(bundle.decoder(), [Asked(each.sequence, without, 200)], 5)


def test_a_slot_goes_back(decoder: Decoder, mixed: list[Asked], alone: list[list[int]]) -> None:
    """Of what it chose, or of its prompts; then it decodes what it did before, and another prompt as that one."""
    for each, whole in zip(mixed, alone, strict=True):
        slot = each.open(decoder)
        assert step_together(decoder, [slot], 9) == [whole[:9]]
        decoder.rewind(slot, {prompt: len(ids) + 4 for prompt, ids in enumerate(each.prompts)})
        assert step_together(decoder, [slot], 9) == [whole[4:13]]
        decoder.rewind(slot, dict.fromkeys(range(len(each.prompts)), 0))
        assert slot.lengths == (0,) * len(each.prompts)
        decoder.read(slot, dict(enumerate(each.prompts)))
        assert step_together(decoder, [slot], 9) == [whole[:9]]
        decoder.close(slot)


def test_a_fork_goes_on_by_itself(decoder: Decoder, mixed: list[Asked], alone: list[list[int]]) -> None:
    for each, whole in zip(mixed, alone, strict=True):
        slot = each.open(decoder)
        step_together(decoder, [slot], 4)
        other = decoder.fork(slot)
        assert other.lengths == slot.lengths
        assert step_together(decoder, [slot], 4) == [whole[4:8]]
        assert step_together(decoder, [other], 4) == [whole[4:8]]
        assert step_together(decoder, [other, slot], 4) == [whole[8:12]] * 2
        decoder.close(slot)
        assert step_together(decoder, [other], 4) == [whole[12:16]]
        decoder.close(other)


@contextmanager
def counting_reads(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """New tokens of each run that reads a prompt."""
    read: list[int] = []
    kind = type(bundle.graph("step"))
    real = kind.bind

    def bind(self: Any, inputs: Mapping[str, Any], *rest: Any, repeated: bool, **options: Any) -> Any:
        if not repeated:
            read.append(inputs["input_ids"].shape[1])
        return real(self, inputs, *rest, repeated=repeated, **options)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "bind", bind)
        yield read


def test_another_preference_keeps_the_base_s_prompt(
    bundle: Bundle, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's row is a row of both sequences; what only the other one has is read."""
    manifest = bundle.manifest
    base, reward = (5, 17, 300, 41, 8) * 8, (9, 8, 7)
    plain = Asked.of(plan_rows(manifest, base, [], 1.0))
    guided = Asked.of(plan_rows(manifest, base, [Reward(0, (1.0,), 1.0, reward)], 1.0))
    expected = run(bundle.decoder(), [guided], NUM_TOKENS)
    slot = plain.open(decoder)
    assert [step_together(decoder, [slot], NUM_TOKENS)[0]] == run(bundle.decoder(), [plain], NUM_TOKENS)
    decoder.rewind(slot, {0: len(base)})
    with counting_reads(bundle, monkeypatch) as read:
        decoder.adopt(slot, guided.sequence)
        assert slot.lengths == (len(base), 0)
        decoder.read(slot, {1: reward})
        assert step_together(decoder, [slot], NUM_TOKENS) == expected
        assert max(read) < len(base)
        assert read, "the reward's prompt was read"


def test_another_way_to_choose_reads_nothing_again(
    bundle: Bundle, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (ask(bundle.manifest, 0, top_k=k, temperature=t, seed=3)[0] for k, t in ((10, 0.0), (4, 2.0)))
    expected = run(bundle.decoder(), [other], NUM_TOKENS)
    slot = one.open(decoder)
    step_together(decoder, [slot], 3)
    decoder.rewind(slot, {prompt: len(ids) for prompt, ids in enumerate(one.prompts)})
    with counting_reads(bundle, monkeypatch) as read:
        decoder.adopt(slot, other.sequence)
        assert step_together(decoder, [slot], NUM_TOKENS) == expected
        assert read == []


def test_what_may_be_chosen_changes_between_steps(bundle: Bundle, decoder: Decoder) -> None:
    """A grammar's mask: only even ids, only odd ones, and all again; the neighbour chooses as if alone."""
    size = bundle.manifest.vocab_size
    slots = open_slots(decoder, ask(bundle.manifest, 0, 1))
    (free,) = run(bundle.decoder(), ask(bundle.manifest, 1))
    masks = [np.packbits(np.arange(size) % 2 == odd, bitorder="little") for odd in (0, 1)]
    found, neighbour = [], []
    for turn in range(12):
        if turn < 10:
            decoder.allow(slots[0], masks[turn % 2])
        elif turn == 10:
            decoder.allow(slots[0], None)
        ids = decoder.step(slots).ids
        found.append(ids[0])
        neighbour.append(ids[1])
    assert [id % 2 for id in found[:10]] == [0, 1] * 5
    assert neighbour == free[:12]
    (other,) = open_slots(decoder, ask(bundle.manifest, 0))
    decoder.read(other, dict.fromkeys((0, 1), found[:10]))
    assert step_together(decoder, [other], 2) == [found[10:]], "all tokens again"


# -- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_stepped_is_refused(bundle: Bundle, decoder: Decoder) -> None:
    (slot,) = open_slots(decoder, ask(bundle.manifest, 0))
    (expected,) = run(bundle.decoder(), ask(bundle.manifest, 0))
    with refused(PromptError, given="no slots", expected="at least one"):
        decoder.step([])
    with refused(PromptError, given="a slot twice in one step", expected="each once"):
        decoder.step([slot, slot])
    (asked,) = ask(bundle.manifest, 1)
    empty = decoder.open(asked.sequence, asked.room)
    for given in ({}, {0: (5, 6)}, {0: (5,), 1: ()}):
        decoder.read(empty, given)
        with refused(PromptError, given="a slot with an empty prompt", expected="at least one token read"):
            decoder.step([slot, empty])
    closed = asked.open(decoder)
    decoder.close(closed)
    decoder.close(closed)
    uses: list[Callable[[], object]] = [
        lambda: decoder.step([slot, closed]),
        lambda: decoder.read(closed, {0: (1,)}),
        lambda: decoder.rewind(closed, {0: 0}),
        lambda: decoder.fork(closed),
        lambda: decoder.adopt(closed, asked.sequence),
        lambda: decoder.allow(closed, None),
        lambda: bundle.decoder().step([slot]),
    ]
    for use in uses:
        with refused(PromptError, given="a slot that was closed", expected="one that is open in this decoder"):
            use()
    assert step_together(decoder, [slot], 8) == [expected[:8]], "nothing happened to the others"


def test_no_room(bundle: Bundle, decoder: Decoder) -> None:
    manifest = bundle.manifest
    (asked,) = ask(manifest, 0)
    for room in (0, -1, manifest.max_length + 1):
        with refused(PromptError, given=f"a room of {room} tokens", expected=f"1 to {manifest.max_length}"):
            decoder.open(asked.sequence, room)
    longest = max(map(len, asked.prompts))
    slot = decoder.open(asked.sequence, longest + 2)
    decoder.read(slot, dict(enumerate(asked.prompts)))
    for prompt in (0, 1):
        length = len(asked.prompts[prompt])
        with refused(
            PromptError,
            given=f"a prompt of {length + 9} tokens",
            expected=f"at most {longest + 2}, the room of its sequence",
        ):
            decoder.read(slot, {0: (1,) * (1 + 8 * (prompt == 0)), 1: (1,) * (1 + 8 * (prompt == 1))})
        assert slot.lengths == tuple(map(len, asked.prompts)), "all or nothing"
    (expected,) = run(bundle.decoder(), [asked])
    neighbour = asked.open(decoder)
    # Two more positions, and a last token that needs none.
    assert step_together(decoder, [slot, neighbour], 3) == [expected[:3]] * 2
    with refused(PromptError, given=f"a sequence of {longest + 3} tokens", expected=f"at most {longest + 2}, its room"):
        decoder.step([slot, neighbour])
    assert step_together(decoder, [neighbour], 5) == [expected[3:8]]


def test_a_rewind_forgets_no_more_than_there_is(bundle: Bundle, decoder: Decoder) -> None:
    (slot,) = open_slots(decoder, ask(bundle.manifest, 0))
    for length in (-1, len(PROMPTS[0][1]) + 1):
        with refused(PromptError, given=f"a length of {length}", expected="0 to 7, the tokens of prompt 1"):
            decoder.rewind(slot, {1: length})
    assert slot.lengths == (5, 7)


# -- memory ---------------------------------------------------------------------------------------------------------


@dataclass
class Scarcity:
    """How many more buffers are made before memory ends, once; and the shapes of all that were made."""

    left: int | None = None
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def take(self, shape: Sequence[int]) -> None:
        if self.left == 0:
            self.left = None
            raise OutOfMemoryError("no memory for a buffer", hint="use shorter prompts")
        if self.left is not None:
            self.left -= 1
        self.shapes.append(tuple(shape))


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Scarcity:
    scarcity, real = Scarcity(), DeviceMemory.zeros

    def zeros(self: DeviceMemory, shape: Sequence[int], dtype: Any) -> Any:
        scarcity.take(shape)
        return real(self, shape, dtype)

    monkeypatch.setattr(DeviceMemory, "zeros", zeros)
    return scarcity


@pytest.mark.parametrize("count", [0, 1, 3])
def test_without_memory_for_one_more_the_others_read_again_and_go_on(
    decoder: Decoder, mixed: list[Asked], alone: list[list[int]], scarce: Scarcity, count: int
) -> None:
    slots = open_slots(decoder, mixed[:3])
    assert step_together(decoder, slots, 4) == [ids[:4] for ids in alone[:3]]
    more = replace(mixed[4], room=200).open(decoder)
    scarce.left = count
    with refused(OutOfMemoryError, given="no memory for a buffer", hint="use shorter prompts"):
        decoder.step([*slots, more])
    decoder.close(more)
    assert step_together(decoder, slots, 4) == [ids[4:8] for ids in alone[:3]]
    assert step_together(decoder, slots[1:], 4) == [ids[8:12] for ids in alone[1:3]]
    (again,) = open_slots(decoder, mixed[4:5])
    assert step_together(decoder, [again, slots[0]], 4) == [alone[4][:4], alone[0][8:12]]


def test_without_memory_to_lay_rows_aside_a_ready_step_is_made_anew(
    bundle: Bundle, decoder: Decoder, scarce: Scarcity
) -> None:
    """Rows trade places, which takes a little memory; those that had moved are not what a ready step has."""
    asked = ask(bundle.manifest, 0, 1, 2)
    alone = [run(bundle.decoder(), [each])[0] for each in asked]
    slots = open_slots(decoder, asked)
    step_together(decoder, slots, 2)
    step_together(decoder, slots[:2], 2)
    scarce.left = 3
    with refused(OutOfMemoryError, given="no memory for a buffer", hint="use shorter prompts"):
        decoder.step([slots[0], slots[2]])
    assert step_together(decoder, slots[:2], 3) == [ids[4:7] for ids in alone[:2]]
    assert step_together(decoder, [slots[2]], 3) == [alone[2][2:5]]


def test_a_fork_without_memory_leaves_nothing_behind(bundle: Bundle, decoder: Decoder, scarce: Scarcity) -> None:
    (asked,) = ask(bundle.manifest, 0)
    (expected,) = run(bundle.decoder(), [asked])
    slot = asked.open(decoder)
    step_together(decoder, [slot], 2)
    plain = ask(bundle.manifest, 0, guided=False)[0].sequence
    for use in (lambda: decoder.fork(slot), lambda: decoder.adopt(slot, plain)):
        scarce.left = 0
        with refused(OutOfMemoryError, given="no memory for a buffer", hint="use shorter prompts"):
            use()
        assert slot.sequence == asked.sequence
        assert step_together(decoder, [slot], 2) == [expected[2:4]]
        decoder.rewind(slot, {prompt: len(ids) + 2 for prompt, ids in enumerate(asked.prompts)})
    scarce.shapes.clear()
    other = replace(asked, room=200).open(decoder)
    assert step_together(decoder, [other, slot], 2) == [expected[:2], expected[2:4]]
    caches = [shape for shape in scarce.shapes if len(shape) == 4 and shape[2] > 64]
    assert max(shape[0] for shape in caches) == 2 * max(map(max, slot.lease.widths)), "rows of two slots"
    assert step_together(decoder, [decoder.fork(slot), slot], 3) == [expected[4:7]] * 2
