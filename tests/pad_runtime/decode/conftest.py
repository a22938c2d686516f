"""Models of the decoder's tests, made once a session and shared."""

from __future__ import annotations

import pytest

from pad_runtime.decode.decoder import Decoder
from pad_runtime.loaded_bundle import Bundle
from tests.support import tiny_bundles, tiny_models
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
