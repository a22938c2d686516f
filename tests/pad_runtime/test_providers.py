"""Which device is taken and why not another; what ONNX Runtime's providers are asked for; and capture, simulated.

The simulated device is the CPU under another name: buffers lie in the simulated device's memory, steps carry graph ids
as captured ones do, and what a replay would really read is checked: the addresses, and the values of host inputs, of
the first run with that id.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import shutil
import sys
import types
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as ort_python

import fake_cuda
import tiny_bundles
import tiny_models
from error_checks import refused
from fake_cuda import FakeRuntime
from pad_rt import EncodedPrompt, GenerationConfig, Generator, Preference
from pad_runtime import buffers, contract, ort_provider
from pad_runtime.bundle import Bundle
from pad_runtime.errors import DeviceError
from pad_runtime.manifest import read_manifest
from pad_runtime.ort_graph import OrtGraph
from pad_runtime.ort_provider import OrtProvider
from pad_runtime.providers import Provider, find_provider

PROMPTS = [EncodedPrompt([5, 17, 41, 8], [9, 8, 7, 6]), EncodedPrompt([20, 21, 22], [25, 3])]

CONFIG = GenerationConfig(top_k=6, max_new_tokens=20)
BOTH = Preference(weights={"one": 1.0, "two": 0.5})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_family(tmp_path_factory.mktemp("providers"))


@pytest.fixture(scope="module")
def bundle(models: Path) -> Path:
    return tiny_bundles.export(models / "bundle", models / "base", [models / "one", models / "two"])


@pytest.fixture(scope="module")
def half(models: Path) -> Path:
    return tiny_bundles.export(models / "half", models / "base", [models / "one"], precision="fp16")


@pytest.fixture(scope="module")
def standard(models: Path) -> Path:
    options = {"precision": "fp16", "dialect": "standard", "max_length": 48}
    return tiny_bundles.export(models / "standard", models / "base", [models / "one"], **options)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    return fake_cuda.install(monkeypatch)


# -- the choice of a device -----------------------------------------------------------------------------------------


def find(folder: Path, device: str = "auto") -> tuple[Provider, tuple[str, ...]]:
    return find_provider(device, folder, read_manifest(folder))


def test_the_cpu_is_taken_where_nothing_else_is_built_in(bundle: Path) -> None:
    assert onnxruntime.get_available_providers()[-1] == "CPUExecutionProvider"
    provider, notes = find(bundle)
    assert (provider.device, notes) == ("cpu", ())
    assert not provider.captures


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that was built with CUDA, on a machine that has none."""
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)


def test_auto_falls_back_and_says_why_in_a_line(half: Path, gpu_build: None) -> None:
    provider, (note,) = find(half)
    assert provider.device == "cpu"
    assert note.startswith("not on cuda: ")
    assert "\n" not in note


def test_the_fallback_is_told_to_the_caller(bundle: Path, gpu_build: None) -> None:
    with pytest.warns(RuntimeWarning, match="not on cuda: a bundle of float32"):
        assert Generator.load(bundle).generate(PROMPTS[0], config=CONFIG).token_ids


