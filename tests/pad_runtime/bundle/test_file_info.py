"""What a file is known again by: a full hash, and samples that are cheap to take."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest

from pad_runtime.bundle import file_info
from pad_runtime.bundle.file_info import describe_file
from pad_runtime.bundle.held_file import HeldFile
from pad_runtime.errors import BundleError
from tests.support.error_checks import refused

SIZE, LOST = 3_000_001, 64 * 1024
NUM_DRAWS = 200


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large."""
    monkeypatch.setattr("pad_runtime.bundle.held_file._SMALL", 0)
    path = tmp_path / "weights.bin"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def num_noticed(path: Path, length: int, fill: bytes) -> int:
    """How many of 200 stretches of that length, anywhere, are noticed when they are lost."""
    info, content, noticed = describe_file(path), path.read_bytes(), 0
    for start in np.random.default_rng(1).integers(0, SIZE - length, NUM_DRAWS):
        path.write_bytes(content[:start] + (fill * length)[:length] + content[start + length :])
        try:
            HeldFile(path, info)
        except BundleError:
            noticed += 1
    path.write_bytes(content)
    HeldFile(path, info)
    return noticed


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"other"])
def test_every_lost_stretch_of_64_kib_is_noticed(path: Path, fill: bytes) -> None:
    assert num_noticed(path, LOST, fill) == NUM_DRAWS


def test_samples_with_gaps_of_more_miss_some(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: twice the distance, and a stretch may lie between two."""
    monkeypatch.setattr(file_info, "_EVERY", 2 * file_info._EVERY)
    assert 0 < num_noticed(path, LOST, b"\0") < NUM_DRAWS


def test_a_file_whose_end_was_never_written(path: Path) -> None:
    info, content = describe_file(path), path.read_bytes()
    for lost in (1, 300, LOST, SIZE // 2):
        path.write_bytes(content[:-lost] + bytes(lost))
        with refused(BundleError, given=f"{path} was altered", hint="copy it again"):
            HeldFile(path, info)
        path.write_bytes(content[:-lost])
        with refused(BundleError, given=f"{path} has {SIZE - lost} bytes", expected=str(SIZE), hint="copy it again"):
            HeldFile(path, info)


def test_a_disk_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the file was opened and found whole."""
    file = HeldFile(path, describe_file(path))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.pread", fail)
        with refused(BundleError, given=f"{path} cannot be read: Input/output error", hint="copy it again"):
            file.read()
        patch.setattr("os.fstat", fail)
        with refused(BundleError, given=f"{path} was changed after it was loaded", hint="load the bundle again"):
            file.check()
    file.check()


def test_one_byte_is_for_the_full_hash(path: Path) -> None:
    info, content = describe_file(path), bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    HeldFile(path, info)
    with refused(BundleError, given=f"{path} was altered", hint="copy it again"):
        HeldFile(path, info, whole=True)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_024, 65_025, 2**20 + 7])
def test_a_description(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(content)
    info = describe_file(tmp_path / "file")
    assert (info.size, info.sha256) == (size, hashlib.sha256(content).hexdigest())
    sampled = b"".join(content[start : start + 256] for start in range(0, size, 65_024))
    assert info.samples == hashlib.sha256(sampled + content[max(0, size - 256) :]).hexdigest()
    assert HeldFile(tmp_path / "file", info, whole=True).read() == content
    monkeypatch.delattr("os.pread", raising=False)  # as on Windows
    assert describe_file(tmp_path / "file") == info
    assert HeldFile(tmp_path / "file", info, whole=True).read() == content
