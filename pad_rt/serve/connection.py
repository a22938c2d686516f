"""HTTP/1.1 connections that no client can hold by doing nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pad_rt.api.error import ApiError


class Connection(H11Protocol):
    """uvicorn's protocol, which waits for its client as long as `timeout_keep_alive` says, whatever it waits for.

    uvicorn itself ends connections that are idle after a reply. Here, the same goes for the head of a request that does
    not come or stays half-sent, for what follows a reply that was sent before its request was whole, and for bytes that
    the client does not take.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._to_ask = _Deadline(self.loop, self.timeout_keep_alive, self._abort)
        self._to_take = _Deadline(self.loop, self.timeout_keep_alive, self._abort)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing is paused as long as anything is unsent
        self._to_ask.start()

    def data_received(self, data: bytes) -> None:
        """Take what came; wait on, unless a request runs by now."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._to_ask.start()
        else:
            self._to_ask.stop()

    def pause_writing(self) -> None:
        """Wait for the client to take what was written."""
        super().pause_writing()
        self._to_take.start()

    def resume_writing(self) -> None:
        """All was taken."""
        super().resume_writing()
        self._to_take.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._to_ask.stop()
        self._to_take.stop()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as the API refuses; a reply that has begun is cut."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return self._abort()
        error = ApiError(400, "invalid_request_error", None, None, msg)
        headers = [("content-type", "application/json"), ("connection", "close")]
        head, body = h11.Response(status_code=400, headers=headers), h11.Data(data=json.dumps(error.body).encode())
        for event in (head, body, h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        return self.transport.close()

    def _abort(self) -> None:
        self.transport.abort()


class _Deadline:
    """Calls once, so many seconds after the first `start`, unless stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> None:
        self._loop, self._seconds, self._call = loop, seconds, call
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._call)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
