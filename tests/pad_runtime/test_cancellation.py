"""Ctrl-C and another thread end a prompt while it is read, and what the run wrote to outlives it."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pad_rt import EncodedPrompt, Generator, TextStream
from pad_runtime.cancellation import Cancellation, run_interruptibly
from pad_runtime.devices.ort.graph import OrtGraph
from pad_runtime.errors import CancelledError
from tests.support import tiny_bundles, tiny_models
from tests.support.guided_steps import ask, open_slots, run, step_together

LONG = 2000  # tokens: read long enough for a signal to arrive


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cancellation")
    tiny_models.make_base(folder / "base", "llama", seed=61, max_position_embeddings=4096)
    tiny_models.make_adapter(folder / "kind", folder / "base", seed=62)
    return tiny_bundles.export(folder / "bundle", folder / "base", [folder / "kind"])


@pytest.fixture(scope="module")
def generator(bundle: Path) -> Generator:
    return tiny_bundles.load(bundle)


def _interrupt() -> None:
    """What Ctrl-C does: a signal to the process, which Python hands to the main thread."""
    signal.raise_signal(signal.SIGINT)


class NativeRun:
    """Native code, as the interpreter sees it: no signal reaches it, and it ends when it is told to."""

    def __init__(self, cancellation: Cancellation, while_running: Callable[[], object]) -> None:
        self._told, self._while_running = threading.Event(), while_running
        self.is_over = False
        cancellation.on_want(self._told.set)

    def __call__(self) -> None:
        helper = threading.Thread(target=self._while_running)
        helper.start()
        assert self._told.wait(60)
        helper.join()
        self.is_over = True
        raise RuntimeError("told to end")


def test_ctrl_c_ends_a_run_and_is_raised_when_it_is_over() -> None:
    cancellation = Cancellation()
    native = NativeRun(cancellation, _interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(native, cancellation)
    assert native.is_over
    assert cancellation.is_wanted


def test_a_second_ctrl_c_waits_for_the_run_too() -> None:
    cancellation = Cancellation()
    native = NativeRun(cancellation, _interrupt)
    cancellation.on_want(_interrupt)  # once more, while the first one is served
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(native, cancellation)
    assert native.is_over


def test_a_run_that_was_not_begun_does_not_begin() -> None:
    cancellation, ran = Cancellation(), []
    cancellation.want()
    run_interruptibly(lambda: ran.append(True), cancellation)
    assert ran == []


def test_what_a_run_raises_is_raised_by_any_thread() -> None:
    def fail() -> None:
        raise ValueError("as it is")

    def catch() -> None:
        with pytest.raises(ValueError, match="as it is"):
            run_interruptibly(fail, Cancellation())
        caught.append(threading.current_thread())

    caught: list[threading.Thread] = []
    catch()
    thread = threading.Thread(target=catch)
    thread.start()
    thread.join()
    assert caught == [threading.main_thread(), thread]


@pytest.fixture
def prompt_runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Calls `at_start` as the graph begins to read a prompt, and notes whether it was read to its end, in one part."""
    monkeypatch.setattr("pad_rt.engine.engine._PART", LONG)
    seen: dict[str, Any] = {"at_start": lambda: None, "whole": []}
    bind = OrtGraph.bind

    def watched(self: OrtGraph, *args: Any, repeated: bool, **options: Any) -> Callable[[], object]:
        real = bind(self, *args, repeated=repeated, **options)
        if repeated:
            return real

        def run() -> None:
            seen["whole"].append(False)
            threading.Thread(target=seen["at_start"]).start()
            real()
            seen["whole"][-1] = True

        return run

    monkeypatch.setattr(OrtGraph, "bind", watched)
    return seen


