"""Reading a JSON object from a file of another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pad_runtime.errors import PadError


def read_object(path: Path, error: type[PadError], *, hint: str) -> dict[str, Any]:
    """Read the JSON object in an existing file.

    Raises:
        error: the file cannot be read, is not JSON, holds no object, or holds half a character; with `hint`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        is_whole = "\\ud" not in text.lower() or _is_text(json.dumps(value, ensure_ascii=False))
    except (ValueError, OSError, RecursionError) as reason:
        raise error(f"{path} is not JSON ({reason})", hint=hint) from reason
    if not is_whole:
        raise error(f"{path} holds half a character (an escaped lone surrogate)", hint=hint)
    if not isinstance(value, dict):
        raise error(f"{path} holds no JSON object", hint=hint)
    return value


def _is_text(text: str) -> bool:
    """Whether a text can be encoded: JSON's escapes can give lone surrogates."""
    return text.encode("utf-8", "ignore") == text.encode("utf-8", "surrogatepass")
