"""Random use of a decoder: every sequence chooses what it chooses alone. And each fault that this must find, put in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from pad_runtime.devices.ort import provider as ort_provider
from tests.support import fake_cuda, fake_onnxruntime, fake_tensorrt
from tests.support.decoder_machine import DecoderMachine, Tally
from tests.support.decoder_worlds import KINDS, Models, World


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models.make(tmp_path_factory.mktemp("worlds"))


@pytest.fixture
def load(models: Models, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], World]:
    """Opens the bundle of a kind, on a device that is simulated where it needs one."""

    def load_world(name: str) -> World:
        device = KINDS[name].device
        if device == "cpu":
            return World.load(models, name)
        runtime = fake_cuda.install(monkeypatch)
        if device == "cuda":
            entry = replace(ort_provider._ENTRIES["cuda"], float_types=("float32",))
            monkeypatch.setitem(ort_provider._ENTRIES, "cuda", entry)
            fake_onnxruntime.install(monkeypatch.setattr, runtime)
        else:
            monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_module(runtime))
        return World.load(models, name, runtime.let_go)

    return load_world


def explore(world: World, cases: int, **settings: Any) -> Tally:
    """Random cases in a world.

    Raises:
        AssertionError: the shortest case that was found in which a slot differs from its sequence alone.
    """
    tally = Tally()
    options = hypothesis.settings(
        max_examples=cases,
        stateful_step_count=24,
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
    return tally


@pytest.mark.parametrize("name", KINDS)
def test_every_sequence_chooses_what_it_chooses_alone(load: Callable[[str], World], name: str) -> None:
    import time

    t = time.process_time()
    tally = explore(load(name), hypothesis.settings.default.max_examples // 10)
    print(time.process_time() - t, tally)
