"""What a disk does to an export: rights of the files, full disks of every size, and two exports at once."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pad_export import export
from pad_export.engines.build import EngineBuilder
from pad_export.output.disk import follow_umask
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.devices.kernel_cache import save_cache
from pad_runtime.errors import CheckpointError, OptionError, PadError
from tests.support import small_disk, tiny_models
from tests.support.error_checks import check_line, refused, snapshot
from tests.support.tiny_models import TinyModels
from tests.support.whole_export import run


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[int, list[str]]:
    """Names below a folder, and itself, by their rights."""
    found: dict[int, list[str]] = {}
    for path in (folder, *folder.rglob("*")):
        found.setdefault(stat.S_IMODE(path.stat().st_mode) | (path.is_dir() << 12), []).append(path.name)
    return found


def by_umask(umask: int) -> set[int]:
    return {0o666 & ~umask, 1 << 12 | 0o777 & ~umask}


@pytest.mark.parametrize("there", ["nothing", "a bundle"])
def test_all_files_of_a_bundle_follow_the_umask(tiny: TinyModels, tmp_path: Path, umask: int, there: str) -> None:
    """Adapter and head are written by safetensors, the tokenizer comes from a file that may be read-only."""
    base = Path(shutil.copytree(tiny.base, tmp_path / "base"))
    (base / "tokenizer.json").chmod(0o400)
    adapter = Path(shutil.copytree(tiny.adapter, tmp_path / "adapter"))
    tiny_models.make_head(adapter, 84, seed=1)
    if there == "a bundle":
        shutil.copytree(tiny.bundle, tmp_path / "bundle")
    run(base, tmp_path / "bundle", adapter, verify=False)
    found = modes(tmp_path / "bundle")
    assert set(found) == by_umask(umask), found
    assert {"cheerful.safetensors", "adapter.safetensors"} & {name for names in found.values() for name in names}


def test_a_link_is_not_followed_to_another_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    (tmp_path / "mine").chmod(0o640)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "mine")
    follow_umask(tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o640


class Cache:
    """A kernel cache or a timing cache, as the libraries give them."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


def test_caches_follow_the_umask_and_are_written_whole(tmp_path: Path, umask: int) -> None:
    save_cache(Cache(b"kernels"), tmp_path / "kernels" / "cache")
    EngineBuilder._keep_timings(tmp_path / "timings", b"times")
    assert set(modes(tmp_path)) >= by_umask(umask)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("kernels/cache", "timings")} == {0o666 & ~umask}
    with small_disk.largest_file(100):
        save_cache(Cache(b"k" * 200), tmp_path / "kernels" / "cache")  # costs the next process its time, and no more
        with refused(OptionError, given="--timing-cache", hint="choose another file"):
            EngineBuilder._keep_timings(tmp_path / "timings", b"t" * 200)
    assert (tmp_path / "kernels" / "cache").read_bytes() == b"kernels"
    assert (tmp_path / "timings").read_bytes() == b"times"
    assert snapshot(tmp_path).keys() == {"kernels", "kernels/cache", "timings"}


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_a_full_disk_of_many_sizes(tiny: TinyModels, tmp_path: Path, there: bool) -> None:
    with small_disk.mounted(tmp_path / "disk") as disk:
        output = disk.folder / "bundle"
        run(tiny.base, output, tiny.adapter, verify=False)
        whole = sum(4096 * -(-path.stat().st_size // 4096) for path in output.rglob("*") if path.is_file())
        if not there:
            shutil.rmtree(output)
        before = snapshot(output)
        for free in range(0, whole, 4 * 4096):
            disk.leave(free)
            with pytest.raises(PadError) as caught:
                run(tiny.base, output, tiny.adapter, verify=False)
            assert type(caught.value) in (CheckpointError, OptionError)
            assert "o space left" in str(caught.value)
            check_line(caught.value)
            assert disk.names() == (["bundle"] if there else [])
            assert snapshot(output) == before
        assert whole > 25 * 4 * 4096
        disk.leave(whole + 64 * 4096)  # the control
        run(tiny.base, output, tiny.adapter, verify=False)
        assert disk.names() == ["bundle"]


def test_files_that_may_not_grow(tiny: TinyModels, target: Path) -> None:
    """What a limit of the process does, without a mount."""
    for size in (0, 100, 5_000, 50_000, 100_000):
        with small_disk.largest_file(size), refused(CheckpointError, given="no space left on the disk of", hint="free"):
            run(tiny.base, target, tiny.adapter, verify=False)


def test_two_exports_to_one_target(tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused before its work, the first gets its bundle."""
    real = export.write_weights

    def another(*args: object, **kwargs: object) -> None:
        monkeypatch.setattr(export, "write_weights", real)
        with refused(OptionError, given="bundle is being written by another process", hint="wait for it"):
            run(tiny.base, tmp_path / "bundle", tiny.adapter)
        run(tiny.base, tmp_path / "other", tiny.adapter, verify=False)  # beside it there is room
        real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "write_weights", another)
    run(tiny.base, tmp_path / "bundle", tiny.adapter, verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]
    assert read_manifest(tmp_path / "bundle").files == read_manifest(tmp_path / "other").files
