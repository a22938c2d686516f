"""The input of a batch: requests in OpenAI's format, one a line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_runtime.errors import OptionError

URLS = ("/v1/chat/completions", "/v1/completions")
_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class BatchLine:
    """One line of the input.

    Attributes:
        id: of its output line. It is made of the line's text, so that it is the same when the batch is begun again.
        number: in the file, from 1.
        custom_id: the name that the sender gave it; None if it has none.
        url: one of `URLS`; "" if the line is no request.
        body: what is asked for; empty if the line is no request.
        fault: a word for programs and a line for people that say why it is no request; None if it is.
    """

    id: str
    number: int
    custom_id: str | None = None
    url: str = ""
    body: dict[str, Any] | None = None
    fault: tuple[str, str] | None = None


def read_ids(path: Path) -> list[str]:
    """The ids of all lines, in their order.

    Raises:
        OptionError: the file cannot be read, or not a second time, as a pipe, or has no line.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OptionError(f"{path} is no regular file", expected="one of requests, which is read twice")
    ids = [id for id, _, _ in _read(path)]
    if not ids:
        raise OptionError(f"{path} has no lines", expected=f"a JSON object with {', '.join(_FIELDS)} on each line")
    return ids


def read_lines(path: Path) -> Iterator[BatchLine]:
    """The lines, one after the other; blank ones are left out.

    Raises:
        OptionError: the file cannot be read.
    """
    seen: set[str] = set()
    for id, number, text in _read(path):
        line = _parse(id, number, text)
        if line.custom_id in seen:
            fault = ("duplicate_custom_id", f"line {number}: an earlier line has this custom_id, too")
            line = BatchLine(id, number, line.custom_id, fault=fault)
        if line.custom_id is not None:
            seen.add(line.custom_id)
        yield line


def _read(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """Ids, numbers and texts of the lines that are not blank."""
    copies = Counter[bytes]()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if text:
                    digest = hashlib.sha256(text).digest()
                    yield f"batch_req_{_hash(digest, copies[digest])}", number, text
                    copies[digest] += 1
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}", expected="a file of requests") from None


def _hash(digest: bytes, copy: int) -> str:
    return hashlib.sha256(digest + b"%d" % copy).hexdigest()[:24]


def _parse(id: str, number: int, text: bytes) -> BatchLine:
    def bad(code: str, message: str, custom_id: str | None = None) -> BatchLine:
        return BatchLine(id, number, custom_id, fault=(code, f"line {number}: {message}"))

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return bad("invalid_json_line", "not JSON; expected an object in UTF-8")
    if not isinstance(value, dict):
        return bad("invalid_json_line", f"not an object; expected one with {', '.join(_FIELDS)}")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return bad("missing_custom_id", "no custom_id; expected a text of its own for each line")
    for name in value:
        if name not in _FIELDS:
            return bad("unknown_field", f"the field {name!r}; expected {', '.join(_FIELDS)}", custom_id)
    if value.get("method", "POST") != "POST":
        return bad("invalid_method", f"method {value['method']!r}; expected POST", custom_id)
    if value.get("url") not in URLS:
        return bad("invalid_url", f"url {value.get('url')!r}; expected {' or '.join(URLS)}", custom_id)
    if not isinstance(value.get("body"), dict):
        return bad("invalid_body", "no body; expected an object", custom_id)
    return BatchLine(id, number, custom_id, value["url"], value["body"])
