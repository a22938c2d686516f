"""Token ids decoded to text token by token, at a cost that does not grow with the text."""

from __future__ import annotations

import codecs
import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """The UTF-8 bytes each token adds: text(ids) = utf8(first(ids[0]) + following(ids[1]) + following(ids[2]) + ...).

    Bytes rather than text, because a character may be spread over several tokens, and a token of a byte-level
    vocabulary may end one character and begin the next. An added token of such a vocabulary is plain text, not spelled
    in the byte alphabet: "café" means these four letters, where `tokenizers` would take its é for a byte.

    Args:
        backend: the tokenizer whose vocabulary and decoder are described.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        added = backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._special_ids = frozenset(
            token_id for token_id, token in added.items() if token.special and skip_special_tokens
        )
        decoder_types = _decoder_types(backend)
        self._alphabet = _byte_level_alphabet() if "ByteLevel" in decoder_types else {}
        self._has_byte_tokens = "ByteFallback" in decoder_types
        self._following: dict[int, bytes | None] = {}

    def first(self, token_id: int) -> bytes | None:
        """The token's bytes at the start of a text, where SentencePiece decoders drop a leading space."""
        following = self.following(token_id)
        if following is None or self._alphabet:
            return following
        text = self._decode([token_id])
        return following if _REPLACEMENT in text else text.encode()

    def following(self, token_id: int) -> bytes | None:
        """The token's bytes after the start of a text; None for a token that adds nothing anywhere."""
        try:
            return self._following[token_id]
        except KeyError:
            known = self._following[token_id] = self._compute_following(token_id)
            return known

    def _compute_following(self, token_id: int) -> bytes | None:
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self._special_ids:  # unknown, or a special token
            return None
        if self._alphabet:
            if token_id not in self._added_ids and all(character in self._alphabet for character in token):
                return bytes(self._alphabet[character] for character in token)
            return token.encode()
        byte_token = _BYTE_TOKEN.fullmatch(token)
        if self._has_byte_tokens and byte_token:
            return bytes.fromhex(byte_token[1])
        anchor, anchor_text = self._anchor
        return self._decode([*anchor, token_id])[len(anchor_text) :].encode()

    @cached_property
    def _anchor(self) -> tuple[list[int], str]:
        """An ordinary token and its text, to be decoded in front of a token that is not the start of a text."""
        for token_id in range(self._backend.get_vocab_size()):
            token = self._backend.id_to_token(token_id)
            if token is None or token_id in self._special_ids or _BYTE_TOKEN.fullmatch(token):
                continue
            text = self._decode([token_id])
            if text.strip() and _REPLACEMENT not in text:
                return [token_id], text
        return [], ""

    def _decode(self, token_ids: list[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


class StreamDecoder:
    """Decodes one sequence token by token. Text that `push` returned never changes; a partial character is held back.

    Bytes that cannot become a character any more are decoded as U+FFFD, and the characters around them are kept.
    (`tokenizers` replaces a whole run of byte tokens because of one bad byte, so that characters shown already would
    vanish.)
    """

    def __init__(self, token_bytes: TokenBytes, *, has_begun: bool = False) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._has_begun = has_begun

    def push(self, token_id: int) -> str:
        """The text that became final with this token; "" while a character is incomplete."""
        data = self._token_bytes.following(token_id) if self._has_begun else self._token_bytes.first(token_id)
        if data is None:
            return ""
        self._has_begun = True
        return self._utf8.decode(data)

    def flush(self) -> str:
        """The rest at the end of the sequence: U+FFFD for a character that was cut off, else ""."""
        return self._utf8.decode(b"", final=True)


def _byte_level_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each of the 256 byte values, to that byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def _decoder_types(backend: tokenizers.Tokenizer) -> set[str]:
    """The type names in the tokenizer's decoder, those inside a Sequence included."""
    if backend.decoder is None:
        return set()
    # The pickle state is the decoder's part of tokenizer.json; the whole file would take 0.1 s and more to parse.
    pending: list[dict[str, Any]] = [json.loads(backend.decoder.__getstate__())]
    types = set()
    while pending:
        decoder = pending.pop()
        types.add(str(decoder["type"]))
        pending.extend(decoder.get("decoders", []))
    return types
