"""The KV arena: leases are lent, moved beside each other, grown and given back, and what is filled stays."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, read_manifest
from pad_runtime.decode.arena import KvArena, Lease
from pad_runtime.decode.kv_group import KvGroup, Move, Window
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.errors import OutOfMemoryError
from pad_runtime.rows.row import Row
from pad_runtime.rows.sequence import Sampling, SequenceSpec

Array = npt.NDArray[Any]
# On two trunks of three layers, whose first one keeps a row for each prompt.
SEQUENCES = {
    "plain": (Row(0, 0),),
    "guided": (Row(0, 0), Row(1, 1, 0)),
    "log ratio": (Row(0, 0), Row(1, 1, 0), Row(1, 1)),
    "two wishes": (Row(0, 0), Row(1, 1, 0), Row(1, 2, 0), Row(1, 1), Row(1, 2)),
    "contrast": (Row(0, 0), Row(0, 1)),
}


def sequence(name: str) -> SequenceSpec:
    return SequenceSpec(SEQUENCES[name], (), Sampling(top_k=1))


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    """Sizes alone: nothing runs."""
    manifest = read_manifest(tiny_bundle)
    trunk = replace(manifest.trunks[0], num_layers=3, prompt_layers=1, num_kv_heads=2, head_dim=4)
    return replace(manifest, trunks=[trunk, replace(trunk, name="reward")])


class ScarceMemory(DeviceMemory):
    """A host's memory that can be told to end."""

    def __init__(self) -> None:
        super().__init__(cuda=None)
        self.made, self.ends_after = 0, -1
        self.alive = weakref.WeakSet[Buffer]()

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        self.made += 1
        if self.made == self.ends_after:
            raise OutOfMemoryError("no memory for a buffer")
        buffer = super().zeros(shape, dtype)
        self.alive.add(buffer)
        return buffer


@dataclass
class House:
    """An arena, and beside it what each lease must hold: by lease, the seed of its values and how many are filled."""

    manifest: Manifest
    block: int = 64
    memory: ScarceMemory = field(default_factory=ScarceMemory)
    held: dict[Lease, tuple[int, list[int]]] = field(default_factory=dict)
    resized: int = 0

    def __post_init__(self) -> None:
        def resize() -> None:
            self.resized += 1

        self.arena = KvArena(self.manifest, self.memory, growth=self.block, before_resize=resize)
        self.seeds = itertools.count()

    def lend(self, name: str) -> Lease:
        lease = self.arena.lend(sequence(name))
        self.held[lease] = (next(self.seeds), [0] * len(lease.cached))
        return lease

    def fill(self, lease: Lease, *lengths: int) -> None:
        """Write keys and values up to lengths, by prompt; the lease has memory."""
        seed, _ = self.held[lease]
        self.held[lease] = (seed, list(lengths))
        lease.cached[:] = lengths
        for trunk, number, prompt in self._rows(lease):
            inputs, outputs = self.arena.buffers(trunk, self.arena.row_window(lease, trunk, number))
            at = contract.trunk_prefix(self.manifest.trunks[trunk].name)
            assert all(outputs[at + contract.present_key(layer)].address for layer in range(3))
            for layer in range(3):
                for half, name in enumerate((contract.past_key(layer), contract.past_value(layer))):
                    buffer = inputs[at + name]
                    values = np.full(buffer.shape, np.nan, np.float32)  # nobody looks behind what is filled
                    values[0, :, : lengths[prompt]] = self.expected(lease, trunk, number, prompt, layer)[half]
                    buffer.write(values)

    def expected(self, lease: Lease, trunk: int, number: int, prompt: int, layer: int) -> Array:
        """Keys and values [2, kv_heads, length, head_dim]: below the first adapter they are the prompt's."""
        seed, lengths = self.held[lease]
        row = (0, prompt) if layer < 1 else (1, number)
        values = np.random.default_rng([seed, trunk, *row, layer]).normal(size=(300, 2, 2, 4)).astype(np.float32)
        return values[: lengths[prompt]].transpose(1, 2, 0, 3)

    def check(self) -> None:
        """Every lease holds what it must."""
        for lease, (_, lengths) in self.held.items():
            assert lease.cached == lengths
            if any(lengths):
                for trunk, number, prompt in self._rows(lease):
                    for layer in range(3):
                        found = np.stack(self.arena.read(lease, trunk, number, layer))
                        np.testing.assert_array_equal(found, self.expected(lease, trunk, number, prompt, layer))

    def give_back(self, lease: Lease) -> None:
        self.arena.give_back(lease)
        del self.held[lease]

    @staticmethod
    def _rows(lease: Lease) -> Iterator[tuple[int, int, int]]:
        for trunk, rows in enumerate(lease.rows):
            for number, prompt in enumerate(rows):
                yield trunk, number, prompt


