"""The engine, one behaviour at a time: who joins when, what is read, who is refused, and what an end leaves."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from pad_rt import EncodedPrompt, GenerationConfig, Generator, Preference
from pad_rt.engine.tasks import events_of
from pad_rt.engine.ticket import Event
from pad_runtime.decode.arena import KvArena
from pad_runtime.decode.decoder import Decoder
from pad_runtime.decode.slot import Slot
from pad_runtime.errors import (
    BundleError,
    CancelledError,
    OptionError,
    OutOfMemoryError,
    PadError,
    PromptError,
    QueueFullError,
)
from tests.support import tiny_bundles
from tests.support.guided_models import PROMPTS, Models, config

KIND = Preference(weights={"kind": 0.9})
LONG = config(max_new_tokens=300)
PART, SHORT_PART = 32, 8
VOCAB_BYTES = 45  # 356 tokens


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pad_rt.engine.engine._PART", PART)
    monkeypatch.setattr("pad_rt.engine.engine._SHORT_PART", SHORT_PART)


@pytest.fixture
def generator(models: Models) -> Iterator[Generator]:
    generator = Generator(tiny_bundles.open_bundle(models.bundle("base")), max_waiting=3)
    yield generator
    generator.close()


@pytest.fixture
def done(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the decoder does: tokens that it reads, by prompt, and how many slots it steps."""
    decoder, found = generator._engine._decoder, list[Any]()
    fill, step = decoder._reader.fill, decoder.step

    def noting_fill(slot: Slot, lengths: dict[int, int], cancellation: Any) -> None:
        found.append({prompt: length - slot.lease.cached[prompt] for prompt, length in lengths.items()})
        fill(slot, lengths, cancellation)

    def noting_step(slots: list[Slot], **options: Any) -> Any:
        found.append(len(slots))
        return step(slots, **options)

    monkeypatch.setattr(decoder._reader, "fill", noting_fill)
    monkeypatch.setattr(decoder, "step", noting_step)
    return found


def ids(count: int, first: int = 3) -> EncodedPrompt:
    return EncodedPrompt([first + number % 60 for number in range(count)])


def guided(base: Sequence[int]) -> EncodedPrompt:
    """A prompt that the PersRM reads as the base does."""
    return EncodedPrompt(base, base)


def fills(done: list[Any]) -> list[dict[int, int]]:
    return [each for each in done if isinstance(each, dict)]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Held:
    """Keeps the engine's thread in a job until it is let go."""

    def __init__(self, generator: Generator) -> None:
        self._let_go, begun = threading.Event(), threading.Event()

        def job(_: Decoder) -> None:
            begun.set()
            self._let_go.wait(60)

        self._thread = threading.Thread(target=generator._engine.run, args=(job,))
        self._thread.start()
        begun.wait(60)

    def let_go(self) -> None:
        self._let_go.set()
        self._thread.join()


# -- events and results -----------------------------------------------------------------------------------------------


def test_events_are_the_reply(generator: Generator) -> None:
    for preference in (None, KIND, "be kind"):
        result = generator.generate(PROMPTS[0], preference=preference, config=config())
        ticket = generator.submit(PROMPTS[0], preference=preference, config=config())
        events = list(ticket)
        assert "".join(event.text for event in events) == result.text
        assert tuple(id for event in events for id in event.token_ids) == result.token_ids
        assert {(event.finish_reason, event.usage, event.timing) for event in events[:-1]} == {(None, None, None)}
        last, again = events[-1], ticket.result()
        assert (last.finish_reason, last.usage, last.timing) == (again.finish_reason, again.usage, again.timing)
        assert (again.text, again.token_ids) == (result.text, result.token_ids)
        assert list(ticket) == []


def test_events_carry_what_each_step_weighed(generator: Generator) -> None:
    ticket = generator.submit(PROMPTS[0], preference=KIND, config=config(), trace=True)
    steps = [step for event in ticket for step in event.trace]
    expected = ticket.result().trace
    assert len(steps) == len(expected) > 1
    assert all(step is other for step, other in zip(steps, expected, strict=True))
    assert not any(event.trace for event in generator.submit(PROMPTS[0], preference=KIND, config=config()))


def test_timing_adds_up(generator: Generator) -> None:
    timing = generator.generate(PROMPTS[0], preference=KIND, config=config()).timing
    assert 0 < timing.queue_s < timing.first_token_s
    assert timing.queue_s + timing.prefill_s == pytest.approx(timing.first_token_s)
    assert 0 < timing.step_s < timing.first_token_s * 1000


