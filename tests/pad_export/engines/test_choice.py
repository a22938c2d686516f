"""What a bundle says of its engines, and which of them fits a machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pad_runtime.bundle.manifest import Manifest, read_manifest
from pad_runtime.devices.tensorrt.engine_choice import EngineHost, find_engine
from pad_runtime.errors import EngineError, PadError
from tests.support.error_checks import edit_manifest, refused, write_json


@pytest.fixture
def bundle(contrast: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(contrast, tmp_path / "bundle"))


def stamp(bundle: Path, **fields: object) -> Manifest:
    """Write a bundle's manifest with one engine in it."""
    engine = {
        "file": "step.onnx",
        "graph": "step",
        "target": "tensorrt-rtx",
        "version": "1.7",
        "platform": "linux-x86_64",
        "compute_capabilities": ["sm86", "sm89"],
        "profiles": {name: {"sequences": [1, 1, 1], "s": [1, 1, 1]} for name in ("prefill", "decode")},
    }
    edit_manifest(bundle, engines=[engine | fields])
    return read_manifest(bundle)


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"compute_capability": "sm120"}, "sm120, only step.onnx for tensorrt-rtx 1.7 on linux-x86_64, sm86 and sm89"),
        ({"version": "1.8"}, "tensorrt-rtx 1.8 on"),
        ({"platform": "windows-amd64"}, "windows-amd64"),
    ],
)
def test_an_engine_for_something_else(bundle: Path, change: dict[str, str], given: str) -> None:
    manifest = stamp(bundle)
    host = EngineHost("tensorrt-rtx", "1.7", "sm89", "linux-x86_64")
    assert find_engine(bundle, manifest, "step", host).version == "1.7"
    other = replace(host, **change)
    gpus = dict.fromkeys(["sm86", "sm89", other.compute_capability])
    command = f"pad-export engines {bundle} --target tensorrt-rtx" + "".join(f" --compute-capability {g}" for g in gpus)
    with refused(EngineError, given=given, hint=f"run: {command}"):
        find_engine(bundle, manifest, "step", other)
    with refused(EngineError, given="has no engine of its base graph", hint="--compute-capability sm89"):
        find_engine(bundle, manifest, "base", host)
    with refused(EngineError, given="tensorrt 10.13", hint=f"run: pad-export engines {bundle} --target tensorrt"):
        find_engine(bundle, manifest, "step", EngineHost("tensorrt", "10.13", "sm87", "linux-aarch64"))


def test_a_bundle_of_the_other_dialect_is_to_be_exported_again(bundle: Path) -> None:
    manifest = replace(stamp(bundle), dialect="ort", engines=[])
    host = EngineHost("tensorrt-rtx", "1.7", "sm89", "linux-x86_64")
    with refused(EngineError, given="ort dialect", expected=str(host), hint="export it again with --target"):
        find_engine(bundle, manifest, "step", host)


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"file": "absent.engine"}, "the file of an engine is 'absent.engine'"),
        ({"graph": "other"}, "the graph of an engine is 'other'"),
        ({"target": "tensorflow"}, "target is"),
    ],
)
def test_a_manifest_with_an_engine_that_cannot_be(bundle: Path, fields: dict[str, str], given: str) -> None:
    with pytest.raises(PadError, match=given):
        stamp(bundle, **fields)


def test_a_bundle_that_knows_of_no_engines_is_read(bundle: Path) -> None:
    stamp(bundle)
    path = bundle / "pad.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    del fields["engines"]
    write_json(path, fields)
    assert read_manifest(bundle).engines == []
