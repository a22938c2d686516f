"""Running the app: its port, its signals and its end."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from pad_rt.serve.app import create_app
from pad_rt.serve.connection import Connection
from pad_rt.serve.guards import is_loopback
from pad_rt.serve.readiness import Readiness
from pad_rt.serve.settings import ServeSettings
from pad_runtime.errors import OptionError

Report = Callable[[str], object]  # is told each line for the user


def run(settings: ServeSettings, *, report: Report, warn: Report) -> None:
    """Serve until SIGTERM or SIGINT, and until the replies that run then have ended.

    The port is there at once; until the models are open, /health and the API answer 503. A second signal ends the
    process at once.

    Args:
        settings: what to serve, and where.
        report: is told the address once the models are open, and that the server ends.
        warn: is told if anybody who reaches the address may use the server.

    Raises:
        OptionError: the server cannot listen there.
        PadError: a bundle or the file of people cannot be opened.
    """
    with _listen(settings) as listener:
        port = listener.getsockname()[1]
        if not settings.api_keys and not is_loopback(settings.host):
            warn(f"whoever reaches {settings.host}:{port} can use this server; set PAD_API_KEY to ask for a key")
        asyncio.run(_serve(create_app(settings), settings, listener, report))


def web_server_options(app: ASGIApp, settings: ServeSettings) -> uvicorn.Config:
    """How uvicorn runs the app: it logs nothing, as its tracebacks may have prompts in them."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.CRITICAL + 1,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.client_timeout,  # type: ignore[arg-type]  # asyncio takes parts of seconds, too
    )


def _listen(settings: ServeSettings) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, TypeError) as error:  # TypeError: no host could have this name
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[
            0
        ]  # behind it Python repeats the address
        raise OptionError(
            f"--host {host} --port {port}: {reason}",
            expected="an address of this machine and a port that is free",
            hint="--port 0 takes one",
        ) from None


def _url(host: str, port: int) -> str:
    """The address for a browser on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve(app: Starlette, settings: ServeSettings, listener: socket.socket, report: Report) -> None:
    readiness: Readiness = app.state.readiness
    server = _Server(web_server_options(app, settings))
    url = _url(settings.host, listener.getsockname()[1])
    with _stop_signal() as stop:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        opened, stopped = asyncio.create_task(readiness.opened()), asyncio.create_task(stop.wait())
        try:
            await _first(serving, opened, stopped)
            if opened.done():
                opened.result()
                report(_ready_line(url, app, has_page=not settings.no_page))
                await _first(serving, stopped)
                await _drain(server, app, settings.drain_timeout, report)
            elif stopped.done():
                os._exit(0)  # no request runs yet, and the thread that loads cannot be told to end
        finally:
            opened.cancel()
            stopped.cancel()
            server.should_exit = True
            await serving


def _ready_line(url: str, app: Starlette, *, has_page: bool) -> str:
    """What a newcomer needs: where the page is, and what a client is told (its base URL, and a model)."""
    names = [repr(model.name) for model in app.state.models.served() if model.person is None]
    page = "the page for a browser, and " if has_page else ""
    return f"{url} is ready: {page}OpenAI's API at {url}/v1 (model{'s' * (len(names) > 1)} {', '.join(names)})"


async def _first(*tasks: asyncio.Task[Any]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _drain(server: uvicorn.Server, app: Starlette, timeout: float, report: Report) -> None:
    """Let the requests that run end, and what they wrote be read, within `timeout` s in all; then end them."""
    readiness: Readiness = app.state.readiness
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    readiness.drain()
    if readiness.num_running:
        report(f"the server ends once what runs ({readiness.num_running}) has ended; a second signal ends it at once")
    try:
        async with asyncio.timeout_at(deadline):
            await readiness.drained()
    except TimeoutError:
        await asyncio.to_thread(app.state.models.close)  # whereupon each reply ends with an error
    server.config.timeout_graceful_shutdown = max(1, math.ceil(deadline - loop.time()))


@contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