def test_ctrl_c_ends_the_reading_of_a_prompt(generator: Generator, prompt_runs: dict[str, Any]) -> None:
    """Before its end, guided and plain; the generator goes on as if nothing had been."""
    long = EncodedPrompt([5] * LONG, [6] * LONG)
    for preference, prompt in (("be kind", long), (None, EncodedPrompt([7] * LONG))):
        expected = generator.generate("the cook", preference=preference).token_ids
        prompt_runs["whole"].clear()
        prompt_runs["at_start"] = _interrupt
        with pytest.raises(KeyboardInterrupt):
            generator.generate(prompt, preference=preference, config={"max_new_tokens": 1})
        assert prompt_runs["whole"] == [False]
        prompt_runs["at_start"] = lambda: None
        assert generator.generate("the cook", preference=preference).token_ids == expected
        generator.generate(prompt, preference=preference, config={"max_new_tokens": 1})
        interrupted, *others = prompt_runs["whole"]
        assert not interrupted
        assert others  # it does end where nobody interrupts
        assert all(others)


@pytest.mark.parametrize("guided", [True, False])
def test_another_thread_ends_the_reading_of_a_prompt(bundle: Path, prompt_runs: dict[str, Any], guided: bool) -> None:
    """While a step reads all of it, and while its first part is read; the slot and its neighbour go on afterwards."""
    opened = tiny_bundles.open_bundle(bundle)
    decoder, prompts = opened.decoder(), [([5] * LONG, [6] * LONG)]
    (asked,) = ask(opened.manifest, 0, guided=guided, prompts=prompts, new_tokens=16)
    (expected,) = run(opened.decoder(), [asked], 8)
    (neighbour,) = open_slots(decoder, ask(opened.manifest, 1, guided=guided))
    (beside,) = run(opened.decoder(), ask(opened.manifest, 1, guided=guided), 8)
    assert step_together(decoder, [neighbour], 2) == [beside[:2]]
    for in_parts in (False, True):
        slot = decoder.open(asked.sequence, asked.room)
        cut = LONG - 1 if in_parts else LONG
        decoder.read(slot, {prompt: ids[:cut] for prompt, ids in enumerate(asked.prompts)})
        rest = {prompt: ids[cut:] for prompt, ids in enumerate(asked.prompts)}
        cancellation = Cancellation()
        prompt_runs["whole"].clear()
        prompt_runs["at_start"] = cancellation.want
        go_on = partial(decoder.read, slot, rest) if in_parts else partial(decoder.step, [slot, neighbour])
        with pytest.raises(CancelledError):
            go_on(cancellation=cancellation)
        assert prompt_runs["whole"] == [False]
        prompt_runs["at_start"] = lambda: None
        assert slot.lengths == (cut,) * len(asked.prompts)
        decoder.read(slot, rest)
        assert step_together(decoder, [slot], 8) == [expected]
        decoder.close(slot)
    assert step_together(decoder, [neighbour], 3) == [beside[2:5]]


def test_another_thread_closes_a_stream(generator: Generator, prompt_runs: dict[str, Any]) -> None:
    """While its prompt is read, and between two pieces; the thread that reads sees the end of the stream."""
    streams = queue.SimpleQueue[TextStream]()
    for closes_in_prompt in (True, False):
        prompt_runs["whole"].clear()
        prompt_runs["at_start"] = (lambda: streams.get().close()) if closes_in_prompt else lambda: None
        stream = generator.stream(EncodedPrompt([5] * LONG, [8] * LONG), preference="be kind")
        streams.put(stream)
        pieces = []
        for piece in stream:
            pieces.append(piece)
            other = threading.Thread(target=stream.close)
            other.start()
            other.join()
        assert len(pieces) == (0 if closes_in_prompt else 1)
        assert prompt_runs["whole"] == [not closes_in_prompt]
        assert stream.result is None


def test_a_wish_before_the_first_operator_leaves_the_slot_as_it_was(bundle: Path) -> None:
    opened, cancellation = tiny_bundles.open_bundle(bundle), Cancellation()
    cancellation.want()
    asked = ask(opened.manifest, 0, guided=False)
    decoder = opened.decoder()
    slots = open_slots(decoder, asked)
    with pytest.raises(CancelledError):
        decoder.step(slots, cancellation=cancellation)
    assert step_together(decoder, slots, 4) == run(opened.decoder(), asked, 4)


def test_no_room_for_a_thread_is_no_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    cancellation, ran = Cancellation(), []
    run_interruptibly(lambda: ran.append(True), cancellation)
    assert ran == [True]
    assert not cancellation.is_wanted
