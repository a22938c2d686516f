"""How a manifest identifies a file: size, SHA-256, and SHA-256 of samples."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pad_runtime.bundle.checked_json import Count, Digest

_EVERY, _SAMPLE = 65_024, 256  # bytes; no power of two, so that the samples of a matrix are not all from one column
_PIECE = 2**20  # bytes read at once
_place = threading.Lock()


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes, SHA-256 of the whole file, and its `sample_file`."""

    size: Count
    sha256: Digest
    samples: Digest


def describe_file(path: Path) -> FileInfo:
    """Describe a file, reading it in pieces."""
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

    Any 64 KiB of the file contain a whole sample. So a lost stretch of that length, which reads as zeros or as other
    bytes, changes the hash, unless the sample had those bytes before.
    """
    digest = hashlib.sha256()
    for start in (*range(0, size, _EVERY), max(0, size - _SAMPLE)):
        digest.update(_read_at(descriptor, _SAMPLE, start))
    return digest.hexdigest()


def _read_at(descriptor: int, size: int, start: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    with _place:  # on Windows threads share the descriptor's position
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, size)
