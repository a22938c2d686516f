"""Tokenizers in plain Python, slow and simple, to compare fast tokenizers with."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence

import regex
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pad_export.read.tokenizer.sentencepiece_vocabulary import SPACE, SentencePieceVocabulary, TokenType


class PlainSentencePiece:
    """llama.cpp's algorithm for sentencepiece vocabularies (llm_tokenizer_spm).

    Tokens that are matched whole cut the text into pieces. In each piece, two neighbours are joined at a time: those
    whose token has the best score, the leftmost of equals. What is no token in the end becomes its UTF-8 bytes.

    Attributes:
        whole: ids of the tokens that are matched whole.
    """

    def __init__(self, vocabulary: SentencePieceVocabulary, added: Mapping[str, int] | None = None) -> None:
        self.whole = {**vocabulary.whole_tokens(), **(added or {})}
        self._vocabulary = vocabulary
        self._ids = {token: index for index, token in enumerate(vocabulary.tokens)}
        self._cutter = _Cutter(self.whole)
        self._whole_texts = {index: token for token, index in self.whole.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without those that are put first."""
        ids = []
        for piece, token in self._cutter.cut(text):
            if token is not None:
                ids.append(token)
            elif piece:
                prefix = SPACE if self._vocabulary.add_space_prefix else ""
                ids += self._encode_piece(prefix + piece.replace(" ", SPACE))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, all tokens shown."""
        data = b""
        for index in ids:
            token = self._whole_texts.get(index) or self._vocabulary.tokens[index]
            is_byte = token not in self.whole and self._vocabulary.types[index] == TokenType.BYTE
            data += bytes.fromhex(token[3:5]) if is_byte else token.replace(SPACE, " ").encode()
        text = data.decode(errors="replace")
        return text.removeprefix(" ") if self._vocabulary.add_space_prefix else text

    def _encode_piece(self, piece: str) -> Iterator[int]:
        symbols = list(piece)  # "" once joined to the one before
        after = list(range(1, len(symbols) + 1))
        before = list(range(-1, len(symbols) - 1))
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int) -> None:
            if left < 0 or after[left] >= len(symbols):
                return
            joined = symbols[left] + symbols[after[left]]
            if joined in self._ids:
                heapq.heappush(queue, (-self._vocabulary.scores[self._ids[joined]], left, after[left], joined))

        for left in range(len(symbols) - 1):
            offer(left)
        while queue:
            _, left, right, joined = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != joined:
                continue  # one of the two has been joined to another neighbour
            symbols[left], symbols[right] = joined, ""
            after[left] = after[right]
            if after[left] < len(symbols):
                before[after[left]] = left
            offer(before[left])
            offer(left)
        for symbol in filter(None, symbols):
            if symbol in self._ids:
                yield self._ids[symbol]
            else:
                yield from (self._ids[f"<0x{byte:02X}>"] for byte in symbol.encode())


class PlainByteLevel:
    """Byte-level byte-pair encoding: text is split by regular expressions, and each part's bytes joined by rank.

    Args:
        tokens: text of each token, in the order of their ids.
        merges: the pairs that are joined, the best first.
        whole: ids of the tokens that are matched whole.
        splits: regular expressions; each cuts the parts that the one before it left into matches and the text between.
        whole_parts: a part that is a token becomes that token, whatever its merges would give (as in Llama 3).
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[tuple[str, str]],
        whole: Mapping[str, int],
        splits: Sequence[str],
        *,
        whole_parts: bool = False,
    ) -> None:
        self.whole = whole
        self._tokens, self._whole_parts = tokens, whole_parts
        self._ids = {token: index for index, token in enumerate(tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._cutter = _Cutter(whole)
        self._whole_ids = frozenset(whole.values())
        self._splits = [regex.compile(split) for split in splits]
        self._alphabet: dict[int, str] = bytes_to_unicode()
        self._bytes = {character: byte for byte, character in self._alphabet.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without those that are put first."""
        ids = []
        for piece, token in self._cutter.cut(text):
            if token is not None:
                ids.append(token)
                continue
            parts = [piece]
            for split in self._splits:
                parts = [part for whole in parts for part in _isolate(split, whole)]
            for part in filter(None, parts):
                ids += self._encode_part([self._alphabet[byte] for byte in part.encode()])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, all tokens shown."""
        data = b""
        for index in ids:
            token = self._tokens[index]
            data += token.encode() if index in self._whole_ids else bytes(self._bytes[letter] for letter in token)
        return data.decode(errors="replace")

    def _encode_part(self, symbols: list[str]) -> list[int]:
        part = "".join(symbols)
        if self._whole_parts and part in self._ids:
            return [self._ids[part]]
        worst = len(self._ranks)
        while len(symbols) > 1:
            ranks = [self._ranks.get(pair, worst) for pair in itertools.pairwise(symbols)]
            best = min(ranks)
            if best == worst:
                break
            at = ranks.index(best)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return [self._ids[symbol] for symbol in symbols]


class _Cutter:
    """Finds tokens that are matched whole: the leftmost first, the longest of those that begin there."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids
        lengths: dict[str, set[int]] = {}
        for token in ids:
            lengths.setdefault(token[:1], set()).add(len(token))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def cut(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yield the text between tokens as (text, None), and each token as (its text, its id)."""
        start = at = 0
        while at < len(text):
            found = (text[at : at + length] for length in self._lengths.get(text[at], ()))
            token = next((token for token in found if token in self._ids), None)
            if token is None:
                at += 1
                continue
            yield text[start:at], None
            yield token, self._ids[token]
            start = at = at + len(token)
        yield text[start:], None


def _isolate(split: regex.Pattern[str], text: str) -> Iterator[str]:
    start = 0
    for match in split.finditer(text):
        yield text[start : match.start()]
        yield match[0]
        start = match.end()
    yield text[start:]
