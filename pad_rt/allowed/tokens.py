"""The tokens that a reply may go on with, as packed bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint8]
"""A bit for each token of the vocabulary, [ceil(V / 8)], least significant first; those beyond the vocabulary are 0."""


class AllowedTokens(Protocol):
    """Which tokens one reply may go on with."""

    def packed(self) -> Bits | None:
        """Bits of the tokens that may come next, as `Decoder.allow` takes them; None: all.

        Raises:
            OptionError: no reply of the kind that was asked for goes on like this.
        """

    def push(self, token_id: int) -> None:
        """Note the token that was chosen."""


class JoinedTokens:
    """What several allow together.

    A part that would leave no token which the parts before it allow is left out of that choice.

    Args:
        parts: the most binding first.
    """

    def __init__(self, parts: Sequence[AllowedTokens]) -> None:
        self._parts = parts

    def packed(self) -> Bits | None:
        """Bits that all of them have; at least one is set."""
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


def all_but(ids: npt.ArrayLike, vocab_size: int) -> Bits:
    """Bits of all tokens but some."""
    allowed = np.ones(vocab_size, bool)
    allowed[ids] = False
    return np.packbits(allowed, bitorder="little")
