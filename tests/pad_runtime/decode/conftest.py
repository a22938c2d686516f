"""Models of the decoder's tests, made once a session and shared."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from pad_runtime.decode.decoder import Decoder
from pad_runtime.devices.ort.execution_provider import EXECUTION_PROVIDERS
from pad_runtime.loaded_bundle import Bundle
from tests.support import decoder_worlds, fake_cuda, fake_onnxruntime, fake_tensorrt, tiny_bundles, tiny_models
from tests.support.decoder_worlds import World, WorldModels
from tests.support.guided_steps import KINDS, Models
from tests.support.torch_oracle import TorchModel


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A llama with one adapter, as bundles of both topologies, and torch's reading of it."""
    folder = tmp_path_factory.mktemp("step")
    tiny_models.make_base(folder / "base", "llama", seed=5)
    tiny_models.make_adapter(folder / "cheerful", folder / "base", seed=6)
    for kind, options in KINDS.items():
        tiny_bundles.export(folder / kind, folder / "base", [folder / "cheerful"], max_top_k=1000, **options)
    return Models(folder, TorchModel(folder / "base"), TorchModel(folder / "base", adapter=folder / "cheerful"))


@pytest.fixture(scope="module", params=KINDS)
def bundle(models: Models, request: pytest.FixtureRequest) -> Bundle:
    return tiny_bundles.open_bundle(models.bundle(request.param))


@pytest.fixture
def decoder(bundle: Bundle) -> Decoder:
    return bundle.decoder()


@pytest.fixture(scope="session")
def world_models(tmp_path_factory: pytest.TempPathFactory) -> WorldModels:
    return WorldModels.make(tmp_path_factory.mktemp("worlds"))


@pytest.fixture
def load_world(world_models: WorldModels, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], World]:
    """Opens the bundle of a kind, on a device that is simulated where it needs one."""

    def load(name: str) -> World:
        device = decoder_worlds.KINDS[name].device
        if device == "cpu":
            return World.load(world_models, name)
        runtime = fake_cuda.install(monkeypatch)
        if device == "cuda":
            on_cuda = replace(EXECUTION_PROVIDERS["cuda"], float_types=("float32",))
            monkeypatch.setitem(EXECUTION_PROVIDERS, "cuda", on_cuda)
            fake_onnxruntime.install(monkeypatch.setattr, runtime)
        else:
            monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_module(runtime))
        return World.load(world_models, name, runtime.let_go)

    return load
