"""Grammars on tokenizers of all kinds: a finite language, written out, says what may come."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from pad_rt.allowed.grammar import GrammarMaker
from pad_rt.text.tokenizer import Tokenizer
from tests.support import tiny_tokenizers

WORDS = ("egg", " the egg", "東京", "é", " ")
REGEX = f"({'|'.join(WORDS)}){{1,3}}<s>"
LANGUAGE = {("".join(words) + "<s>").encode() for n in (1, 2, 3) for words in itertools.product(WORDS, repeat=n)}
BEGINNINGS = {text[:length] for text in LANGUAGE for length in range(len(text) + 1)}
ENDS = (2, 5)
KINDS = [tiny_tokenizers.byte_level, tiny_tokenizers.llama2, tiny_tokenizers.gemma, tiny_tokenizers.metaspace]


@pytest.mark.parametrize("padding", [-9, 0, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_every_walk_is_a_text_of_the_language(
    kind: Callable[[], tokenizers.Tokenizer], padding: int, tmp_path: Path
) -> None:
    """The model's vocabulary may be smaller, or padded; a text that looks like a special token is none."""
    file = tiny_tokenizers.save(kind(), tmp_path)
    tokenizer = Tokenizer(file, bos_token=None, eos_token=None)
    size = tokenizer.vocab_size + padding
    maker = GrammarMaker(tokenizer, size)
    random, texts = np.random.default_rng(3), set()
    for _ in range(40):
        allowed = maker.make("regex", REGEX, ENDS)
        decoder, text = tokenizer.stream_decoder(has_begun=True), ""
        ids: list[int] = []
        while True:
            bits = allowed.packed()
            assert bits.shape == (-(-size // 8),)
            may_come = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
            assert may_come.max() < size
            so_far = b"".join(tokenizer.vocabulary(size)[id] for id in ids)
            assert so_far in BEGINNINGS
            assert set(ENDS) & set(may_come.tolist()) == (set(ENDS) if so_far in LANGUAGE else set())
            id = int(random.choice(may_come))
            allowed.push(id)
            if id in ENDS:
                break
            ids.append(id)
            text += decoder.push(id)
        assert (text + decoder.flush()).encode() in LANGUAGE
        texts.add(text)
    assert len(texts) > 20


def test_a_schema_s_own_style(tmp_path: Path) -> None:
    file = tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)
    tokenizer = Tokenizer(file, bos_token=None, eos_token=None)
    maker = GrammarMaker(tokenizer, tokenizer.vocab_size)
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    compact = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    for given, text in ((schema, '{"a": 1}'), (schema | {"x-guidance": compact}, '{"a":1}')):
        allowed = maker.make("json_schema", given, ENDS)
        ids: list[int] = []
        while not set(ENDS) & set(np.flatnonzero(np.unpackbits(allowed.packed(), bitorder="little")).tolist()):
            ids.append(int(np.flatnonzero(np.unpackbits(allowed.packed(), bitorder="little"))[0]))
            allowed.push(ids[-1])
        assert tokenizer.decode(ids) == text
