"""Which texts name a repository on the hub, and which are paths."""

from __future__ import annotations

import errno
from pathlib import Path

import httpx2
import huggingface_hub
import pytest

from pad_runtime.errors import HubError
from pad_runtime.hub import Repository, find_repository
from tests.support.error_checks import check_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Repository("org/name")),
        ("Org-1/My_model-0.5B.v2", Repository("Org-1/My_model-0.5B.v2")),
        ("org/name@v1.0", Repository("org/name", revision="v1.0")),
        ("org/name@refs/pr/3", Repository("org/name", revision="refs/pr/3")),
        ("org/name/model.Q4_K_M.gguf", Repository("org/name", "model.Q4_K_M.gguf")),
        ("org/name/sub/model.gguf@main", Repository("org/name", "sub/model.gguf", "main")),
    ],
)
def test_names(text: str, expected: Repository) -> None:
    assert find_repository(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        *("name", "./org/name", "../org/name", "/org/name", "~/org", "org/name/", "org//name", "org/name/sub", "", "."),
        *("org\\name", "c:/name", "org/.name", "org/name-", "org/a--b", "org/a..b", "org/name.git", "org/na me", "é/a"),
        *("org/name@", "org/name@@", "org/name@-x", "@org/name", f"org/{97 * 'a'}", "org/name\n", "https://host/org"),
    ],
)
def test_paths(text: str) -> None:
    assert find_repository(text) is None


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_repository("org/name") is not None
    Path("org").mkdir()
    assert find_repository("org/name") is not None, "an owner's folder is not the repository's"
    Path("org/name").mkdir()
    assert find_repository("org/name") is None
    assert find_repository("org/name@v1") is not None
    Path("org/name@v1").write_text("a file")
    assert find_repository("org/name@v1") is None


def test_a_path_object_is_never_a_name() -> None:
    assert find_repository(Path("org/name")) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("Data processing error:\n  no such block"), "Data processing error: no such block"),
        (httpx2.ReadError("the connection was reset"), "the connection was reset"),
        (httpx2.ReadTimeout(""), "ReadTimeout"),
    ],
)
def test_a_download_that_fails_is_one_line(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    repository = Repository("org/name")
    for fetch in (
        lambda: repository.fetch_file("pad.json", expected="a bundle"),
        lambda: repository.fetch(["*.json"], quiet=True),
    ):
        with pytest.raises(HubError) as caught:
            fetch()
        assert str(caught.value).startswith(f"org/name cannot be fetched: {reason}; try again")
        check_line(caught.value)
