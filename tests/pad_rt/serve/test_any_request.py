"""Bytes of any kind to a server's port: no fault, no word of what only the server knows, and it goes on."""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import tiny_bundles
from tests.support.live_server import LiveServer, serve, wait_until

SECRET = "open sesame"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 2}
BODY = json.dumps(CHAT).encode()
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\n"
)
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
some = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

methods = st.sampled_from(
    [b"POST", b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"CONNECT", b"PRI", b"post", b"P\x00", b""]
)
targets = st.sampled_from(
    [
        *(
            b"/v1/chat/completions",
            b"/v1/completions",
            b"/v1/models",
            b"/v1/models/tiny",
            b"/health",
            b"/metrics",
            b"/",
        ),
        *(b"*", b"//", b"/v1/models/%ff%00", b"/v1/models/../../../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd"),
        *(b"http://other/v1/models", b"/v1/models/" + b"a" * 5000, b"/health?" + b"a=b&" * 500, b"/\xff", b"/a b"),
    ]
) | st.binary(max_size=8)
headers = st.sampled_from(
    [
        *(b"host: 127.0.0.1", b"host: other", b"host:", b"host: [::1", b"host: a\r\nhost: b", b"Host : x"),
        *(b"content-type: application/json", b"content-type: text/plain", b"content-type: application/json; charset=x"),
        *(b"content-type: \xff\xfe", b"content-type: multipart/form-data; boundary=x", b"content-encoding: gzip"),
        *(b"content-length: 0", b"content-length: -1", b"content-length: 1e3", b"content-length: 0x10"),
        *(b"content-length: 99999999999999999999", b"content-length: 5\r\ncontent-length: 6", b"content-length: 5, 5"),
        *(b"content-length: 9" + b"9" * 5000, b"content-length: \xb2"),
        *(b"transfer-encoding: chunked", b"transfer-encoding: gzip, chunked", b"transfer-encoding: identity"),
        *(
            b"expect: 100-continue",
            b"expect: 200-ok",
            b"connection: upgrade\r\nupgrade: websocket",
            b"connection: close",
        ),
        *(b"upgrade: h2c\r\nhttp2-settings: AA", b"origin: null", b"origin: http://127.0.0.1", b"origin: \xff"),
        *(b"authorization: Bearer \xff", b"authorization: ", b"x-forwarded-for: ::1", b"range: bytes=0-0", b"no colon"),
        *(b": empty", b" folded: x", b"a" * 300 + b": b", b"x: " + b"y" * 70_000, b"\r\n".join([b"x: y"] * 2000)),
    ]
)
bodies = st.sampled_from(
    [
        *(
            b"",
            BODY,
            BODY[:-1],
            BODY + b"x",
            b"\xef\xbb\xbf" + BODY,
            gzip.compress(BODY),
            BODY.decode().encode("utf-16"),
        ),
        *(
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"model":' + b"9" * 5000 + b"}",
            b"1e999",
            b"NaN",
            b"null",
            b'"\\ud800"',
        ),
        *(b'{"model":"tiny","model":"tiny:nobody","messages":[]}', b"x" * 100_000, b"5\r\nhello\r\n0\r\n\r\n"),
        *(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), b"fffffffffffffffffffff\r\n", b"1;" + b"e" * 50_000, b"-1\r\n"),
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request with odd parts: its body may be longer or shorter than it says."""
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b""]))
    body = draw(bodies)
    lines = draw(st.lists(headers, max_size=4))
    lines += draw(st.sampled_from([[], [b"content-length: %d" % len(body)], [b"content-type: application/json"]]))
    lines += draw(st.sampled_from([[], [b"host: 127.0.0.1", b"connection: close"]]))
    return b"\r\n".join([b" ".join([draw(methods), draw(targets), version]), *lines, b"", body])


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A request that is right but for a few bytes."""
    data = bytearray(WHOLE)
    for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=3)):
        data[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[LiveServer]:
    with serve(tiny_bundles.load(served_bundle), max_body_mib=0.25, client_timeout=0.25) as running:
        yield running


def exchange(server: LiveServer, data: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    read = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection, suppress(ConnectionError):
        connection.sendall(data)
        while part := connection.recv(2**16):
            read += part
    return read


def check(read: bytes) -> list[int]:
    """The statuses of all replies; none is a fault, and none tells of paths, code or prompts."""
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", read)]
    assert not [status for status in statuses if status >= 500], read
    for word in (b"Traceback", b"site-packages", b".py", b"/tmp", b"root:", SECRET.encode()):
        assert word not in read, read
    for body in re.findall(rb'\{"error":.*?\}\}', read):
        error: dict[str, Any] = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(error["message"].splitlines()) == 1
    return statuses


def test_a_request_that_is_right(server: LiveServer) -> None:
    """What the others are made of is replied to."""
    assert check(exchange(server, WHOLE)) == [200]


@some
@given(data=requests())
def test_any_request(server: LiveServer, data: bytes) -> None:
    check(exchange(server, data))


@some
@given(data=spoiled())
def test_a_request_with_wrong_bytes(server: LiveServer, data: bytes) -> None:
    check(exchange(server, data))


@some
@given(data=st.binary(max_size=200) | st.lists(st.sampled_from([WHOLE, HEAD, BODY, b"\r\n", b"\x00"])).map(b"".join))
def test_any_bytes(server: LiveServer, data: bytes) -> None:
    check(exchange(server, data))


def test_nothing_is_left_of_them(server: LiveServer) -> None:
    """The last of this file: the server is idle, and replies as before."""
    wait_until(server.is_idle)
    assert check(exchange(server, WHOLE)) == [200]
