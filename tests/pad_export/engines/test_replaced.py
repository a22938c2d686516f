"""Engines that take the place of others in a bundle: all at once, or not at all."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from pad_export.engines.add import add_engines
from pad_export.engines.build import EngineBuilder
from pad_export.engines.profile import make_profiles
from pad_export.engines.report import EngineReport
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import EngineInfo, Manifest, read_manifest, verify_files
from pad_runtime.errors import CheckpointError
from tests.support.error_checks import refused, snapshot


class Builder:
    """Writes an engine of a few bytes, and fails at the base's if it is to."""

    target = "tensorrt"
    compute_capabilities = ("sm89",)

    def __init__(self, content: bytes, error: BaseException | None = None) -> None:
        self._content, self._error = content, error

    def build(self, folder: Path, manifest: Manifest, graph: str, engine: Path) -> tuple[EngineInfo, EngineReport]:
        assert (folder / manifest.graphs[graph].file).is_file()
        engine.write_bytes(self._content + graph.encode())
        if self._error and graph == contract.BASE_GRAPH:
            raise self._error
        profiles = make_profiles(folder, manifest, graph)
        listed = {name: {axis: list(sizes) for axis, sizes in axes.items()} for name, axes in profiles.items()}
        info = EngineInfo(engine.name, graph, "tensorrt", "10.13", "linux-x86_64", ["sm89"], listed)
        report: Any = type("Report", (), {"kernels": [], "size": 9, "seconds": 1.0, "updates": {}, "note": ""})()
        return info, report


def add(bundle: Path, builder: Builder) -> None:
    add_engines(bundle, read_manifest(bundle), cast(EngineBuilder, builder))


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """In the standard dialect by what it says, with engines, and with a file of the user's."""
    copied = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (copied / "notes.txt").write_text("mine")
    add_engines(copied, replace(read_manifest(copied), dialect="standard"), cast(EngineBuilder, Builder(b"old ")))
    return copied


def test_engines_take_the_place_of_others(bundle: Path) -> None:
    (bundle / "weights.bin").chmod(0o600)
    before = (bundle / "weights.bin").stat()
    add(bundle, Builder(b"new "))
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    assert [(bundle / engine.file).read_bytes() for engine in manifest.engines] == [b"new step", b"new base"]
    assert (bundle / "notes.txt").read_text() == "mine"
    assert (bundle / "weights.bin").stat().st_ino == before.st_ino  # no copy of the weights
    assert (bundle / "weights.bin").stat().st_nlink == 1
    assert (bundle / "weights.bin").stat().st_mode == before.st_mode  # nor are its rights anybody's but its owner's
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_bundle_that_is_a_link_stays_one(bundle: Path) -> None:
    link = bundle.parent / "link"
    link.symlink_to(bundle)
    add(link, Builder(b"new "))
    assert link.is_symlink()
    assert (bundle / read_manifest(link).engines[0].file).read_bytes() == b"new step"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=["Ctrl-C", "full disk"]
)
def test_a_build_that_fails_leaves_the_old_engines(bundle: Path, error: BaseException) -> None:
    before = snapshot(bundle.parent)
    if isinstance(error, OSError):
        with refused(CheckpointError, given=f"no space left on the disk of {bundle}", hint="free some"):
            add(bundle, Builder(b"new ", error))
    else:
        with pytest.raises(KeyboardInterrupt):
            add(bundle, Builder(b"new ", error))
    assert snapshot(bundle.parent) == before
    verify_files(bundle, read_manifest(bundle))
