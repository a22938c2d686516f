"""Requests that come, go on, end and are cancelled at random: each reply is what it is alone, and nothing is held."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pad_rt import EncodedPrompt, GenerationConfig, Generator, Preference
from pad_rt.engine.ticket import Ticket
from pad_runtime.decode.slot import Slot
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.errors import CancelledError, OutOfMemoryError
from tests.support import tiny_bundles
from tests.support.guided_models import Models

SCHEDULES = 200
SYSTEM = tuple(range(5, 45))  # a beginning that several requests share
PREFERENCES: tuple[Any, ...] = (
    None,
    "be kind",
    Preference(weights={"kind": 0.6, "odd": 0.9}),
    Preference(weights={"kind": -1.5}),
    Preference(text="egg", weights={"official": 1.0}),
    [(Preference(weights={"kind": 1.0}), 0.8), (Preference(weights={"brief": 1.0}), 0.4)],
)


@dataclass(frozen=True)
class Wish:
    """One request of a schedule."""

    prompt: Any
    preference: int
    config: GenerationConfig


def make_wish(chance: random.Random) -> Wish:
    """A short or a long prompt, alone or behind the shared beginning, for one of several people."""
    own = tuple(chance.randrange(3, 80) for _ in range(chance.choice((1, 2, 5, 30, 90))))
    ids = SYSTEM[: chance.choice((0, 20, 40))] + own
    if chance.random() < 0.3:
        ids = SYSTEM + tuple(range(50, 60))  # the very same
    reward = ids if chance.random() < 0.7 else own
    config = GenerationConfig(
        beta=chance.choice((0.5, 1.0, 2.0)),
        top_k=chance.choice((1, 4, 12)),
        temperature=chance.choice((0.0, 0.0, 0.8)),
        top_p=chance.choice((1.0, 0.7)),
        seed=chance.randrange(5),
        max_new_tokens=chance.choice((1, 2, 9, 25)),
        stop_token_ids=chance.sample(range(80), chance.choice((0, 3))),
    )
    number = chance.randrange(len(PREFERENCES))
    return Wish(EncodedPrompt(ids, None if number == 0 else reward), number, config)


@dataclass
class Outcome:
    """What a schedule came to: replies that differ from the same alone, and how many of each kind there were."""

    wrong: list[str]
    whole: int = 0
    cut_short: int = 0
    cached: int = 0


def play(generator: Generator, alone: Alone, seed: int) -> Outcome:
    """Submit, take events, cancel, and wait, in a random order."""
    chance, outcome = random.Random(seed), Outcome([])
    waiting = [make_wish(chance) for _ in range(chance.randrange(2, 9))]
    going: dict[Ticket, tuple[Wish, list[int]]] = {}
    cancelled: set[Ticket] = set()
    while waiting or going:
        act = chance.random()
        if waiting and (act < 0.4 or not going):
            wish = waiting.pop()
            ticket = generator.submit(wish.prompt, preference=PREFERENCES[wish.preference], config=wish.config)
            going[ticket] = (wish, [])
            continue
        ticket = chance.choice(list(going))
        wish, ids = going[ticket]
        if act < 0.5 and ticket not in cancelled:
            ticket.cancel()
            cancelled.add(ticket)
        event = next(ticket, None)
        if event is not None:
            ids += event.token_ids
        if event is None or event.finish_reason is not None:
            del going[ticket]
            check(outcome, alone, wish, ticket, ids)
    return outcome


def check(outcome: Outcome, alone: Alone, wish: Wish, ticket: Ticket, ids: list[int]) -> None:
    expected = alone.ids(wish)
    try:
        result = ticket.result()
    except CancelledError:
        outcome.cut_short += 1
        if tuple(ids) != expected[: len(ids)]:
            outcome.wrong.append(f"{wish}: {ids} is no beginning of {expected}")
        return
    outcome.whole += 1
    outcome.cached += result.usage.cached_tokens
    if not tuple(ids) == result.token_ids == expected:
        outcome.wrong.append(f"{wish}: {ids}, {result.token_ids}, alone {expected}")


class Alone:
    """The same requests one by one, in decoders that never saw another."""

    def __init__(self, models: Models) -> None:
        self._bundle = models.bundle("base")
        self.ids = functools.cache(self._ids)

    def _ids(self, wish: Wish) -> tuple[int, ...]:
        with Generator(tiny_bundles.open_bundle(self._bundle)) as generator:
            return generator.generate(
                wish.prompt, preference=PREFERENCES[wish.preference], config=wish.config
            ).token_ids


@pytest.fixture(scope="module")
def alone(models: Models) -> Alone:
    return Alone(models)


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that prompts of this length are read in several."""
    monkeypatch.setattr("pad_rt.engine.engine._PART", 32)
    monkeypatch.setattr("pad_rt.engine.engine._SHORT_PART", 8)