@pytest.fixture
def house(manifest: Manifest) -> House:
    return House(manifest)


def side_by_side(house: House, leases: list[Lease]) -> bool:
    """Whether rows follow upon each other on every trunk, in that order."""
    for trunk, side in itertools.product((0, 1), (0, 1)):
        at = leases[0].first[trunk][side]
        for lease in leases:
            if lease.widths[trunk][side]:
                if lease.first[trunk][side] != at:
                    return False
                at += lease.widths[trunk][side]
    return True


def test_a_lease_has_a_row_for_each_prompt_below_and_for_each_row_above(house: House) -> None:
    lease = house.lend("two wishes")
    assert lease.widths == ((1, 1), (2, 4))
    assert lease.cached == [0, 0, 0]
    assert house.memory.made == house.arena.capacity == 0, "lent, and nothing is made"
    other = house.lend("guided")
    assert [other.first[trunk] for trunk in (0, 1)] == [(1, 1), (2, 4)]
    house.arena.gather([lease, other], room=10)
    assert house.arena.window([lease, other], 0) == (Window(0, 2), Window(0, 2))
    assert house.arena.window([lease, other], 1) == (Window(0, 3), Window(0, 5))
    assert house.arena.row_window(lease, 1, 3) == (Window(1, 1), Window(3, 1))


def test_without_a_row_on_a_trunk_there_is_a_spare_one(house: House) -> None:
    lease = house.lend("plain")
    house.arena.gather([lease], room=10)
    assert house.arena.window([lease], 1) is None
    inputs, outputs = house.arena.buffers(1, None)
    assert {buffer.shape for buffer in (*inputs.values(), *outputs.values())} == {(1, 2, 64, 4)}
    assert len(inputs) == len(outputs) == 6
    assert house.arena.buffers(1, None)[0].keys() == inputs.keys()
    made = house.memory.made
    house.arena.buffers(1, None)
    assert house.memory.made == made, "one is enough"


def test_what_was_given_back_is_lent_again(house: House) -> None:
    first, second, third = (house.lend(name) for name in ("guided", "plain", "guided"))
    house.arena.gather([first, second, third], room=10)
    house.fill(third, 5, 6)
    made, places = house.memory.made, [first.first, second.first]
    house.give_back(first)
    house.give_back(second)
    assert house.lend("plain").first == places[1]
    again = house.lend("guided")
    assert again.first == places[0]
    assert again.cached == [0, 0]
    house.arena.gather(house.held, room=10)
    assert house.memory.made == made
    house.check()


@pytest.mark.parametrize(
    ("block", "capacities"), [(64, [64, 64, 128, 256]), (100, [100, 100, 100, 256]), (256, [256] * 4)]
)
def test_capacity_grows_in_blocks(manifest: Manifest, block: int, capacities: list[int]) -> None:
    """And never beyond the bundle's max_length."""
    house = House(manifest, block=block)
    lease = house.lend("guided")
    found = []
    for room in (3, 64, 65, 256):
        house.arena.gather([lease], room=room)
        found.append(house.arena.capacity)
    assert found == capacities


def test_growth_keeps_what_is_filled(house: House) -> None:
    """More slots, more rows, both: old rows go to their places in the new buffers."""
    leases = [house.lend("two wishes"), house.lend("plain")]
    house.arena.gather(leases, room=20)
    house.fill(leases[0], 20, 3, 17)
    house.fill(leases[1], 9)
    house.check()
    house.arena.gather(leases, room=100)
    assert house.resized
    house.check()
    leases += [house.lend("two wishes"), house.lend("contrast")]
    house.arena.gather(leases, room=200)
    house.check()
    house.fill(leases[2], 100, 30, 0)
    house.fill(leases[3], 40, 41)
    house.arena.gather(leases[:1], room=10)
    assert house.arena.capacity == 256, "what others have is not cut"
    house.check()


