"""No n-gram twice, as transformers' `NoRepeatNGramLogitsProcessor` has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

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
        width = self._size - 1
        ids = self._ids[: self._count]
        if len(ids) <= width:
            return None
        before = sliding_window_view(ids[:-1], width)  # [len - width, width]: each is followed by a token
        banned = ids[width:][(before == ids[len(ids) - width :]).all(axis=1)]
        return all_but(banned, self._vocab_size) if len(banned) else None

    def push(self, token_id: int) -> None:
        """Append the token."""
        self._ids[self._count] = token_id
        self._count += 1
