"""Changes that a disk, a download or a stranger makes to a file: bytes, JSON, the numbers of two formats' headers."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Change = Callable[[bytes, random.Random], bytes]

VALUES: tuple[Any, ...] = (
    None, "", [], {}, -1, 0, 1, 2**31, 2**63, 1e308, float("nan"), True, "nothing of that name", "\ud800", "../x", [[]],
    {"(a+)+$": 4, "([a-z]+.)*x": 2},  # patterns that take for ever where they do not match
)  # fmt: skip
NUMBERS = (0, 1, 2**7, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def one_byte(data: bytes, rng: random.Random) -> bytes:
    """Another byte in one place."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """The beginning alone."""
    return data[: rng.randrange(len(data))]


def zeros(data: bytes, rng: random.Random) -> bytes:
    """A stretch that reads as zeros, which it was not."""
    while True:
        at = rng.randrange(len(data))
        length = min(rng.randrange(1, 4096), len(data) - at)
        if any(data[at : at + length]):
            return data[:at] + bytes(length) + data[at + length :]


def zero_blocks(data: bytes, rng: random.Random) -> bytes:
    """64 KiB that read as zeros, which they were not."""
    while True:
        at = rng.randrange(max(1, len(data) - 2**16))
        if any(data[at : at + 2**16 : 1021]):
            return data[:at] + bytes(len(data[at : at + 2**16])) + data[at + 2**16 :]


def hostile_template(_: bytes, rng: random.Random) -> bytes:
    """A chat template that does not end, or fills the memory, unless something stops it."""
    return rng.choice(
        (
            b"{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}"
            b"{% endfor %}{% endfor %}",
            b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            b"{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            b"{{ 'x' * 99999999999 }}",
            b"{{ 9 ** 9 ** 9 }}",
            b"{{ messages[0].content.__class__.__mro__ }}",
            b"{{ raise_exception('no') }}",
            b"{% include 'x' %}",
            b"{{ '%99999999999d' % 1 }}",
            b"{{ messages * 99999999 }}",
        )
    )


BYTES: dict[str, Change] = {"one byte": one_byte, "cut": cut, "zeros": zeros}


@dataclass(frozen=True)
class Edit:
    """A place in a JSON document, as keys and indices from its root, and what to do there."""

    path: tuple[str | int, ...]
    action: str  # "put", "remove" or "add"
    value: Any = None

    def __str__(self) -> str:
        return f"{self.action} {'.'.join(map(str, self.path))} {self.value!r}"

    def apply(self, document: Any) -> Any:
        """The document with this edit; the one that is given is not changed."""
        if not self.path:
            return self.value
        document = copy.deepcopy(document)
        parent = document
        for key in self.path[:-1]:
            parent = parent[key]
        if self.action == "remove":
            del parent[self.path[-1]]
        else:
            parent[self.path[-1]] = self.value
        return document


def edits(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[Edit]:
    """Every value of a document in place of every node, every node removed, an unknown name in every object."""
    for value in VALUES:
        yield Edit(path, "put", value)
    if path:
        yield Edit(path, "remove")
    if isinstance(document, dict):
        yield Edit((*path, "unknown"), "add", 1)
        for key, value in document.items():
            yield from edits(value, (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document[:3]):  # the rest are their like
            yield from edits(value, (*path, index))


def read_safetensors(data: bytes) -> Any:
    """The header of a safetensors file."""
    (size,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + size])


def put_safetensors(data: bytes, header: Any) -> bytes:
    """The file with another header, whose length is told as it is."""
    (size,) = struct.unpack_from("<Q", data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def other_length(data: bytes, rng: random.Random) -> bytes:
    """Another length of a safetensors header."""
    return struct.pack("<Q", rng.choice(NUMBERS)) + data[8:]


@dataclass(frozen=True)
class Field:
    """A number or the bytes of a text in a GGUF header."""

    what: str
    at: int
    size: int


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # GGUF's value types of a fixed size
_STRING, _ARRAY = 8, 9


class GgufLayout:
    """Where every number and text of a GGUF header stands, by its published layout."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 4
        self.fields: list[Field] = []
        self._number("version", 4)
        num_tensors, num_values = self._number("tensor count", 8), self._number("metadata count", 8)
        for _ in range(num_values):
            self._text("key")
            self._value(self._number("value type", 4))
        for _ in range(num_tensors):
            self._text("tensor name")
            for _ in range(self._number("number of dimensions", 4)):
                self._number("dimension", 8)
            self._number("tensor type", 4)
            self._number("tensor offset", 8)
        self.size = self._at

    def _number(self, what: str, size: int) -> int:
        self.fields.append(Field(what, self._at, size))
        self._at += size
        return int.from_bytes(self._data[self._at - size : self._at], "little")

    def _text(self, what: str) -> None:
        length = self._number(f"length of {what}", 8)
        if length:
            self.fields.append(Field(what, self._at, length))
        self._at += length

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._text("text")
        elif kind == _ARRAY:
            item, count = self._number("array type", 4), self._number("array count", 8)
            before = len(self.fields)
            for _ in range(count):
                self._value(item)
            del self.fields[before + 6 :]  # the rest are their like
        else:
            self._number("value", _SIZES[kind])


def other_field(data: bytes, rng: random.Random) -> bytes:
    """Another number, or bytes that are no text, in a GGUF header."""
    fields = GgufLayout(data).fields
    kind = rng.choice(sorted({field.what for field in fields}))
    field = rng.choice([field for field in fields if field.what == kind])
    if field.size in (1, 2, 4, 8) and kind not in ("key", "text", "tensor name"):
        old = int.from_bytes(data[field.at : field.at + field.size], "little")
        new = rng.choice((*NUMBERS, old + 1, old - 1, rng.getrandbits(64))) % 2 ** (8 * field.size)
        text: bytes = new.to_bytes(field.size, "little")
    else:
        text = rng.choice((b"\xff" * field.size, bytes(field.size), rng.randbytes(field.size)))
    return data[: field.at] + text + data[field.at + field.size :]
