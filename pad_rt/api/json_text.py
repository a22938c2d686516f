"""JSON in and out."""

from __future__ import annotations

import json
from typing import Any

from pad_rt.api.error import refusal


def parse(body: bytes) -> Any:
    """The value of a body in JSON.

    Raises:
        ApiError: it is none.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise refusal(None, "a body that is not JSON", expected="a JSON object in UTF-8", code="invalid_json") from None


def write(value: object) -> bytes:
    """A value in one line of UTF-8; half a surrogate pair, which UTF-8 has not, as JSON's own escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "backslashreplace")