def test_leases_of_the_same_widths_trade_places(house: House) -> None:
    leases = [house.lend("guided") for _ in range(4)]
    house.arena.gather(leases, room=10)
    for number, lease in enumerate(leases):
        house.fill(lease, 3 + number, 5 + number)
    made, resized = house.memory.made, house.resized
    gathered = house.arena.gather([leases[0], leases[3]], room=10)
    assert gathered == [leases[0], leases[3]]
    assert side_by_side(house, gathered)
    assert (leases[2].first, house.resized) == ([(2, 2), (2, 2)], resized), "only two of them moved"
    assert house.memory.made == made + 2 * (2 + 4), "a layer's keys or values were laid aside, one after the other"
    house.check()
    assert side_by_side(house, house.arena.gather([leases[1], leases[2]], room=10))
    house.check()


def test_leases_of_other_widths_are_packed_anew(house: House) -> None:
    names = ["plain", "two wishes", "guided", "contrast", "plain", "log ratio"]
    leases = [house.lend(name) for name in names]
    house.arena.gather(leases, room=30)
    for number, lease in enumerate(leases):
        house.fill(lease, *(4 + number + prompt for prompt in range(len(lease.cached))))
    for chosen in ([0, 2], [1, 5], [0, 3, 5], [4], [0, 1, 2, 3, 4, 5], [2, 4]):
        gathered = house.arena.gather([leases[number] for number in chosen], room=30)
        assert sorted(map(leases.index, gathered)) == sorted(chosen)
        assert side_by_side(house, gathered)
        house.check()


def test_an_idle_arena_that_is_far_too_large_is_made_anew(house: House) -> None:
    leases = [house.lend("guided") for _ in range(6)]
    house.arena.gather(leases, room=250)
    for lease in leases[1:]:
        house.give_back(lease)
    house.fill(leases[0], 3, 4)
    house.arena.gather(leases[:1], room=10)
    house.check()
    assert house.arena.capacity == 256, "it is not idle: something is filled"
    house.fill(leases[0], 0, 0)
    found = []
    for _ in range(4):  # what was needed lately is needed again, or not
        house.arena.gather(leases[:1], room=10)
        found.append((house.arena.capacity, {buffer.shape[0] for buffer in house.memory.alive}))
    assert found == [(256, {6}), (64, {1}), (64, {1}), (64, {1})]


def test_large_and_small_requests_in_turn_make_nothing_anew(house: House) -> None:
    made = []
    for turn in range(8):
        leases = [house.lend("guided") for _ in range(1 if turn % 2 else 8)]
        house.arena.gather(leases, room=10 if turn % 2 else 250)
        made.append(house.memory.made)
        for lease in leases:
            house.give_back(lease)
    assert len(set(made)) == 1


def test_leases_that_join_one_by_one_seldom_copy_the_others(house: House) -> None:
    """The first has no more than it needs; the twelfth is not the twelfth copy."""
    leases: list[Lease] = []
    for number in range(12):
        leases.append(house.lend("plain"))
        house.arena.gather(leases, room=10)
        if number == 0:
            assert {buffer.shape[0] for buffer in house.memory.alive} == {1}
        house.fill(leases[-1], 5)
        house.check()
    assert house.resized == 2 * 7  # of the layers below the first adapter, and of those above it


def test_caches_that_nobody_uses_any_more_are_released(house: House) -> None:
    """Those of a trunk without rows."""
    guided = house.lend("guided")
    house.arena.gather([guided], room=10)
    assert len(house.memory.alive) == 2 * 3 * 2, "keys and values of every layer of both trunks"
    house.give_back(guided)
    house.arena.gather([house.lend("plain")], room=10)
    assert len(house.memory.alive) == 3 * 2


