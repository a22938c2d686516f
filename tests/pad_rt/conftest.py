"""Models of the generator's tests, made once a session and shared."""

from __future__ import annotations

import json

import pytest

from pad_rt import Generator
from tests.support import tiny_bundles, tiny_models
from tests.support.guided_models import TEMPLATE, Models
from tests.support.torch_oracle import TorchModel


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("generator")
    base = folder / "base"
    tiny_models.make_base(base, "llama", seed=41, max_position_embeddings=512)
    tiny_models.make_adapter(folder / "plain", base, seed=42)
    tiny_models.make_adapter(folder / "official", base, seed=43, rank=3, target_modules=["q_proj", "v_proj"])
    tiny_models.make_adapter(folder / "many", base, seed=44, rank=5)
    tiny_models.make_head(folder / "official", 84, seed=45)
    tiny_models.make_head(folder / "many", 84, d=3, seed=46)
    settings = {"prompt_template": TEMPLATE, "default_weights": [0.5]}
    (folder / "official" / "pad_persrm.json").write_text(json.dumps(settings))
    settings = {"prompt_template": TEMPLATE, "features": ["kind", "brief", "odd"]}
    (folder / "many" / "pad_persrm.json").write_text(json.dumps(settings))
    persrms = {
        "plain": TorchModel(base, adapter=folder / "plain"),
        "official": TorchModel(base, adapter=folder / "official", head=folder / "official"),
        "many": TorchModel(base, adapter=folder / "many", head=folder / "many"),
    }
    return Models(folder, TorchModel(base), persrms)


@pytest.fixture(scope="module")
def generator(models: Models) -> Generator:
    return tiny_bundles.load(models.bundle("base"))
