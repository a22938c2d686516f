"""A bundle, and a generator that says what to expect of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pad_rt import Generator


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("batch") / "bundle"))


@pytest.fixture(scope="session")
def generator(bundle: Path) -> Generator:
    return Generator.load(bundle, num_threads=1)
