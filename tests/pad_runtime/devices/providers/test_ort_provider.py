"""What ONNX Runtime's providers are asked for."""

from __future__ import annotations

import shutil
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.devices import buffers
from pad_runtime.devices.ort.graph import OrtGraph
from pad_runtime.devices.ort.provider import OrtProvider
from pad_runtime.errors import BundleError, DeviceError, OutOfMemoryError
from tests.support import fake_cuda, tiny_bundles, tiny_models
from tests.support.error_checks import refused
from tests.support.fake_cuda import FakeRuntime
from tests.support.graph_files import open_graph


@pytest.fixture(scope="module")
def standard(models: Path) -> Path:
    options = {"precision": "fp16", "dialect": "standard", "max_length": 48}
    return tiny_bundles.export(models / "standard", models / "base", [models / "one"], **options)


@dataclass
class Asked:
    """A session that was opened, and its options."""

    providers: Any = None
    own: Any = None
    overrides: dict[str, int] = field(default_factory=dict)
    plans_memory: bool | None = None


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
            log.plans_memory = options.enable_mem_pattern
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
    open_graph(provider, half, contract.STEP_GRAPH)
    assert asked.providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert asked.own["user_compute_stream"] == str(fake_cuda.STREAM)
    assert asked.own["enable_cuda_graph"] == "1"
    assert not provider.fixes_capacity
    assert not asked.overrides
    assert isinstance(provider.memory.zeros((2, 3), np.float16), buffers.CudaBuffer)
    plain = OrtProvider("cuda", manifest=manifest, capture=False)
    open_graph(plain, half, contract.STEP_GRAPH)
    assert "enable_cuda_graph" not in asked.own
    assert provider.freezes_host_inputs > plain.freezes_host_inputs


def test_plans_of_memory_are_for_devices(half: Path, asked: Asked) -> None:
    """On a CPU each length of a prompt would leave one behind."""
    on = {}
    for device in ("cpu", "cuda"):
        open_graph(OrtProvider(device), half, contract.STEP_GRAPH)
        on[device] = asked.plans_memory
    assert on == {"cpu": False, "cuda": True}


def test_tensorrt_keeps_its_engines_and_has_caches_of_one_size(standard: Path, asked: Asked, tmp_path: Path) -> None:
    manifest = read_manifest(standard)
    provider = OrtProvider("ort-tensorrt", manifest=manifest)
    open_graph(provider, standard, contract.STEP_GRAPH)
    assert asked.providers == ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    folder = Path(asked.own["trt_engine_cache_path"])
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path / "pad-rt" / "ort-tensorrt")
    assert asked.own["trt_engine_cache_enable"] == "1"
    assert provider.fixes_capacity
    assert asked.overrides == {"capacity": 48}
    assert not provider.freezes_host_inputs, "it captures one run a session, and two take turns"
    open_graph(provider, standard, contract.BASE_GRAPH)
    assert asked.own["trt_engine_cache_path"] != str(folder), "each graph has engines of its own"


def test_engines_are_kept_by_the_weights_too(models: Path, standard: Path, asked: Asked) -> None:
    """Models of one shape have one graph: an engine of one would give its tokens for the other."""
    tiny_models.make_family(models / "again", seed=99)
    options = {"precision": "fp16", "dialect": "standard", "max_length": 48}
    other = tiny_bundles.export(models / "other", models / "again/base", [models / "again/one"], **options)
    assert (other / "base.onnx").read_bytes() == (standard / "base.onnx").read_bytes()
    folders = set()
    for bundle in (standard, other, standard):
        provider = OrtProvider("ort-tensorrt", manifest=read_manifest(bundle))
        open_graph(provider, bundle, contract.BASE_GRAPH)
        folders.add(asked.own["trt_engine_cache_path"])
    assert len(folders) == 2


def test_a_provider_that_opens_weights_itself_follows_no_link(standard: Path, asked: Asked, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(standard, tmp_path / "bundle"))
    (bundle / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (bundle / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    provider = OrtProvider("ort-tensorrt", manifest=read_manifest(bundle))
    with refused(
        BundleError,
        given=f"{bundle / 'weights.bin'} is a link to {tmp_path / 'elsewhere.bin'}",
        expected="the file itself on device 'ort-tensorrt'",
        hint="copy it into the bundle",
    ):
        open_graph(provider, bundle, contract.STEP_GRAPH)


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
    open_graph(provider, standard, contract.STEP_GRAPH)
    assert provider.fixes_capacity
    assert asked.overrides == {"capacity": 48}
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
        open_graph(OrtProvider("cuda", manifest=manifest), half, contract.STEP_GRAPH)


@pytest.mark.parametrize(
    ("error", "given"),
    [
        (MemoryError(), "no memory for"),
        (RuntimeError("Failed to allocate memory for requested buffer of size 9"), "buffer of size 9"),
    ],
)
def test_weights_that_do_not_fit_on_the_device(
    half: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch, error: Exception, given: str
) -> None:
    manifest = read_manifest(half)
    provider = OrtProvider("cuda", manifest=manifest)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with refused(OutOfMemoryError, given=given, hint="close other programs"):
        open_graph(provider, half, contract.STEP_GRAPH)


def test_no_onnx_runtime_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert not OrtProvider.is_built_in("cuda")
    with refused(DeviceError, given="onnxruntime is not installed", hint="pip install 'pad-rt[cuda]'"):
        OrtProvider("cuda")
