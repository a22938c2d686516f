"""Which device is taken and why not another; and capture, on a device that is simulated.

The simulated device is the CPU under another name: its steps carry graph ids as captured ones do, its ids arrive by a
copy, and what a replay would really read is checked: the addresses, and the values of host inputs, of the first run
with that id.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as ort_python

import tiny_bundles
import tiny_models
from error_checks import refused
from pad_rt import EncodedPrompt, GenerationConfig, GenerationResult, Generator, Preference
from pad_runtime import contract, cuda, providers
from pad_runtime.errors import DeviceError
from pad_runtime.providers import Provider

PROMPTS = [EncodedPrompt([5, 17, 41, 8], [9, 8, 7, 6]), EncodedPrompt([20, 21, 22], [25, 3])]

CONFIG = GenerationConfig(top_k=6, max_new_tokens=20)
BOTH = Preference(weights={"one": 1.0, "two": 0.5})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("providers")
    tiny_models.make_base(folder / "base", "llama", seed=5)
    for seed, name in enumerate(("one", "two")):
        tiny_models.make_adapter(folder / name, folder / "base", seed=seed)
    return tiny_bundles.export(folder / "bundle", folder / "base", [folder / "one", folder / "two"])


# -- the choice of a device -----------------------------------------------------------------------------------------


def test_the_cpu_is_taken_where_nothing_else_is_built_in() -> None:
    assert onnxruntime.get_available_providers()[-1] == "CPUExecutionProvider"
    provider = Provider()
    assert provider.device == "cpu"
    assert not provider.captures


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that was built with CUDA, on a machine that has none."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)


def test_auto_falls_back_and_says_why_in_a_line(gpu_build: None) -> None:
    provider = Provider(float_type="float16")
    assert provider.device == "cpu"
    (note,) = provider.notes
    assert note.startswith("not on cuda: ")
    assert "\n" not in note


def test_the_fallback_is_told_to_the_caller(bundle: Path, gpu_build: None) -> None:
    with pytest.warns(RuntimeWarning, match="not on cuda: a bundle of float32"):
        assert Generator.load(bundle).generate(PROMPTS[0], config=CONFIG).token_ids


def test_a_device_asked_for_by_name_is_refused(gpu_build: None) -> None:
    with refused(DeviceError, given="cuda", hint="pad-rt[cuda]"):
        Provider("cuda", float_type="float16")


def test_an_onnxruntime_without_it_is_refused() -> None:
    with refused(DeviceError, given="device 'cuda' is not available in this onnxruntime", hint="pad-rt[cuda]"):
        Provider("cuda")


def test_a_bundle_that_the_device_cannot_run_is_refused(gpu_build: None) -> None:
    with refused(DeviceError, given="float32", expected="float16", hint="--precision fp16"):
        Provider("cuda", float_type="float32")


# -- CUDA's runtime -------------------------------------------------------------------------------------------------


class FakeRuntime(types.ModuleType):
    """`cuda.bindings.runtime` over host memory. Its functions are written here with underscores."""

    def __init__(self, *, devices: int = 1, driver: int = 13000) -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices, self.driver = devices, driver
        self.blocks: dict[int, Any] = {}
        self.calls: list[str] = []
        self.failing = 0
        for name in [name for name in dir(type(self)) if name.startswith("cuda_")]:
            setattr(self, re.sub("_(.)", lambda letter: letter[1].upper(), name), getattr(self, name))
        kinds = types.SimpleNamespace(cudaMemcpyDeviceToHost=2)
        self.__dict__["cudaMemcpyKind"] = kinds

    def cuda_get_device_count(self) -> tuple[int, int]:
        return (0, self.devices) if self.driver else (35, 0)

    def cuda_get_error_string(self, error: int) -> tuple[int, bytes]:
        return 0, b"CUDA driver version is insufficient for CUDA runtime version"

    def cuda_set_device(self, device: int) -> tuple[int]:
        return (0,)

    def cuda_stream_create(self) -> tuple[int, int]:
        return 0, 77

    def cuda_get_device_properties(self, device: int) -> tuple[int, Any]:
        return 0, types.SimpleNamespace(name=b"NVIDIA Thing", major=8, minor=9, totalGlobalMem=2**33)

    def cuda_driver_get_version(self) -> tuple[int, int]:
        return 0, self.driver

    def cuda_runtime_get_version(self) -> tuple[int, int]:
        return 0, 12080

    def cuda_malloc_host(self, size: int) -> tuple[int, int]:
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cuda_free_host(self, address: int) -> tuple[int]:
        del self.blocks[address]
        return (0,)

    def cuda_memcpy_async(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        assert (kind, stream) == (2, 77)
        self.calls.append("copy")
        ctypes.memmove(to, source, size)
        return (0,)

    def cuda_stream_synchronize(self, stream: int) -> tuple[int]:
        self.calls.append("wait")
        return (self.failing,)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    bindings.runtime = fake  # type: ignore[attr-defined]
    for name, module in (("cuda", package), ("cuda.bindings", bindings), ("cuda.bindings.runtime", fake)):
        monkeypatch.setitem(__import__("sys").modules, name, module)
    return fake


def test_a_gpu_is_described(runtime: FakeRuntime) -> None:
    gpu = cuda.Cuda().gpu()
    assert gpu == cuda.Gpu("NVIDIA Thing", "sm89", 2**33, "13.0", "12.8")


def test_no_device_and_no_driver_are_told_apart(runtime: FakeRuntime) -> None:
    runtime.devices = 0
    with refused(DeviceError, given="no CUDA device"):
        cuda.Cuda()
    runtime.driver = 0
    with refused(DeviceError, given="insufficient"):
        cuda.Cuda()


def test_pinned_ids_are_copied_then_waited_for_and_given_back(runtime: FakeRuntime) -> None:
    device = np.array([4, 5], np.int64)
    pinned = cuda.Cuda().pinned_ids(2)
    pinned.fetch(device.ctypes.data)
    assert list(pinned.view) == [4, 5]
    assert runtime.calls == ["copy", "wait"]
    assert runtime.blocks
    del pinned
    assert not runtime.blocks


def test_a_failing_device_is_told(runtime: FakeRuntime) -> None:
    pinned = cuda.Cuda().pinned_ids(1)
    runtime.failing = 700
    with refused(DeviceError, given="CUDA error 700"):
        pinned.fetch(np.zeros(1, np.int64).ctypes.data)


# -- capture --------------------------------------------------------------------------------------------------------


@dataclass
class Bound:
    """What one binding holds: addresses of buffers, and values. The binding is kept, so that its id stays its own."""

    binding: Any
    addresses: dict[str, int] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def host_values(self) -> dict[str, Any]:
        return {
            name: value.numpy().tolist()
            for name, value in self.values.items()
            if name.rpartition(".")[2] in contract.HOST_INPUTS
        }


@dataclass
class Device:
    """The simulated device's log: graph ids in the order of the runs, and what each was captured with."""

    runs: list[int] = field(default_factory=list)
    captured: dict[int, tuple[dict[str, int], dict[str, Any]]] = field(default_factory=dict)
    simulating: bool = True

    def plain(self, bundle: Path) -> list[GenerationResult]:
        """The same replies on the CPU as it is."""
        self.simulating = False
        results = tiny_bundles.load(bundle).generate_batch(PROMPTS, preferences=[BOTH] * 2, config=CONFIG)
        self.simulating = True
        return results


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> Device:
    log = Device()
    bound: dict[int, Bound] = {}
    entry = replace(providers._PROVIDERS["cpu"], captures=True)
    monkeypatch.setitem(providers._PROVIDERS, "cuda", entry)

    def use(self: Provider, name: str, float_type: str | None, real: Callable[..., None] = Provider._use) -> None:
        real(self, name, float_type)
        self._cuda = cuda.Cuda() if name == "cuda" else None

    def session(self: Provider, graph: Path, real: Callable[..., Any] = Provider.session) -> Any:
        mine, self._cuda = self._cuda, None  # the CPU takes no stream
        try:
            return real(self, graph)
        finally:
            self._cuda = mine

    def note(which: str) -> None:
        real = getattr(ort_python.IOBinding, which)

        def noting(self: Any, name: str, value: Any) -> None:
            mine = bound.setdefault(id(self), Bound(self))
            mine.addresses[f"{which} {name}"] = value.data_ptr()
            mine.values[name] = value
            real(self, name, value)

        monkeypatch.setattr(ort_python.IOBinding, which, noting)

    def run(
        self: Any, binding: Any, options: Any, real: Callable[..., None] = ort_python.Session.run_with_iobinding
    ) -> None:
        if not log.simulating:
            real(self, binding, options)
            return
        graph_id = int(options.get_run_config_entry("gpu_graph_id"))
        log.runs.append(graph_id)
        if graph_id >= 0:
            now = (dict(bound[id(binding)].addresses), bound[id(binding)].host_values())
            assert log.captured.setdefault(graph_id, now) == now, "a replay would have read something else"
            real(self, binding, options)  # capture runs a graph more often than asked to
        real(self, binding, options)

    monkeypatch.setattr(Provider, "_use", use)
    monkeypatch.setattr(Provider, "session", session)
    monkeypatch.setattr(ort_python.Session, "run_with_iobinding", run)
    for which in ("bind_ortvalue_input", "bind_ortvalue_output"):
        note(which)
    return log


