"""The buffers of a decoder: what serves the next request, what is bound, and how little of it the host reads."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as ort_python

from pad_runtime.bundle import contract
from pad_runtime.decode.decoder import Decoder
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows.plan import Reward, plan_rows
from tests.support.guided_steps import PROMPTS, Asked, ask, open_slots, run, step_together


@dataclass(frozen=True)
class Place:
    """Where a tensor was bound, and how large it is."""

    shape: tuple[int, ...]
    bytes: range

    def overlaps(self, other: Place) -> bool:
        return self.bytes.start < other.bytes.stop and other.bytes.start < self.bytes.stop


@dataclass
class Binding:
    """What one binding binds, by name."""

    inputs: dict[str, Place] = field(default_factory=dict)
    outputs: dict[str, Place] = field(default_factory=dict)

    @property
    def caches(self) -> dict[str, Place]:
        return {name: place for name, place in self.inputs.items() if "past_key_values" in name}


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> list[Binding]:
    """What is really bound, in order, noted as it happens: to read a prompt is one, steps are two that alternate."""
    found: dict[int, Binding] = {}
    kept = []  # so that no id is used twice
    in_order: list[Binding] = []

    def note(which: str, name: str) -> None:
        real = getattr(ort_python.IOBinding, name)

        def noting(
            self: Any, key: str, device: str, number: int, kind: int, shape: tuple[int, ...], address: int
        ) -> None:
            size = math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
            if id(self) not in found:
                kept.append(self)
                found[id(self)] = Binding()
                in_order.append(found[id(self)])
            getattr(found[id(self)], which)[key] = Place(tuple(shape), range(address, address + size))
            real(self, key, device, number, kind, shape, address)

        monkeypatch.setattr(ort_python.IOBinding, name, noting)

    note("inputs", "bind_input")
    note("outputs", "bind_output")
    return in_order


_TYPES = {1: np.float32, 2: np.uint8, 6: np.int32, 7: np.int64, 10: np.float16}  # onnx.TensorProto


def test_requests_of_any_size_leave_nothing_behind(bundle: Bundle, decoder: Decoder) -> None:
    """One decoder through requests that grow, shrink and change in every way, each against a decoder of its own."""
    manifest = bundle.manifest
    long = [(tuple(range(1, 150)), tuple(range(100, 210))), *PROMPTS[1:]]
    base, reward = PROMPTS[1]
    twice = [Reward(0, (1.0,), scale, reward) for scale in (1.0, 0.5)]
    requests = [
        ask(manifest, 0),
        ask(manifest, 0, 1, 2),
        ask(manifest, 0, 1, 2, prompts=long),
        ask(manifest, 2, top_k=3),
        ask(manifest, 2, 1, temperature=2.0, seed=3),
        ask(manifest, 2, 1, temperature=2.0, seed=3, new_tokens=200),
        ask(manifest, 1, 2, beta=-0.5, top_k=5),
        [Asked.of(plan_rows(manifest, base, twice, 1.0))],
        ask(manifest, 1),
        ask(manifest, 2),
        ask(manifest, 2, 0, guided=False),
        ask(manifest, 0),
    ]
    for request in requests:
        assert run(decoder, request, 20) == run(bundle.decoder(), request, 20)


def test_a_request_that_fits_takes_no_new_buffer(bundle: Bundle, decoder: Decoder, bindings: list[Binding]) -> None:
    """KV cache, state and bindings serve the next request of like size; only a larger one takes new ones."""
    manifest = bundle.manifest
    run(decoder, ask(manifest, 0, 1), 3)
    before = [binding.caches for binding in bindings]
    assert len(before) == 4
    run(decoder, ask(manifest, 0, 1, beta=0.3), 3)
    assert [binding.caches for binding in bindings[4:]] == before[:2], "only those of the prompts are new"
    run(decoder, ask(manifest, 2, 1, 0), 3)
    assert bindings[-1].caches != before


def test_a_cache_has_little_more_than_it_needs(bundle: Bundle, decoder: Decoder, bindings: list[Binding]) -> None:
    for new_tokens, expected in ((2, 64), (70, 128), (2, 128)):
        run(decoder, ask(bundle.manifest, 0, new_tokens=new_tokens), 1)
        assert {place.shape[2] for place in bindings[-1].caches.values()} == {expected}


@pytest.mark.parametrize("sequences", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("guided", [True, False])
def test_eight_bytes_a_token_come_back(
    bundle: Bundle, decoder: Decoder, bindings: list[Binding], sequences: tuple[int, ...], guided: bool
) -> None:
    """Every output but next_ids is an input of the next step, at the same address; next_ids is what the host reads."""
    slots = open_slots(decoder, ask(bundle.manifest, *sequences, guided=guided))
    step_together(decoder, slots, 2)
    view = decoder.step(slots).ids
    graph = bundle.graph(contract.STEP_GRAPH if guided else contract.BASE_GRAPH)
    turns = bindings[-2:]
    for now, following in (turns, turns[::-1]):
        assert list(only_read_by_the_host(now, following)) == [contract.NEXT_IDS]
        ids = now.outputs[contract.NEXT_IDS].bytes
        assert len(ids) == 8 * len(sequences) == decoder.bytes_per_token * len(slots)
        assert ids.start == ctypes.addressof(view)  # type: ignore[arg-type]
        assert len(ids) == ctypes.sizeof(view)  # type: ignore[arg-type]
        assert now.inputs.keys() == {value.name for value in graph.inputs}
        # What the step writes beside the KV cache, it does not read in the same step.
        read = [place for name, place in now.inputs.items() if name not in now.caches]
        for name, place in now.outputs.items():
            if "present" not in name:
                assert not any(map(place.overlaps, read)), name


def only_read_by_the_host(now: Binding, following: Binding) -> Mapping[str, Place]:
    fed_back = set(following.inputs.values())
    return {name: place for name, place in now.outputs.items() if place not in fed_back}


def test_a_trace_is_counted_as_read_by_the_host(bundle: Bundle, decoder: Decoder, bindings: list[Binding]) -> None:
    """The control of the test above: with a trace, more comes back."""
    slots = open_slots(decoder, ask(bundle.manifest, 0))
    for _ in range(2):
        decoder.step(slots, trace=True)
    now, following = bindings[-2:]
    assert set(only_read_by_the_host(now, following)) == {contract.NEXT_IDS, *contract.TRACE_OUTPUTS}


def test_the_kv_cache_is_one_buffer(bundle: Bundle, decoder: Decoder, bindings: list[Binding]) -> None:
    run(decoder, ask(bundle.manifest, 0, 1), 2)
    assert len(bindings) == 4
    for binding in bindings:
        outputs = {name: place for name, place in binding.outputs.items() if "present" in name}
        layers = sum(trunk.num_layers for trunk in bundle.manifest.trunks)
        assert len(outputs) == len({place.bytes for place in outputs.values()}) == 2 * layers
        for name, place in outputs.items():
            assert binding.inputs[name.replace("present", "past_key_values")] == place


def test_rows_of_a_slot_are_windows_of_the_same_buffer(
    bundle: Bundle, decoder: Decoder, bindings: list[Binding]
) -> None:
    """Two slots alone and together: the windows of both are the halves of what is bound for both."""
    slots = open_slots(decoder, ask(bundle.manifest, 0, 1))
    step_together(decoder, slots, 2)
    together = bindings[-1].caches
    alone = []
    for slot in slots:
        step_together(decoder, [slot], 1)
        alone.append(bindings[-1].caches)
    for name, place in together.items():
        first, second = (each[name] for each in alone)
        assert first.bytes.start == place.bytes.start
        assert first.bytes.stop == second.bytes.start
        assert second.bytes.stop == place.bytes.stop
