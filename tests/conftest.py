from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.support.tiny_models import TinyModels

hypothesis.settings.register_profile(  # how fast a busy machine draws its inputs is no fault of a test
    "pad", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("thorough", hypothesis.settings.get_profile("pad"), max_examples=400)
hypothesis.settings.load_profile("pad")

# A suite in the background ignores Ctrl-C, and what it starts would do so too: some tests send it to a command.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Made once a session and shared: copy what a test changes."""
    from pad_export.export import export_bundle
    from pad_export.options import ExportOptions
    from tests.support import tiny_models  # torch and transformers: only the tests that need them pay for them

    root = tmp_path_factory.mktemp("tiny")
    models = tiny_models.TinyModels(root / "llama", root / "cheerful", root / "bundle")
    tiny_models.make_base(models.base, "llama", seed=1)
    tiny_models.make_adapter(models.adapter, models.base, seed=2)
    options = ExportOptions(max_batch=3, max_top_k=20)
    export_bundle(models.base, models.bundle, persrms=[models.adapter], options=options)
    return models


@pytest.fixture(scope="session")
def tiny_bundle(tiny: TinyModels) -> Path:
    """Folder of a shared bundle, llama with one adapter called 'cheerful'; copy it before changing it."""
    return tiny.bundle
