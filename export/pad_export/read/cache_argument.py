"""The KV cache argument of a transformers model, which was renamed between releases."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import Cache, LlamaModel

_ARGUMENT = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"  # before 5.24


def cache_argument(cache: Cache | None) -> dict[str, Any]:
    """Keyword arguments that have `model(...)` read `cache` and append to it in place."""
    return {_ARGUMENT: cache}
