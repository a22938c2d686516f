"""What stands between the network and the app: keys, origins, bodies, faults, readiness."""

from __future__ import annotations

import hmac
import io
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from pad_rt.serve import guards
from pad_rt.serve.logs import RequestLog
from pad_rt.serve.metrics import Metrics
from pad_rt.serve.readiness import Readiness
from pad_rt.serve.settings import ServeSettings
from tests.support.asgi import Reply, call

SECRET = "the prompt, of /home/somebody"
PATHS = ("/v1/models", "/v1/chat/completions", "/metrics", "/nowhere", "/v1", "//", "/health/", "/v1/../health")


class Site:
    """An app behind the guards. Its endpoints echo a body, or fail before or after a reply began."""

    def __init__(self, **settings: Any) -> None:
        self.settings = ServeSettings(**settings)
        self.readiness, self.log = Readiness(), io.StringIO()
        self.readiness.state = "ready"
        self.metrics = Metrics()
        self.bodies: list[bytes] = []
        stack = guards.middleware(self.settings, self.readiness, self.metrics, RequestLog(self.settings, self.log))
        routes = [
            Route("/", self._echo),
            Route("/fault", self._fail),
            Route("/fault-midway", FailsMidway()),
            Route("/{path:path}", self._echo, methods=["GET", "POST", "OPTIONS"]),
        ]
        self.app = Starlette(routes=routes, middleware=stack)

    def call(self, *arguments: Any, **options: Any) -> Reply:
        return call(self.app, *arguments, **options)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    async def _echo(self, request: Request) -> Response:
        assert self.readiness.num_running == 1
        body = await request.body()
        self.bodies.append(body)
        return Response(body)

    async def _fail(self, _: Request) -> Response:
        raise ValueError(SECRET)


class FailsMidway:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
        raise ValueError(SECRET)


# -- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer sesame1", "Basic sesame", "sesame", "Bearer s\xe9same"],
)
def test_without_the_key_nothing_is_told(method: str, path: str, authorization: str | None) -> None:
    site = Site(api_keys=("sesame", "open"))
    reply = site.call(method, path, {} if authorization is None else {"authorization": authorization})
    assert (reply.status, reply.code, site.bodies) == (401, "invalid_api_key", [])
    assert reply.headers["www-authenticate"] == "Bearer"
    assert not any(word in reply.body for word in (b"sesame", b"open"))


@pytest.mark.parametrize("authorization", ["Bearer sesame", "bearer open", "Bearer  open "])
def test_any_of_the_keys_opens(authorization: str) -> None:
    site = Site(api_keys=("sesame", "open"))
    assert [site.call("GET", path, {"authorization": authorization}).status for path in PATHS] == [200] * len(PATHS)


@pytest.mark.parametrize("path", ["/health", "/"])
def test_health_and_the_page_need_no_key(path: str) -> None:
    assert Site(api_keys=("sesame",)).call("GET", path).status == 200
    assert Site().call("GET", "/v1/models").status == 200, "where there is no key, none is asked for"


