from __future__ import annotations

from pathlib import Path

import pytest

from pad_runtime.bundle.manifest import read_manifest
from tests.support.explained import Explained, explain_hostile


@pytest.fixture(scope="session")
def explained(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Explained:
    return explain_hostile(tmp_path_factory.mktemp("explained"), read_manifest(tiny_bundle))
