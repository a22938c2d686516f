"""An export that goes wrong half-way leaves nothing of itself, and an old bundle as it was."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pad_export import export
from pad_export.output import staging
from pad_runtime.errors import CheckpointError, OutOfMemoryError, PadError, VerificationError
from pad_runtime.loaded_bundle import Bundle
from tests.support.error_checks import snapshot
from tests.support.tiny_models import TinyModels
from tests.support.whole_export import run


@pytest.mark.parametrize(
    "at",
    [f"pad_export.export.{name}" for name in ("write_weights", "write_adapter", "write_manifest", "verify_bundle")]
    + ["onnx.save_model"],
)
@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (OSError(errno.ENOSPC, "No space left on device"), CheckpointError, "no space left on the disk of"),
        (MemoryError(), OutOfMemoryError, "no memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError, "no memory"),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
        (OSError(errno.EIO, "a broken disk"), CheckpointError, "bundle cannot be made: a broken disk"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), CheckpointError, "no space left"),
    ],
    ids=["Ctrl-C", "disk full", "no memory", "no memory in torch", "bug", "broken disk", "disk full in safetensors"],
)
def test_a_failure_leaves_nothing(
    tiny: TinyModels,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    error: BaseException,
    kind: type[BaseException],
    words: str,
) -> None:
    real = resolve_name(at)

    def fail(*args: Any, **kwargs: Any) -> None:
        if real is not export.verify_bundle:  # that one writes nothing, and takes its time
            real(*args, **kwargs)
        raise error

    monkeypatch.setattr(at, fail)
    with pytest.raises(kind, match=words) as caught:
        run(tiny.base, target, tiny.adapter)
    assert isinstance(caught.value, PadError) == issubclass(kind, PadError)


@pytest.mark.parametrize("num_renamed", [0, 1])
def test_an_interrupt_between_two_renames(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_renamed: int
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    before = snapshot(tmp_path)
    rename = Path.rename
    renamed: list[Path] = []

    def interrupted(path: Path, to: Path) -> Path:
        renamed.append(path)
        if len(renamed) == num_renamed + 1:
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(staging, "exchange", lambda *_: False)  # as on systems that cannot
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.base, bundle, tiny.adapter, verify=False)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("can", [True, False])
def test_an_interrupt_just_after_the_new_bundle_took_its_place(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    rename, exchange = Path.rename, staging.exchange

    def interrupted(path: Path, to: Path) -> Path:
        rename(path, to)
        if to == bundle:
            raise KeyboardInterrupt
        return to

    def exchanged(one: Path, other: Path) -> bool:
        if can and exchange(one, other):
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Path, "rename", interrupted)
    monkeypatch.setattr(staging, "exchange", exchanged)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.base, bundle, verify=False)
    assert Bundle(bundle).manifest.persrms[0].name == "contrast"
    assert list(tmp_path.iterdir()) == [bundle]


def test_an_export_that_differs_from_torch(tiny: TinyModels, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export.write_adapter

    def write_wrong(path: Path, *args: Any) -> None:
        real(path, *args)
        tensors = load_file(path)
        save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, path)

    monkeypatch.setattr(export, "write_adapter", write_wrong)
    with pytest.raises(VerificationError, match="differences from torch: run 0") as caught:
        run(tiny.base, target, tiny.adapter)
    assert "\n" not in str(caught.value)
