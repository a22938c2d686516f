"""A disk that fills up: a mounted one where the tests may mount, and files that may not grow where they may not."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs whose free space is set with a file that fills the rest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def leave(self, num_bytes: int) -> None:
        """Fill all but so many bytes, in whole pages."""
        self._filler.unlink(missing_ok=True)
        disk = os.statvfs(self.folder)
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(disk.f_frsize, disk.f_bfree * disk.f_frsize - num_bytes))

    def names(self) -> list[str]:
        """What is on it, in the order of the alphabet."""
        return sorted(path.name for path in self.folder.iterdir() if path != self._filler)


@contextmanager
def mounted(folder: Path, *, size: str = "32m") -> Iterator[SmallDisk]:
    """Mount a tmpfs, or skip the test where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, check=False, capture_output=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.decode().strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file that this process writes grows beyond this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
