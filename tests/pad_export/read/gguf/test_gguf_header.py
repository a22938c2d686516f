"""Headers that no writer makes: every count, length, dimension and offset is held against the file before it is used.

`Header` writes them by hand, so that each can be wrong on its own; a valid one comes first.
"""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from gguf import GGUFReader

from pad_export.read.gguf.header import read_header
from pad_runtime.errors import CheckpointError
from tests.support.error_checks import refused

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
HUGE = (2**31, 2**32, 2**61, 2**63, 2**64 - 1)


def string(text: str | bytes, *, length: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def array(kind: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, count) + data


def number(value: int) -> bytes:
    return struct.pack("<II", U32, value)


def tensor(name: str | bytes, *, dims: tuple[int, ...] = (4, 2), kind: int = 0, offset: int = 0, **given: int) -> bytes:
    """Name, dimensions, type and offset; `given` may hold another num_dims."""
    head = string(name) + struct.pack("<I", given.get("num_dims", len(dims)))
    return head + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


@dataclass
class Header:
    """The parts of a file, each to be replaced by one that is wrong."""

    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None
    num_fields: int | None = None
    fields: list[tuple[str | bytes, bytes]] = field(
        default_factory=lambda: [
            ("general.architecture", struct.pack("<I", STRING) + string("llama")),
            ("llama.block_count", number(1)),
            ("tokens", array(STRING, 2, string("a") + string("b"))),
            ("scores", array(F32, 3, struct.pack("<3f", 1.0, 2.0, 3.0))),
            ("flag", struct.pack("<IB", BOOL, 1)),
        ]
    )
    tensors: list[bytes] = field(default_factory=lambda: [tensor("one"), tensor("two", offset=32, dims=(8,))])
    data: int = 64

    def write(self, path: Path, alignment: int = 32) -> Path:
        counts = (
            len(self.tensors) if self.num_tensors is None else self.num_tensors,
            len(self.fields) if self.num_fields is None else self.num_fields,
        )
        head = self.magic + struct.pack("<IQQ", self.version, *counts)
        head += b"".join(string(key) + value for key, value in self.fields) + b"".join(self.tensors)
        head += bytes(-len(head) % alignment)
        path.write_bytes(head + bytes(self.data))
        return path


def test_a_valid_header_is_read_as_gguf_reads_it(tmp_path: Path) -> None:
    for version in (2, 3):
        path = Header(version=version).write(tmp_path / "valid.gguf")
        ours, theirs = read_header(path), GGUFReader(path)
        assert {key: value.contents() for key, value in ours.fields.items()} == {
            key: value.contents() for key, value in theirs.fields.items() if not key.startswith("GGUF.")
        }
        assert [(t.name, t.kind, list(reversed(t.shape)), t.offset, t.nbytes) for t in ours.tensors.values()] == [
            (t.name, t.tensor_type, t.shape.tolist(), t.data_offset, t.n_bytes) for t in theirs.tensors
        ]


def with_field(value: bytes, key: str | bytes = "odd") -> Callable[[Header], None]:
    return lambda header: header.fields.append((key, value))


def with_tensor(*tensors: bytes) -> Callable[[Header], None]:
    return lambda header: setattr(header, "tensors", list(tensors))


def setting(name: str, value: object) -> Callable[[Header], None]:
    return lambda header: setattr(header, name, value)


COUNTS = {
    "values": lambda count: setting("num_fields", count),
    "tensors": lambda count: setting("num_tensors", count),
    "strings of an array": lambda count: with_field(array(STRING, count, string("a"))),
    "numbers of an array": lambda count: with_field(array(U8, count, b"abc")),
    "wide numbers of an array": lambda count: with_field(array(U64, count, bytes(16))),
    "bytes of a string": lambda count: with_field(struct.pack("<I", STRING) + string("abc", length=count)),
    "bytes of a key": lambda count: (
        lambda header: header.fields.append((b"", struct.pack("<Q", count) + b"key" + number(1)))
    ),
    "bytes of an array's string": lambda count: with_field(array(STRING, 2, string("a") + string("b", length=count))),
    "a tensor's width": lambda count: with_tensor(tensor("one", dims=(count, 1))),
    "a tensor's rows": lambda count: with_tensor(tensor("one", dims=(4, count))),
    "a product of dimensions": lambda count: with_tensor(tensor("one", dims=(2**32, count, 2**32, 2**32))),
    "a tensor's offset": lambda count: with_tensor(tensor("one", offset=count // 32 * 32)),
}


@pytest.mark.parametrize("what", COUNTS)
@pytest.mark.parametrize("count", HUGE)
def test_a_huge_count_is_refused_before_anything_is_sized_by_it(what: str, count: int, tmp_path: Path) -> None:
    header = Header()
    COUNTS[what](count)(header)
    path = header.write(tmp_path / "bad.gguf")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with refused(CheckpointError, given="truncated or not a GGUF file", expected="a whole GGUF file", hint="download"):
        read_header(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


BROKEN: dict[str, tuple[Callable[[Header], None], str]] = {
    "magic": (setting("magic", b"GGML"), "does not begin with GGUF"),
    "version 1": (setting("version", 1), "version is 1"),
    "version 4": (setting("version", 4), "version is 4"),
    "a key twice": (with_field(number(1), "flag"), "flag twice"),
    "a tensor twice": (with_tensor(tensor("one"), tensor("one", offset=32)), "the tensor one twice"),
    "tensors over each other": (with_tensor(tensor("one", dims=(16,)), tensor("two", offset=32)), "two lies over"),
    "off the alignment": (with_tensor(tensor("one", offset=4)), "alignment of 32"),
    "beyond the end": (with_tensor(tensor("one", offset=64)), "one ends at byte"),
    "no dimensions": (with_tensor(tensor("one", dims=())), "0 dimensions"),
    "many dimensions": (with_tensor(tensor("one", num_dims=2**31)), "2147483648 dimensions"),
    "an empty dimension": (with_tensor(tensor("one", dims=(4, 0))), "shape"),
    "half a block": (with_tensor(tensor("one", dims=(33,), kind=8)), "blocks of 32"),
    "an unknown tensor type": (with_tensor(tensor("one", kind=4711)), "type 4711"),
    "an unknown value type": (with_field(struct.pack("<I", 99)), "unknown type 99"),
    "an unknown element type": (with_field(array(99, 1, b"")), "unknown type 99"),
    "an array of arrays": (with_field(array(ARRAY, 1, array(U8, 1, b"a"))), "array of arrays"),
    "a key that is no text": (with_field(number(1), b"\xff\xfe"), "not UTF-8"),
    "a name that is no text": (with_tensor(tensor(b"\xff")), "not UTF-8"),
    "alignment 0": (with_field(number(0), "general.alignment"), "general.alignment is 0"),
    "alignment 24": (with_field(number(24), "general.alignment"), "general.alignment is 24"),
    "alignment of another type": (with_field(struct.pack("<IB", BOOL, 1), "general.alignment"), "general.alignment"),
    "alignment as a string": (
        with_field(struct.pack("<I", STRING) + string("32"), "general.alignment"),
        "general.alignment",
    ),
    "alignment as an array": (with_field(array(U32, 2, bytes(8)), "general.alignment"), "general.alignment"),
    "huge alignment": (with_field(number(2**31), "general.alignment"), "ends at byte"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_header_that_cannot_be_is_refused_by_what_is_wrong(what: str, tmp_path: Path) -> None:
    change, words = BROKEN[what]
    header = Header()
    change(header)
    with refused(CheckpointError, given=words, expected="a whole GGUF file", hint="download it again"):
        read_header(header.write(tmp_path / "bad.gguf"))


def test_text_that_is_not_utf8_is_named_when_it_is_read(tmp_path: Path) -> None:
    header = Header()
    header.fields.append(("chat", struct.pack("<I", STRING) + string(b"\xff\xfe")))
    header.fields.append(("list", array(STRING, 2, string("a") + string(b"\x80"))))
    fields = read_header(header.write(tmp_path / "bad.gguf")).fields
    for key in ("chat", "list"):
        with refused(CheckpointError, given=f"text in {key} that is not UTF-8"):
            fields[key].contents()


def test_the_other_byte_order_is_named(tmp_path: Path) -> None:
    path = Header(version=3 << 24).write(tmp_path / "big.gguf")
    with refused(CheckpointError, given="the other byte order", hint="little-endian"):
        read_header(path)


def test_every_cut_of_a_header_is_refused(tmp_path: Path) -> None:
    whole = Header().write(tmp_path / "whole.gguf").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with refused(CheckpointError, given="truncated or not a GGUF file"):
            read_header(tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_bytes(whole)
    assert read_header(tmp_path / "cut.gguf").tensors.keys() == {"one", "two"}


def test_a_sparse_file_of_a_terabyte_has_no_room_for_more(tmp_path: Path) -> None:
    """A count that the length of the file would allow. In another process, whose memory is seen to stay."""
    for what in ("strings of an array", "wide numbers of an array", "values", "tensors", "bytes of a string"):
        header = Header()
        COUNTS[what](2**31)(header)
        path = header.write(tmp_path / "sparse.gguf")
        with path.open("r+b") as file:
            file.truncate(2**40)
        code = """if True:
            import resource, sys
            from pathlib import Path
            from pad_export.read.gguf.header import read_header
            from pad_runtime.errors import CheckpointError
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                read_header(Path(sys.argv[1]))
            except CheckpointError as error:
                print(error)
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
        """
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120, check=True
        )
        assert "more than it has room for" in done.stdout or "bytes are wanted" in done.stdout
        assert len(done.stdout.splitlines()) == 1
