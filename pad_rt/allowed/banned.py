"""A ban of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from pad_rt.allowed.bits import Bits, all_but
from pad_runtime.errors import OptionError


class BannedTokens:
    """A ban: all other tokens are allowed.

    Args:
        banned: their ids.
        vocab_size: V.

    Raises:
        OptionError: they are the whole vocabulary.
    """

    def __init__(self, banned: Sequence[int], vocab_size: int) -> None:
        self._bits = all_but(banned, vocab_size)
        if not self._bits.any():
            raise OptionError(f"banned_token_ids with all {vocab_size} tokens", expected="a token that is left")

    def packed(self) -> Bits:
        """The same bits at every step."""
        return self._bits

    def push(self, token_id: int) -> None:
        """Nothing changes."""