# -- joining and reading ----------------------------------------------------------------------------------------------


def test_requests_go_on_side_by_side(generator: Generator, done: list[Any]) -> None:
    held = Held(generator)
    tickets = [generator.submit(ids(6, first), config=config(max_new_tokens=4)) for first in (3, 20, 40)]
    held.let_go()
    for ticket in tickets:
        ticket.result()
    assert [each for each in done if isinstance(each, int)] == [3] * 4


def test_replies_go_on_while_a_long_prompt_is_read(generator: Generator, done: list[Any]) -> None:
    """A reply waits for one short part of it at a time."""
    first = generator.submit(ids(5), config=LONG)
    next(first)
    second = generator.submit(ids(200, 20), config=config(max_new_tokens=1))
    second.result()
    first.cancel()
    from_here = done[next(number for number, each in enumerate(done) if each == {0: SHORT_PART}) :]
    read = fills(from_here)
    assert sum(each[0] for each in read) == 199
    assert max(each[0] for each in read) <= SHORT_PART + 1
    between = np.diff([number for number, each in enumerate(from_here) if isinstance(each, dict)])
    assert min(between) >= 2, "a step between any two parts"


def test_a_short_prompt_does_not_wait_for_a_long_one(generator: Generator) -> None:
    """Prompts are read in turns, a part of each."""
    going = generator.submit(ids(5), config=LONG)
    next(going)
    held = Held(generator)
    long = generator.submit(ids(200, 20), config=config(max_new_tokens=1))
    short = generator.submit(ids(2 * SHORT_PART, 50), config=config(max_new_tokens=1))
    held.let_go()
    for ticket in (short, long):
        ticket.result()
    going.cancel()
    assert long.clock.admitted < short.clock.admitted
    assert short.clock.first < long.clock.first


def test_alone_a_prompt_is_read_in_large_parts(generator: Generator, done: list[Any]) -> None:
    """The control."""
    generator.generate(ids(200), config=config(max_new_tokens=1))
    assert fills(done)[0] == {0: PART}


@pytest.mark.parametrize("preference", [None, KIND])
def test_a_prompt_of_several_requests_is_read_once(
    generator: Generator, done: list[Any], preference: Preference | None
) -> None:
    """Samples of one prompt, and people who share its beginning."""
    sampled = config(temperature=1.5, max_new_tokens=6)
    make = guided if preference else EncodedPrompt
    results = generator.generate_batch([make(ids(90).base)] * 8, preferences=[preference] * 8, config=sampled)
    assert len({result.token_ids for result in results}) > 1
    assert sum(each[0] for each in fills(done)) <= 90 + 8
    assert [result.usage.cached_tokens for result in results] == [0] + [90] * 7
    del done[:]
    behind = [make([*ids(80).base, number, number]) for number in range(3, 11)]
    results = generator.generate_batch(behind, preferences=[preference] * 8, config=sampled)
    assert sum(each[0] for each in fills(done)) <= 8 * 4
    assert {result.usage.cached_tokens for result in results} == {80}


def test_nothing_is_kept_where_nothing_may_be(models: Models) -> None:
    """The control: but the latest reply's, until another request runs."""
    with Generator(tiny_bundles.open_bundle(models.bundle("base")), keep_mib=0) as generator:
        for first in (3, 10, 3):
            assert generator.generate(ids(90, first), config=config(max_new_tokens=3)).usage.cached_tokens == 0
        assert generator.generate(ids(90), config=config(max_new_tokens=3)).usage.cached_tokens == 90
        assert len(list(generator._engine.kept)) == 1


def test_a_reply_is_part_of_what_is_kept(generator: Generator) -> None:
    prompt = guided(ids(40).base)
    result = generator.generate(prompt, preference=KIND, config=config(max_new_tokens=20))
    further = guided([*prompt.base, *result.token_ids, 5, 6, 7])
    assert generator.generate(further, preference=Preference(weights={"odd": 2.0})).usage.cached_tokens == 40 + 19
    assert generator.generate(further, preference="be kind").usage.cached_tokens < 40, "another PersRM reads it anew"


