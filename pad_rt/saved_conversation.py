"""A saved conversation: one safetensors file, with its messages as JSON and what it had in the KV cache as tensors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pad_rt.config import GenerationConfig, make_config
from pad_rt.history import History
from pad_rt.preference import Preference, PreferenceLike, normalize_preferences
from pad_runtime.bundle.checked_json import Count, parse
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.bundle.whole_file import write_whole
from pad_runtime.decode.saved_slot import SavedSlot
from pad_runtime.errors import BundleError, ConversationError
from pad_runtime.rows.row import Row

_FORMAT, _VERSION = "pad-rt-conversation", "1"
_DIGEST = "sha256"  # of all the other fields, and of the tensors
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # NumPy's names -> the format's
_HINT = "save the conversation again, or copy the file again"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SavedConversation:
    """What a conversation is made of again.

    Attributes:
        history: its messages.
        forgotten: turns that had left.
        preference, config: of its next turn.
        cache: its tokens and their KV cache; None where the engine had it no more.
    """

    history: History
    forgotten: int
    preference: PreferenceLike
    config: GenerationConfig
    cache: SavedSlot | None

    def write(self, path: Path, manifest: Manifest) -> None:
        """Write it whole or not at all; a file that is there is replaced.

        Raises:
            ConversationError: the disk is full, or does not take the file.
        """
        tensors = dict(self.cache.caches) if self.cache else {}
        fields = {
            "format": _FORMAT,
            "format_version": _VERSION,
            "bundle": manifest.digest,
            "base": manifest.base,
            "messages": json.dumps(self.history.messages),
            "forgotten": json.dumps(self.forgotten),
            "preferences": json.dumps(
                [{**dataclasses.asdict(wish), "scale": scale} for wish, scale in normalize_preferences(self.preference)]
            ),
            "config": json.dumps(dataclasses.asdict(self.config)),
            "cache": json.dumps(self.cache and dataclasses.asdict(_Cached.of(self.cache))),
        }
        fields[_DIGEST] = _digest(fields, tensors)
        try:
            if path.is_dir():
                raise IsADirectoryError("it is a folder")
            write_whole(path, _to_safetensors(fields, tensors))
        except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
            reason = getattr(error, "strerror", None) or error
            raise ConversationError(f"{path} cannot be written: {reason}", hint="choose another file") from None

    @classmethod
    def read(cls, path: Path, manifest: Manifest) -> SavedConversation:
        """Read a file that `write` wrote.

        Raises:
            ConversationError: there is none, it is truncated or altered, or it is of another bundle.
            PreferenceError, OptionError: a preference or an option that this version has not.
        """
        fields, tensors = _read(path)
        if fields.get("bundle") != manifest.digest:
            raise ConversationError(
                f"{path} is a conversation with another bundle, of {fields.get('base')}",
                expected=f"one with this bundle, of {manifest.base}",
                hint="load the bundle that it was saved with",
            )
        try:
            messages, forgotten, wishes, cached = (
                parse(json.loads(fields[name]), kind, name)
                for name, kind in (
                    ("messages", list[_Message]),
                    ("forgotten", Count),
                    ("preferences", list[_Wish]),
                    ("cache", _Cached | None),
                )
            )
            history = _read_history(messages)
            config = make_config(json.loads(fields["config"]))
        except (BundleError, ValueError, RecursionError, KeyError) as error:
            raise ConversationError(f"{path} is no conversation: {error}", hint=_HINT) from None
        return cls(
            history=history,
            forgotten=forgotten,
            preference=_read_preference(wishes),
            config=config,
            cache=cached and cached.with_tensors(tensors),
        )


# -- the fields -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class _Wish:
    text: str | None
    weights: dict[str, float]
    scale: float


@dataclass(frozen=True)
class _Cached:
    """A saved slot without its arrays."""

    rows: list[Row]
    ids: list[list[int]]
    cached: list[int]

    @classmethod
    def of(cls, slot: SavedSlot) -> _Cached:
        return cls(list(slot.rows), [list(ids) for ids in slot.ids], list(slot.cached))

    def with_tensors(self, tensors: Mapping[str, Array]) -> SavedSlot:
        return SavedSlot(tuple(self.rows), tuple(map(tuple, self.ids)), tuple(self.cached), tensors)


def _read_history(messages: list[_Message]) -> History:
    """The history of a system message, if there is one, and turns.

    Raises:
        ValueError: they do not alternate.
    """
    system = messages[0].content if messages and messages[0].role == "system" else None
    rest = messages if system is None else messages[1:]
    if [message.role for message in rest] != ["user", "assistant"] * (len(rest) // 2):
        raise ValueError("its messages are not turns of user and assistant")
    contents = [message.content for message in rest]
    return History(system, tuple(zip(contents[::2], contents[1::2], strict=True)))


def _read_preference(wishes: list[_Wish]) -> PreferenceLike:
    pairs = [(Preference(wish.text, wish.weights), wish.scale) for wish in wishes]
    if len(pairs) == 1 and pairs[0][1] == 1.0:
        return pairs[0][0]
    return pairs or None


# -- the file -------------------------------------------------------------------------------------------------------


def _to_safetensors(fields: Mapping[str, str], tensors: Mapping[str, Array]) -> bytes:
    """The format's bytes: length of the header as 8 bytes, the header as JSON, the tensors.

    By hand, because the library's NumPy side has no bfloat16 and copies once more.
    """
    header: dict[str, Any] = {"__metadata__": dict(fields)}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return b"".join((len(text).to_bytes(8, "little"), text, *map(_bytes, tensors.values())))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    """Fields and tensors of a file whose digest is right."""
    from safetensors import SafetensorError, deserialize

    try:
        if not path.is_file():
            raise ConversationError(
                f"no saved conversation at {path}", expected="a file that a conversation's save wrote"
            )
        content = path.read_bytes()
    except OSError as error:
        raise ConversationError(f"{path} cannot be read: {error.strerror or error}", hint=_HINT) from None
    parse_tensors: Callable[[bytes], list[tuple[str, Any]]] = deserialize
    try:
        stored = dict(parse_tensors(content))
    except SafetensorError as error:
        raise ConversationError(f"{path} is no saved conversation, or not all of it: {error}", hint=_HINT) from None
    size = int.from_bytes(content[:8], "little")
    fields: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    del content
    if (fields.get("format"), fields.get("format_version")) != (_FORMAT, _VERSION):
        version = fields.get("format_version", "none") if fields.get("format") == _FORMAT else "none"
        raise ConversationError(
            f"{path} is no saved conversation of version {_VERSION}",
            expected="a file that this version's save wrote",
            hint=f"its version is {version[:20]}",
        )
    types = {kind: name for name, kind in _TYPES.items()}
    try:
        tensors = {
            name: np.frombuffer(tensor["data"], np.dtype(types[tensor["dtype"]])).reshape(tensor["shape"])
            for name, tensor in stored.items()
        }
    except (KeyError, TypeError):  # another type; bfloat16 without ml-dtypes
        raise ConversationError(
            f"{path} holds tensors of another type", expected=" or ".join(types), hint=_HINT
        ) from None
    if fields.pop(_DIGEST, None) != _digest(fields, tensors):
        raise ConversationError(f"{path} was altered: its contents do not give its SHA-256", hint=_HINT)
    return fields, tensors


def _digest(fields: Mapping[str, str], tensors: Mapping[str, Array]) -> str:
    """SHA-256 of fields and tensors, in the order of their names."""
    shapes = [(name, tensors[name].dtype.name, tensors[name].shape) for name in sorted(tensors)]
    found = hashlib.sha256(json.dumps([sorted(fields.items()), shapes]).encode())
    for name, *_ in shapes:
        found.update(_bytes(tensors[name]))
    return found.hexdigest()


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
