"""The bundle's tokenizer: text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from pad_rt.text.stream_decoder import StreamDecoder, TokenBytes
from pad_runtime.errors import BundleError, PromptError


class Tokenizer:
    """The tokenizer of a `tokenizer.json`. Padding and truncation that the file asks for are switched off.

    Args:
        file: path of `tokenizer.json`.
        bos_token: the text of the begin-of-sequence token; None for a model without one.
        eos_token: the text of the end-of-sequence token; None for a model without one.
        content: the file's content, if it was read already.

    Raises:
        BundleError: the file is missing or broken, or a named token is not in its vocabulary.
    """

    def __init__(
        self, file: Path, *, bos_token: str | None, eos_token: str | None, content: bytes | None = None
    ) -> None:
        if content is None and not file.is_file():
            raise BundleError(f"no tokenizer at {file}", expected="a tokenizer.json", hint="export the bundle again")
        try:
            self._backend = tokenizers.Tokenizer.from_buffer(file.read_bytes() if content is None else content)
        except Exception as error:  # `tokenizers` raises bare Exception
            raise BundleError(
                f"{file} cannot be read: {error}", expected="a complete tokenizer.json", hint="export the bundle again"
            ) from error
        self._backend.no_padding()
        self._backend.no_truncation()
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.bos_id = self._find(bos_token, file, name="bos_token")
        self.eos_id = self._find(eos_token, file, name="eos_token")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.get_vocab_size()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; special tokens written out in the text become those tokens.

        Args:
            text: any text without lone surrogates.
            add_special_tokens: add what the tokenizer's post-processor adds (BOS for most). False for a rendered
                chat template, which writes them itself.

        Raises:
            PromptError: the text holds a lone surrogate, which no UTF-8 can carry.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"text with the lone surrogate {text[error.start]!a} at character {error.start}",
                expected="text that UTF-8 can carry",
                hint='clean it with text.encode("utf-8", "replace").decode()',
            ) from error
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a text that others of the same turn stand before, without special tokens added.

        A tokenizer that puts a space in front of every text would put one into the middle of this turn. Behind a line
        feed it puts none: then the ids are those that follow the line feed's.

        Raises:
            PromptError: as `encode`.
        """
        ids = self.encode(text, add_special_tokens=False)
        if "".join(self.pieces(ids, has_begun=True)) != text:
            before, behind = (self.encode(part, add_special_tokens=False) for part in ("\n", "\n" + text))
            if behind[: len(before)] == before:
                return behind[len(before) :]
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of all ids: exactly the pieces of a `StreamDecoder` joined."""
        decoder = StreamDecoder(self._token_bytes if skip_special_tokens else self._token_bytes_with_special)
        return "".join([decoder.push(token_id) for token_id in ids]) + decoder.flush()

    def pieces(self, ids: Sequence[int], *, has_begun: bool = False) -> list[str]:
        """The text that each token adds, special tokens by their names. The last token of a character adds it all.

        Args:
            ids: of a reply.
            has_begun: there is text before the first token.
        """
        decoder = StreamDecoder(self._token_bytes_with_special, has_begun=has_begun)
        pieces = [decoder.push(token_id) for token_id in ids]
        return [*pieces[:-1], pieces[-1] + decoder.flush()] if pieces else []

    def name(self, token_id: int) -> str:
        """The text of one token by itself, behind others; of part of a character the bytes, such as <0xE2>."""
        data = self.bytes_of(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(chr(byte) if byte < 0x80 else f"<0x{byte:02X}>" for byte in data)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of one token behind others, which may be part of a character; special tokens by their names."""
        return self._token_bytes_with_special.following(token_id) or b""

    def stream_decoder(self, *, has_begun: bool = False) -> StreamDecoder:
        """A new decoder that leaves special tokens out; `has_begun`: there is text before the first token."""
        return StreamDecoder(self._token_bytes, has_begun=has_begun)

    def vocabulary(self, size: int) -> list[bytes]:
        """Bytes that each of so many ids adds to a text, by id; empty for those that add nothing."""
        return [self._token_bytes.following(id) or b"" for id in range(size)]

    @cached_property
    def longest_token(self) -> int:
        """Most characters that a single token can encode."""
        return max(len(token.encode()) for token in self._backend.get_vocab())

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """Text of each token that a stream decoder leaves out, by id."""
        return {id: token.content for id, token in self._backend.get_added_tokens_decoder().items() if token.special}

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        return TokenBytes(self._backend, skip_special_tokens=True)

    @cached_property
    def _token_bytes_with_special(self) -> TokenBytes:
        return TokenBytes(self._backend, skip_special_tokens=False)

    def _find(self, token: str | None, file: Path, *, name: str) -> int | None:
        token_id = None if token is None else self._backend.token_to_id(token)
        if token is not None and token_id is None:
            raise BundleError(
                f"{name} {token!r} is not in {file}",
                expected="a token of its vocabulary",
                hint="export the bundle again",
            )
        return token_id