def test_more_than_the_batch_holds(models: Models, generator: Generator) -> None:
    """As many as there are, in their order, each with a config of its own."""
    prompts = [guided(ids(4 + number).base) for number in range(21)]
    configs = [config(max_new_tokens=1 + number % 5, beta=float(number)) for number in range(21)]
    results = generator.generate_batch(prompts, preferences=[KIND] * 21, configs=configs)
    for prompt, each, result in zip(prompts, configs, results, strict=True):
        alone = generator.generate(prompt, preference=KIND, config=each)
        assert (result.token_ids, len(result.token_ids)) == (alone.token_ids, each.max_new_tokens)
    assert generator.generate_batch([]) == []


# -- ends -------------------------------------------------------------------------------------------------------------


def test_a_cancel_ends_a_reply_within_a_step(generator: Generator, done: list[Any]) -> None:
    ticket = generator.submit(ids(5), config=LONG)
    next(ticket)
    ticket.cancel()
    steps = len(done)
    wait_until(lambda: ticket.has_ended)
    assert len(done) <= steps + 2
    assert len(list(ticket)) < steps + 2
    with pytest.raises(CancelledError, match=r"^the request was cancelled before its reply ended; the text so far is"):
        ticket.result()


def test_a_cancel_ends_the_reading_of_a_prompt(generator: Generator, done: list[Any]) -> None:
    ticket = generator.submit(ids(400), config=LONG)
    wait_until(lambda: len(done) > 1)
    ticket.cancel()
    wait_until(lambda: ticket.has_ended)
    assert sum(each[0] for each in fills(done)) < 400
    assert not any(isinstance(each, int) for each in done)


def test_a_request_that_waits_is_cancelled_at_once(generator: Generator) -> None:
    held = Held(generator)
    first, second = (generator.submit(ids(5, n), config=config(max_new_tokens=2)) for n in (3, 9))
    first.cancel()
    held.let_go()
    assert len(second.result().token_ids) == 2
    with pytest.raises(CancelledError):
        first.result()


def test_a_full_queue_refuses_or_waits(generator: Generator) -> None:
    held = Held(generator)
    tickets = [generator.submit(ids(5, n), config=config(max_new_tokens=2)) for n in (3, 9, 15)]
    with pytest.raises(
        QueueFullError,
        match=r"^3 requests that wait; expected at most 3; try again later, or load with a larger max_waiting$",
    ):
        generator.submit(ids(5))
    results: list[Any] = []
    waiting = threading.Thread(target=lambda: results.append(generator.generate(ids(5), config=config())))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    held.let_go()
    waiting.join(60)
    assert len(results) == 1
    assert all(ticket.result() for ticket in tickets)


def test_a_batch_is_queued_whole_or_not_at_all(generator: Generator) -> None:
    held = Held(generator)
    generator.submit("a", config=LONG)
    options: dict[str, Any] = {"preferences": [None] * 3, "configs": [LONG] * 3}
    with pytest.raises(QueueFullError, match="1 requests that wait; expected at most 3"):
        generator.submit_batch(["a"] * 3, **options)
    assert generator.num_waiting == 1
    tickets = generator.submit_batch(["a"] * 2, preferences=[None, KIND], configs=[LONG, config(seed=4)])
    assert generator.num_waiting == 3
    with pytest.raises(OptionError, match="4 requests at once; expected at most max_waiting, 3"):
        generator.submit_batch(["a"] * 4, preferences=[None] * 4, configs=[LONG] * 4)
    held.let_go()
    assert tickets[1].result().text == generator.generate("a", preference=KIND, config=config(seed=4)).text


