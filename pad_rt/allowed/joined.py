"""What several parts of a request allow together."""

from __future__ import annotations

from collections.abc import Sequence

from pad_rt.allowed.allowed_tokens import AllowedTokens
from pad_rt.allowed.bits import Bits


class JoinedTokens:
    """The tokens that all of several parts allow.

    A part that would leave no token which the parts before it allow is left out of that choice.

    Args:
        parts: the most binding first.
    """

    def __init__(self, parts: Sequence[AllowedTokens]) -> None:
        self._parts = parts

    def packed(self) -> Bits | None:
        """Bits that all of them have, at least one of which is set; None: all tokens may come."""
        joined: Bits | None = None
        for part in self._parts:
            bits = part.packed()
            if bits is not None and joined is not None:
                bits = bits & joined
            if bits is not None and bits.any():
                joined = bits
        return joined

    def push(self, token_id: int) -> None:
        """Note the token in all of them."""
        for part in self._parts:
            part.push(token_id)
