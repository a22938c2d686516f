"""Replies by a JSON schema, a regular expression or a grammar, with llguidance."""

from __future__ import annotations

import json
import reprlib
import textwrap
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from pad_rt.allowed.bits import Bits, all_but
from pad_rt.config import FormKind
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.errors import OptionError

# As `json.dumps` writes it, for in white space of any length small models get lost; "x-guidance" in a schema overrides.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_EXPECTED: dict[FormKind, str] = {
    "json_schema": "a schema that can be met, of keywords that llguidance knows",
    "regex": "a regular expression that can be met, without look-around and references",
    "grammar": "a grammar that can be met, in the Lark that llguidance reads",
}


class GrammarTokens:
    """The tokens by which a reply stays within a grammar; an end of the turn where the grammar may end.

    Args:
        matcher: an `llguidance.LLMatcher` at the beginning of the reply.
        ends: ids that end the reply, at least one.
        vocab_size: V.
        asked: what was asked for, for messages.
    """

    def __init__(self, matcher: Any, ends: Collection[int], vocab_size: int, asked: str) -> None:
        self._matcher, self._ends, self._asked = matcher, ends, asked
        self._others = all_but(list(ends), vocab_size)
        self._end_bits = all_but((), vocab_size) & ~self._others

    def packed(self) -> Bits:
        """What the grammar goes on with, and the ends where it may end."""
        matcher = self._matcher
        bits: Bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)[: len(self._others)] & self._others
        if matcher.is_accepting():
            bits |= self._end_bits
        if matcher.is_error() or not bits.any():
            raise OptionError(
                f"{self._asked} leads to a reply that cannot go on{_in_brackets(matcher.get_error())}",
                expected="a form in which every beginning of a reply has an end",
            )
        return bits

    def push(self, token_id: int) -> None:
        """Go on in the grammar."""
        if token_id not in self._ends:
            self._matcher.consume_token(token_id)


class GrammarMaker:
    """Makes the grammars of one bundle's requests.

    Args:
        tokenizer: the bundle's.
        vocab_size: V, which may be more than the tokenizer's, or less.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    def make(self, kind: FormKind, value: str | Mapping[str, Any], ends: Collection[int]) -> GrammarTokens:
        """Compile a grammar.

        Args:
            kind: what it is written in.
            value: the schema, the regular expression or the Lark grammar.
            ends: ids that end the reply.

        Raises:
            OptionError: it is malformed or cannot be met; no id ends a reply; llguidance is not installed.
        """
        if not ends:
            raise OptionError(kind, expected="a base with an end of turn, or stop_token_ids: this one has none")
        asked = f"{kind}={reprlib.repr(value)}"
        module = _llguidance(kind)
        try:
            grammar = _grammar(module, kind, value)
        except ValueError as error:  # nested too deeply, or what UTF-8 cannot carry
            raise OptionError(f"{asked}{_in_brackets(str(error))}", expected=_EXPECTED[kind]) from None
        limits = module.LLParserLimits(verbose_errors=False)
        matcher = module.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        matcher.compute_bitmask()  # what nothing can meet is noticed here
        if matcher.is_error():
            raise OptionError(f"{asked}{_in_brackets(matcher.get_error())}", expected=_EXPECTED[kind])
        return GrammarTokens(matcher, ends, self._vocab_size, asked)

    @cached_property
    def _vocabulary(self) -> Any:
        """The tokens' bytes as `llguidance.LLTokenizer`; made once, which takes a second for 50,000 tokens."""
        vocabulary = _Vocabulary(self._tokenizer, self._vocab_size)
        vocabulary.read = read = _llguidance("grammar").LLTokenizer(vocabulary)
        return read


class _Vocabulary:
    """A tokenizer as llguidance takes it: its tokens' bytes are those that replies are decoded with.

    Attributes:
        read: what llguidance made of it.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = None  # llguidance adds one beyond the vocabulary: `GrammarTokens` knows the ends

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self.read: Any = None
        self.tokens = tokenizer.vocabulary(size)
        self.special_token_ids = [id for id in tokenizer.special_tokens if id < size]

    def __call__(self, text: str) -> list[int]:
        """Tokens of a text that the grammar leaves no choice about: the usual ones, if they are this text alone."""
        ids = self._tokenizer.encode_continuation(text)
        usual = b"".join(self.tokens[id] for id in ids if id < len(self.tokens))
        return ids if usual == text.encode() else self.read.greedy_tokenize(text)


def _grammar(module: Any, kind: FormKind, value: str | Mapping[str, Any]) -> str:
    """What llguidance compiles."""
    matcher = module.LLMatcher
    if kind == "json_schema":
        grammar: str = matcher.grammar_from_json_schema(json.dumps(value), defaults=_JSON_STYLE)
    else:
        grammar = matcher.grammar_from_regex(value) if kind == "regex" else matcher.grammar_from_lark(value)
    return grammar


def _llguidance(kind: FormKind) -> Any:
    try:
        import llguidance
    except ImportError:
        raise OptionError(
            f"{kind} without the package llguidance", expected="it beside pad-rt", hint="pip install 'pad-rt[grammar]'"
        ) from None
    return llguidance


def _in_brackets(error: str) -> str:
    """What llguidance says, without the reports that it adds."""
    reason = textwrap.shorten(error.partition("\n<")[0], 200)
    return f" ({reason})" if reason else ""
