"""The files of a bundle, open from the moment it is loaded: what is read later is what was checked then, or refused.

A file that is replaced or deleted afterwards stays what it was for whoever holds it open. One that is written to in
place does not: its size or one of its times changes, and that is looked at before and after it is used.
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
        path: as the bundle names it.
        real: without links, as it was when it was opened.
        info: what the manifest says of it.
    """

    def __init__(self, path: Path, info: FileInfo, *, whole: bool = False) -> None:
        """Open a file and check it.

        Args:
            path: absolute.
            info: what the manifest says of it.
            whole: hash it however large it is.

        Raises:
            BundleError: it is missing, cannot be read, or is not what the manifest says.
        """
        self.path, self.real, self.info = path, Path(os.path.realpath(path)), info
        try:
            if not path.is_file():  # to open a pipe would wait for a writer
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
        """All of it.

        Raises:
            BundleError: it is not what the manifest says any more.
        """
        try:
            content = b"".join(read_pieces(self._descriptor, self.info.size))
        except OSError as error:
            raise BundleError(f"{self.path} cannot be read: {error.strerror}", hint=HINT) from None
        self.check()
        return content

    def map(self) -> mmap.mmap:
        """All of it, mapped to be read.

        Raises:
            OSError: there is no room in the process.
            BundleError: it is not what the manifest says any more.
        """
        self.check()
        return mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)

    def check(self) -> None:
        """Whether it is still what it was when it was opened: a look at its size and times.

        Raises:
            BundleError: it was written to, or cut.
        """
        try:
            now = os.fstat(self._descriptor)
        except OSError:  # another machine's disk that is gone
            raise self._changed() from None
        if now.st_ctime_ns != self._touched or now.st_mtime_ns != self._written or now.st_size != self._size:
            self._look_again(now)

    def check_path(self) -> None:
        """`check`, and whether who opens it by its name gets the same file.

        Raises:
            BundleError: it was replaced, deleted, written to or cut.
        """
        self.check()
        try:
            same = os.path.samestat(self.real.stat(), os.fstat(self._descriptor))
        except OSError:
            same = False
        if not same:
            raise BundleError(f"{self.path} was replaced or deleted after it was loaded", hint="load the bundle again")

    def _look_again(self, now: os.stat_result) -> None:
        """A file that was renamed, linked or deleted has another time of change, and the same content."""
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
        folder: the bundle's, without links.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileInfo], *, whole: bool = False) -> None:
        """Open and check them.

        Args:
            folder: the bundle; a relative path is of now.
            files: by name, as the manifest lists them.
            whole: hash the large ones too.

        Raises:
            BundleError: one is missing, cannot be read, or is not what the manifest says.
        """
        self.folder = folder.resolve()
        self._files = {name: HeldFile(self.folder / name, info, whole=whole) for name, info in files.items()}

    def __getitem__(self, name: str) -> HeldFile:
        """A file by its name.

        Raises:
            BundleError: the manifest does not list it.
        """
        if name not in self._files:
            raise BundleError(f"{self.folder / name} is used and not listed in the manifest", hint=HINT)
        return self._files[name]


def watching(files: Sequence[HeldFile], run: Callable[..., Any]) -> Callable[..., object]:
    """`run`, which fails where a file that it reads is not what was loaded, before it reads and after.

    Raises:
        BundleError: when it is called; what it wrote counts for nothing then.
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
