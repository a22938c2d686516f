"""HTTP/1.1 from the client's side, by hand: a client that can misbehave at any byte."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

_BUFFER = 2048  # bytes that are read ahead: what a slow reader leaves stays in the server's socket


@dataclass
class Answer:
    """A reply, or what came of it.

    Attributes:
        status: of HTTP.
        headers: by their names in lower case.
        body: so far.
        times: when each event of a stream came, and its object, by `time.perf_counter`; comments are left out.
        is_whole: the body came to its end; a stream, to [DONE].
    """

    status: int
    headers: dict[str, str]
    body: bytes = b""
    events: list[tuple[float, Any]] = field(default_factory=list)
    is_whole: bool = False

    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)


class Connection:
    """A connection that stays open from one request to the next.

    Args:
        port: of 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, data: bytes) -> None:
        """Send bytes as they are; connects first if need be."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=_BUFFER)
        self._streams[1].write(data)
        await self._streams[1].drain()

    def cut(self) -> None:
        """Close it at once, whatever is on its way."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def answer(self, *, pause: float = 0.0, cut_after: int | None = None) -> Answer:
        """Read a reply.

        Args:
            pause: seconds between one read of at most 2 kB and the next.
            cut_after: events after which the connection is cut; None reads to the end.

        Raises:
            OSError, asyncio.IncompleteReadError: the server closed the connection before a status.
        """
        assert self._streams
        reader, _ = self._streams
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        headers: dict[str, str] = {}
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        answer = Answer(status, headers)
        is_stream = headers.get("content-type", "").startswith("text/event-stream")
        unread, pieces = b"", []
        try:
            async for piece in _pieces(reader, headers):
                pieces.append(piece)
                *events, unread = (unread + piece).split(b"\n\n") if is_stream else [b""]
                now = time.perf_counter()
                answer.events += [(now, _read_event(event)) for event in events if event.startswith(b"data: ")]
                if cut_after is not None and len(answer.events) > cut_after:
                    self.cut()
                    break
                await asyncio.sleep(pause)
            else:
                answer.is_whole = not is_stream or (bool(answer.events) and answer.events[-1][1] == "[DONE]")
        except (OSError, asyncio.IncompleteReadError):
            self.cut()
        answer.body = b"".join(pieces)
        if headers.get("connection") == "close":
            self.cut()
        return answer


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body, whatever frames it."""
    if headers.get("transfer-encoding") != "chunked":
        left = int(headers.get("content-length", "0"))
        while left:
            piece = await reader.readexactly(min(left, _BUFFER))
            left -= len(piece)
            yield piece
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


def _read_event(event: bytes) -> Any:
    text = event.removeprefix(b"data: ")
    return text.decode() if text == b"[DONE]" else json.loads(text)


def post(path: str, body: bytes, *, length: int | None = None) -> bytes:
    """A request's bytes; `length` is declared instead of the body's own."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body