def test_a_comparison_takes_the_same_time_for_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is compared, whether or not an earlier one was right, as digests of one length."""
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    site = Site(api_keys=("a", "bb", "c" * 500))
    for key in ("a", "", "x" * 1000):
        compared.clear()
        site.call("GET", "/v1/models", {"authorization": f"Bearer {key}"})
        assert compared == [(32, 32)] * 3


# -- origins --------------------------------------------------------------------------------------------------------

OWN = {"origin": "http://127.0.0.1:8080"}


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:8081"},  # another port is another origin
        {"origin": "http://127.0.0.1"},
        {"origin": "http://localhost:8080"},  # another name is another origin
        {"origin": "http://127.0.0.1:8080.evil.example"},
        {"origin": "127.0.0.1:8080"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_page_of_another_origin_cannot_call(headers: dict[str, str], method: str) -> None:
    site = Site(cors_origins=("https://app.example",))
    preflight = {"access-control-request-method": "POST"} if method == "OPTIONS" else {}
    reply = site.call(method, "/v1/chat/completions", headers | preflight, parts=[b"{}"])
    assert (reply.status, reply.code, site.bodies) == (403, "origin_not_allowed", [])
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "127.0.0.1", "localhost:9", "[::1]:8080", "LOCALHOST", "a.localhost"]
)
def test_the_servers_own_page_may_call(host: str) -> None:
    """Also through a tunnel from another port: there, Host and Origin are of that port."""
    site = Site()
    reply = site.call("POST", "/v1/chat/completions", {"host": host, "origin": f"http://{host}"}, parts=[b"{}"])
    assert reply.body == b"{}"
    assert site.call("GET", "/v1/models", {"host": host}).status == 200, "programs send no Origin"


@pytest.mark.parametrize(
    "host",
    ["evil.example:8080", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[::", "10.0.0.1", "@"],
)
def test_a_name_that_was_bound_anew_is_refused(host: str) -> None:
    """DNS rebinding: the page of evil.example asks evil.example, which now is this machine."""
    for method, path in (("GET", "/health"), ("POST", "/v1/chat/completions"), ("GET", "/"), ("OPTIONS", "/v1")):
        reply = Site().call(method, path, {"host": host, "origin": f"http://{host}"})
        assert (reply.status, reply.code) == (403, "host_not_allowed")


def test_hosts_beyond_this_machine() -> None:
    """Where the network may reach the server, or an allowed origin names a proxy, other hosts are its own too."""
    elsewhere = {"host": "models.example"}
    assert Site(host="0.0.0.0").call("GET", "/v1/models", elsewhere).status == 200
    assert Site(cors_origins=("https://models.example",)).call("GET", "/v1/models", elsewhere).status == 200
    assert Site(cors_origins=("https://other.example",)).call("GET", "/v1/models", elsewhere).status == 403
    assert Site().call("GET", "/v1/models", {"host": ""}).status == 200, "HTTP/1.0, which no browser speaks"
    proxied = elsewhere | {"origin": "https://models.example"}
    assert Site(host="0.0.0.0").call("GET", "/v1/models", proxied).status == 200
    assert Site(host="0.0.0.0").call("GET", "/v1/models", elsewhere | {"origin": "https://evil.example"}).status == 403


@pytest.mark.parametrize("allowed", ["https://app.example", "*"])
def test_an_allowed_origin_may_call(allowed: str) -> None:
    site = Site(cors_origins=(allowed,), api_keys=("sesame",))
    origin = {"origin": "https://app.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    preflight = site.call("OPTIONS", "/v1/chat/completions", origin | asks)
    assert preflight.status == 200, "a browser sends no key in it"
    assert preflight.headers["access-control-allow-origin"] == allowed
    assert preflight.headers["access-control-allow-methods"] == "GET, POST, DELETE"
    assert preflight.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    for key, status in (("sesame", 200), ("wrong", 401)):
        reply = site.call("POST", "/v1/chat/completions", origin | {"authorization": f"Bearer {key}"}, parts=[b"{}"])
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (status, allowed)
        assert "x-request-id" in reply.headers["access-control-expose-headers"]


# -- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1024, 1025])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_the_largest_body(length: int, is_chunked: bool) -> None:
    site, body = Site(max_body_mib=1024 / 2**20), bytes(range(256)) * 4 + b"x"
    parts = [body[:length][start : start + 100] for start in range(0, length, 100)]
    headers = {} if is_chunked else {"content-length": str(length)}
    reply = site.call("POST", "/echo", headers, parts=parts)
    if length == 1024:
        assert reply.body == body[:1024] == site.bodies[0]
        return
    assert (reply.status, reply.code, site.bodies, reply.is_whole) == (413, "body_too_large", [], True)
    assert reply.headers["connection"] == "close"


def test_a_body_beyond_the_limit_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless one neither; a part is discarded, so that its sender comes to read the refusal."""
    monkeypatch.setattr(guards, "_LINGER_BYTES", 10 * 2**16)
    site = Site(max_body_mib=0.25)
    for headers in ({}, {"content-length": str(2**40)}, {"content-length": "9" * 5000}):
        reply = site.call("POST", "/echo", headers, parts=[bytes(2**16)] * 10_000)
        assert (reply.status, reply.is_whole) == (413, True)
        assert reply.num_taken <= 4 + 1 + 10 + 1


