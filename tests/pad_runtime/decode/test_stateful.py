"""Random use of a decoder: every sequence chooses what it chooses alone. And each fault that this must find, put in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import hypothesis
import numpy as np
import pytest
from hypothesis.stateful import run_state_machine_as_test

from pad_runtime.bundle import contract
from pad_runtime.decode import arena, inputs
from pad_runtime.decode.arena import KvArena, Lease
from pad_runtime.decode.kv_group import FilledRow, Move, Window
from pad_runtime.decode.run import Run
from pad_runtime.decode.slot import Slot
from tests.support.decoder_book import Tally
from tests.support.decoder_machine import NUM_EVENTS, DecoderMachine
from tests.support.decoder_worlds import KINDS, World

MOST_CASES = 800  # in which a fault must be found


def explore(world: World, cases: int, tally: Tally, **settings: Any) -> None:
    """Random cases in a world.

    Raises:
        AssertionError: the shortest case that was found in which a slot differs from its sequence alone.
    """
    options = hypothesis.settings(
        max_examples=cases,
        stateful_step_count=NUM_EVENTS - 1,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        **settings,
    )

    def machine() -> DecoderMachine:
        return DecoderMachine(world, tally)

    hypothesis.seed(list(KINDS).index(world.name))(machine)
    run_state_machine_as_test(machine, settings=options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KINDS)
def test_every_sequence_chooses_what_it_chooses_alone(load_world: Callable[[str], World], name: str) -> None:
    tally = Tally()
    explore(load_world(name), hypothesis.settings.default.max_examples // 10, tally)
    print(name, tally)
    assert tally.tokens > 5 * tally.cases


# -- controls: each fault that this must find ------------------------------------------------------------------------


def copy_the_first_row(patch: pytest.MonkeyPatch) -> None:
    """All rows of a fork are copies of the first one."""
    real = KvArena.fork

    def fork(self: KvArena, source: Lease, target: Lease, rows: Sequence[Sequence[int | None]]) -> None:
        real(self, source, target, [[None if row is None else 0 for row in trunk] for trunk in rows])

    patch.setattr(KvArena, "fork", fork)


def move_too_little(patch: pytest.MonkeyPatch) -> None:
    """What is moved to another row loses its newest position."""
    real = arena._moves

    def moves(*arguments: Any) -> list[Move]:
        return [replace(each, length=each.length - (each.source != each.target)) for each in real(*arguments)]

    patch.setattr(arena, "_moves", moves)


def lose_the_oldest_position(patch: pytest.MonkeyPatch) -> None:
    """What is saved of a row begins a position too late."""
    patch.setattr(FilledRow, "read", lambda self, real=FilledRow.read: np.roll(real(self), -1, axis=1))


def keep_the_length(patch: pytest.MonkeyPatch) -> None:
    """What was cached of a prompt that was cut counts as cached when other tokens take its place."""
    real_cut, real_append = Slot.cut, Slot.append
    before: dict[Slot, list[int]] = {}

    def cut(self: Slot, lengths: Mapping[int, int]) -> None:
        before[self] = list(self.lease.cached)
        real_cut(self, lengths)

    def append(self: Slot, new: Mapping[int, Sequence[int]]) -> None:
        real_append(self, new)
        for prompt, length in enumerate(before.pop(self, [])[: len(self.lengths)]):
            if prompt in new:
                cached = self.lease.cached
                cached[prompt] = max(cached[prompt], min(length, self.lengths[prompt] - 1))

    patch.setattr(Slot, "cut", cut)
    patch.setattr(Slot, "append", append)


def share_the_step(patch: pytest.MonkeyPatch) -> None:
    """A batch has one step: who joins later shifts the noise of whoever has begun."""
    real = inputs._choice

    def choice(*arguments: Any) -> dict[str, Any]:
        values = real(*arguments)
        values[contract.STEP][:] = values[contract.STEP].max()
        return values

    patch.setattr(inputs, "_choice", choice)


def keep_what_ran_ahead(patch: pytest.MonkeyPatch) -> None:
    """A step that was started ahead counts, whatever has happened since."""
    patch.setattr(Run, "discard", lambda self: None)


def shift_the_window(patch: pytest.MonkeyPatch) -> None:
    """Windows over leases begin a row too early."""
    real = KvArena.window

    def window(self: KvArena, leases: Sequence[Lease], trunk: int) -> tuple[Window, Window] | None:
        below, above = real(self, leases, trunk) or (None, None)
        return above and (below, replace(above, first=max(0, above.first - 1)))

    patch.setattr(KvArena, "window", window)


def keep_an_input(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A run in the same place has what it was made with, whoever is there now."""

    def keep(patch: pytest.MonkeyPatch) -> None:
        real = Run.load
        made_with: WeakKeyDictionary[Run, Any] = WeakKeyDictionary()

        def load(self: Run, arrays: Mapping[str, Any]) -> None:
            real(self, {**arrays, name: made_with.setdefault(self, arrays[name].copy())})

        patch.setattr(Run, "load", load)

    return keep


def mix_the_counts(patch: pytest.MonkeyPatch) -> None:
    """Each sequence counts the tokens of its neighbour."""
    real = inputs._written
    patch.setattr(inputs, "_written", lambda *arguments: np.roll(real(*arguments), 1, axis=0))


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "a fork's rows": ("shared", copy_the_first_row),
    "a fork's rows below": ("upper layers", copy_the_first_row),
    "a row that is moved": ("shared", move_too_little),
    "a row that is saved": ("upper layers", lose_the_oldest_position),
    "a length that is not lowered": ("pair", keep_the_length),
    "noise that another one shifts": ("contrast", share_the_step),
    "a step ahead that is not discarded": ("captured", keep_what_ran_ahead),
    "a window that is off": ("shared", shift_the_window),
    "a mask of the former owner": ("contrast", keep_an_input(contract.ALLOWED)),
    "counts of the former owner": ("contrast", keep_an_input(contract.WRITTEN)),
    "counts of another sequence": ("contrast", mix_the_counts),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(load_world: Callable[[str], World], monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    name, put_in = FAULTS[fault]
    world = load_world(name)
    put_in(monkeypatch)
    tally = Tally()
    with pytest.raises(AssertionError, match=r"alone|cached"):
        explore(world, MOST_CASES, tally, phases=[hypothesis.Phase.generate])
    print(fault, tally)
