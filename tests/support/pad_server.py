"""`pad serve` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import IO, Any

from tests.support.live_server import Answer, wait_until
from tests.support.pad_command import PAD

WAIT_S = 60
CHAT = "/v1/chat/completions"


class PadServer:
    """A server that runs, or is about to.

    Args:
        process: of the command, its streams piped.

    Attributes:
        port: where it listens, once it is known.
        headers: that are sent with each request.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.port = 0
        self.headers = {"content-type": "application/json", "connection": "close"}

    def wait_until_ready(self) -> str:
        """The line that says so."""
        line = self.read_line()
        self.port = int(line.split()[0].rpartition(":")[2])
        return line

    def wait_until_listening(self, port: int) -> None:
        """Wait for the port, which is there before the bundle is open."""
        self.port = port
        wait_until(self._listens)

    def _listens(self) -> bool:
        assert self.process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def read_line(self) -> str:
        """The next line of stdout."""
        return _stream(self.process.stdout).readline()

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        """A request on a connection of its own, and its whole reply."""
        with self._send(method, path, body) as response:
            return Answer(response.status, dict(response.getheaders()), response.read())

    def chat(self, **fields: Any) -> Answer:
        """A chat, whole."""
        return self.ask("POST", CHAT, chat(**fields))

    def stream(self, **fields: Any) -> HTTPResponse:
        """A chat as a stream of which the role is read; who leaves its block goes away."""
        response = self._send("POST", CHAT, chat(stream=True, **fields))
        assert response.status == 200
        assert b'"role"' in response.readline()
        return response

    def _send(self, method: str, path: str, body: object) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, self.headers)
        return connection.getresponse()

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(WAIT_S)

    def read_rest(self) -> tuple[str, str]:
        """What else it wrote to stdout and stderr, until it ended."""
        return self.process.communicate(timeout=WAIT_S)


def chat(**fields: Any) -> dict[str, Any]:
    """The body of a greedy chat."""
    return {"model": "bundle", "messages": [{"role": "user", "content": "boil an egg"}], "temperature": 0, **fields}


def text_of(events: bytes) -> str:
    """The text of a stream."""
    objects = [json.loads(line[6:]) for line in events.splitlines() if line.startswith(b"data: {")]
    return "".join(choice["delta"].get("content", "") for each in objects for choice in each.get("choices", []))


@contextmanager
def serve(
    bundle: Path, *flags: str, program: Sequence[str] = PAD, environment: dict[str, str] | None = None
) -> Iterator[PadServer]:
    """Start a server at a free port of 127.0.0.1; it is killed if the block leaves it running."""
    with subprocess.Popen(
        [*program, "serve", str(bundle), "--port", "0", "--threads", "1", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as process:
        try:
            yield PadServer(process)
        finally:
            if process.poll() is None:
                process.kill()


def python(code: str) -> list[str]:
    """A program that runs some code, and then `pad`."""
    return [sys.executable, "-c", f"{code}\nimport sys\nfrom pad_rt.cli.main import main\nsys.exit(main())"]


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
