"""The header of a GGUF file: its metadata and its table of tensors, each number checked against the file's size.

The package gguf has a reader, too. It takes arrays apart element by element (14 s and 700 MB for Gemma's vocabulary),
and does not check the counts that it reads.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from pad_runtime.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4
_MAX_HEADER = 1 << 26  # bytes; the largest vocabularies, of 262,144 tokens and half a million merges, take a sixth
_SMALLEST_FIELD = 8 + 4 + 1  # length of the key, type, value
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # length of the name, dimensions, type, offset
_NUMBERS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True)
class GgufField:
    """A value of the metadata, decoded when asked for.

    Attributes:
        kind: type of the value, or of an array's elements.
        count: number of an array's elements, None for a number or string.
    """

    path: Path
    key: str
    kind: GGUFValueType
    count: int | None
    _data: bytes

    def contents(self) -> Any:
        """Return the number, the string, or the list of an array.

        Raises:
            CheckpointError: text that is not UTF-8.
        """
        if self.kind != GGUFValueType.STRING:
            numbers = np.frombuffer(self._data, np.dtype(_NUMBERS[self.kind]).newbyteorder("<")).tolist()
            return numbers[0] if self.count is None else numbers
        texts, at = [], 0
        for _ in range(1 if self.count is None else self.count):
            (length,) = struct.unpack_from("<Q", self._data, at)
            texts.append(self._data[at + 8 : at + 8 + length])
            at += 8 + length
        try:
            decoded = [text.decode() for text in texts]
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.path} has text in {self.key} that is not UTF-8 ({error.reason})",
                expected="a whole GGUF file",
                hint="download it again",
            ) from error
        return decoded[0] if self.count is None else decoded


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's place in the file, in bytes, and its type; `shape` is in Hugging Face order."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, and tensors by name; each tensor is whole in the file, and none overlaps another."""

    fields: dict[str, GgufField]
    tensors: dict[str, GgufTensor]

    def get_field(self, key: str) -> GgufField | None:
        """Return a value of the metadata, None if the file has none of that key."""
        return self.fields.get(key)


