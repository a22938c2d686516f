"""Reading a JSON object that someone else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

from pad_runtime.errors import PadError


def read_object(path: Path, error: type[PadError], *, hint: str) -> dict[str, Any]:
    """The object in a file that is there.

    Raises:
        error: the file cannot be read, is not JSON, or holds something else; `hint` says what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text.lower():  # an escaped half of a character, which no text that is written again can carry
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, OSError, RecursionError) as reason:
        raise error(f"{path} is not JSON ({reason})", hint=hint) from reason
    if not isinstance(value, dict):
        raise error(f"{path} holds no JSON object", hint=hint)
    return value


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is text that can be written again; JSON can hold half a character (a lone surrogate)."""
    return isinstance(value, str) and value.encode("utf-8", "ignore") == value.encode("utf-8", "surrogatepass")
