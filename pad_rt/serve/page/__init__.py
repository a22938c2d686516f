"""The page of a server: one file that loads nothing, and the headers that hold it to that."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources


def read_page() -> tuple[bytes, dict[str, str]]:
    """The page and the headers that it is served with.

    Its content security policy allows the page's own script and style, by their hashes, and calls of the same origin.
    """
    page = (resources.files("pad_rt.serve.page") / "index.html").read_bytes()
    policy = (
        "default-src 'none'",
        f"script-src {_hash_of(page, b'script')}",
        f"style-src {_hash_of(page, b'style')}",
        "img-src data:",  # the icon
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
    return page, {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash_of(page: bytes, tag: bytes) -> str:
    (source,) = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(source).digest()).decode()}'"
