"""ASGI middleware: what stands between the network and the app."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pad_rt.api.error import INTERNAL, ApiError, unavailable
from pad_rt.serve.logs import RequestLog, record_of
from pad_rt.serve.metrics import Metrics
from pad_rt.serve.readiness import Readiness
from pad_rt.serve.recorder import Recorder, path_of
from pad_rt.serve.settings import ServeSettings

_NEEDS_NO_KEY = ("/health", "/")  # the page is a file that tells nothing of the server
_NEEDS_NO_MODEL = ("/metrics", "/")
_LINGER_S, _LINGER_BYTES = 2.0, 2**26  # a sender of too large a body reads the refusal only once it has stopped sending
_MAX_DIGITS = 18  # of a length that is worth reading
_UNREADY = {
    "loading": unavailable("loading", "the server is loading its models", retry_after=5),
    "failed": unavailable("failed", "the server could not load its models", retry_after=60),
    "draining": unavailable("draining", "the server is shutting down", retry_after=30),
}


def middleware(settings: ServeSettings, readiness: Readiness, metrics: Metrics, log: RequestLog) -> list[Middleware]:
    """Every guard, from the outermost in. The first message that the app receives has the whole body."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after"),
    )
    return [
        Middleware(Recorder, metrics, log),
        Middleware(OriginGuard, settings.host, settings.cors_origins),
        *([cors] if settings.cors_origins else []),
        Middleware(FaultGuard),
        *([Middleware(KeyGuard, settings.api_keys)] if settings.api_keys else []),
        Middleware(BodyGuard, int(settings.max_body_mib * 2**20), settings.client_timeout),
        Middleware(ReadinessGuard, readiness),
    ]


def is_loopback(host: str) -> bool:
    """Whether an address to listen at, or the name in a Host header, is of this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class OriginGuard:
    """Refuses pages of other origins (403), which a browser would let send requests, and names of the server that a
    page may have made up for it (DNS rebinding).

    A page may call if its Origin has the request's own host and port, or is allowed. At a loopback address the Host
    itself must be one of this machine, or of an allowed origin. Other programs than browsers send no Origin.
    """

    def __init__(self, app: ASGIApp, host: str, origins: Sequence[str]) -> None:
        self._app, self._origins = app, frozenset(origins)
        self._hosts = {host, *(_hostname(origin.partition("://")[2]) for origin in origins)}
        self._checks_host = is_loopback(host) and "*" not in origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run or refuse one request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            if self._checks_host and host and not self._is_own(_hostname(host)):
                return await _refuse(_forbid("host", "the Host header names another server"), scope, receive, send)
            if origin is not None and not self._may_call(origin.lower(), host.lower()):
                return await _refuse(_forbid("origin", "pages of this origin may not call"), scope, receive, send)
        return await self._app(scope, receive, send)

    def _is_own(self, hostname: str) -> bool:
        return is_loopback(hostname) or hostname in self._hosts

    def _may_call(self, origin: str, host: str) -> bool:
        return bool({origin, "*"} & self._origins) or (host != "" and origin.partition("://")[2] == host)


class FaultGuard:
    """Turns an exception that nothing else caught into a fixed sentence (500), or, if the reply has begun, cuts it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        has_begun = False

        async def watched_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            record_of(scope).error = error
            if has_begun:
                raise ReplyCutError from None  # tells the web server, which logs it, nothing of the request
            await _refuse(ApiError(500, "server_error", "internal_error", None, INTERNAL), scope, receive, send)


class ReplyCutError(Exception):
    """A fault in the middle of a reply; the web server is to close the connection."""


class KeyGuard:
    """Refuses requests without one of the keys (401), all but those of /health and of the page.

    How long a comparison takes depends on no key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._digests = app, [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run or refuse one request."""
        if scope["type"] != "http" or path_of(scope) in _NEEDS_NO_KEY or self._has_key(Headers(scope=scope)):
            return await self._app(scope, receive, send)
        message = "a key is needed, in the header Authorization: Bearer KEY"
        error = ApiError(401, "invalid_request_error", "invalid_api_key", None, message)
        return await _refuse(error, scope, receive, send, {"www-authenticate": "Bearer"})

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        same = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(same)


class BodyGuard:
    """Takes in the whole body before the app runs, of at most `max_bytes` (413) and in at most `timeout` s (408)."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self._app, self._max_bytes, self._timeout = app, max_bytes, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run or refuse one request; one whose client leaves meanwhile just ends."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            async with asyncio.timeout(self._timeout):
                body = await self._read(Headers(scope=scope).get("content-length", ""), receive)
        except TimeoutError:
            error = ApiError(408, "invalid_request_error", "timeout", None, "the request did not arrive in time")
            return await _refuse(error, scope, receive, send, {"connection": "close"})
        except _TooLargeError:
            return await self._refuse_size(receive, send)
        if body is None:
            return None
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body() -> Message:
            return unread.pop() if unread else await receive()

        return await self._app(scope, receive_body, send)

    async def _read(self, declared: str, receive: Receive) -> bytes | None:
        """The body; None if the client left."""
        digits = declared.lstrip("0")
        if digits.isdecimal() and (len(digits) > _MAX_DIGITS or int(digits) > self._max_bytes):
            raise _TooLargeError
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise _TooLargeError
            if not message.get("more_body", False):
                return bytes(body)

    async def _refuse_size(self, receive: Receive, send: Send) -> None:
        """Refuse, and discard a part of what is still being sent: closing at once would take the reply back."""
        error = ApiError(
            413, "invalid_request_error", "body_too_large", None, f"the body is larger than {self._max_bytes:,} bytes"
        )
        response = JSONResponse(error.body, error.status, {"connection": "close"})
        await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
        left, is_sending = _LINGER_BYTES, True
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while is_sending and left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    is_sending = bool(message.get("more_body", False))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _TooLargeError(Exception):
    """A body beyond the limit."""


class ReadinessGuard:
    """Refuses requests while models load and once the server ends (503), and counts those that run."""

    def __init__(self, app: ASGIApp, readiness: Readiness) -> None:
        self._app, self._readiness = app, readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run or refuse one request."""
        state = self._readiness.state
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if state != "ready" and path_of(scope) not in _NEEDS_NO_MODEL:
            return await _refuse(_UNREADY[state], scope, receive, send)
        with self._readiness.running():
            return await self._app(scope, receive, send)


def _hostname(authority: str) -> str:
    """The name of NAME:PORT in lower case; "" if it is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _forbid(code: str, message: str) -> ApiError:
    return ApiError(403, "invalid_request_error", f"{code}_not_allowed", None, message)


async def _refuse(
    error: ApiError, scope: Scope, receive: Receive, send: Send, headers: dict[str, str] | None = None
) -> None:
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    await JSONResponse(error.body, error.status, headers)(scope, receive, send)
