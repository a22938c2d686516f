"""Where an export is written: what it replaces or fills, and what it must never touch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pad_runtime.errors import OptionError
from pad_runtime.loaded_bundle import Bundle
from tests.support.error_checks import refused, snapshot
from tests.support.tiny_models import TinyModels
from tests.support.whole_export import run


def test_a_new_export_replaces_the_old(tiny: TinyModels, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    run(tiny.base, bundle, verify=False, max_length=100)
    assert Bundle(bundle).manifest.max_length == 100
    assert not (bundle / "adapters").exists()
    assert list(tmp_path.iterdir()) == [bundle]


def test_a_link_is_replaced_and_not_followed(tiny: TinyModels, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    before = snapshot(bundle)
    (tmp_path / "link").symlink_to(bundle)
    run(tiny.base, tmp_path / "link", verify=False)
    assert snapshot(bundle) == before
    assert not (tmp_path / "link").is_symlink()
    assert Bundle(tmp_path / "link").manifest.topology == "shared"


@pytest.mark.parametrize(
    ("files", "words", "hint"),
    [
        ({"notes.txt": "mine"}, "is not a bundle", "remove that one"),
        ({"sub/notes.txt": "mine"}, "is not a bundle", "remove that one"),
        ({"pad.json": "{}"}, "is not a bundle", "remove that one"),
        ({"pad.json": "not JSON"}, "is not a bundle", "remove that one"),
        ({"pad.json": '{"format": "a notepad", "files": {}}'}, "is not a bundle", "remove that one"),
        ({"pad.json": '{"format": "pad-rt-bundle", "files": {}}', "a/b": ""}, "holds a/b", "move it away"),
    ],
)
def test_a_folder_of_the_user_is_never_touched(
    tiny: TinyModels, tmp_path: Path, files: dict[str, str], words: str, hint: str
) -> None:
    for name, text in files.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = snapshot(tmp_path)
    with refused(OptionError, given=words, hint=hint):
        run(tiny.base, tmp_path / "mine")
    assert snapshot(tmp_path) == before


def test_places_where_nothing_can_be_written(tiny: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with refused(OptionError, given="file exists and is not a folder", hint="choose another path"):
        run(tiny.base, tmp_path / "file")
    with refused(OptionError, given="link exists and is not a folder", hint="choose another path"):
        run(tiny.base, tmp_path / "link")
    with refused(
        OptionError, given=f"cannot be written: {tmp_path / 'file'}: File exists", hint="choose another folder"
    ):
        run(tiny.base, tmp_path / "file" / "bundle")
    with refused(OptionError, given="File name too long", hint="choose another folder"):
        run(tiny.base, tmp_path / ("x" * 250))
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_may_be_filled(tiny: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run(tiny.base, tmp_path / "empty", verify=False)
    assert Bundle(tmp_path / "empty").manifest.persrms[0].name == "contrast"
