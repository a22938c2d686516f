"""`pad pull`: into the cache, into a folder, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pad_rt.cli.main import main
from tests.support.error_checks import edit_manifest, error_line, snapshot
from tests.support.fake_hub import FakeHub

NAME = "org/tiny"


@pytest.fixture
def hub(bundle: Path) -> Iterator[FakeHub]:
    with FakeHub().running() as hub:
        hub.publish(NAME, bundle)
        yield hub


def test_into_the_cache(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    ended = hub.run(tmp_path, "pad", "pull", NAME)
    assert ended.returncode == 0, ended.stderr
    where, example = ended.stdout.splitlines()
    folder = Path(where.rpartition(": ")[2])
    assert snapshot(folder) == snapshot(bundle)
    assert where.startswith(f"{NAME} (0.")
    assert "every file hashed" in where
    assert example.startswith(f"try: pad generate {NAME} 'How do I boil an egg?' --preference")


def test_into_a_folder_again_and_again(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    old = hub.repositories[NAME].refs["main"]
    output = tmp_path / "a folder"
    assert hub.run(tmp_path, "pad", "pull", NAME, "-o", "a folder").returncode == 0
    assert snapshot(output) == snapshot(bundle), "the bundle and nothing else, no links"
    edit_manifest(bundle, base="newer")
    hub.publish(NAME, bundle)
    ended = hub.run(tmp_path, "pad", "pull", NAME, "-o", "a folder")
    assert "try: pad generate 'a folder' " in ended.stdout
    assert snapshot(output) == snapshot(bundle)
    assert hub.run(tmp_path, "pad", "pull", NAME, "--revision", old, "-o", "a folder").returncode == 0
    assert snapshot(output) != snapshot(bundle)
    assert "every file hashed" in hub.run(tmp_path, "pad", "pull", f"{NAME}@{old}", "-o", "a folder").stdout


def test_a_folder_that_was_damaged_is_mended(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "out")
    (tmp_path / "out" / "weights.bin").write_bytes(b"cut")
    assert hub.run(tmp_path, "pad", "pull", NAME, "-o", "out").returncode == 0
    assert snapshot(tmp_path / "out") == snapshot(bundle)


def test_other_folders_are_left_alone(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    before = snapshot(tmp_path / "out")
    ended = hub.run(tmp_path, "pad", "pull", NAME, "-o", "out")
    assert ended.returncode == 2
    assert "-o out exists and is not a bundle" in error_line(ended.stderr, "pad")
    assert snapshot(tmp_path / "out") == before
    assert not hub.requests


@pytest.mark.parametrize("has_bundle", [False, True])
def test_a_home_keeps_its_cache_and_its_token(hub: FakeHub, bundle: Path, tmp_path: Path, *, has_bundle: bool) -> None:
    home = tmp_path / "user"
    cache = home / ".cache" / "huggingface"
    cache.mkdir(parents=True)
    (cache / "token").write_text("mine")
    (home / "thesis.txt").write_text("mine")
    if has_bundle:
        shutil.copytree(bundle, home, dirs_exist_ok=True)
    ended = hub.run(cache, "pad", "pull", NAME, "-o", str(home))
    assert ended.returncode == (0 if has_bundle else 2)
    assert has_bundle or "exists and is not a bundle" in error_line(ended.stderr, "pad")
    assert (cache / "token").read_text() == "mine"
    assert (home / "thesis.txt").read_text() == "mine"
    assert (cache / "hub").exists() == has_bundle
    assert not (cache / "download").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bundle"], "bundle is no name of a repository; expected OWNER/NAME"),
        (["./org/name"], "./org/name is no name of a repository"),
        (["org/name/x.gguf"], "is no name of a repository"),
        (["org/name@v1", "--revision", "v2"], "--revision v2 and org/name@v1; expected one of them"),
    ],
)
def test_refusals(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", *arguments]) == 2
    assert words in error_line(capsys.readouterr().err, "pad")
