"""What a server refuses, when it gives up, and how it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from pad_rt import Generator
from pad_rt.api.error import INTERNAL
from tests.support import tiny_bundles
from tests.support.gated_engine import Gate, held
from tests.support.live_server import LiveServer, serve, wait_until

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 20, "seed": 1}
SECRET = "/home/somebody/bundle: How do I boil an egg?"


@contextmanager
def served(bundle: Path, *, max_waiting: int = 256, **settings: Any) -> Iterator[LiveServer]:
    generator = Generator(tiny_bundles.open_bundle(bundle), max_waiting=max_waiting)
    with serve(generator, **settings) as server:
        yield server


def error_of(answer: Any, status: int, code: str | None, param: str | None = None) -> str:
    """The message of an error in OpenAI's shape, which tells no secret."""
    assert answer.status == status, answer.body
    (name,) = answer.json()
    error = answer.json()[name]
    assert name == "error"
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    for secret in (b"/home", b"Traceback", b'File "'):
        assert secret not in answer.body
    return str(error["message"])


# -- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 1}, "min_p"),
        ({"presence_penalty": None, "frequency_penalty": "x"}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"stop": 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["temperature", 5]}, "stop"),
        ({"seed": "1"}, "seed"),
        ({"max_tokens": 2000}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": 2000}, "max_completion_tokens"),
        ({"logprobs": True, "top_logprobs": 11}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 5000}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
        ({"pad": {"weights": {"nothing": 1}}}, "pad"),
        ({"pad": {"weights": {"kind": 1e300}}}, "pad"),
        ({"pad": {"preference": " "}}, "pad"),
        ({"pad": {"weights": {"kind": 1}, "beta": 1e400}}, "pad.beta"),
        ({"pad": {"weights": {"kind": 1}, "top_k": 21}}, "pad.top_k"),
        ({"pad": {"explain": True}}, "pad.explain"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 5}}}},
            "response_format",
        ),
        ({"tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_a_field_is_refused_by_name(server: LiveServer, fields: Any, param: str) -> None:
    answer = server.post(CHAT, BODY | fields)
    assert answer.status == 400, answer.body
    assert error_of(answer, 400, answer.json()["error"]["code"], param)
    assert server.post(CHAT, {**BODY, **fields, "stream": True}).json()["error"]["param"] == param
    assert server.is_idle()


def test_errors_are_those_of_the_official_client(client: openai.OpenAI) -> None:
    messages: Any = BODY["messages"]
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client.chat.completions.create(model="tiny", messages=messages, temperature=-1)
    assert (refused.value.param, refused.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="'huge' does not exist") as missing:
        client.chat.completions.create(model="huge", messages=messages)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="a")


def test_paths_methods_and_types(server: LiveServer) -> None:
    error_of(server.get("/v1/nothing"), 404, "not_found")
    error_of(server.get("/health/"), 404, "not_found")
    error_of(server.post(CHAT + "/", BODY), 404, "not_found")
    error_of(server.get(CHAT), 405, "method_not_allowed")
    assert server.get(CHAT).headers["allow"] == "POST"
    error_of(server.post("/v1/models", {}), 405, "method_not_allowed")
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = server.request("POST", CHAT, b"{}", {"content-type": kind})
        error_of(answer, 415, "unsupported_media_type")
    error_of(server.post(CHAT, b"{"), 400, "invalid_json")
    error_of(server.post(CHAT, b"\xff\xfe"), 400, "invalid_json")
    error_of(server.post(CHAT, b"[" * 100_000), 400, "invalid_json")
    error_of(server.post(CHAT, []), 400, None)
    error_of(server.post(CHAT, {}), 400, None, "messages")
    assert error_of(server.post(CHAT, {**BODY, "model": "\ud800"}), 404, "model_not_found", "model")
    answer = server.post(CHAT, {**BODY, "stop": ["\ud800"]}, **{"content-type": "application/json; charset=utf-8"})
    assert answer.status == 200


def test_a_body_beyond_the_limit(served_bundle: Path) -> None:
    with served(served_bundle, max_body_mib=0.01) as server:
        large = {**BODY, "messages": [{"role": "user", "content": "a" * 20_000}]}
        assert "larger" in error_of(server.post(CHAT, large), 413, "body_too_large")
        assert server.post(CHAT, BODY).status == 200


def test_a_queue_that_is_full(served_bundle: Path) -> None:
    """A body of several samples takes all its places, or none."""
    with served(served_bundle, max_waiting=3) as server, held(server.generator):
        waiting = [server.open(CHAT, BODY) for _ in range(2)]
        wait_until(lambda: server.generator.num_waiting == 2)
        answer = server.post(CHAT, BODY | {"n": 2})
        assert "wait already" in error_of(answer, 429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert server.generator.num_waiting == 2
        waiting.append(server.open(CHAT, BODY | {"stream": True}))
        wait_until(lambda: server.generator.num_waiting == 3)
        error_of(server.post(CHAT, BODY | {"stream": True}), 429, "queue_full")
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        with client, pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="tiny", messages=BODY["messages"])
        assert "at most max_waiting, 3" in error_of(server.post(CHAT, BODY | {"n": 4}), 400, None)
        for connection in waiting:
            connection.close()


# -- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_waits_too_long(served_bundle: Path, stream: bool) -> None:
    """No stream begins before there is a place, so that it has a status."""
    with served(served_bundle, queue_timeout=0.2) as server:
        with held(server.generator):
            answer = server.post(CHAT, BODY | {"stream": stream})
            assert "0.2 seconds" in error_of(answer, 503, "queue_timeout")
            assert int(answer.headers["retry-after"]) >= 1
        wait_until(server.is_idle)
        assert server.post(CHAT, BODY | {"stream": stream}).status == 200


def test_a_reply_that_takes_too_long(served_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(served_bundle, request_timeout=0.3) as server:
        gate = Gate(server.generator, monkeypatch)
        error_of(server.post(CHAT, BODY), 503, "request_timeout")
        gate.let(1)
        wait_until(server.is_idle)
        gate.let(2)
        events = server.post(CHAT, BODY | {"stream": True}).events()
        assert [event["error"]["code"] for event in events[-1:]] == ["request_timeout"]
        gate.open()
        wait_until(server.is_idle)


def test_comments_keep_a_stream_alive_while_a_prompt_is_read(
    served_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(served_bundle, keepalive=0.05) as server:
        gate = Gate(server.generator, monkeypatch)
        connection = server.open(CHAT, BODY | {"stream": True, "temperature": 0})
        received = b""
        while received.count(b": keepalive\n\n") < 3:
            received += connection.recv(10_000)
        assert received.index(b'"role":"assistant"') < received.index(b": keepalive")
        assert gate.num_begun == 1
        gate.open()
        while b"[DONE]" not in received:
            received += connection.recv(10_000)
        connection.close()
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            chunks = list(
                client.chat.completions.create(model="tiny", messages=BODY["messages"], stream=True, max_tokens=4)
            )
        assert chunks[-1].choices[0].finish_reason == "length"


# -- faults ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes a later step fail with a message that nobody may read."""
    decoder = server.generator._engine._decoder
    step = decoder.step

    def fail_at(count: int) -> None:
        left = [count]

        def failing_step(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise RuntimeError(SECRET)
            return step(*args, **options)

        monkeypatch.setattr(decoder, "step", failing_step)

    return fail_at


def test_a_fault_is_a_fixed_sentence(server: LiveServer, failing: Callable[[int], None]) -> None:
    for body in (BODY, BODY | {"stream": True}):
        failing(1)
        assert error_of(server.post(CHAT, body), 500, "internal_error") == INTERNAL
    failing(5)
    assert error_of(server.post(CHAT, BODY), 500, "internal_error") == INTERNAL
    assert server.post(CHAT, BODY).status == 200


def test_a_fault_after_a_stream_began_is_its_last_event(
    server: LiveServer, client: openai.OpenAI, failing: Callable[[int], None]
) -> None:
    failing(5)
    answer = server.post(CHAT, BODY | {"stream": True})
    assert answer.status == 200
    assert answer.events()[-1]["error"]["message"] == INTERNAL
    assert b"[DONE]" not in answer.body
    assert b"somebody" not in answer.body
    assert len(answer.events()) > 3
    failing(5)
    stream = client.chat.completions.create(model="tiny", messages=BODY["messages"], stream=True, max_tokens=20)
    with pytest.raises(openai.APIError, match="fault of the server"):
        list(stream)


def test_a_generator_that_is_closed(served_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies that run end with an error, not as if they were whole."""
    with served(served_bundle) as server:
        gate = Gate(server.generator, monkeypatch)
        connection = server.open(CHAT, BODY | {"stream": True, "max_tokens": 400})
        gate.let(4)
        wait_until(lambda: gate.num_begun == 5)
        gate.open()
        server.generator.close()
        received = b""
        while data := connection.recv(10_000):
            received += data
            if received.endswith(b"0\r\n\r\n"):
                break
        connection.close()
        assert b'"code":"cancelled"' in received
        assert b"[DONE]" not in received


def test_a_request_that_no_memory_holds(served_bundle: Path) -> None:
    """It is refused, for it would never fit; one that fits replies."""
    generator = Generator(tiny_bundles.open_bundle(served_bundle), max_cache_mib=0.1)
    with serve(generator) as server:
        message = error_of(server.post(CHAT, BODY | {"max_tokens": 400}), 400, None, "messages")
        assert "at most 0.1, the max_cache_mib" in message
        assert server.post(CHAT, BODY | {"max_tokens": 2}).status == 200
