"""A sentencepiece byte-pair vocabulary, and the tokenizer that it defines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteFallback, Decoder, Fuse, Replace, Strip
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend
from tokenizers.normalizers import Replace as NormalizerReplace
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.processors import TemplateProcessing

SPACE = "▁"


class TokenType(IntEnum):
    """The type of a token, with the numbers of sentencepiece and GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SentencePieceVocabulary:
    """Tokens with scores. Text is encoded by joining characters, each time the pair whose token has the best score.

    Attributes:
        tokens: text of each token, in the order of their ids; a space is written "▁".
        scores: score of each token, higher is joined first.
        types: a TokenType of each token. Control, unknown and user-defined tokens are matched whole.
        add_space_prefix: whether a space is put before the text, and before what follows a token matched whole.
        bos_id: the token that encoding begins with, None for none.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    add_space_prefix: bool
    bos_id: int | None

    def whole_tokens(self) -> dict[str, int]:
        """Return the ids of the tokens that are matched whole."""
        whole = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
        return {token: i for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)) if kind in whole}

    def build(self) -> Tokenizer:
        """Return the tokenizer, byte fallback and decoding included."""
        unknown = next((i for i, kind in enumerate(self.types) if kind == TokenType.UNKNOWN), None)
        backend = Tokenizer(
            BPE(
                vocab={token: index for index, token in enumerate(self.tokens)},
                merges=self._merges(),
                unk_token=None if unknown is None else self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=TokenType.BYTE in self.types,
            )
        )
        # Added tokens are matched before this, so that each piece of text between two of them gets its own space.
        escape = NormalizerReplace(" ", SPACE)
        backend.normalizer = NormalizerSequence([Prepend(SPACE), escape]) if self.add_space_prefix else escape
        decoders: list[Decoder] = [Replace(SPACE, " "), ByteFallback(), Fuse()]
        backend.decoder = DecoderSequence([*decoders, Strip(" ", 1, 0)] if self.add_space_prefix else decoders)
        add_whole_tokens(backend, self.tokens, self.types)
        if self.bos_id is not None:
            put_first(backend, self.tokens[self.bos_id], self.bos_id)
        return backend

    def _merges(self) -> list[tuple[str, str]]:
        """Every way to join two tokens into a third, the best score first."""
        joined = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
        known = {
            token: -score
            for token, score, kind in zip(self.tokens, self.scores, self.types, strict=True)
            if kind in joined
        }
        return [
            (token[:cut], token[cut:])
            for token in sorted(known, key=known.__getitem__)  # stable: the lower id first among equal scores
            for cut in range(1, len(token))
            if token[:cut] in known and token[cut:] in known
        ]


def add_whole_tokens(backend: Tokenizer, tokens: tuple[str, ...], types: tuple[int, ...]) -> None:
    """Let control, unknown and user-defined tokens be matched whole; only the last are shown in decoded text."""
    hidden, shown = [], []
    for token, kind in zip(tokens, types, strict=False):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            hidden.append(AddedToken(token, normalized=False, special=True))
        elif kind == TokenType.USER_DEFINED:
            shown.append(AddedToken(token, normalized=False))
    # All at once: the automaton that finds them is built anew by each call.
    backend.add_special_tokens(hidden)
    backend.add_tokens(shown)


def put_first(backend: Tokenizer, token: str, index: int) -> None:
    """Let encoding with special tokens begin with a token."""
    backend.post_processor = TemplateProcessing(single=[token, "$A"], special_tokens=[(token, index)])
