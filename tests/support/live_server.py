"""A real server on 127.0.0.1, in a thread of the tests' own process, and raw requests to it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from pad_rt import Generator
from pad_rt.serve.app import create_app
from pad_rt.serve.models import LoadedModels, Models
from pad_rt.serve.server import web_server_options
from pad_rt.serve.settings import ServeSettings

_WAIT_S = 60.0


@dataclass(frozen=True)
class LiveServer:
    """A server that runs.

    Attributes:
        port: where it listens.
        generator: that it serves.
    """

    port: int
    generator: Generator

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """Send an object, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, {"content-type": "application/json", **headers})

    def get(self, path: str) -> Answer:
        return self.request("GET", path, None, {})

    def request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_WAIT_S)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def open(self, path: str, body: object) -> socket.socket:
        """Send a request, and leave its reply to the caller, who may go away."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=_WAIT_S)
        connection.sendall(head.encode() + b"\r\n\r\n" + data)
        return connection

    def is_idle(self) -> bool:
        return self.generator.num_running == 0 and self.generator.num_waiting == 0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The objects of a stream, and "[DONE]"; comments are left out."""
        lines = [line for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in (each[len("data: ") :] for each in lines)]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    for _ in range(int(_WAIT_S / 0.01)):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never happened")


@contextmanager
def serve(generator: Generator, *, people: Any = None, **settings: Any) -> Iterator[LiveServer]:
    """Serve a generator as "tiny", which is closed in the end."""
    models = LoadedModels(lambda: {"tiny": generator}, people or {})
    with run(models, ServeSettings(**settings)) as port:
        yield LiveServer(port, generator)


@contextmanager
def run(models: Models, settings: ServeSettings) -> Iterator[int]:
    """Run an app until its models are open, and then as long as the block; gives the port."""
    app = create_app(settings, models)
    with run_app(app, settings) as (port, _):
        wait_until(lambda: app.state.readiness.state != "loading")
        yield port


@contextmanager
def run_app(app: ASGIApp, settings: ServeSettings) -> Iterator[tuple[int, uvicorn.Server]]:
    """Run any app as long as the block; gives the port, and the web server."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(web_server_options(app, settings))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(_WAIT_S)
        listener.close()
