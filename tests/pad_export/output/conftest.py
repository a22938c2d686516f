"""A place to export to that must be left as it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.error_checks import snapshot
from tests.support.tiny_models import TinyModels


@pytest.fixture(params=["new", "replaced"])
def target(request: pytest.FixtureRequest, tiny: TinyModels, tmp_path: Path) -> Iterator[Path]:
    """Where to export to, nothing or an old bundle; either must be as it was afterwards, with nothing beside it."""
    home = tmp_path / "home"
    home.mkdir()
    if request.param == "replaced":
        shutil.copytree(tiny.bundle, home / "bundle")
    before = snapshot(home)
    yield home / "bundle"
    assert snapshot(home) == before
