"""An ONNX file's nodes and the places of its weights, read without the onnx package.

ONNX files are protocol buffers (https://protobuf.dev/programming-guides/encoding), of which this reads four messages:
ModelProto.graph, GraphProto.node and .initializer, NodeProto.input and .op_type, and of TensorProto its name, type,
shape and .external_data (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pad_runtime.errors import BundleError

_MOST_BITS = 63  # of a number


@dataclass(frozen=True)
class Node:
    """An operator of a graph.

    Attributes:
        op_type: the operator's name.
        inputs: names of values; "" for an optional input that is left out.
    """

    op_type: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class ExternalTensor:
    """A weight that is stored in another file.

    Attributes:
        name: the name that nodes use.
        element_type: ONNX's number of the element type.
        shape: in elements.
        file: name of that file, beside the ONNX file.
        offset, length: the weight's bytes in that file.
    """

    name: str
    element_type: int
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class OnnxFile:
    """Nodes and weights of an ONNX file's graph, without the constants inside the file."""

    nodes: tuple[Node, ...]
    tensors: tuple[ExternalTensor, ...]

    @classmethod
    def read(cls, path: Path) -> OnnxFile:
        """Read an ONNX file.

        Raises:
            BundleError: the file is missing, or is no ONNX file.
        """
        try:
            return cls.parse(path.read_bytes(), path)
        except OSError as error:
            raise BundleError(f"{path} is not an ONNX file: {error}", hint="export it again") from None

    @classmethod
    def parse(cls, content: bytes, path: Path) -> OnnxFile:
        """Parse the content of an ONNX file; `path` is for errors.

        Raises:
            BundleError: the content is no ONNX file.
        """
        try:
            parts = _Message(content).parts.get(7)
            if not parts:
                raise ValueError("it has no graph")
            graph = _Message(parts[0])
            nodes = [_Message(part).parts for part in graph.parts.get(1, [])]
            tensors = [_tensor(_Message(part)) for part in graph.parts.get(5, [])]
            return cls(
                tuple(Node(node[4][0].decode(), tuple(name.decode() for name in node.get(1, []))) for node in nodes),
                tuple(tensor for tensor in tensors if tensor),
            )
        except LookupError:
            raise BundleError(f"{path} is not an ONNX file: a field is missing", hint="export it again") from None
        except ValueError as error:
            raise BundleError(f"{path} is not an ONNX file: {error}", hint="export it again") from None


def _tensor(message: _Message) -> ExternalTensor | None:
    entries = {entry[1][0]: entry[2][0] for entry in (_Message(part).parts for part in message.parts.get(13, []))}
    if b"length" not in entries:
        return None  # a small constant inside the file
    return ExternalTensor(
        name=message.parts[8][0].decode(),
        element_type=message.numbers.get(2, [0])[0],
        shape=tuple(message.numbers.get(1) or _unpack(message.parts.get(1, []))),
        file=entries[b"location"].decode(),
        offset=int(entries.get(b"offset", b"0")),
        length=int(entries[b"length"]),
    )


def _unpack(parts: list[bytes]) -> Iterator[int]:
    """Numbers of a repeated field, packed as proto3 packs them."""
    for part in parts:
        at = 0
        while at < len(part):
            number, at = _varint(part, at)
            yield number


class _Message:
    """The fields of a message: lists of values by field number.

    Attributes:
        parts: texts, bytes and messages.
        numbers: integers that are not packed.
    """

    def __init__(self, content: bytes) -> None:
        self.parts: dict[int, list[bytes]] = {}
        self.numbers: dict[int, list[int]] = {}
        for field, value in _fields(content):
            if isinstance(value, int):
                self.numbers.setdefault(field, []).append(value)
            else:
                self.parts.setdefault(field, []).append(value)


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(message, at)
            yield key >> 3, number
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("it ends early")
            yield key >> 3, message[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {kind}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > _MOST_BITS:
            raise ValueError("a number does not end")


# -- the same model over another file -------------------------------------------------------------------------------

_TO_EXTERNAL_DATA = (7, 5, 13)  # ModelProto.graph, GraphProto.initializer, TensorProto.external_data


def rename_file(content: bytes, old: str, new: str) -> bytes:
    """The content of a model with the weight file `old` renamed to `new`."""
    if old == new:
        return content
    return _replace(content, _TO_EXTERNAL_DATA, _location(old), _location(new))


def _location(file: str) -> bytes:
    """StringStringEntryProto: key "location", and the file as its value."""
    value = file.encode()
    return b"\x0a\x08location\x12" + _encode(len(value)) + value


def _replace(message: bytes, way: tuple[int, ...], old: bytes, new: bytes) -> bytes:
    """A message with `new` in place of `old` in the fields that a way of field numbers leads to."""
    if not way:
        return new if message == old else message
    parts, at = [], 0
    while at < len(message):
        key, start = _varint(message, at)
        end = _end_of_value(message, start, key & 7)
        if key == way[0] << 3 | 2:
            _, start = _varint(message, start)
            part = _replace(message[start:end], way[1:], old, new)
            parts.append(_encode(key) + _encode(len(part)) + part)
        else:
            parts.append(message[at:end])
        at = end
    return b"".join(parts)


def _end_of_value(message: bytes, at: int, kind: int) -> int:
    if kind == 0:
        return _varint(message, at)[1]
    if kind == 2:
        length, at = _varint(message, at)
        return at + length
    return at + (8 if kind == 1 else 4)


def _encode(number: int) -> bytes:
    parts = bytearray()
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
