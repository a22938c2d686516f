"""What a manifest says of a file, by which the file is known again: size, SHA-256, and SHA-256 of samples."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pad_runtime.bundle.checked_json import Count, Digest

_EVERY, _SAMPLE = 65_024, 256  # bytes; no power of two, so that samples of a matrix are not of one column
_PIECE = 2**20  # bytes read at once
_place = threading.Lock()


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes, SHA-256 of all of a file, and `sample_file` of it."""

    size: Count
    sha256: Digest
    samples: Digest


def describe_file(path: Path) -> FileInfo:
    """A file as it is now, read in pieces."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return FileInfo(size, hash_file(file.fileno(), size), sample_file(file.fileno(), size))


def hash_file(descriptor: int, size: int) -> str:
    """SHA-256 of an open file's first `size` bytes."""
    digest = hashlib.sha256()
    for piece in read_pieces(descriptor, size):
        digest.update(piece)
    return digest.hexdigest()


def read_pieces(descriptor: int, size: int) -> Iterator[bytes]:
    """An open file's first `size` bytes."""
    for start in range(0, size, _PIECE):
        yield _read_at(descriptor, min(_PIECE, size - start), start)


def sample_file(descriptor: int, size: int) -> str:
    """SHA-256 of 256 bytes at every 65,024th of an open file, and of its last 256.

    64 KiB in a row hold a whole sample, wherever they begin. So a stretch of that length that was lost, and reads as
    zeros or as something else, is noticed, unless the sample was that before.
    """
    digest = hashlib.sha256()
    for start in (*range(0, size, _EVERY), max(0, size - _SAMPLE)):
        digest.update(_read_at(descriptor, _SAMPLE, start))
    return digest.hexdigest()


def _read_at(descriptor: int, size: int, start: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    with _place:  # a file of Windows has one place, and threads may read it at once
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, size)
