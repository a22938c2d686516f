"""How many bytes of weights a graph has, and how many one step reads: told by the ONNX file, with no onnx package.

ONNX files are protocol buffers (https://protobuf.dev/programming-guides/encoding), of which this reads four messages:
ModelProto.graph, GraphProto.node and .initializer, NodeProto.input and .op_type, TensorProto.name and .external_data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pad_runtime.errors import BundleError

_LOOKUPS = {"Gather", "GatherBlockQuantized", "GroupQueryAttention"}  # read a row of their table, not all of it


@dataclass(frozen=True)
class GraphWeights:
    """Bytes of weights in a graph's external files; what two tensors share is counted once.

    Attributes:
        stored: all of them.
        read: those that a step reads whole: all but tables in which rows are looked up.
    """

    stored: int
    read: int

    @classmethod
    def of(cls, path: Path) -> GraphWeights:
        """Of one ONNX file.

        Raises:
            BundleError: it is not one.
        """
        try:
            graph = next(value for field, value in _fields(path.read_bytes()) if field == 7)
            nodes = [_fields_of(value) for field, value in _fields(graph) if field == 1]
            tensors = [_fields_of(value) for field, value in _fields(graph) if field == 5]
        except (OSError, ValueError, IndexError, StopIteration) as error:
            raise BundleError(f"{path} is not an ONNX file: {error}", hint="export it again") from None
        whole = {name for node in nodes if node[4][0].decode() not in _LOOKUPS for name in node.get(1, [])}
        stored: dict[tuple[bytes, bytes], int] = {}
        read: dict[tuple[bytes, bytes], int] = {}
        for tensor in tensors:
            entries = {pair[1][0]: pair[2][0] for pair in map(_fields_of, tensor.get(13, []))}
            if b"length" not in entries:
                continue  # a small constant inside the file
            place = entries[b"location"], entries.get(b"offset", b"0")
            stored[place] = int(entries[b"length"])
            if tensor[8][0] in whole:
                read[place] = stored[place]
        return cls(sum(stored.values()), sum(read.values()))


def _fields_of(message: bytes) -> dict[int, list[bytes]]:
    """The length-delimited fields of a message, by number."""
    fields: dict[int, list[bytes]] = {}
    for field, value in _fields(message):
        fields.setdefault(field, []).append(value)
    return fields


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message, in order; numbers are skipped."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(message, at)
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
    """A number and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
