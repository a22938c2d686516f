"""Models and adapters by name: what is fetched of a repository, and how a bundle calls them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from pad_export.read.hub_model import find_model
from pad_export.read.model_name import repository_name
from tests.support.error_checks import error_line
from tests.support.fake_hub import FakeHub
from tests.support.tiny_gguf import Kind, write_gguf
from tests.support.tiny_models import TinyModels


@pytest.fixture
def hub(tiny: TinyModels, tmp_path: Path) -> Iterator[FakeHub]:
    base = Path(shutil.copytree(tiny.base, tmp_path / "base"))
    adapter = Path(shutil.copytree(tiny.adapter, tmp_path / "kind"))
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "org/llama"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (base / "pytorch_model.bin").write_bytes(bytes(50_000))
    (base / "consolidated.safetensors").write_bytes(bytes(50_000))
    (base / "onnx").mkdir()
    (base / "onnx" / "config.json").write_text("{}")
    with FakeHub().running() as hub:
        hub.publish("org/llama", base)
        hub.publish("org/kind", adapter)
        yield hub


def export(hub: FakeHub, home: Path, *arguments: str) -> tuple[int, str]:
    ended = hub.run(home, "pad-export", *arguments, "-o", "bundle", "--max-length", "64", "--no-verify", "--quiet")
    return ended.returncode, ended.stderr


def test_an_export_by_names_is_an_export_of_the_folders(hub: FakeHub, tiny: TinyModels, tmp_path: Path) -> None:
    assert export(hub, tmp_path, "--base", "org/llama", "--persrm", "org/kind@main") == (0, "")
    by_name = json.loads((tmp_path / "bundle" / "pad.json").read_text())
    assert by_name["base"] == "org/llama"
    assert by_name["topology"] == "shared", "the adapter is of the base that the name gave"
    assert [persrm["name"] for persrm in by_name["persrms"]] == ["kind"]
    folder = tmp_path / "hub" / "models--org--llama" / "snapshots"
    fetched = {path.name for path in folder.rglob("*") if path.is_file()}
    assert fetched == {path.name for path in tiny.base.iterdir()}, "no pickles, no second copy, no other formats"
    shutil.move(tmp_path / "bundle", tmp_path / "by_name")
    assert export(hub, tmp_path, "--base", str(tiny.base), "--persrm", "./kind") == (0, "")
    by_path = json.loads((tmp_path / "bundle" / "pad.json").read_text())
    assert by_path["base"] == tiny.base.name
    assert by_name["files"] == by_path["files"]


def test_a_gguf_file_by_name(hub: FakeHub, tiny: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    model = AutoModelForCausalLM.from_pretrained(tiny.base, dtype="float32")
    write_gguf(tmp_path / "gguf" / "tiny.Q8_0.gguf", model, kind=Kind.F32)
    (tmp_path / "gguf" / "other.gguf").write_bytes(bytes(50_000))
    hub.publish("org/Tiny-GGUF", tmp_path / "gguf")
    assert export(hub, tmp_path, "--base", "org/Tiny-GGUF/tiny.Q8_0.gguf") == (0, "")
    assert json.loads((tmp_path / "bundle" / "pad.json").read_text())["base"] == "org/Tiny-GGUF"
    fetched = [path.name for path in (tmp_path / "hub" / "models--org--Tiny-GGUF" / "snapshots").rglob("*.gguf")]
    assert fetched == ["tiny.Q8_0.gguf"]


def test_refusals(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "tiny.gguf").write_bytes(b"none")
    hub.publish("org/gguf", tmp_path / "gguf")
    for base, words in {
        "org/nothing": "no path org/nothing here, and no such repository on the hub",
        "org/gguf": "org/gguf has no config.json and no adapter_config.json; expected a model or an adapter",
        "org/gguf/missing.gguf": "org/gguf has no missing.gguf",
    }.items():
        code, stderr = export(hub, tmp_path, "--base", base)
        assert code == 2
        assert words in error_line(stderr, "pad-export"), base
    assert not (tmp_path / "bundle").exists()


def test_paths_are_given_back(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path
    assert find_model("./org/name") == Path("org/name")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/c/hub/models--org--Base-1/snapshots/1a", "org/Base-1"),
        ("/c/hub/models--org--Base-1/snapshots/1a/x.gguf", "org/Base-1"),
        ("/c/models/org", None),
    ],
)
def test_names_of_cached_repositories(path: str, name: str | None) -> None:
    assert repository_name(Path(path)) == name
