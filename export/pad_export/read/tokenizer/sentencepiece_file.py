"""Reading tokenizer.model, the file of a sentencepiece model, which is a protocol buffer."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from pad_export.read.tokenizer.sentencepiece_vocabulary import SPACE, SentencePieceVocabulary, TokenType
from pad_runtime.errors import CheckpointError

_BYTE_PAIRS = 2
_DEFAULT_BOS = 1

# Numbers of fields in sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _SPACE_AS_SUFFIX, _BOS_ID = 3, 24, 41
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5

_Value = int | bytes


def read_model_file(path: Path, *, add_bos: bool) -> SentencePieceVocabulary:
    """Read a byte-pair model without normalisation, as Llama 2, Mistral and Gemma have it.

    Args:
        path: the file.
        add_bos: whether encoding begins with BOS.

    Raises:
        CheckpointError: no sentencepiece model, or a model that is no byte-pair model or normalises text.
    """
    try:
        model = list(_fields(path.read_bytes()))
        pieces = [dict(_fields(_bytes(value))) for number, value in model if number == _PIECES]
        trainer, normalizer, denormalizer = (
            dict(_fields(b"".join(_bytes(value) for number, value in model if number == part)))
            for part in (_TRAINER, _NORMALIZER, _DENORMALIZER)
        )
        tokens = tuple(_bytes(piece.get(_PIECE, b"")).decode() for piece in pieces)
        scores = tuple(struct.unpack("<f", _bytes(piece.get(_SCORE, bytes(4))))[0] for piece in pieces)
        types = tuple(int(piece.get(_TYPE, TokenType.NORMAL)) for piece in pieces)
    except (ValueError, TypeError, struct.error) as error:
        raise _unreadable(path, f"is no sentencepiece model ({error})") from error
    if not tokens:
        raise _unreadable(path, "is no sentencepiece model")
    if trainer.get(_MODEL_TYPE) != _BYTE_PAIRS or trainer.get(_SPACE_AS_SUFFIX):
        raise _unreadable(path, "is a sentencepiece model that does not join byte pairs")
    plain = {_CHARSMAP: (None, b""), _REMOVE_SPACES: (0,), _ESCAPE_SPACES: (None, 1)}
    if denormalizer.get(_CHARSMAP) or any(normalizer.get(key) not in values for key, values in plain.items()):
        raise _unreadable(path, "is a sentencepiece model that normalises text")
    add_space_prefix = bool(normalizer.get(_DUMMY_PREFIX, 1))
    if add_space_prefix and TokenType.USER_DEFINED in types:  # none is put behind those, unlike behind added tokens
        raise _unreadable(path, "is a sentencepiece model with user-defined pieces that puts a space before text")
    tokens = tuple(
        token.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else token  # which is matched in the text as it is
        for token, kind in zip(tokens, types, strict=True)
    )
    bos_id = trainer.get(_BOS_ID, _DEFAULT_BOS)
    return SentencePieceVocabulary(
        tokens=tokens,
        scores=scores,
        types=types,
        add_space_prefix=add_space_prefix,
        bos_id=bos_id if add_bos and isinstance(bos_id, int) and bos_id < len(tokens) else None,
    )


def _unreadable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {what}",
        expected="a tokenizer.json, or a sentencepiece model of byte pairs that takes text as it is",
        hint="pip install sentencepiece protobuf tiktoken, then save it once with transformers: "
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
    )


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """Yield (number, value) of each field of a message: an integer, or the bytes of anything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of wire type {wire}")
        if size > len(data) - at:
            raise ValueError("it ends too early")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends too early")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number longer than 64 bits")


def _bytes(value: _Value) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where a message belongs")
    return value
