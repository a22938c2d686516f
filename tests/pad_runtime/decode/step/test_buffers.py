"""The buffers of a step: what serves the next request, what is bound, and how little of it the host reads."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as ort_python

from pad_rt import Generator
from pad_runtime.bundle import contract
from tests.support.guided_steps import PROMPTS, addresses, make_request, new_step, run


def test_requests_of_any_size_leave_nothing_behind(generator: Generator) -> None:
    """One step through requests that grow, shrink and change in every way, each against a step of its own."""
    used = new_step(generator)
    long = [(tuple(range(1, 150)), tuple(range(100, 210))), *PROMPTS[1:]]
    requests = [
        make_request(generator, 0),
        make_request(generator, 0, 1, 2),
        make_request(generator, 0, 1, 2, prompts=long, trace=True),
        make_request(generator, 2, trace=True, top_k=3),
        make_request(generator, 2, 1, temperature=2.0, seed=3),
        make_request(generator, 2, 1, temperature=2.0, seed=3, max_new_tokens=200),
        make_request(generator, 1, 2, beta=-0.5, top_k=5),
        make_request(generator, 1, preference=[("x", 1.0), ("y", 0.5)]),
        make_request(generator, 1),
        make_request(generator, 2),
        make_request(generator, 0),
    ]
    for request in requests:
        assert run(used, request, 20) == run(new_step(generator), request, 20)


def test_a_request_that_fits_takes_no_new_buffer(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """KV cache, state and bindings serve the next request of like size; only a larger one takes new ones."""
    step = new_step(generator)
    run(step, make_request(generator, 0, 1), 3)
    before = addresses(step)
    run(step, make_request(generator, 2, 1, beta=0.3), 3)
    assert addresses(step) == before
    run(step, make_request(generator, 2, 1, 0), 3)
    assert addresses(step) != before


@pytest.mark.parametrize(("captures", "slots"), [(False, [64, 128]), (True, [256, 256])])
def test_a_cache_has_little_more_than_it_needs(generator: Generator, captures: bool, slots: list[int]) -> None:
    """Where nothing is captured; a capture is worth room for the next request."""
    step = new_step(generator)
    step._captures = captures
    for new_tokens, expected in zip((2, 70), slots, strict=True):
        step.prefill(make_request(generator, 0, max_new_tokens=new_tokens))
        assert step.cache(0, 0)[0].shape[2] == expected


def test_running_past_the_cache_is_clamped(generator: Generator) -> None:
    """A sequence that has ended runs on beside others: its length stops at the last slot of the cache."""
    step = new_step(generator)
    capacity = 256
    request = make_request(generator, 0, max_new_tokens=capacity - len(PROMPTS[0][1]))
    run(step, request, capacity + 20)
    (_, _, at) = step._trunks[0]
    for turn in step._turns:
        assert turn[at + contract.SEQLENS_K].read().max() <= capacity - 1
    assert run(step, request, 20) == run(new_step(generator), request, 20)


@dataclass
class Binding:
    """Byte ranges of one binding, by name."""

    inputs: dict[str, range] = field(default_factory=dict)
    outputs: dict[str, range] = field(default_factory=dict)


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> dict[int, Binding]:
    """What is really bound, by IOBinding: noted as it happens."""
    found: dict[int, Binding] = {}
    kept = []  # so that no id is used twice

    def note(which: str, name: str) -> None:
        real = getattr(ort_python.IOBinding, name)

        def noting(
            self: Any, key: str, device: str, number: int, kind: int, shape: tuple[int, ...], address: int
        ) -> None:
            size = math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
            kept.append(self)
            getattr(found.setdefault(id(self), Binding()), which)[key] = range(address, address + size)
            real(self, key, device, number, kind, shape, address)

        monkeypatch.setattr(ort_python.IOBinding, name, noting)

    note("inputs", "bind_input")
    note("outputs", "bind_output")
    return found


_TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16}  # onnx.TensorProto


@pytest.mark.parametrize("sequences", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("guided", [True, False])
def test_eight_bytes_a_token_come_back(
    generator: Generator, bindings: dict[int, Binding], sequences: tuple[int, ...], guided: bool
) -> None:
    """Every output but next_ids is an input of the next step, at the same address; next_ids is what the host reads."""
    step = new_step(generator) if guided else generator._bundle.base_step()
    step.prefill(make_request(generator, *sequences, preference="x" if guided else None))
    for turn in (0, 1):
        now, following = (bindings[id(step._runs[(turn + ahead) % 2].args[0])] for ahead in (0, 1))
        assert list(only_read_by_the_host(now, following)) == [contract.NEXT_IDS]
        ids = now.outputs[contract.NEXT_IDS]
        assert len(ids) == 8 * len(sequences) == step.bytes_to_host
        assert ids.start == ctypes.addressof(step._take())
        assert len(ids) == ctypes.sizeof(step._take())
        assert now.inputs.keys() == set(step._input_names)
        # What the step writes beside the KV cache, it does not read in the same step.
        read = [where for name, where in now.inputs.items() if "past_key_values" not in name]
        for name, where in now.outputs.items():
            if "present" not in name:
                assert not any(where.start < other.stop and other.start < where.stop for other in read), name


def only_read_by_the_host(now: Binding, following: Binding) -> dict[str, range]:
    fed_back = set(following.inputs.values())
    return {name: where for name, where in now.outputs.items() if where not in fed_back}


def test_a_trace_is_counted_as_read_by_the_host(generator: Generator, bindings: dict[int, Binding]) -> None:
    """The control of the test above: with a trace, more comes back."""
    step = new_step(generator)
    step.prefill(make_request(generator, 0, trace=True))
    now, following = (bindings[id(step._runs[turn].args[0])] for turn in (0, 1))
    assert set(only_read_by_the_host(now, following)) == {contract.NEXT_IDS, *contract.TRACE_OUTPUTS}


def test_the_kv_cache_is_one_buffer(generator: Generator, bindings: dict[int, Binding]) -> None:
    step = new_step(generator)
    step.prefill(make_request(generator, 0, 1))
    for binding in bindings.values():
        outputs = {name: where for name, where in binding.outputs.items() if "present" in name}
        layers = sum(trunk.num_layers for trunk in generator.manifest.trunks)
        assert len(outputs) == len(set(outputs.values())) == 2 * layers
        for name, where in outputs.items():
            assert binding.inputs[name.replace("present", "past_key_values")] == where
