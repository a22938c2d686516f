"""The files of a bundle, held open from its loading on: later reads give what was checked then, or are refused.

A file that is replaced or deleted afterwards keeps its content for a process that holds it open. A file that is written
to in place does not. That shows in its size or times, which are compared before and after each use.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pad_runtime.bundle.checked_json import HINT
from pad_runtime.bundle.file_info import FileInfo, hash_file, read_pieces, sample_file
from pad_runtime.errors import BundleError

_SMALL = 32 * 1024 * 1024  # bytes; files up to this size are hashed when they are opened, larger ones sampled


class HeldFile:
    """A file that is held open.

    Attributes:
        path: the file's path in the bundle.
        real: the same with all links followed, at the time of opening.
        info: the file's entry in the manifest.
    """

    def __init__(self, path: Path, info: FileInfo, *, whole: bool = False) -> None:
        """Open a file and check it.

        Args:
            path: absolute.
            info: the file's entry in the manifest.
            whole: hash a large file, too, instead of sampling it.

        Raises:
            BundleError: the file is missing, cannot be read, or differs from the manifest.
        """
        self.path, self.real, self.info = path, Path(os.path.realpath(path)), info
        try:
            if not path.is_file():  # opening a pipe would wait for a writer
                raise BundleError(f"{path} is missing", hint=HINT)
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, self._descriptor)
            before = os.fstat(self._descriptor)
            if before.st_size != info.size:
                raise BundleError(f"{path} has {before.st_size} bytes", expected=f"{info.size}", hint=HINT)
            if not self._is_whole(hashed=whole):
                raise BundleError(f"{path} was altered: its SHA-256 is not the manifest's", hint=HINT)
            after = os.fstat(self._descriptor)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}", hint=HINT) from None
        self._size, self._written, self._touched = after.st_size, after.st_mtime_ns, after.st_ctime_ns
        if (before.st_size, before.st_mtime_ns) != (self._size, self._written):
            raise self._changed()

    def read(self) -> bytes:
        """The whole content.

        Raises:
            BundleError: the file was changed since it was opened.
        """
        try:
            content = b"".join(read_pieces(self._descriptor, self.info.size))
        except OSError as error:
            raise BundleError(f"{self.path} cannot be read: {error.strerror}", hint=HINT) from None
        self.check()
        return content

    def map(self) -> mmap.mmap:
        """The whole content, mapped into memory for reading.

        Raises:
            OSError: the process has no address space left.
            BundleError: the file was changed since it was opened.
        """
        self.check()
        return mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)

    def check(self) -> None:
        """Check by size and times that the file was not changed since it was opened.

        Raises:
            BundleError: the file was written to, or cut.
        """
        try:
            now = os.fstat(self._descriptor)
        except OSError:  # a network disk that was disconnected
            raise self._changed() from None
        if now.st_ctime_ns != self._touched or now.st_mtime_ns != self._written or now.st_size != self._size:
            self._look_again(now)

    def check_path(self) -> None:
        """Check as `check` does, and that the file's path still leads to the file that is held open.

        Raises:
            BundleError: the file was replaced, deleted, written to or cut.
        """
        self.check()
        try:
            same = os.path.samestat(self.real.stat(), os.fstat(self._descriptor))
        except OSError:
            same = False
        if not same:
            raise BundleError(f"{self.path} was replaced or deleted after it was loaded", hint="load the bundle again")

    def _look_again(self, now: os.stat_result) -> None:
        """Accept a new time of change if the content is the same: renaming, linking and deleting set it, too."""
        if (now.st_size, now.st_mtime_ns) != (self._size, self._written) or not self._is_whole():
            raise self._changed()
        self._touched = now.st_ctime_ns

    def _is_whole(self, *, hashed: bool = False) -> bool:
        if hashed or self.info.size <= _SMALL:
            return hash_file(self._descriptor, self.info.size) == self.info.sha256
        return sample_file(self._descriptor, self.info.size) == self.info.samples

    def _changed(self) -> BundleError:
        return BundleError(f"{self.path} was changed after it was loaded", hint="load the bundle again")


class BundleFiles:
    """All files that a manifest lists, held open.

    Attributes:
        folder: the bundle's folder, with links followed.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileInfo], *, whole: bool = False) -> None:
        """Open and check them.

        Args:
            folder: the bundle; a relative path is resolved now.
            files: the manifest's entries, by file name.
            whole: hash large files, too, instead of sampling them.

        Raises:
            BundleError: a file is missing, cannot be read, or differs from the manifest.
        """
        self.folder = folder.resolve()
        self._files = {name: HeldFile(self.folder / name, info, whole=whole) for name, info in files.items()}

    def __getitem__(self, name: str) -> HeldFile:
        """The open file of a name.

        Raises:
            BundleError: the manifest does not list the name.
        """
        if name not in self._files:
            raise BundleError(f"{self.folder / name} is used and not listed in the manifest", hint=HINT)
        return self._files[name]


def watching(files: Sequence[HeldFile], run: Callable[..., Any]) -> Callable[..., object]:
    """Wrap `run`: each call checks before and after that none of `files` was changed since it was loaded.

    The wrapped call raises a BundleError where a file was changed; the outputs of that run must not be used.
    """
    checks = [file.check for file in files]
    if not checks:
        return run

    def watched(*arguments: Any) -> None:
        for check in checks:
            check()
        run(*arguments)
        for check in checks:
            check()

    return watched