def test_a_captured_step_says_what_an_ordinary_one_says(bundle: Path, device: Device, runtime: FakeRuntime) -> None:
    expected = [result.token_ids for result in device.plain(bundle)]
    generator = Generator.load(bundle, device="cuda", num_threads=1)
    runtime.calls.clear()
    results = generator.generate_batch(PROMPTS, preferences=[BOTH] * 2, config=CONFIG)
    assert [result.token_ids for result in results] == expected
    assert device.runs[0] == -1, "the prompt is not captured"
    decode = device.runs[1:]
    assert len(set(decode)) == 2
    assert all(one != other for one, other in itertools.pairwise(decode)), "bindings take turns"
    assert runtime.calls == ["copy", "wait"] * len(device.runs), "one small copy a token and nothing else"


def test_what_a_capture_has_read_for_good_makes_a_new_one(bundle: Path, device: Device) -> None:
    generator = Generator.load(bundle, device="cuda", num_threads=1)

    def graphs(**changes: Any) -> set[int]:
        device.runs.clear()
        preference = changes.pop("preference", BOTH)
        generator.generate(PROMPTS[0], preference=preference, config=replace(CONFIG, **changes))
        return set(device.runs) - {-1}

    first = graphs()
    assert graphs() == first
    assert graphs(beta=0.5) == first, "coefficients live on the device"
    assert not graphs(top_k=5) & first, "k is read on the host"
    again = graphs(top_k=5)
    assert not graphs(preference=Preference(weights={"two": 1.0}), top_k=5) & again, "another PersRM is other buffers"


def test_two_generators_do_not_share_a_capture(bundle: Path, device: Device) -> None:
    one, other = (Generator.load(bundle, device="cuda", num_threads=1) for _ in range(2))
    texts = []
    for generator in (one, other, one):
        texts.append(generator.generate(PROMPTS[0], preference=BOTH, config=CONFIG).token_ids)
    assert texts[0] == texts[1] == texts[2]


def test_the_simulation_notices_a_stale_capture(bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a provider that gives the same graph ids to new buffers."""
    monkeypatch.setattr(providers, "_graph_ids", itertools.cycle([1, 2]))
    generator = Generator.load(bundle, device="cuda", num_threads=1)
    generator.generate(PROMPTS[0], preference=BOTH, config=CONFIG)
    with pytest.raises(AssertionError, match="something else"):
        generator.generate(PROMPTS[0], preference=BOTH, config=replace(CONFIG, top_k=5))
