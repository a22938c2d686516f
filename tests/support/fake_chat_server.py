"""A server of the page that answers what a test has written: failures and texts that a real one gives to nobody."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pad_rt.serve.page import read_page

DONE = "data: [DONE]\n\n"
_PATIENCE_S = 120


@dataclass(frozen=True)
class Answer:
    """What is sent, piece by piece. The piece None is a halt: the test lets it go on."""

    pieces: tuple[str | bytes | None, ...]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def whole(body: Any, status: int = 200, **headers: str) -> Answer:
    return Answer((json.dumps(body),), status, {name.replace("_", "-"): value for name, value in headers.items()})


def refusal(message: str, status: int, **headers: str) -> Answer:
    return whole({"error": {"message": message, "type": "x", "param": None, "code": None}}, status, **headers)


def streamed(*events: dict[str, Any] | str | None) -> Answer:
    """Chunks of a reply: objects become events, strings are sent as they are, None is a halt."""
    pieces = (f"data: {json.dumps(event)}\n\n" if isinstance(event, dict) else event for event in events)
    return Answer(tuple(pieces), headers={"Content-Type": "text/event-stream"})


def chunk(content: str = "", *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish, **more}]}


def weighed(text: str, *, gain: float, changed: bool) -> dict[str, Any]:
    """A token among three candidates, the base's first choice the first or, if it was changed, the second."""
    logits = (1.0, 2.0, 0.0) if changed else (2.0, 1.0, 0.0)
    candidates = [
        {
            "id": id,
            "text": name,
            "base_probability": 0.1,
            "guided_probability": 0.8,
            "base_logit": logit,
            "reward": 3.0 - id,
            "score": logit + 3.0 - id,
        }
        for id, (name, logit) in enumerate(zip((text, " other", " third"), logits, strict=True))
    ]
    return {"id": 0, "text": text, "gain": gain, "changed": changed, "candidates": candidates}


def model(name: str = "tiny", **pad: Any) -> dict[str, Any]:
    described = {"base": "a base", "features": ["kind", "brief"], "reads_words": False, "max_top_k": 20, "person": None}
    return {"id": name, "object": "model", "created": 0, "owned_by": "pad", "pad": {**described, **pad}}


class FakeServer:
    """The page, and answers that may be changed at any time.

    Attributes:
        models: what GET /v1/models answers.
        reply: what a chat request's body is answered with.
        people: what a path under /v1/people and its body are answered with.
        seen: each request's path, Authorization header and body.
    """

    def __init__(self) -> None:
        self.models = whole({"object": "list", "data": [model()]})
        self.reply: Callable[[dict[str, Any]], Answer] = lambda body: streamed(chunk("Hello."), DONE)
        self.people: Callable[[str, Any], Answer] = lambda path, body: refusal("nobody", 404)
        self.seen: list[tuple[str, str | None, Any]] = []
        self.bodies: list[dict[str, Any]] = []
        self.url = ""
        self.is_closed = False
        self._go = threading.Semaphore(0)

    def go_on(self, count: int = 1) -> None:
        """Let so many halted answers go on."""
        self._go.release(count)

    def _answer(self, request: BaseHTTPRequestHandler, body: dict[str, Any] | None) -> None:
        if self.is_closed:  # over a connection that the browser had opened before
            return
        self.seen.append((request.path, request.headers.get("Authorization"), body))
        if request.path == "/":
            page, headers = read_page()
            self._send(request, Answer((page.decode(),), headers=headers))
        elif request.path == "/v1/models":
            self._send(request, self.models)
        elif request.path.startswith("/v1/people/"):
            self._send(request, self.people(request.path.removeprefix("/v1/people/"), body))
        else:
            assert body is not None
            self.bodies.append(body)
            self._send(request, self.reply(body))

    def _send(self, request: BaseHTTPRequestHandler, answer: Answer) -> None:
        request.send_response(answer.status)
        for name, value in answer.headers.items():
            request.send_header(name, value)
        request.end_headers()
        for piece in answer.pieces:
            if piece is None:
                assert self._go.acquire(timeout=_PATIENCE_S)
                continue
            try:
                request.wfile.write(piece.encode() if isinstance(piece, str) else piece)
                request.wfile.flush()
            except OSError:  # the page has gone away
                return


@contextmanager
def serving() -> Iterator[FakeServer]:
    """A server on a port of its own."""
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake._answer(self, None)

        def do_POST(self) -> None:
            fake._answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, format: str, *values: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.is_closed = True
        fake.go_on(1000)
        server.shutdown()
        server.server_close()
        thread.join()