@pytest.fixture
def generator(models: Models, short_parts: None) -> Iterator[Generator]:
    generator = Generator(tiny_bundles.open_bundle(models.bundle("base")), keep_mib=0.5)
    yield generator
    generator.close()


def test_every_reply_is_what_it_is_alone(generator: Generator, alone: Alone) -> None:
    outcomes = [play(generator, alone, seed) for seed in range(SCHEDULES)]
    assert [wrong for outcome in outcomes for wrong in outcome.wrong] == []
    assert sum(outcome.whole for outcome in outcomes) > 2 * SCHEDULES
    assert sum(outcome.cut_short for outcome in outcomes) > SCHEDULES / 2
    assert sum(outcome.cached for outcome in outcomes) > 10 * SCHEDULES
    engine = generator._engine
    assert (engine.num_waiting, engine.num_running) == (0, 0)
    generator.close()
    decoder = engine._decoder
    assert decoder._slots == set()
    assert all(group.num_rows == 0 for groups in decoder._arena._groups for group in groups)
    assert "pad-engine" not in [thread.name for thread in threading.enumerate()]


def test_caches_that_do_not_fit_the_prompt_are_seen(
    generator: Generator, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a kept slot that is said to begin with the whole prompt, whatever is in it."""
    monkeypatch.setattr("pad_rt.engine.kept._num_common", lambda some, other: min(len(some), len(other)))
    assert any(play(generator, alone, seed).wrong for seed in range(20))


def test_with_little_memory_requests_wait(models: Models, alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running requests never need more than they may, and fewer run at once than without the limit."""
    limit, most = 2**18, dict[int | None, tuple[int, int]]()
    for bound in (limit, None):
        sizes = [(0, 0)]
        mib = None if bound is None else bound / 2**20
        with Generator(tiny_bundles.open_bundle(models.bundle("base")), max_cache_mib=mib, keep_mib=0) as generator:
            real = generator._engine._decoder.step

            def step(
                slots: list[Slot], *, real: Any = real, sizes: Any = sizes, of: Any = generator, **options: Any
            ) -> Any:
                room = max(slot.room for slot in slots)
                size = sum(of._engine._decoder.cache_bytes(slot.sequence, room) for slot in slots)
                sizes.append((size, len(slots)))
                return real(slots, **options)

            monkeypatch.setattr(generator._engine._decoder, "step", step)
            for seed in range(20):
                assert play(generator, alone, seed).wrong == []
        most[bound] = (max(size for size, _ in sizes), max(count for _, count in sizes))
    assert most[limit][0] <= limit < most[None][0]
    assert most[limit][1] < most[None][1]


def test_out_of_memory_is_no_loss(generator: Generator, alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """While several requests run, a buffer cannot be made: some wait, what was cached is read again, all go on."""
    engine, real, chance = generator._engine, DeviceMemory.zeros, random.Random(1)
    failures: list[int] = []

    def zeros(self: DeviceMemory, *arguments: Any) -> Any:
        is_its_own = threading.current_thread() is engine._thread  # those that reply alone have all memory
        if is_its_own and engine.num_running > 1 and chance.random() < 0.05:
            failures.append(engine.num_running)
            raise OutOfMemoryError("no memory for a buffer")
        return real(self, *arguments)

    monkeypatch.setattr(DeviceMemory, "zeros", zeros)
    outcomes = [play(generator, alone, seed) for seed in range(60)]
    assert [wrong for outcome in outcomes for wrong in outcome.wrong] == []
    assert len(failures) > 30


def test_out_of_memory_alone_is_an_error(generator: Generator, alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = make_wish(random.Random(3))
    with monkeypatch.context() as patch:

        def zeros(*arguments: Any) -> Any:
            raise OutOfMemoryError("no memory for a buffer")

        patch.setattr(DeviceMemory, "zeros", zeros)
        ticket = generator.submit(wish.prompt, preference=PREFERENCES[wish.preference], config=wish.config)
        with pytest.raises(OutOfMemoryError, match="no memory for a buffer"):
            ticket.result()
        with pytest.raises(OutOfMemoryError, match="no memory for a buffer"):
            next(ticket)
    assert play(generator, alone, 0).wrong == []
