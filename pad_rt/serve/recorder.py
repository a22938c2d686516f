"""ASGI middleware that keeps a record of each request."""

from __future__ import annotations

import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pad_rt.serve.logs import CLIENT_LEFT, RequestLog, RequestRecord
from pad_rt.serve.metrics import Metrics

_QUIET = ("/health", "/metrics")  # machines ask for them all the time


class Recorder:
    """Gives each request a record and an id, which its reply has as x-request-id, and writes the record to log and
    metrics in the end.

    Of /health and /metrics only failures are logged.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: RequestLog) -> None:
        self._app, self._metrics, self._log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = RequestRecord(uuid.uuid4().hex, scope["method"], path_of(scope))
        scope.setdefault("state", {})["record"] = record
        began = time.perf_counter()
        is_whole = has_left = False

        async def watched_receive() -> Message:
            nonlocal has_left
            message = await receive()
            has_left |= message["type"] == "http.disconnect" and not is_whole
            return message

        async def watched_send(message: Message) -> None:
            nonlocal is_whole
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        finally:
            record.total_s = time.perf_counter() - began
            if record.status < 400 and (has_left or not is_whole):
                record.status = 500 if record.error else CLIENT_LEFT
            self._metrics.count(record)
            if record.path not in _QUIET or record.status >= 400:
                self._log.write(record)


def path_of(scope: Scope) -> str:
    """The path as the app sees it, wherever it is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