def test_a_device_asked_for_by_name_is_refused(half: Path, gpu_build: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with refused(DeviceError, given="cuda-python is not installed", hint="pad-rt[cuda]"):
        find(half, "cuda")


def test_an_onnxruntime_without_it_is_refused(half: Path) -> None:
    with refused(DeviceError, given="device 'cuda' is not available in this onnxruntime", hint="pad-rt[cuda]"):
        find(half, "cuda")


def test_a_bundle_that_the_device_cannot_run_is_refused(bundle: Path, half: Path, gpu_build: None) -> None:
    with refused(DeviceError, given="float32", expected="float16", hint="--precision fp16"):
        find(bundle, "cuda")
    with refused(DeviceError, given="ort dialect on device 'ort-tensorrt'", expected="standard", hint="--dialect"):
        find(half, "ort-tensorrt")


def test_a_provider_whose_libraries_are_missing_is_no_choice(
    half: Path, gpu_build: None, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is built in, there is a GPU, and the session still does not start: seen before "auto" has chosen."""
    with pytest.raises(DeviceError, match="CUDAExecutionProvider"):
        find(half, "cuda")
    provider, (note,) = find(half)
    assert provider.device == "cpu"
    assert note.startswith("not on cuda: ")


def test_an_input_that_is_read_on_the_host_is_refused(half: Path) -> None:
    """A binding would copy it once. The CPU reads all of them there."""
    manifest = read_manifest(half)
    graph = OrtProvider("cpu").open(half, manifest, contract.STEP_GRAPH)
    with refused(DeviceError, given="ONNX Runtime reads input_ids on the host", hint="another --device"):
        graph.check_placement()


# -- what ONNX Runtime is asked for -----------------------------------------------------------------------------------


@dataclass
class Asked:
    """A session that was opened, and its options."""

    providers: Any = None
    own: Any = None
    overrides: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, gpu_build: None, runtime: FakeRuntime, tmp_path: Path) -> Asked:
    """Sessions are opened on the CPU, whatever they were asked for."""
    log, real = Asked(), onnxruntime.InferenceSession

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
            log.overrides[name] = size
            super().add_free_dimension_override_by_name(name, size)

        def add_provider_for_devices(self, devices: Any, own: dict[str, str]) -> None:
            log.providers, log.own = [device.ep_name for device in devices], own

    class Session(real):  # type: ignore[misc]
        def __init__(self, path: str, options: Any, providers: Any = None, provider_options: Any = None, **rest: Any):
            if providers:
                log.providers, log.own = providers, provider_options[0]
            super().__init__(path, options, providers=["CPUExecutionProvider"], **rest)

        def get_providers(self) -> list[str]:
            return list(log.providers)

    monkeypatch.setattr(OrtGraph, "check_placement", lambda self: None)  # the CPU reads everything on the host
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return log


def test_cuda_captures_on_our_stream(half: Path, asked: Asked) -> None:
    manifest = read_manifest(half)
    provider = OrtProvider("cuda", manifest=manifest)
    graph = provider.open(half, manifest, contract.STEP_GRAPH)
    assert asked.providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert asked.own["user_compute_stream"] == str(fake_cuda.STREAM)
    assert asked.own["enable_cuda_graph"] == "1"
    assert graph.capacity is None
    assert not asked.overrides
    assert isinstance(provider.zeros((2, 3), np.float16), buffers.CudaBuffer)
    plain = OrtProvider("cuda", manifest=manifest, capture=False)
    plain.open(half, manifest, contract.STEP_GRAPH)
    assert "enable_cuda_graph" not in asked.own
    assert provider.captures > plain.captures


def test_tensorrt_keeps_its_engines_and_has_caches_of_one_size(standard: Path, asked: Asked, tmp_path: Path) -> None:
    manifest = read_manifest(standard)
    provider = OrtProvider("ort-tensorrt", manifest=manifest)
    graph = provider.open(standard, manifest, contract.STEP_GRAPH)
    assert asked.providers == ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    folder = Path(asked.own["trt_engine_cache_path"])
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path / "pad-rt" / "ort-tensorrt")
    assert asked.own["trt_engine_cache_enable"] == "1"
    assert graph.capacity == 48
    assert asked.overrides == {"capacity": 48}
    assert not provider.captures, "it captures one run a session, and two take turns"
    provider.open(standard, manifest, contract.BASE_GRAPH)
    assert asked.own["trt_engine_cache_path"] != str(folder), "each graph has engines of its own"


def plugin(monkeypatch: pytest.MonkeyPatch, *, devices: int = 1, fails: bool = False) -> list[str]:
    """The package of TensorRT-RTX's execution provider; returns what is registered."""
    registered: list[str] = []
    module = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    module.get_library_path = lambda: "library.so"  # type: ignore[attr-defined]

    def register(name: str, path: str) -> None:
        if fails:
            raise RuntimeError("libcuda.so.1: cannot open shared object file")
        registered.append(name)

    def found() -> list[Any]:
        return [types.SimpleNamespace(ep_name=name) for name in registered for _ in range(devices)]

    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", found)
    return registered


def test_a_plugin_is_registered_once(standard: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    registered = plugin(monkeypatch)
    manifest = read_manifest(standard)
    for _ in range(2):
        provider = OrtProvider("ort-tensorrt-rtx", manifest=manifest)
    assert registered == ["NvTensorRTRTXExecutionProvider"]
    assert provider.open(standard, manifest, contract.STEP_GRAPH).capacity == 48
    assert asked.providers == registered
    assert asked.own["enable_cuda_graph"] == "1"
    assert asked.own["has_user_compute_stream"] == "1"
    assert "tensorrt-rtx" in asked.own["nv_runtime_cache_path"]


def test_a_plugin_that_cannot_be_used(standard: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(standard)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with refused(DeviceError, given="onnxruntime_ep_nv_tensorrt_rtx is not installed", hint="[ort-tensorrt-rtx]"):
        OrtProvider("ort-tensorrt-rtx", manifest=manifest)
    plugin(monkeypatch, fails=True)
    with refused(DeviceError, given="cannot be loaded: libcuda.so.1", hint="pip install"):
        OrtProvider("ort-tensorrt-rtx", manifest=manifest)
    plugin(monkeypatch, devices=0)
    with refused(DeviceError, given="finds no device", hint="--device cuda"):
        OrtProvider("ort-tensorrt-rtx", manifest=manifest)


def test_a_provider_that_onnx_runtime_drops_in_silence(
    half: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"])
    manifest = read_manifest(half)
    with refused(DeviceError, given="could not start CUDAExecutionProvider", hint="pip install"):
        OrtProvider("cuda", manifest=manifest).open(half, manifest, contract.STEP_GRAPH)


# -- capture --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[tuple[int, ...]]:
    """What the CPU says as it is."""
    results = tiny_bundles.load(bundle).generate_batch(PROMPTS, preferences=[BOTH] * 2, config=CONFIG)
    return [result.token_ids for result in results]


@dataclass
class Device:
    """The simulated device's log.

    Attributes:
        runs: graph ids, in order; None for a run without one.
        captured: what each of them was captured with: names, addresses, and the values of host inputs.
        bound: the same by binding.
        kept: bindings, so that no id is used twice.
        released: graph ids that were given back.
    """

    runs: list[int | None] = field(default_factory=list)
    captured: dict[int, list[Any]] = field(default_factory=dict)
    bound: dict[int, list[Any]] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    released: list[int] = field(default_factory=list)


def read_graph_id(options: Any) -> int | None:
    try:
        return int(options.get_run_config_entry("gpu_graph_id"))
    except Exception:  # ONNX Runtime's own exceptions have no base of their own
        return None


@pytest.fixture
def device(expected: object, monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> Device:
    log = Device()
    entry = replace(
        ort_provider._ENTRIES["cuda"], execution_provider="CPUExecutionProvider", float_types=("float32",), options={}
    )
    monkeypatch.setitem(ort_provider._ENTRIES, "cuda", entry)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(OrtGraph, "check_placement", lambda self: None)
    real_release = onnxruntime.InferenceSession.release_captured_graph

    def release(self: Any, graph_id: int) -> None:
        log.released.append(graph_id)
        real_release(self, graph_id)

    monkeypatch.setattr(onnxruntime.InferenceSession, "release_captured_graph", release)

    def note(which: str) -> None:
        real = getattr(ort_python.IOBinding, which)

        def noting(self: Any, name: str, device: str, number: int, kind: int, shape: Any, address: int) -> None:
            on_host = name.rpartition(".")[2] in contract.HOST_INPUTS
            assert device == ("cpu" if on_host else "cuda")
            assert on_host or address in runtime.blocks
            size = {6: 4, 7: 8}[kind] if on_host else 0
            log.kept.append(self)
            log.bound.setdefault(id(self), []).append((which, name, address, lambda: ctypes.string_at(address, size)))
            real(self, name, "cpu", number, kind, shape, address)

        monkeypatch.setattr(ort_python.IOBinding, which, noting)

    def run(self: Any, binding: Any, options: Any, real: Any = ort_python.Session.run_with_iobinding) -> None:
        graph_id = read_graph_id(options)
        log.runs.append(graph_id)
        if graph_id is not None and graph_id >= 0:
            now = [(which, name, address, value()) for which, name, address, value in log.bound[id(binding)]]
            assert log.captured.setdefault(graph_id, now) == now, "a replay would have read something else"
            real(self, binding, options)  # capture runs a graph more often than asked to
        real(self, binding, options)

    monkeypatch.setattr(ort_python.Session, "run_with_iobinding", run)
    for which in ("bind_input", "bind_output"):
        note(which)
    return log


def test_a_captured_step_says_what_an_ordinary_one_says(
    bundle: Path, expected: list[tuple[int, ...]], device: Device, runtime: FakeRuntime
) -> None:
    generator = Generator.load(bundle, device="cuda", num_threads=1)
    results = generator.generate_batch(PROMPTS, preferences=[BOTH] * 2, config=CONFIG)
    assert [result.token_ids for result in results] == expected
    assert device.runs[0] == -1, "the prompt is not captured"
    decode = device.runs[1:]
    assert len(set(decode)) == 2
    assert all(one != other for one, other in itertools.pairwise(decode)), "bindings take turns"
    assert len(decode) == CONFIG.max_new_tokens, "one step is ahead of what was asked for"
    copies = runtime.calls[-2 * len(decode) + 2 :]
    assert copies == ["copy", "wait"] * (len(decode) - 1), "one small copy a token and nothing else"


def test_without_capture_no_run_has_a_graph(bundle: Path, expected: list[tuple[int, ...]], device: Device) -> None:
    generator = Generator(Bundle(bundle, device="cuda", num_threads=1, capture=False))
    results = generator.generate_batch(PROMPTS, preferences=[BOTH] * 2, config=CONFIG)
    assert [result.token_ids for result in results] == expected
    assert set(device.runs) == {None}


def test_memory_is_given_back(bundle: Path, device: Device, runtime: FakeRuntime) -> None:
    generator = Generator.load(bundle, device="cuda", num_threads=1)
    generator.generate_batch(PROMPTS, preferences=[BOTH] * 2, config=CONFIG)
    assert runtime.taken > 2**16
    del generator
    gc.collect()
    assert runtime.taken == 0


def test_what_a_capture_has_read_for_good_makes_a_new_one(bundle: Path, device: Device) -> None:
    generator = Generator.load(bundle, device="cuda", num_threads=1)

    def graphs(**changes: Any) -> set[int | None]:
        device.runs.clear()
        preference = changes.pop("preference", BOTH)
        generator.generate(PROMPTS[0], preference=preference, config=replace(CONFIG, **changes))
        return set(device.runs) - {-1}

    first = graphs()
    assert graphs() == first
    assert graphs(beta=0.5) == first, "coefficients live on the device"
    assert not graphs(top_k=5) & first, "k is read on the host"
    assert set(device.released) == first
    again = graphs(top_k=5)
    assert not graphs(preference=Preference(weights={"two": 1.0}), top_k=5) & again, "another PersRM is other buffers"
    sampled = graphs(temperature=0.7, top_k=5)
    assert graphs(temperature=0.9, top_k=5, seed=3, max_new_tokens=CONFIG.max_new_tokens + 1) == sampled


def test_another_strength_needs_no_other_capture(models: Path, device: Device, tmp_path: Path) -> None:
    """Feature heads are mixed anew for every person, into the same buffers."""
    shutil.copytree(models / "one", tmp_path / "headed")
    tiny_models.make_head(tmp_path / "headed", 84, d=2, seed=6)
    bundle = tiny_bundles.export(tmp_path / "bundle", models / "base", [tmp_path / "headed"])
    first, second = read_manifest(bundle).persrms[0].features
    on_cuda = Generator.load(bundle, device="cuda", num_threads=1)
    graphs, replies = [], set()
    for weights in ({first: 1.0, second: 1.0}, {first: -8.0, second: 0.25}, {first: 1.0, second: 1.0}):
        device.runs.clear()
        wanted = {"preference": Preference(weights=weights), "config": CONFIG}
        replies.add(on_cuda.generate(PROMPTS[0], **wanted).token_ids)
        graphs.append(set(device.runs) - {-1})
    assert graphs[0] == graphs[1] == graphs[2]
    assert len(replies) == 2


def test_mixed_and_unmixed_heads_do_not_write_over_each_other(models: Path, tmp_path: Path) -> None:
    """As many people as features are mixed, more are not: the same step serves both, in turn."""
    shutil.copytree(models / "one", tmp_path / "headed")
    tiny_models.make_head(tmp_path / "headed", 84, d=2, seed=6)
    bundle = tiny_bundles.export(tmp_path / "bundle", models / "base", [tmp_path / "headed"])
    first, second = read_manifest(bundle).persrms[0].features
    people = [Preference(weights={first: one, second: other}) for one, other in ((8, -8), (-8, 4), (2, 9))]

    def replies(generator: Generator, wanted: list[Preference]) -> list[tuple[int, ...]]:
        results = generator.generate_batch([PROMPTS[0]] * 3, preferences=wanted, config=CONFIG)
        return [result.token_ids for result in results]

    two, three = [people[0], people[1], people[0]], people
    one = tiny_bundles.load(bundle)
    for wanted in (two, three, two, three, [people[1]] * 3, three):
        assert replies(one, wanted) == replies(tiny_bundles.load(bundle), wanted)
    assert len(set(replies(one, three))) == 3


def test_two_generators_do_not_share_a_capture(bundle: Path, device: Device) -> None:
    one, other = (Generator.load(bundle, device="cuda", num_threads=1) for _ in range(2))
    texts = []
    for generator in (one, other, one):
        texts.append(generator.generate(PROMPTS[0], preference=BOTH, config=CONFIG).token_ids)
    assert texts[0] == texts[1] == texts[2]


def test_the_simulation_notices_a_stale_capture(bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a provider that gives the same graph ids to new buffers."""
    monkeypatch.setattr(ort_provider, "_graph_ids", itertools.cycle([1, 2]))
    generator = Generator.load(bundle, device="cuda", num_threads=1)
    generator.generate(PROMPTS[0], preference=BOTH, config=CONFIG)
    with pytest.raises(AssertionError, match="something else"):
        generator.generate(PROMPTS[0], preference=BOTH, config=replace(CONFIG, top_k=5))
