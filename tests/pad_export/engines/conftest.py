"""Models and a bundle to build engines from, made once a session and shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from pad_export.read.spec import SITE_MODULES
from tests.support import tiny_bundles, tiny_models
from tests.support.engine_models import LIMITS, SIZES


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    base, adapter = folder / "base", folder / "adapter"
    tiny_models.make_base(base, "llama", seed=4, tied=True, **SIZES)
    linears = [module.rpartition(".")[2] for modules in SITE_MODULES.values() for module in modules]
    tiny_models.make_adapter(adapter, base, seed=5, layers_to_transform=[1], target_modules=linears)
    tiny_models.make_head(adapter, SIZES["hidden_size"], d=2, seed=6)
    return base, adapter


@pytest.fixture(scope="session")
def contrast(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base against itself, in graphs alone."""
    output = tmp_path_factory.mktemp("contrast") / "bundle"
    return tiny_bundles.export(output, models[0], [], precision="fp16", dialect="standard", **LIMITS)
