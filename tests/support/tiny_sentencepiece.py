"""A sentencepiece vocabulary of a few words, as GGUF metadata and as the file tokenizer.model."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from pad_export.read.tokenizer.sentencepiece_vocabulary import SentencePieceVocabulary, TokenType

_SPECIAL = [("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL)]
_BYTES = [(f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)]
_PIECES = [
    "▁t",
    "he",
    "▁the",
    "▁▁",
    "▁▁▁▁",
    "egg",
    "gg",
    "aa",
    "aaa",
    "in",
    "▁c",
    "▁caf",
    "af",
    "IN",
    "ST",
    "INST",
    "▁[",
    "]",
]
_LETTERS = "▁abcdefghinstINST[/.,é東"
_TYPED = [*_SPECIAL, *_BYTES, *((piece, TokenType.NORMAL) for piece in [*_PIECES, *_LETTERS])]
TOKENS = tuple(token for token, _ in _TYPED)
TYPES = tuple(int(kind) for _, kind in _TYPED)
SCORES = tuple(-float(index) if kind == TokenType.NORMAL else 0.0 for index, kind in enumerate(TYPES))


def ids(*tokens: str) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


def vocabulary(*, add_space_prefix: bool) -> SentencePieceVocabulary:
    return SentencePieceVocabulary(TOKENS, SCORES, TYPES, add_space_prefix=add_space_prefix, bos_id=1)


def add_to_gguf(writer: Any, *, add_space_prefix: bool | None = None) -> None:
    """Write it as llama.cpp's converter does."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(TOKENS))
    writer.add_token_scores(list(SCORES))
    writer.add_token_types(list(TYPES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if add_space_prefix is not None:
        writer.add_add_space_prefix(add_space_prefix)


def write_model_file(
    path: Path,
    *,
    model_type: int = 2,
    add_dummy_prefix: bool = True,
    charsmap: bytes = b"",
    remove_spaces: bool = False,
    user_defined: tuple[str, ...] = (),
) -> Path:
    """Write it as sentencepiece does, with user-defined pieces behind the others."""
    pieces = b"".join(
        _message(1, _message(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for token, score, kind in (
            *zip(TOKENS, SCORES, TYPES, strict=True),
            *((piece, 0.0, TokenType.USER_DEFINED) for piece in user_defined),
        )
    )
    trainer = _message(2, _number(3, model_type) + _number(35, 1))
    spaces = _number(3, add_dummy_prefix) + _number(4, remove_spaces)
    normalizer = _message(3, _message(1, b"identity") + (_message(2, charsmap) if charsmap else b"") + spaces)
    path.write_bytes(pieces + trainer + normalizer)
    return path


def _message(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])