def test_a_fork_copies_what_both_have(house: House) -> None:
    """Row by row, from where the row is in the other lease; a row that it lacks stays as it is."""
    source, between, target = house.lend("two wishes"), house.lend("plain"), house.lend("log ratio")
    house.arena.gather([source, between, target], room=30)
    house.fill(source, 7, 9, 11)
    house.fill(between, 5)
    house.fill(target, 0, 0)
    target.cached[:] = [7, 9]
    house.arena.fork(source, target, [[0], [0, 2]])
    for trunk, number, origin in ((0, 0, 0), (1, 0, 0), (1, 1, 2)):
        for layer in range(3):
            ours, theirs = (
                np.stack(house.arena.read(lease, trunk, row, layer))
                for lease, row in ((target, number), (source, origin))
            )
            np.testing.assert_array_equal(ours, theirs)
            assert ours.size
    house.held[target] = (house.held[target][0], [0, 0])
    target.cached[:] = [0, 0]
    house.check()


@pytest.mark.parametrize("ends_after", [1, 5, 8, 12])
def test_without_memory_nothing_is_cached_any_more(house: House, ends_after: int) -> None:
    """Wherever in the buffers memory ends: every lease says so, and they can be filled again."""
    leases = [house.lend("guided"), house.lend("two wishes")]
    house.arena.gather(leases, room=10)
    house.fill(leases[0], 3, 4)
    house.fill(leases[1], 5, 6, 7)
    house.memory.made, house.memory.ends_after = 0, ends_after
    with pytest.raises(OutOfMemoryError):
        house.arena.gather(leases, room=100)
    assert [lease.cached for lease in leases] == [[0, 0], [0, 0, 0]]
    for room in (100, 10):
        house.arena.gather(leases, room=room)
        house.fill(leases[0], 3, 4)
        house.fill(leases[1], 5, 6, 7)
        house.check()


def test_without_memory_to_lay_rows_aside_nothing_is_cached_any_more(house: House) -> None:
    leases = [house.lend("guided") for _ in range(3)]
    house.arena.gather(leases, room=10)
    for lease in leases:
        house.fill(lease, 3, 4)
    house.memory.made, house.memory.ends_after = 0, 4
    resized = house.resized
    with pytest.raises(OutOfMemoryError):
        house.arena.gather([leases[0], leases[2]], room=10)
    assert [lease.cached for lease in leases] == [[0, 0]] * 3
    assert house.resized > resized, "what was bound to rows that moved lets go of them too"


def wander(house: House, seed: int, num_turns: int) -> None:
    """Lend, fill, gather and give back at random."""
    draw = np.random.default_rng(seed)
    for _ in range(num_turns):
        leases = list(house.held)
        if not leases or (len(leases) < 7 and draw.random() < 0.4):
            house.lend(str(draw.choice(list(SEQUENCES))))
        elif draw.random() < 0.25:
            house.give_back(leases[draw.integers(len(leases))])
        leases = list(house.held)
        if leases:
            chosen = [lease for lease in leases if draw.random() < 0.5] or leases[:1]
            room = max([int(draw.integers(1, 257)), *(max(lease.cached) for lease in leases)])
            gathered = house.arena.gather(chosen, room=room)
            assert set(gathered) == set(chosen)
            assert side_by_side(house, gathered)
            house.check()
            for lease in chosen:
                house.fill(lease, *(int(draw.integers(0, room + 1)) for _ in lease.cached))


def wander_often(manifest: Manifest) -> None:
    for seed in range(6):
        house = House(manifest)
        wander(house, seed, 60)
        assert house.resized > 2


def test_whatever_happens_what_is_filled_stays(manifest: Manifest) -> None:
    wander_often(manifest)


def short_by_one(self: KvGroup, moves: Sequence[Move]) -> None:
    _REAL_MOVE(self, [replace(move, length=max(0, move.length - 1)) for move in moves])


def one_after_the_other(self: KvGroup, moves: Sequence[Move]) -> None:
    """A row that was written is read as if it were what it was."""
    for move in moves:
        _REAL_MOVE(self, [move])


def not_at_all(self: KvGroup, moves: Sequence[Move]) -> None:
    pass


_REAL_MOVE = KvGroup.move


@pytest.mark.parametrize("wrong", [one_after_the_other, not_at_all, short_by_one])
def test_a_wrong_move_is_seen(manifest: Manifest, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    """The control."""
    monkeypatch.setattr(KvGroup, "move", wrong)
    with pytest.raises(AssertionError, match=r"Arrays are not equal"):
        wander_often(manifest)
