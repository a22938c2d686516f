"""What a manifest says of a file, by which the file is known again: size, SHA-256, and SHA-256 of samples."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pad_runtime.checked_json import Count, Digest

_BLOCK, _SAMPLE = 2**15, 256  # bytes
_JUMP = 7919  # a prime: samples of neighbouring blocks lie at places that differ, whatever repeats in the file
_PIECE = 2**20  # bytes read at once


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
    for start in range(0, size, _PIECE):
        digest.update(os.pread(descriptor, min(_PIECE, size - start), start))
    return digest.hexdigest()


def sample_file(descriptor: int, size: int) -> str:
    """SHA-256 of 256 bytes of every 32 KiB of an open file, and of its last 256.

    64 KiB in a row hold a whole block of 32 KiB wherever they begin, and so a sample: one that was lost, and reads as
    zeros or as something else, is noticed, unless the sample was that before.
    """
    digest = hashlib.sha256()
    last = max(0, size - _SAMPLE)
    for block in range(size // _BLOCK):
        digest.update(os.pread(descriptor, _SAMPLE, block * _BLOCK + block * _JUMP % (_BLOCK - _SAMPLE)))
    digest.update(os.pread(descriptor, _SAMPLE, last))
    return digest.hexdigest()
