"""What bodies come to without a server: tickets, and the objects that are sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pad_rt import Generator
from pad_rt.api.chat_request import read_chat_request
from pad_rt.api.completion_request import read_completion_request
from pad_rt.api.error import INTERNAL, ApiError, to_api_error
from pad_rt.api.guidance import Guidance
from pad_rt.api.json_text import write
from pad_rt.api.reply import Reply
from pad_rt.api.request import ApiRequest
from pad_runtime.errors import (
    BundleError,
    CancelledError,
    DeviceError,
    OptionError,
    OutOfMemoryError,
    PadError,
    PreferenceError,
    PromptError,
    QueueFullError,
)
from tests.support import tiny_bundles
from tests.support.guided_models import Models

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "How do I boil an egg?"}],
    "max_tokens": 8,
    "seed": 3,
}


@pytest.fixture(scope="module")
def generator(models: Models) -> Iterator[Generator]:
    with tiny_bundles.load(models.bundle("base")) as generator:
        yield generator


def run(generator: Generator, request: ApiRequest, person: Guidance | None = None) -> tuple[Reply, Any]:
    tickets = request.submit(generator, person, max_new_tokens=16)
    reply = Reply(request, generator, "m", explains=bool(request.guidance_of(person).explain))
    return reply, reply.whole([list(ticket) for ticket in tickets])


def test_a_reply_is_json_and_says_what_it_is_of(generator: Generator) -> None:
    reply, whole = run(generator, read_chat_request(CHAT))
    assert json.loads(write(whole)) == whole
    assert reply.has_ended
    assert (whole["id"], whole["model"], whole["object"]) == (reply.id, "m", "chat.completion")
    assert reply.id.startswith("chatcmpl-")
    assert "pad" not in whole
    assert reply.texts == [whole["choices"][0]["message"]["content"]]
    assert run(generator, read_completion_request({"model": "m", "prompt": "a"}))[1]["id"].startswith("cmpl-")


def test_chunks_are_the_whole_reply(generator: Generator) -> None:
    request = read_chat_request({**CHAT, "n": 2, "pad": {"weights": {"kind": 1.0}, "explain": True}, "stream": True})
    _, whole = run(generator, request)
    reply = Reply(request, generator, "m", explains=True)
    tickets = request.submit(generator, None, max_new_tokens=16)
    chunks = reply.opening()
    for index, ticket in enumerate(tickets):
        for event in ticket:
            chunks += reply.chunk(index, event)
    assert reply.closing() == []
    for index, choice in enumerate(whole["choices"]):
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(part["delta"].get("content", "") for part in parts) == choice["message"]["content"]
        assert [token for part in parts for token in part.get("pad", {}).get("tokens", ())] == choice["pad"]["tokens"]
    assert ["pad" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_a_person_s_guidance_may_explain(generator: Generator) -> None:
    person = Guidance(weights={"kind": 1.0}, explain=True)
    _, whole = run(generator, read_chat_request(CHAT), person)
    assert len(whole["choices"][0]["pad"]["tokens"]) == 8
    _, whole = run(generator, read_chat_request({**CHAT, "pad": {"explain": False}}), person)
    assert "pad" not in whole["choices"][0]


def test_the_most_tokens(generator: Generator) -> None:
    """As many as the body says, within the server's limit; without a word, the limit, or what fits."""
    _, whole = run(generator, read_chat_request({**CHAT, "max_tokens": 16}))
    assert whole["usage"]["completion_tokens"] == 16
    _, whole = run(generator, read_chat_request({**CHAT, "max_tokens": None}))
    assert whole["usage"]["completion_tokens"] == 16
    with pytest.raises(ApiError, match="max_tokens=17; expected at most 16") as caught:
        run(generator, read_chat_request({**CHAT, "max_tokens": 17}))
    assert (caught.value.status, caught.value.param) == (400, "max_tokens")
    request = read_chat_request({**CHAT, "max_tokens": None})
    (ticket,) = request.submit(generator, None, max_new_tokens=10_000)
    usage = ticket.result().usage
    assert usage.prompt_tokens + usage.completion_tokens == generator.manifest.max_length


def test_a_base_without_a_chat_template_takes_words_for_texts(models: Models, tmp_path: Any) -> None:
    """There, a text is what a prompt is everywhere else."""
    from tests.support import tiny_models, tiny_tokenizers

    base = tmp_path / "base"
    tiny_models.make_base(base, "llama", seed=41, max_position_embeddings=128)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    tiny_models.save_tokenizer(tiny_tokenizers.byte_level(), base, chat_template=None)
    tiny_models.make_adapter(tmp_path / "plain", base, seed=42)
    with tiny_bundles.load(tiny_bundles.export(tmp_path / "bundle", base, [tmp_path / "plain"])) as generator:
        assert generator.manifest.tokenizer.chat_template is None
        body = {"model": "m", "prompt": "the cook", "temperature": 0, "max_tokens": 8}
        for pad, preference in ({}, None), ({"preference": "be kind"}, "be kind"):
            _, whole = run(generator, read_completion_request({**body, "pad": pad}))
            expected = generator.generate("the cook", preference=preference, config={"max_new_tokens": 8})
            assert whole["choices"][0]["text"] == expected.text
        with pytest.raises(ApiError, match="without a chat template") as caught:
            run(generator, read_chat_request(CHAT))
        assert caught.value.param == "messages"


def test_errors_of_the_generator() -> None:
    options = {"temperature": "temperature", "json_schema": "response_format", "top_k": "pad.top_k"}
    for error, status, param in (
        (QueueFullError("256 requests that wait"), 429, None),
        (PromptError("an empty prompt"), 400, "messages"),
        (PreferenceError("unknown feature 'x'"), 400, "pad"),
        (OptionError("temperature=-1"), 400, "temperature"),
        (OptionError("json_schema={'top_k': 1}"), 400, "response_format"),
        (OptionError("top_k 500"), 400, "pad.top_k"),
        (OptionError("something else"), 400, None),
        (OutOfMemoryError("no memory"), 503, None),
        (CancelledError("cancelled"), 503, None),
        (BundleError("/home/somebody/bundle was written to"), 500, None),
        (DeviceError("no thread"), 500, None),
        (PadError("a generator that was closed"), 500, None),
        (RuntimeError("/home/somebody"), 500, None),
    ):
        told = to_api_error(error, prompt="messages", options=options)
        assert (told.status, told.param) == (status, param)
        assert (told.retry_after is not None) == (status in (429, 503))
        assert "somebody" not in str(told)
        assert (str(told) == INTERNAL) == (status == 500)


def test_half_a_surrogate_pair_is_written_as_json_has_it() -> None:
    text = "\ud800 ü 東"
    assert json.loads(write({"a": text})) == {"a": text}
    assert "ü 東".encode() in write({"a": text})
