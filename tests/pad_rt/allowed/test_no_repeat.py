"""No n-gram twice, and bans, against transformers' processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from pad_rt.allowed.banned import BannedTokens
from pad_rt.allowed.bits import Bits
from pad_rt.allowed.no_repeat import NoRepeatNgram
from pad_runtime.errors import OptionError
from tests.support.error_checks import refused

VOCAB = 29


def unpack(bits: Bits | None) -> list[int]:
    """Ids of the tokens that are allowed; none lies beyond the vocabulary."""
    if bits is None:
        return list(range(VOCAB))
    assert (bits.dtype, bits.shape) == (np.uint8, (-(-VOCAB // 8),))
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()


def left_by(size: int, ids: list[int]) -> list[int]:
    scores = theirs.NoRepeatNGramLogitsProcessor(size)(torch.tensor([ids]), torch.zeros(1, VOCAB))
    return torch.nonzero(torch.isfinite(scores[0])).flatten().tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_no_ngram_comes_twice(size: int) -> None:
    """After each of many tokens, of prompts from none to long ones."""
    random, wrong = np.random.default_rng(size), 0
    for length in (1, 2, size, 40):
        prompt = random.integers(0, 3, length).tolist()
        allowed = NoRepeatNgram(size, prompt, length + 30, VOCAB)
        ids = list(prompt)
        for token in random.integers(0, 3, 30).tolist():
            assert unpack(allowed.packed()) == left_by(size, ids)
            wrong += unpack(allowed.packed()) != left_by(size + 1, ids)
            allowed.push(token)
            ids.append(token)
    assert wrong > 10


def test_what_is_banned_is_left_out() -> None:
    scores = theirs.SuppressTokensLogitsProcessor([0, 7, 8, 28])(torch.zeros(1, 1).long(), torch.zeros(1, VOCAB))
    allowed = BannedTokens([0, 7, 8, 28, 8], VOCAB)
    for _ in range(2):
        assert unpack(allowed.packed()) == torch.nonzero(torch.isfinite(scores[0])).flatten().tolist()
        allowed.push(5)
    with refused(OptionError, given=f"banned_token_ids with all {VOCAB} tokens", expected="a token that is left"):
        BannedTokens(range(VOCAB), VOCAB)