def test_a_client_that_leaves_on_reading_a_refusal_was_refused() -> None:
    site = Site(max_body_mib=0.25)
    reply = site.call("POST", "/echo", parts=[bytes(2**16)] * 5, then="leaves")
    assert (reply.status, site.lines[0]["status"]) == (413, 413)


@pytest.mark.parametrize("parts", [[], [b"{"], [b'{"a"', b": "]])
def test_a_body_that_stops_times_out(parts: list[bytes]) -> None:
    site = Site(client_timeout=0.05)
    reply = site.call("POST", "/echo", parts=parts, then="stops")
    assert (reply.status, reply.code, reply.headers["connection"]) == (408, "timeout", "close")
    assert (site.bodies, site.readiness.num_running) == ([], 0)


@pytest.mark.parametrize("parts", [[], [b"{"]])
def test_a_client_that_leaves_in_its_body(parts: list[bytes]) -> None:
    site = Site()
    reply = site.call("POST", "/echo", parts=parts, then="leaves")
    assert (reply.status, site.bodies, site.readiness.num_running) == (0, [], 0)
    assert [line["status"] for line in site.lines] == [499]


# -- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_prompts", [False, True])
def test_a_fault_is_one_fixed_sentence(log_prompts: bool) -> None:
    site = Site(log_prompts=log_prompts)
    reply = site.call("GET", "/fault")
    assert (reply.status, reply.code, reply.is_whole) == (500, "internal_error", True)
    assert not any(word in reply.body.decode() for word in (SECRET, "/home", "Traceback", "ValueError", ".py"))
    assert reply.headers["x-request-id"] == site.lines[0]["id"]
    assert site.lines[0]["error"].startswith("ValueError in pad_rt.serve.guards, line ")
    assert (SECRET in site.log.getvalue()) == log_prompts == ("Traceback" in site.lines[0].get("traceback", ""))


def test_a_fault_in_the_middle_cuts_the_reply() -> None:
    """The web server learns nothing that it could log but that it is to close the connection."""
    site = Site()
    with pytest.raises(guards.ReplyCutError) as caught:
        site.call("GET", "/fault-midway")
    assert str(caught.value) == ""
    assert caught.value.__suppress_context__
    assert [line["status"] for line in site.lines] == [500]
    assert SECRET not in site.log.getvalue()
    assert site.readiness.num_running == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "[", "origin": "http://["},
        {"host": "\xff\xfe", "origin": "\xff"},
        {"authorization": "\xff\x00"},
        {"content-length": "-1"},
        {"content-length": "\xb2"},
        {"origin": "http://" + "a" * 100_000},
    ],
)
def test_odd_headers_are_no_faults(headers: dict[str, str]) -> None:
    for settings in ({}, {"host": "0.0.0.0", "api_keys": ("k",)}, {"cors_origins": ("*",)}):
        site = Site(**settings)
        assert site.call("POST", "/v1/models", headers).status in (200, 401, 403)
        assert "error" not in site.lines[0]


# -- readiness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["loading", "failed", "draining"])
def test_a_server_that_is_not_ready(state: Any) -> None:
    site = Site()
    site.readiness.state = state
    for path in ("/health", "/v1/models", "/v1/chat/completions", "/nowhere"):
        reply = site.call("GET", path)
        assert (reply.status, reply.code) == (503, state)
        assert int(reply.headers["retry-after"]) > 0
    assert [site.call("GET", path).status for path in ("/", "/metrics")] == [200, 200]


def test_where_the_app_is_mounted_its_paths_are_the_same() -> None:
    site = Site(api_keys=("sesame",))
    outer = Starlette(routes=[Mount("/pad", site.app)])
    statuses = {path: call(outer, "GET", f"/pad{path}").status for path in ("/health", "/v1/models", "/")}
    assert statuses == {"/health": 200, "/v1/models": 401, "/": 200}
    assert {line["path"] for line in site.lines} == {"/v1/models", "/"}
