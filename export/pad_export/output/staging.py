"""A bundle folder that appears whole or not at all, whatever happens to the process that makes it.

Beside a bundle NAME, the folder `.NAME.pad-export` holds `new`, the bundle that is being made, and the lock of the
process that makes it. Where the system cannot exchange two folders in one step, it also holds `old`, the bundle that is
replaced, between two renames. If the process dies, the next export in the same parent folder puts `old` back if NAME is
missing, and removes the rest.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pad_export.output.disk import disk_errors, follow_umask
from pad_export.output.exchange import exchange
from pad_export.output.lock import LOCK_FILE, claimed, held
from pad_runtime.bundle import contract
from pad_runtime.errors import OptionError, OutOfMemoryError

_SUFFIX = ".pad-export"
_NEW, _OLD = "new", "old"


@dataclass(frozen=True)
class Leftover:
    """Leftovers of a dead export: its output path, the bytes removed, and whether an old bundle was put back."""

    output: Path
    num_bytes: int
    put_back: bool


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `output` if the block succeeds, and vanishes if it does not.

    Raises:
        OptionError: `output` cannot be written, is something that a bundle must not replace, or is being written by
            another process.
        CheckpointError: the disk is full or fails.
        OutOfMemoryError: a tensor does not fit in memory.
    """
    output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    with _workspace(output) as workspace:
        _check_replaceable(output)
        with _filled(workspace, output) as folder:
            yield folder
            _check_replaceable(output)
        _put_in_place(workspace, output)


@contextmanager
def changed(bundle: Path) -> Iterator[Path]:
    """A copy of a bundle, of hard links where the disk has them, that takes its place if the block succeeds.

    Replace files in it by new ones; never write into an existing file, which the bundle shares.

    Raises:
        As `staged`.
    """
    bundle = bundle.resolve()
    with _workspace(bundle) as workspace:
        with _filled(workspace, bundle) as folder:
            shutil.copytree(bundle, folder, symlinks=True, copy_function=_link, dirs_exist_ok=True)
            yield folder
        _put_in_place(workspace, bundle)


def clean(folder: Path) -> list[Leftover]:
    """Remove the leftovers of dead exports in a folder; those of living processes are not touched."""
    found = []
    for workspace in sorted(folder.glob(f".?*{_SUFFIX}")):
        output = workspace.with_name(workspace.name[1 : -len(_SUFFIX)])
        with suppress(OSError):  # a living process holds it, or it belongs to another user
            if not _is_ours(workspace):
                continue
            with held(workspace / LOCK_FILE):
                if _is_ours(workspace):
                    size = sum(path.lstat().st_size for path in workspace.rglob("*") if not path.is_dir())
                    found.append(Leftover(output, size, _empty(workspace, output)))
                    _remove(workspace)
    return found


def _is_ours(workspace: Path) -> bool:
    """Whether a workspace holds only files that an export makes."""
    if workspace.is_symlink() or not workspace.is_dir():
        return False
    names = {path.name for path in workspace.iterdir()} - {LOCK_FILE, _NEW, _OLD}
    return all(name.startswith(f".{_NEW}.") for name in names)  # a twin that verification made


@contextmanager
def _workspace(output: Path) -> Iterator[Path]:
    """A folder beside `output` in which only this process works; removed at the end."""
    clean(output.parent)
    workspace = output.with_name(f".{output.name}{_SUFFIX}")
    with claimed(workspace / LOCK_FILE, output):
        if not _is_ours(workspace):
            raise OptionError(f"{workspace} holds files that are no export's", hint="move it away")
        _empty(workspace, output)
        try:
            yield workspace
        finally:
            _empty(workspace, output)
            _remove(workspace)


@contextmanager
def _filled(workspace: Path, output: Path) -> Iterator[Path]:
    """The folder that will become `output`; at the end its files get the rights of the umask."""
    try:
        with disk_errors(output, hint="free some, or choose another"):
            folder = workspace / _NEW
            folder.mkdir()
            yield folder
            follow_umask(folder)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch's wording
            raise
        raise OutOfMemoryError("no memory for one of the model's tensors", hint="close other programs") from None


def _put_in_place(workspace: Path, output: Path) -> None:
    new = workspace / _NEW
    try:
        if not os.path.lexists(output):
            new.rename(output)
        elif not exchange(new, output):
            output.rename(workspace / _OLD)
            new.rename(output)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OptionError(f"-o {output} was made by something else meanwhile", hint="remove that one") from None
        raise OptionError(f"-o {output} cannot be replaced: {error.strerror}", hint="choose another path") from None


def _empty(workspace: Path, output: Path) -> bool:
    """Empty a workspace that is held, except for its lock; returns whether a missing `output` was put back."""
    put_back = (workspace / _OLD).exists() and not os.path.lexists(output)
    if put_back:
        (workspace / _OLD).rename(output)
    for path in workspace.iterdir():
        if path.is_symlink():
            path.unlink()  # the old output, a link, after the exchange
        elif path.name != LOCK_FILE:
            shutil.rmtree(path, ignore_errors=True)
    return put_back


def _remove(workspace: Path) -> None:
    """Remove an empty workspace that is held, unless another process has begun to use it."""
    with suppress(OSError):
        (workspace / LOCK_FILE).unlink()
        workspace.rmdir()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without hard links, or another user's file
        shutil.copy2(source, target)


def _check_replaceable(output: Path) -> None:
    """Refuse any output but an empty folder or a bundle without foreign files."""
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise OptionError(f"-o {output} exists and is not a folder", hint="choose another path, or remove that file")
    try:
        found = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
        own = _files_of_bundle(output)
    except OSError as error:
        raise OptionError(f"-o {output} cannot be read: {error.strerror}", hint="choose another folder") from None
    if found and not own:
        raise OptionError(f"-o {output} exists and is not a bundle", hint="choose another folder, or remove that one")
    foreign = sorted(found - own)
    if foreign:
        raise OptionError(
            f"-o {output} holds {foreign[0]}, which is no file of the bundle there",
            hint="move it away, or choose another folder",
        )


def _files_of_bundle(folder: Path) -> set[str]:
    """Names of the files that the manifest in a folder lists, with the manifest; empty without a manifest of ours."""
    path = folder / contract.MANIFEST_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError):
        return set()
    if not isinstance(data, dict) or data.get("format") != contract.FORMAT or not isinstance(data.get("files"), dict):
        return set()
    return {contract.MANIFEST_FILE, *data["files"]}
