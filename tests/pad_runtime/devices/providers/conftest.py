"""Bundles of a tiny family, made once a session and shared, and what they are to run on."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from tests.support import fake_cuda, tiny_bundles, tiny_models
from tests.support.fake_cuda import FakeRuntime


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_family(tmp_path_factory.mktemp("providers"))


@pytest.fixture(scope="session")
def bundle(models: Path) -> Path:
    return tiny_bundles.export(models / "bundle", models / "base", [models / "one", models / "two"])


@pytest.fixture(scope="session")
def half(models: Path) -> Path:
    return tiny_bundles.export(models / "half", models / "base", [models / "one"], precision="fp16")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that was built with CUDA, on a machine that has none."""
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
