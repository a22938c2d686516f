"""A bundle to try the `pad` command on, and a generator that says what to expect of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pad_rt import Generator


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator.load(tiny_bundle, num_threads=1)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
