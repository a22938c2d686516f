"""Clients that leave something undone: the server does not wait for them for ever, and nothing of them is left."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pad_rt.serve import guards
from pad_rt.serve.logs import RequestLog
from pad_rt.serve.metrics import Metrics
from pad_rt.serve.readiness import Readiness
from pad_rt.serve.settings import ServeSettings
from tests.support.live_server import run_app, wait_until

TIMEOUT = 1.0
WHOLE = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nhi"
HALVES = (b"", b"P", b"POST /echo HTTP/1.1\r\nhost: localhost\r\n")
NUM_PARTS, PART = 256, bytes(2**16)


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def work(_: Request) -> Response:
    await asyncio.sleep(2 * TIMEOUT)
    return Response(b"done")


async def send_much(_: Request) -> Response:
    async def parts() -> Any:
        for _ in range(NUM_PARTS):
            yield PART

    return StreamingResponse(parts())


ROUTES = [Route(f"/{endpoint.__name__}", endpoint, methods=["GET", "POST"]) for endpoint in (echo, work, send_much)]


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[int, uvicorn.Server]]:
    settings, readiness = ServeSettings(client_timeout=TIMEOUT), Readiness()
    readiness.state = "ready"
    middleware = guards.middleware(settings, readiness, Metrics(), RequestLog(settings, io.StringIO()))
    with run_app(Starlette(routes=ROUTES, middleware=middleware), settings) as (port, server):
        yield port, server


@contextmanager
def connect(running: tuple[int, uvicorn.Server]) -> Iterator[socket.socket]:
    """A connection that the server has to end; in the end it has nothing of it."""
    port, server = running
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        yield connection
        read_to_end(connection)
        wait_until(lambda: not server.server_state.connections and not server.server_state.tasks)


def read_to_end(connection: socket.socket) -> bytes:
    return read_until(connection, None)


def read_until(connection: socket.socket, end: bytes | None) -> bytes:
    read = b""
    with suppress(ConnectionResetError):
        while (end is None or not read.endswith(end)) and (part := connection.recv(2**16)):
            read += part
    return read


def test_heads_that_do_not_come(running: tuple[int, uvicorn.Server]) -> None:
    """Neither the first on a connection nor a later one; those of this test wait side by side."""
    with ExitStack() as stack:
        waiting = [(stack.enter_context(connect(running)), before, sent) for before in (b"", WHOLE) for sent in HALVES]
        for connection, before, sent in waiting:
            connection.sendall(before)
            if before:
                assert read_until(connection, b"hi").endswith(b"hi")
            connection.sendall(sent)
        assert [read_to_end(connection) for connection, _, _ in waiting] == [b""] * 6


@pytest.mark.parametrize(
    "head",
    [
        b"POST /echo HTTP/1.1\r\nx: ",
        b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 1000000\r\n\r\n",  # refused before it was whole
    ],
)
def test_a_byte_now_and_then_is_not_enough(running: tuple[int, uvicorn.Server], head: bytes) -> None:
    with connect(running) as connection:
        connection.sendall(head)
        connection.settimeout(TIMEOUT / 20)
        with suppress(ConnectionError):
            for _ in range(10_000):
                with suppress(TimeoutError):
                    if not connection.recv(2**16):
                        break
                connection.sendall(b"a")
            else:
                raise AssertionError("the server waits on")
        connection.settimeout(60)


def test_half_a_body(running: tuple[int, uvicorn.Server]) -> None:
    """Its client is told, as it may be one that waits for a reply to what it takes for a whole request."""
    with connect(running) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nhalf")
        assert b" 408 " in read_to_end(connection)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_sender_of_too_much_reads_the_refusal(running: tuple[int, uvicorn.Server], chunked: bool) -> None:
    """It sends on until it is done, as many clients do, and only then reads."""
    body = [bytes(2**16)] * 128
    headers = {} if chunked else {"content-length": str(2**23)}
    with closing(HTTPConnection("127.0.0.1", running[0], timeout=60)) as connection:
        connection.request("POST", "/echo", iter(body), headers, encode_chunked=chunked)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "body_too_large")


def test_the_server_may_take_longer(running: tuple[int, uvicorn.Server]) -> None:
    """The limit is the client's alone; connections are kept and used again."""
    with connect(running) as connection:
        for _ in range(2):
            connection.sendall(b"GET /work HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert read_until(connection, b"done").endswith(b"done")


def test_a_client_that_does_not_read(running: tuple[int, uvicorn.Server]) -> None:
    port, server = running
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /send_much HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_until(lambda: bool(server.server_state.tasks))
        wait_until(lambda: not server.server_state.tasks and not server.server_state.connections)
        assert len(read_to_end(connection)) < NUM_PARTS * len(PART)


def test_a_client_that_reads_slowly_gets_everything(running: tuple[int, uvicorn.Server]) -> None:
    """It takes far longer than the limit in all, but goes on."""
    port, _ = running
    num_read, pauses = 0, 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /send_much HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        while part := connection.recv(2**20):
            num_read += len(part)
            if num_read > pauses * 2**21:
                pauses += 1
                time.sleep(TIMEOUT / 5)
    assert num_read > NUM_PARTS * len(PART)


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"]
)
def test_what_is_no_http(running: tuple[int, uvicorn.Server], sent: bytes) -> None:
    with connect(running) as connection:
        connection.sendall(sent)
        head, _, body = read_to_end(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_nonsense_in_a_body_that_was_replied_to(running: tuple[int, uvicorn.Server]) -> None:
    """The reply is there, and cannot be taken back: the connection just ends."""
    with connect(running) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nhost: evil.example\r\ntransfer-encoding: chunked\r\n\r\n")
        assert b" 403 " in read_until(connection, b"}}")
        connection.sendall(b"no length\r\n")
        assert read_to_end(connection) == b""
