"""An export that is killed at any point: the target is the old or the new one, whole, and the next export tidies up."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pad_export.cli import main
from pad_export.output import lock, staging
from pad_export.output.lock import held
from pad_export.output.staging import staged
from pad_runtime.bundle import contract
from pad_runtime.errors import OptionError
from tests.support.error_checks import refused, snapshot

# Kills itself at a named point of an "export" that writes two files, on a system that can exchange paths or cannot.
EXPORT = """
import os, signal, sys, tempfile
from pathlib import Path
from pad_export.output import staging

output, point, can = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "can"

def kill(at):
    if at == point:
        os.kill(os.getpid(), signal.SIGKILL)

def before(at, real):
    def call(*args):
        kill(at)
        return real(*args)
    return call

renames = iter(("first rename", "second rename"))
rename = Path.rename
def renamed(path, to):
    kill(next(renames, ""))
    return rename(path, to)

Path.rename = renamed
if not can:
    staging.exchange = lambda *_: False
staging.exchange = before("exchange", staging.exchange)
staging.follow_umask = before("filled", staging.follow_umask)
staging._remove = before("emptied", staging._remove)
staging._check_replaceable = before("locked", staging._check_replaceable)
real = staging._put_in_place
def put(*args):
    real(*args)
    kill("in place")
staging._put_in_place = put

with staging.staged(output) as folder:
    (folder / "weights.bin").write_bytes(b"new" * 1000)
    kill("half")
    twin = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".twin", dir=folder.parent)  # float32_twin's
    with twin as temporary:
        (Path(temporary) / "bundle").mkdir()
        kill("twin")
    (folder / "pad.json").write_text('{"format": "pad-rt-bundle", "files": {"weights.bin": {}}}')
"""
OLD = {"pad.json": '{"format": "pad-rt-bundle", "files": {"weights.bin": {}}}', "weights.bin": "old"}
POINTS = ("locked", "half", "twin", "filled", "exchange", "first rename", "second rename", "in place", "emptied")


def write_old(output: Path) -> None:
    output.mkdir()
    for name, text in OLD.items():
        (output / name).write_text(text)


def killed_export(output: Path, point: str, can: bool) -> bool:
    """Whether it passed that point, and was killed there; else it came to its end."""
    arguments = [str(output), point, "can" if can else "cannot"]
    code = subprocess.run([sys.executable, "-c", EXPORT, *arguments], check=False, timeout=60).returncode
    assert code in (-signal.SIGKILL, 0)
    return code != 0


def content(output: Path) -> str:
    """Which bundle is there, whole: old, new or none."""
    if not output.exists():
        return "none"
    assert sorted(path.name for path in output.iterdir()) == ["pad.json", "weights.bin"]
    return "old" if (output / "weights.bin").read_bytes() == b"old" else "new"


@pytest.mark.parametrize("can", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("there", ["none", "old"])
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_export(tmp_path: Path, point: str, there: str, can: bool) -> None:
    output = tmp_path / "bundle"
    if there == "old":
        write_old(output)
    killed = killed_export(output, point, can)
    assert killed or point in ("exchange", "first rename", "second rename")
    between = content(output)
    assert between in ({there, "new"} if killed else {"new"}) or (point == "second rename" and not can)
    with staged(tmp_path / "another") as folder:  # the next export in the folder
        (folder / "pad.json").write_text(OLD["pad.json"])
    assert content(output) == ("old" if (between, there) == ("none", "old") else between)
    assert sorted(path.name for path in tmp_path.iterdir()) == (
        ["another", "bundle"] if content(output) != "none" else ["another"]
    )


@pytest.mark.parametrize("can", [True, False], ids=["exchange", "two renames"])
def test_the_target_is_there_at_every_moment_of_an_exchange(tmp_path: Path, can: bool) -> None:
    """The two renames, which leave a gap, are the control."""
    write_old(tmp_path / "bundle")
    assert killed_export(tmp_path / "bundle", "in place" if can else "second rename", can)
    assert (tmp_path / "bundle").exists() == can


def test_clean_says_in_a_line_what_it_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_old(tmp_path / "b")
    assert killed_export(tmp_path / "elsewhere" / "a", "half", True)
    assert killed_export(tmp_path / "b", "second rename", False)
    (tmp_path / "elsewhere" / ".a.pad-export").rename(tmp_path / ".a.pad-export")
    (tmp_path / "elsewhere").rmdir()
    assert main(["--clean", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["removed what was left of a, b (0.0 MiB)", f"put back {tmp_path / 'b'}"]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert content(tmp_path / "b") == "old"
    assert main(["--clean", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"nothing was left in {tmp_path}\n"
    assert main(["--clean", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.endswith("no is no folder; expected one that bundles are in\n")


def test_a_live_export_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with staged(tmp_path / "bundle") as folder:
        (folder / "pad.json").write_text(OLD["pad.json"])
        before = snapshot(tmp_path)
        assert main(["--clean", str(tmp_path)]) == 0
        with (
            refused(OptionError, given="bundle is being written by another process", hint="wait for it"),
            staged(tmp_path / "bundle"),
        ):
            pass
        assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert "nothing was left" in capsys.readouterr().out


def test_what_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "new").mkdir(parents=True)
    (tmp_path / "elsewhere" / "new" / "notes.txt").write_text("mine")
    (tmp_path / ".link.pad-export").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".file.pad-export").write_text("mine")
    (tmp_path / ".notes.pad-export" / "new").mkdir(parents=True)
    (tmp_path / ".notes.pad-export" / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    assert staging.clean(tmp_path) == []
    for name in ("link", "notes"):
        words = f".{name}.pad-export holds files that are no export's"
        with refused(OptionError, given=words, hint="move it"), staged(tmp_path / name):
            pass
        (tmp_path / f".{name}.pad-export" / "lock").unlink()
    with refused(OptionError, given="file cannot be written", hint="another folder"), staged(tmp_path / "file"):
        pass
    assert snapshot(tmp_path) == before


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(lock):
        lock.unlink()
        with held(lock), pytest.raises(BlockingIOError), held(lock):  # another file by now
            pass


def test_files_that_came_meanwhile_are_kept(tmp_path: Path) -> None:
    write_old(tmp_path / "old")
    with refused(OptionError, given="old holds notes.txt", hint="move it away"), staged(tmp_path / "old") as folder:
        (folder / contract.MANIFEST_FILE).write_text(OLD["pad.json"])
        (tmp_path / "old" / "notes.txt").write_text("mine")
    (tmp_path / "old" / "notes.txt").unlink()
    assert content(tmp_path / "old") == "old"
    with refused(OptionError, given="new exists and is not a bundle", hint="remove"), staged(tmp_path / "new"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "notes.txt").write_text("mine")
    assert snapshot(tmp_path / "new").keys() == {"notes.txt"}
    shutil.rmtree(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("locks", ["none", "refused"])
def test_where_there_are_no_locks_an_export_goes_on_and_nothing_is_cleaned(
    tmp_path: Path, locks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, and network disks: what another process made may be alive."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if locks == "none":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with staged(tmp_path / "a") as folder:
        (folder / "file").touch()
        assert staging.clean(tmp_path) == []
        with staged(tmp_path / "b") as other:
            (other / "file").touch()
        assert (folder / "file").exists()
    assert (tmp_path / "a" / "file").exists()
    assert (tmp_path / "b").is_dir()