def read_header(path: Path) -> GgufHeader:
    """Read the part of a file before the tensors' data.

    Raises:
        CheckpointError: not a whole GGUF file of version 2 or 3 in little-endian byte order.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), min(size, _MAX_HEADER), access=mmap.ACCESS_READ) as data:
            return _Reader(path, data, size).header()
    except (_BrokenError, OSError, ValueError) as error:  # an empty file cannot be mapped
        raise CheckpointError(
            f"{path} is truncated or not a GGUF file ({error})", expected="a whole GGUF file", hint="download it again"
        ) from error


class _BrokenError(Exception):
    """A header is damaged; the message says what is wrong with it."""


class _Reader:
    """Reads a mapped header from its start, never beyond the mapping."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self._path, self._data, self._size = path, data, size
        self._at = 0

    def header(self) -> GgufHeader:
        if self._take(4) != _MAGIC:
            raise _BrokenError("it does not begin with GGUF")
        version = self._number(GGUFValueType.UINT32)
        if version & 0xFFFF == 0:
            raise CheckpointError(
                f"{self._path} is stored in the other byte order", hint="download the little-endian file"
            )
        if version not in _VERSIONS:
            raise _BrokenError(f"its version is {version}, expected 2 or 3")
        num_tensors = self._number(GGUFValueType.UINT64)
        num_fields = self._count(_SMALLEST_FIELD, "values")
        self._check_count(num_tensors, _SMALLEST_TENSOR, "tensors")
        fields: dict[str, GgufField] = {}
        for _ in range(num_fields):
            field = self._field()
            if field.key in fields:
                raise _BrokenError(f"it has {field.key} twice")
            fields[field.key] = field
        found = [self._tensor() for _ in range(num_tensors)]  # offsets count from where the data begin
        return GgufHeader(fields, self._place(found, _alignment(fields)))

    def _field(self) -> GgufField:
        key = self._text("a key")
        kind, count = self._kind(key), None
        if kind == GGUFValueType.ARRAY:
            kind = self._kind(key)
            if kind == GGUFValueType.ARRAY:
                raise _BrokenError(f"{key} is an array of arrays")
            count = self._count(struct.calcsize(_NUMBERS.get(kind, "Q")), f"elements of {key}")
        start = self._at
        if kind in _NUMBERS:
            self._skip(struct.calcsize(_NUMBERS[kind]) * (1 if count is None else count))
        else:
            for _ in range(1 if count is None else count):
                self._skip(self._number(GGUFValueType.UINT64))
        return GgufField(self._path, key, kind, count, self._data[start : self._at])

    def _tensor(self) -> GgufTensor:
        name = self._text("a tensor's name")
        num_dims = self._number(GGUFValueType.UINT32)
        if not 1 <= num_dims <= _MAX_DIMS:
            raise _BrokenError(f"{name} has {num_dims} dimensions")
        dims = [self._number(GGUFValueType.UINT64) for _ in range(num_dims)]
        number = self._number(GGUFValueType.UINT32)
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise _BrokenError(f"{name} is stored as type {number}, which the gguf package does not know") from error
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
        if 0 in dims or dims[0] % block_size:
            raise _BrokenError(f"{name} has the shape {dims} in blocks of {block_size}")
        offset = self._number(GGUFValueType.UINT64)
        return GgufTensor(name, kind, tuple(reversed(dims)), offset, math.prod(dims) // block_size * block_bytes)

    def _place(self, found: list[GgufTensor], alignment: int) -> dict[str, GgufTensor]:
        """Tensors by name, their offsets counted from the start of the file."""
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        end = 0
        for tensor in sorted(found, key=lambda tensor: tensor.offset):
            if tensor.name in tensors:
                raise _BrokenError(f"it has the tensor {tensor.name} twice")
            if tensor.offset % alignment or tensor.offset < end:
                raise _BrokenError(f"{tensor.name} lies over another tensor or off the alignment of {alignment}")
            end = tensor.offset + tensor.nbytes
            if start + end > self._size:
                raise _BrokenError(f"{tensor.name} ends at byte {start + end} of {self._size}")
            tensors[tensor.name] = GgufTensor(
                tensor.name, tensor.kind, tensor.shape, start + tensor.offset, tensor.nbytes
            )
        return tensors

    def _count(self, smallest: int, what: str) -> int:
        count = self._number(GGUFValueType.UINT64)
        self._check_count(count, smallest, what)
        return count

    def _check_count(self, count: int, smallest: int, what: str) -> None:
        if count * smallest > len(self._data) - self._at:
            raise _BrokenError(f"it counts {count} {what}, more than it has room for")

    def _kind(self, key: str) -> GGUFValueType:
        number = self._number(GGUFValueType.UINT32)
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise _BrokenError(f"{key} is of the unknown type {number}") from error

    def _text(self, what: str) -> str:
        text = self._take(self._number(GGUFValueType.UINT64))
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise _BrokenError(f"{what} is not UTF-8") from error

    def _number(self, kind: GGUFValueType) -> int:
        form = f"<{_NUMBERS[kind]}"
        start = self._at
        self._skip(struct.calcsize(form))
        number: int = struct.unpack_from(form, self._data, start)[0]
        return number

    def _take(self, size: int) -> bytes:
        start = self._at
        self._skip(size)
        return self._data[start : self._at]

    def _skip(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise _BrokenError(f"{size} bytes are wanted at byte {self._at} of {len(self._data)}")
        self._at += size


def _alignment(fields: dict[str, GgufField]) -> int:
    field = fields.get("general.alignment")
    if field is None:
        return _DEFAULT_ALIGNMENT
    alignment = field.contents()
    if field.kind != GGUFValueType.UINT32 or field.count is not None or alignment.bit_count() != 1:
        raise _BrokenError(f"general.alignment is {alignment!r}, expected a power of two")
    return int(alignment)