def test_a_device_that_fails_fails_its_requests_alone(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(generator._engine._decoder, "step", step)
        tickets = [generator.submit(ids(5, n), config=LONG) for n in (3, 9)]
        for ticket in tickets:
            with pytest.raises(RuntimeError, match="the device is gone"):
                ticket.result()
            with pytest.raises(RuntimeError, match="the device is gone"):
                list(ticket)
    assert generator.generate(ids(5), config=config()).token_ids


def test_one_request_of_a_batch_that_fails_ends_the_others(generator: Generator) -> None:
    with pytest.raises(PromptError, match="no base ids"):
        generator.generate_batch([ids(5), EncodedPrompt([])])
    with pytest.raises(PromptError, match="a prompt of 600 tokens"):
        generator.generate_batch([ids(5), ids(600)], config=LONG)
    wait_until(lambda: generator._engine._thread is None)
    assert generator._engine.num_running == 0


def test_ctrl_c_ends_the_requests_of_a_call(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pad_rt.engine.ticket.Ticket.result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generator.generate_batch([ids(5), ids(9)], config=LONG)
    monkeypatch.undo()
    wait_until(lambda: generator._engine._thread is None)
    stream = generator.stream(ids(5), config=LONG)
    next(stream)
    monkeypatch.setattr("pad_rt.engine.ticket.Ticket.__next__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    monkeypatch.undo()
    assert list(stream) == []
    wait_until(lambda: generator._engine._thread is None)


def interrupt(ticket: object) -> None:
    raise KeyboardInterrupt


def test_a_closed_generator(models: Models) -> None:
    with tiny_bundles.load(models.bundle("base")) as generator:
        ticket = generator.submit(ids(5), config=LONG)
        next(ticket)
    assert ticket.has_ended
    with pytest.raises(CancelledError):
        ticket.result()
    message = "^a generator that was closed; expected one that is open; load the bundle again$"
    for call in (generator.generate, generator.submit, generator.stream):
        with pytest.raises(PadError, match=message):
            call(ids(5))
    generator.close()
    assert "pad-engine" not in [thread.name for thread in threading.enumerate()]


def test_a_job_sees_the_decoder_between_steps(generator: Generator) -> None:
    ticket = generator.submit(ids(5), config=LONG)
    next(ticket)
    assert generator._engine.run(lambda decoder: len(decoder._slots)) == 1
    with pytest.raises(OptionError, match="wrong"):
        generator._engine.run(fail)
    ticket.cancel()


def fail(_: Decoder) -> None:
    raise OptionError("wrong")


# -- allowed tokens ---------------------------------------------------------------------------------------------------


class Alternating:
    """Allows even ids and odd ids in turn; after some tokens, none."""

    def __init__(self, last: int) -> None:
        self.turn, self._last = 0, last

    def packed(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if self.turn == self._last:
            raise OptionError("no token that may come next")
        return np.full(VOCAB_BYTES, 0x55 if self.turn % 2 == 0 else 0xAA, np.uint8)

    def push(self, token_id: int) -> None:
        self.turn += 1


@pytest.mark.parametrize("preference", [None, KIND])
def test_allowed_tokens_are_asked_at_every_step(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, preference: Preference | None
) -> None:
    real, limits = generator._requests.make, iter((99, 4))

    def make(*arguments: Any, **options: Any) -> Any:
        request = real(*arguments, **options)
        object.__setattr__(request, "allowed", Alternating(next(limits)))
        return request

    monkeypatch.setattr(generator._requests, "make", make)
    held = Held(generator)
    asked = GenerationConfig(max_new_tokens=12)
    prompt = guided(ids(5).base) if preference else ids(5)
    good, bad = (generator.submit(prompt, preference=preference, config=asked) for _ in range(2))
    held.let_go()
    assert [id % 2 for id in good.result().token_ids] == [0, 1] * 6
    with pytest.raises(OptionError, match="no token that may come next"):
        bad.result()


# -- asyncio ----------------------------------------------------------------------------------------------------------


def test_tasks_share_the_batch(generator: Generator) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(
            *(generator.agenerate(guided(ids(n).base), preference=KIND, config=config()) for n in (3, 9))
        )

    expected = [generator.generate(guided(ids(n).base), preference=KIND, config=config()) for n in (3, 9)]
    assert [result.token_ids for result in asyncio.run(ask())] == [result.token_ids for result in expected]


def test_events_for_asyncio(generator: Generator) -> None:
    async def ask() -> list[Event]:
        return [event async for event in generator.astream(ids(5), config=config())]

    events = asyncio.run(ask())
    result = generator.generate(ids(5), config=config())
    assert tuple(id for event in events for id in event.token_ids) == result.token_ids
    assert [event.finish_reason for event in events if event.finish_reason] == ["length"]


def test_events_of_several_requests_with_pauses_between(generator: Generator) -> None:
    expected = [generator.generate(prompt, preference=KIND, config=config()).text for prompt in PROMPTS[:2]]

    async def gather() -> tuple[int, list[str]]:
        held = Held(generator)
        tickets = [generator.submit(prompt, preference=KIND, config=config()) for prompt in PROMPTS[:2]]
        pauses, texts = 0, ["", ""]
        async for arrival in events_of(tickets, pause=0.01):
            if arrival is None:
                pauses += 1
                if pauses == 3:
                    held.let_go()
            else:
                texts[arrival[0]] += arrival[1].text
        return pauses, texts

    pauses, texts = asyncio.run(gather())
    assert pauses >= 3
    assert texts == expected


def test_a_task_that_ends_ends_its_request(generator: Generator) -> None:
    async def leave() -> None:
        events = generator.astream(ids(5), config=LONG)
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]

    async def cancel() -> None:
        task = asyncio.create_task(generator.agenerate(ids(5), config=LONG))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def fail_at_once() -> None:
        with pytest.raises(PromptError):
            await generator.agenerate("")

    for act in (leave, cancel, fail_at_once):
        asyncio.run(act())
        wait_until(lambda: generator._engine._thread is None)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_waiting": 0}, "max_waiting=0; expected an integer >= 1"),
        ({"max_waiting": True}, "max_waiting=True; expected an integer >= 1"),
        ({"keep_mib": -1}, "keep_mib=-1; expected a number of MiB, 0 or more"),
        ({"keep_mib": None}, "keep_mib=None; expected a number of MiB, 0 or more"),
        ({"max_cache_mib": float("nan")}, "max_cache_mib=nan; expected a number of MiB, 0 or more"),
    ],
)
def test_limits_that_are_none(models: Models, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Generator.load(models.bundle("base"), **options)
    assert str(caught.value) == message


def test_a_request_that_takes_more_memory_than_all_may(models: Models) -> None:
    with (
        Generator(tiny_bundles.open_bundle(models.bundle("base")), max_cache_mib=0.01) as generator,
        pytest.raises(PadError, match=r"^a request of 0.\d MiB of KV cache; expected at most 0.0, the max_cache_mib; "),
    ):
        generator.generate(ids(100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"configs": [None]}, "1 configs for 2 prompts; expected one for each"),
        ({"configs": {"beta": 1, "top_k": 2}}, "2 configs for 2 prompts; expected one for each"),
        ({"config": {}, "configs": [None, None]}, "config beside configs; expected one of them"),
        ({"configs": [None, 3]}, "a config of type int; expected a GenerationConfig or a mapping"),
        ({"preferences": [None] * 3}, "3 preferences for 2 prompts; expected one for each"),
    ],
)
def test_batches_that_do_not_add_up(generator: Generator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        generator.generate_batch([ids(3), ids(4)], **options)
    assert str(caught.value) == message


# -- the end of the process -------------------------------------------------------------------------------------------


def test_a_process_does_not_wait_for_replies_that_nobody_wants(models: Models) -> None:
    """A request that runs and others that wait: the main thread ends, and so does the process."""
    code = f"""
import time
from pad_rt import EncodedPrompt, Generator
generator = Generator.load({str(models.bundle("base"))!r}, device="cpu", num_threads=1)
real = generator._engine._decoder.step
def slow(*arguments, **options):
    time.sleep(0.3)
    return real(*arguments, **options)
generator._engine._decoder.step = slow
tickets = [generator.submit(EncodedPrompt([5, 6, 7]), config={{"max_new_tokens": 400}}) for _ in range(12)]
print(len(next(tickets[0]).token_ids), flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")


def test_a_process_waits_for_its_threads(models: Models) -> None:
    """The main thread ends; another one, for which the interpreter waits, gets its whole reply."""
    code = f"""
import threading, time
from pad_rt import EncodedPrompt, Generator
generator = Generator.load({str(models.bundle("base"))!r}, device="cpu", num_threads=1)
def work():
    time.sleep(0.2)
    print(len(generator.generate(EncodedPrompt([5, 6, 7]), config={{"max_new_tokens": 300}}).token_ids))
threading.Thread(target=work).start()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "300\n", "")


