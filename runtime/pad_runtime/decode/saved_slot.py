"""A saved slot: what a slot knows, on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from pad_runtime.rows.row import Row


@dataclass(frozen=True, eq=False)
class SavedSlot:
    """A slot's tokens, and its KV cache of a part of them.

    Attributes:
        rows: of its sequence.
        ids: token ids by prompt, chosen ones with them.
        cached: how many of them are in the cache, by prompt.
        caches: keys or values [kv_heads, cached, head_dim] of each of its cache rows in each layer, named as
            `past_key_values.0.key.1`: a cache's input name, and the row's number there.
    """

    rows: tuple[Row, ...]
    ids: tuple[tuple[int, ...], ...]
    cached: tuple[int, ...]
    caches: Mapping[str, npt.NDArray[Any]]
