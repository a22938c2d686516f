"""A client of an ASGI app without a socket: it sends a body in parts, stops in the middle, or goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message


@dataclass
class Reply:
    """What an app sent, and how much of the request it took."""

    status: int = 0
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""
    is_whole: bool = False
    num_taken: int = 0

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error in OpenAI's shape."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["code"])


def call(
    app: ASGIApp,
    method: str = "GET",
    path: str = "/v1/models",
    headers: Mapping[str, str] | None = None,
    *,
    parts: Sequence[bytes] = (b"",),
    then: str = "waits",
    root_path: str = "",
) -> Reply:
    """One request.

    Args:
        parts: of the body, a message each.
        then: what the client does after them: "waits" for its reply, "stops" before the body's end, or "leaves" there.
    """
    reply = Reply()

    async def receive() -> Message:
        if reply.num_taken < len(parts):
            reply.num_taken += 1
            more = reply.num_taken < len(parts) or then != "waits"
            return {"type": "http.request", "body": parts[reply.num_taken - 1], "more_body": more}
        if then != "leaves":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply.status, reply.headers = message["status"], Headers(raw=message["headers"])
        else:
            reply.body += message.get("body", b"")
            reply.is_whole = not message.get("more_body", False)

    given = {"host": "127.0.0.1:8080", **(headers or {})}
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "root_path": root_path,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
    }
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 60))  # type: ignore[arg-type]
    return reply
