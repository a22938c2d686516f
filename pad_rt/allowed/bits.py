"""Packed bits of tokens."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[np.uint8]
"""A bit for each token of the vocabulary, [ceil(V / 8)], least significant first; those beyond the vocabulary are 0."""


def all_but(ids: npt.ArrayLike, vocab_size: int) -> Bits:
    """Bits of all tokens but some."""
    allowed = np.ones(vocab_size, bool)
    allowed[np.asarray(ids, np.int64)] = False
    return np.packbits(allowed, bitorder="little")
