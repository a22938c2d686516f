"""Server-sent events: a stream of JSON objects that ends with [DONE]."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import Send

from pad_rt.api.json_text import write

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect what comes
]


class EventStream:
    """One stream, on its way to a client.

    Args:
        send: of ASGI.

    Attributes:
        has_begun: the status is sent.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def begin(self) -> None:
        """Send the status 200."""
        self.has_begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})

    async def put(self, objects: Iterable[object]) -> None:
        """Send objects, an event each."""
        data = b"".join(b"data: " + write(each) + b"\n\n" for each in objects)
        if data:
            await self._put(data)

    async def keep_alive(self) -> None:
        """Send a comment, which clients skip and proxies take for life."""
        await self._put(b": keepalive\n\n")

    async def end(self, *, is_whole: bool) -> None:
        """End the stream; without [DONE] if the reply is not whole."""
        await self._put(b"data: [DONE]\n\n" if is_whole else b"", more=False)

    async def _put(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