# -- faults and bad moments -------------------------------------------------------------------------------------------


def test_what_a_listener_raises_is_its_own(generator: Generator) -> None:
    held = Held(generator)
    tickets = [generator.submit(ids(5, n), config=config(max_new_tokens=9)) for n in (3, 9, 15)]
    for ticket in tickets[:2]:
        ticket._listener = lambda: 1 / 0
    held.let_go()
    assert [len(ticket.result().token_ids) for ticket in tickets] == [9] * 3


def test_a_job_that_ends_in_any_way_is_answered(generator: Generator) -> None:
    def leave(_: Decoder) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        generator._engine.run(leave)
    assert generator.generate(ids(5), config=config(max_new_tokens=2)).token_ids


def test_an_engine_that_cannot_go_on_leaves_nobody_waiting(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose memory cannot even be given back."""
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def fail_to(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("the device is gone")

    held = Held(generator)
    tickets = [generator.submit(ids(5, n), config=LONG) for n in (3, 9)]
    with monkeypatch.context() as patch:
        for name in ("step", "close"):
            patch.setattr(generator._engine._decoder, name, fail_to)
        held.let_go()
        for ticket in tickets:
            with pytest.raises(RuntimeError, match="the device is gone"):
                ticket.result()
        wait_until(lambda: bool(raised))
    assert generator.generate(ids(5), config=config(max_new_tokens=2)).token_ids


def test_the_fault_of_one_request_is_not_the_others(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter file that only the second one calls on was written to."""
    first = generator.submit(ids(5), config=config(max_new_tokens=60))
    next(first)
    real = generator._engine._decoder.read

    def read(slot: Slot, part: Any, cancellation: Any) -> None:
        if slot.sequence.num_prompts > 1 or len(slot.sequence.rows) > 1:
            raise BundleError("it was changed after it was loaded")
        real(slot, part, cancellation)

    monkeypatch.setattr(generator._engine._decoder, "read", read)
    with pytest.raises(BundleError, match="it was changed"):
        generator.generate(PROMPTS[1], preference=KIND, config=config())
    assert len(first.result().token_ids) == 60


def test_a_request_that_does_not_fit_fails_alone(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short reply goes on when a long one joins for which there is no memory."""
    real = KvArena.gather

    def gather(self: KvArena, leases: Any, room: int, **options: Any) -> Any:
        if room > 400:
            raise OutOfMemoryError("no memory for a buffer")
        return real(self, leases, room, **options)

    monkeypatch.setattr(KvArena, "gather", gather)
    with tiny_bundles.load(models.bundle("base")) as generator:
        first = generator.submit(ids(5), config=config(max_new_tokens=100))
        next(first)
        second = generator.submit(ids(60), config=config(max_new_tokens=440))
        assert len(first.result().token_ids) == 100
        with pytest.raises(OutOfMemoryError):
            second.result()
        assert generator.generate(ids(5), config=config(max_new_tokens=3)).token_ids


def test_a_closed_generator_holds_nothing_whatever_was_going_on(models: Models) -> None:
    """A job that runs, a request that is read, and others that are still being queued, while two threads close it."""
    generator = Generator(tiny_bundles.open_bundle(models.bundle("base")), max_waiting=2)
    held = Held(generator)
    failures: list[Exception] = []

    def ask() -> None:
        try:
            generator.generate_batch([ids(40 + n) for n in range(9)], config=LONG)
        except PadError as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: generator._engine.num_waiting == 2)
    closing = [threading.Thread(target=generator.close) for _ in range(2)]
    for thread in closing:
        thread.start()
    held.let_go()
    for thread in (*closing, asking):
        thread.join(60)
        assert not thread.is_alive()
    assert len(failures) == 1
    engine = generator._engine
    wait_until(lambda: engine._thread is None)
    assert (engine.num_running, engine.num_waiting, list(engine.kept)) == (0, 0, [])
    assert engine._decoder._arena.capacity == 0


def test_an_ended_ticket_holds_no_engine(models: Models) -> None:
    generator = tiny_bundles.load(models.bundle("base"))
    ended = generator.submit(ids(300), config=config(max_new_tokens=2))
    ended.result()
    decoder = weakref.ref(generator._engine._decoder)
    generator._engine.run(lambda _: None)
    del generator
    gc.collect()
    assert decoder() is None
    assert ended.result()


def test_a_task_that_gives_up_waiting_for_a_place_asks_for_nothing(generator: Generator) -> None:
    held = Held(generator)
    tickets = [generator.submit(ids(5, n), config=config(max_new_tokens=2)) for n in (3, 9, 15)]

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(generator.agenerate(ids(7), config=LONG), 0.1)
        held.let_go()

    asyncio.run(give_up())
    assert all(ticket.result() for ticket in tickets)
    wait_until(lambda: generator._engine._thread is None)
    assert max(len(slot.ids(0)) for slot in generator._engine.kept) < 100
