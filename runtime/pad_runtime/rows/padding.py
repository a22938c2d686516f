"""Token ids of several texts as one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def pad_right(texts: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Ids [N, s] of texts, the shorter ones right-padded with token 0."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return ids
