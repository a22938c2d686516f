"""One bundle with many adapters: swapped between calls, side by side in a batch, and between threads."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pad_rt import GenerationConfig, Preference
from pad_runtime.adapters.factors import LoraFactors
from tests.support import tiny_bundles, tiny_models
from tests.support.guided_models import PROMPTS, TEMPLATE, Models, config
from tests.support.torch_oracle import tolerance

NAMES = ("a", "b", "c", "d", "e", "f")  # more than the adapter sets that are kept on the device
RANKS = {"a": 4, "b": 2, "c": 7, "d": 1, "e": 3, "f": 4}


@pytest.fixture(scope="module")
def bank(models: Models) -> Path:
    """One bundle with six adapters of different ranks and sites, and bundles of each alone."""
    folder = models.folder / "bank"
    sites = {"b": ["q_proj"], "c": ["down_proj", "o_proj"], "d": ["gate_proj", "k_proj"]}
    for index, name in enumerate(NAMES):
        options = {"target_modules": sites[name]} if name in sites else {}
        tiny_models.make_adapter(folder / name, models.folder / "base", seed=60 + index, rank=RANKS[name], **options)
        (folder / name / "pad_persrm.json").write_text(json.dumps({"prompt_template": TEMPLATE}))
        tiny_bundles.export(folder / f"only-{name}", models.folder / "base", [folder / name])
    return tiny_bundles.export(folder / "all", models.folder / "base", [folder / name for name in NAMES])


def wish(*names: str) -> Preference:
    return Preference(text="be kind", weights=dict.fromkeys(names, 1.0))


def few() -> GenerationConfig:
    return config(max_new_tokens=2)


def test_adapters_are_swapped_without_another_export(bank: Path) -> None:
    generator = tiny_bundles.load(bank)
    alone = {}
    for name in NAMES:
        single = tiny_bundles.load(bank.parent / f"only-{name}")
        alone[name] = single.generate(PROMPTS[0], preference=wish(name), config=config(), trace=True)
    assert len({result.token_ids for result in alone.values()}) == len(NAMES)
    for name in "abacbdecffedcba":
        result = generator.generate(PROMPTS[0], preference=wish(name), config=config(), trace=True)
        assert result.token_ids == alone[name].token_ids
        for ours, theirs in zip(result.trace, alone[name].trace, strict=True):
            np.testing.assert_allclose(ours.row_logits, theirs.row_logits, atol=10 * tolerance())
        generator.generate(PROMPTS[1], config=few())  # the base in between
        generator.generate(PROMPTS[1], preference=wish("a", name), config=few())


def test_adapters_side_by_side_in_a_batch_are_the_adapters_alone(bank: Path) -> None:
    generator = tiny_bundles.load(bank)
    preferences = [wish(name) for name in NAMES]
    batch = generator.generate_batch([PROMPTS[0]] * len(NAMES), preferences=preferences, config=config())
    for name, result in zip(NAMES, batch, strict=True):
        single = tiny_bundles.load(bank.parent / f"only-{name}")
        assert result.token_ids == single.generate(PROMPTS[0], preference=wish(name), config=config()).token_ids


def test_threads_do_not_mix(bank: Path) -> None:
    """Threads that switch between more adapters than are kept, guided and not, each against its own calls in turn."""
    generator = tiny_bundles.load(bank)
    wishes = [(PROMPTS[0], wish(name)) for name in NAMES] + [(PROMPTS[1], None), (PROMPTS[2], wish("a", "c"))]
    expected = [
        generator.generate(prompt, preference=preference, config=config()).token_ids for prompt, preference in wishes
    ]
    failures: list[str] = []
    started = threading.Barrier(4)

    def work(first: int) -> None:
        try:
            started.wait(timeout=60)
            for turn in range(12):
                index = (first * 3 + turn) % len(wishes)
                prompt, preference = wishes[index]
                found = generator.generate(prompt, preference=preference, config=config()).token_ids
                if found != expected[index]:
                    failures.append(f"thread {first}, call {turn}: another reply")
        except BaseException as error:
            failures.append(f"thread {first}: {error!r}")

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_an_adapter_set_dropped_by_another_thread_is_no_loss(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst moments: as a call asks for its set of adapters, and between all of its steps, another thread's calls
    push that set out."""
    generator = tiny_bundles.load(bank)
    sets = [*itertools.combinations("bcdef", 1), *itertools.combinations("bcdef", 2)]
    expected = generator.generate(PROMPTS[0], preference=wish("a"), config=config()).token_ids
    others = [generator.generate(PROMPTS[1], preference=wish(*names), config=few()).token_ids for names in sets]
    pushed: list[tuple[int, ...]] = []

    def push() -> None:
        pushed.extend(generator.generate(PROMPTS[1], preference=wish(*names), config=few()).token_ids for names in sets)

    other, real = threading.Thread(target=push, daemon=True), LoraFactors.buffers
    waiting = [True]

    def interrupted(self: LoraFactors, active: tuple[int, ...]) -> Any:
        if waiting:
            waiting.clear()
            other.start()
            other.join(timeout=0.3)
        return real(self, active)

    monkeypatch.setattr(LoraFactors, "buffers", interrupted)
    stream = generator.stream(PROMPTS[0], preference=wish("a"), config=config())
    text = next(stream)
    other.join()
    assert pushed == others
    text += "".join(stream)
    assert stream.result is not None
    assert (stream.result.token_ids, stream.result.text) == (expected, text)
