"""No n-gram twice, as transformers' `NoRepeatNGramLogitsProcessor` has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pad_rt.allowed.bits import Bits, all_but


class NoRepeatNgram:
    """All tokens but those that would make the last n tokens a repetition of n tokens before.

    Args:
        size: n, at least 1.
        prompt: ids before the reply; their n-grams count too.
        room: tokens that prompt and reply may come to.
        vocab_size: V.
    """

    def __init__(self, size: int, prompt: Sequence[int], room: int, vocab_size: int) -> None:
        self._size, self._vocab_size = size, vocab_size
        self._ids = np.zeros(room, np.int64)
        self._ids[: len(prompt)] = prompt
        self._count = len(prompt)

    def packed(self) -> Bits | None:
        """All tokens but those that followed the last n - 1 tokens before."""
        width, length = self._size - 1, self._count
        places = np.arange(width, length)  # of tokens that follow n - 1 others
        for back in range(1, width + 1):
            if not len(places):
                return None
            places = places[self._ids[places - back] == self._ids[length - back]]
        return all_but(self._ids[places], self._vocab_size) if len(places) else None

    def push(self, token_id: int) -> None:
        """Append the token."""
        self._ids[self._count] = token_id
        self._count += 1
