"""Which device is taken, and why not another."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest

from pad_rt import Generator
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.devices.choice import find_provider
from pad_runtime.devices.ort.provider import OrtProvider
from pad_runtime.devices.provider import Provider
from pad_runtime.errors import DeviceError
from tests.support.error_checks import refused
from tests.support.fake_cuda import FakeRuntime
from tests.support.family_requests import CONFIG, PROMPTS
from tests.support.graph_files import open_graph


def find(folder: Path, device: str = "auto") -> tuple[Provider, tuple[str, ...]]:
    return find_provider(device, folder, read_manifest(folder))


def test_the_cpu_is_taken_where_nothing_else_is_built_in(bundle: Path) -> None:
    assert onnxruntime.get_available_providers()[-1] == "CPUExecutionProvider"
    provider, notes = find(bundle)
    assert (provider.device, notes) == ("cpu", ())
    assert not provider.freezes_host_inputs


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
    graph = open_graph(OrtProvider("cpu"), half, contract.STEP_GRAPH)
    with refused(DeviceError, given="ONNX Runtime reads input_ids on the host", hint="another --device"):
        graph.check_placement()
