"""The official client against a real server: what it gets is what the generator gives for the same request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from pad_rt import EncodedPrompt, GenerationResult, Preference
from tests.support.live_server import LiveServer

MESSAGES: Any = [{"role": "system", "content": "a"}, {"role": "user", "content": "How do I boil an egg?"}]
OTHERS: Any = [{"role": "user", "content": "the cook"}]
WEIGHTS = {"kind": 1.5, "odd": -0.75}
GUIDED = Preference(weights=WEIGHTS)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "word": {"type": "string", "maxLength": 12}},
    "required": ["age", "word"],
    "additionalProperties": False,
}


def alone(server: LiveServer, prompt: Any = MESSAGES, preference: Any = None, **options: Any) -> GenerationResult:
    config = {"max_new_tokens": 24, **options}
    return server.generator.generate(prompt, preference=preference, config=config)


def ask(client: openai.OpenAI, messages: Any = MESSAGES, **options: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": messages, "max_tokens": 24, "temperature": 0, **options}
    )


def stream(client: openai.OpenAI, **options: Any) -> list[ChatCompletionChunk]:
    return list(ask(client, stream=True, **options))


def joined(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


# -- whole and streamed -------------------------------------------------------------------------------------------


def test_a_whole_reply(server: LiveServer, client: openai.OpenAI) -> None:
    reply, expected = ask(client), alone(server)
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content, choice.message.refusal) == ("assistant", expected.text, None)
    assert choice.finish_reason == expected.finish_reason == "length"
    assert choice.logprobs is None
    assert (reply.object, reply.model) == ("chat.completion", "tiny")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (expected.usage.prompt_tokens, 24)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 24
    assert ask(client, OTHERS).choices[0].message.content != expected.text


def test_a_stream(server: LiveServer, client: openai.OpenAI) -> None:
    chunks, expected = stream(client), alone(server)
    assert joined(chunks) == expected.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert not chunks[0].choices[0].delta.content
    assert [chunk.choices[0].delta.role for chunk in chunks[1:]] == [None] * (len(chunks) - 1)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    assert len(chunks) > 12
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_as_it_is_sent(server: LiveServer) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 3, "stream": True}
    answer = server.post("/v1/chat/completions", body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.body.endswith(b"\n\ndata: [DONE]\n\n")
    assert answer.events()[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "usage" not in answer.events()[0]


def test_usage_of_a_stream(server: LiveServer, client: openai.OpenAI) -> None:
    chunks = stream(client, stream_options={"include_usage": True})
    assert joined(chunks) == alone(server).text
    usage = ask(client).usage
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], usage.total_tokens)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


# -- options ------------------------------------------------------------------------------------------------------


def test_by_default_replies_are_sampled_as_openai_s(server: LiveServer, client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, seed=5, max_tokens=24)
    assert reply.choices[0].message.content == alone(server, temperature=1.0, seed=5).text
    assert reply.choices[0].message.content != alone(server).text
    texts = {ask(client, temperature=1.0).choices[0].message.content for _ in range(4)}
    assert len(texts) > 1


def test_samples_have_seeds_in_a_row(server: LiveServer, client: openai.OpenAI) -> None:
    expected = [alone(server, temperature=0.9, seed=2**63 - 2 + index) for index in range(2)]
    expected.append(alone(server, temperature=0.9, seed=0))
    assert len({result.text for result in expected}) == 3
    reply = ask(client, n=3, seed=2**63 - 2, temperature=0.9)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.message.content for choice in reply.choices] == [result.text for result in expected]
    assert reply.usage.prompt_tokens == expected[0].usage.prompt_tokens
    assert reply.usage.completion_tokens == 3 * 24
    chunks = stream(client, n=3, seed=2**63 - 2, temperature=0.9)
    assert [joined(chunks, index) for index in range(3)] == [result.text for result in expected]
    assert [chunk.choices[0].index for chunk in chunks[:3]] == [0, 1, 2]
    assert [chunk.choices[0].delta.role for chunk in chunks[:3]] == ["assistant"] * 3


def test_a_stop_string(server: LiveServer, client: openai.OpenAI) -> None:
    whole = alone(server).text
    stop = whole[len(whole) // 2 :][:3]
    expected = whole[: whole.index(stop)]
    for given in (stop, ["none of it", stop], [stop, "2", "3", "4", "5"]):
        reply = ask(client, stop=given)
        if isinstance(given, list) and len(given) > 2:
            assert expected.startswith(reply.choices[0].message.content)
        else:
            assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (expected, "stop")
    chunks = stream(client, stop=stop)
    assert (joined(chunks), chunks[-1].choices[0].finish_reason) == (expected, "stop")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_p", 0.3),
        ("presence_penalty", 2.0),
        ("frequency_penalty", 2.0),
        ("logit_bias", {"40": 50}),
        ("min_p", 0.5),
        ("repetition_penalty", 1.8),
        ("max_completion_tokens", 5),
    ],
)
def test_an_option_does_what_it_does_in_a_config(
    server: LiveServer, client: openai.OpenAI, field: str, value: Any
) -> None:
    option = {"max_completion_tokens": "max_new_tokens"}.get(field, field)
    settings = {"temperature": 1.5, "seed": 3}
    extra = {"extra_body": {field: value}} if field in ("min_p", "repetition_penalty") else {field: value}
    limit = {"max_tokens": openai.omit} if option == "max_new_tokens" else {}
    reply = ask(client, **settings, **extra, **limit)
    assert reply.choices[0].message.content == alone(server, **settings, **{option: value}).text
    assert reply.choices[0].message.content != alone(server, **settings).text


@pytest.mark.parametrize("guided", [False, True])
def test_log_probabilities(server: LiveServer, client: openai.OpenAI, guided: bool) -> None:
    """Held against the scores of the trace, by NumPy alone."""
    extra = {"extra_body": {"pad": {"weights": WEIGHTS}}} if guided else {}
    reply = ask(client, logprobs=True, top_logprobs=3, **extra)
    expected = alone(server, preference=GUIDED if guided else None, logprobs=3)
    told = reply.choices[0].logprobs.content
    assert len(told) == len(expected.token_ids) == 24
    assert [each.logprob for each in told] == pytest.approx([each.logprob for each in expected.logprobs])
    if guided:
        trace = server.generator.generate(MESSAGES, preference=GUIDED, config={"max_new_tokens": 24}, trace=True).trace
        scores = np.array([step.scores for step in trace], np.float64)
        logprobs = np.sort(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))[:, ::-1]
        tops = [[top.logprob for top in each.top_logprobs] for each in told]
        np.testing.assert_allclose(tops, logprobs[:, :3], atol=1e-5)
        assert not np.allclose(tops, logprobs[:, 1:4], atol=1e-2)
    assert b"".join(bytes(each.bytes) for each in told).decode(errors="replace") == reply.choices[0].message.content
    assert [each.top_logprobs[0].token for each in told] == [each.token for each in told]
    content = [each for chunk in stream(client, logprobs=True, top_logprobs=3, **extra) for each in _told(chunk)]
    assert [each.model_dump() for each in content] == [each.model_dump() for each in told]
    assert ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def _told(chunk: ChatCompletionChunk) -> list[Any]:
    logprobs = chunk.choices[0].logprobs
    return (logprobs.content or []) if logprobs else []


@pytest.mark.parametrize("extra", [{}, {"pad": {"preference": "be kind"}}])
def test_a_reply_by_a_schema(client: openai.OpenAI, extra: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    reply = ask(client, response_format=form, max_tokens=200, extra_body=extra)
    assert reply.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(reply.choices[0].message.content), SCHEMA)
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(ask(client, max_tokens=200, extra_body=extra).choices[0].message.content)


def test_a_reply_that_is_an_object(client: openai.OpenAI) -> None:
    reply = ask(client, response_format={"type": "json_object"}, max_tokens=2)
    assert reply.choices[0].message.content.startswith("{")


# -- guidance -----------------------------------------------------------------------------------------------------


def test_guided_by_extra_body(server: LiveServer, client: openai.OpenAI) -> None:
    for pad, preference, options in (
        ({"weights": WEIGHTS}, GUIDED, {}),
        ({"weights": WEIGHTS, "beta": 2.5}, GUIDED, {"beta": 2.5}),
        ({"weights": WEIGHTS, "top_k": 3}, GUIDED, {"top_k": 3}),
        ({"weights": WEIGHTS, "offer_end": True}, GUIDED, {"offer_end": True}),
        ({"preference": "be kind"}, "be kind", {}),
        ({"preference": "be kind", "weights": {"kind": 1.0}}, Preference("be kind", {"kind": 1.0}), {}),
    ):
        expected = alone(server, preference=preference, **options)
        assert ask(client, extra_body={"pad": pad}).choices[0].message.content == expected.text
        assert joined(stream(client, extra_body={"pad": pad})) == expected.text
        assert expected.text != alone(server).text
    assert ask(client, extra_body={"pad": {}}).choices[0].message.content == alone(server).text
    assert ask(client, extra_body={"pad": {"weights": {}}}).choices[0].message.content == alone(server).text


def test_guided_by_the_name_of_a_person(server: LiveServer, client: openai.OpenAI) -> None:
    anna = Preference(weights={"kind": 1.5, "brief": -0.75})
    reply = ask(client, model="tiny:anna")
    assert reply.model == "tiny:anna"
    assert reply.choices[0].message.content == alone(server, preference=anna, beta=1.25).text
    ben = ask(client, model="tiny:ben")
    assert ben.choices[0].message.content == alone(server, preference="be kind", top_k=6).text
    assert len({reply.choices[0].message.content, ben.choices[0].message.content, alone(server).text}) == 3


def test_a_body_s_guidance_goes_over_the_person_s(server: LiveServer, client: openai.OpenAI) -> None:
    anna = Preference(weights={"kind": 1.5, "brief": -0.75})
    reply = ask(client, model="tiny:anna", extra_body={"pad": {"beta": 0.5}})
    assert reply.choices[0].message.content == alone(server, preference=anna, beta=0.5).text
    reply = ask(client, model="tiny:anna", extra_body={"pad": {"weights": {"odd": 2.0}}})
    assert (
        reply.choices[0].message.content == alone(server, preference=Preference(weights={"odd": 2.0}), beta=1.25).text
    )
    reply = ask(client, model="tiny:anna", extra_body={"pad": {"weights": {}}})
    assert reply.choices[0].message.content == alone(server).text


def test_timing_is_told_to_those_who_speak_of_pad(client: openai.OpenAI) -> None:
    names = {"queue_s", "prefill_s", "first_token_s", "step_s", "between_s", "tokens_per_s", "bytes_to_host_per_token"}
    assert "pad" not in ask(client).model_extra
    assert set(ask(client, extra_body={"pad": {}}).model_extra["pad"]["timing"]) == names
    for options in ({}, {"stream_options": {"include_usage": True}}, {"n": 2}):
        told = [chunk.model_extra.get("pad") for chunk in stream(client, extra_body={"pad": {}}, **options)]
        assert told[:-1] == [None] * (len(told) - 1)
        assert set(told[-1]["timing"]) == names


def test_what_the_reward_did_is_explained(server: LiveServer, client: openai.OpenAI) -> None:
    """Held against the trace, by NumPy alone."""
    pad = {"weights": WEIGHTS, "top_k": 5, "explain": True}
    reply = ask(client, extra_body={"pad": pad})
    result = server.generator.generate(
        MESSAGES, preference=GUIDED, config={"max_new_tokens": 24, "top_k": 5}, trace=True
    )
    tokens = reply.choices[0].model_extra["pad"]["tokens"]
    assert "".join(token["text"] for token in tokens) == reply.choices[0].message.content == result.text
    assert [token["id"] for token in tokens] == list(result.token_ids)
    assert reply.choices[0].logprobs is None
    for token, step in zip(tokens, result.trace, strict=True):
        ids = [candidate["id"] for candidate in token["candidates"]]
        order = [step.candidates.tolist().index(id) for id in ids]
        base, scores = step.base_logits[order].astype(float), step.scores[order].astype(float)
        assert sorted(scores, reverse=True) == scores.tolist()
        before, after = (np.exp(each - np.log(np.exp(each).sum())) for each in (base, scores))
        for name, values in (("base_probability", before), ("guided_probability", after), ("base_logit", base)):
            told = [candidate[name] for candidate in token["candidates"]]
            np.testing.assert_allclose(told, values, atol=1e-4)
        chosen = ids.index(token["id"])
        assert token["gain"] == pytest.approx(np.log(after[chosen] / before[chosen]), abs=1e-3)
        assert token["changed"] == (int(base.argmax()) != chosen)
        assert [candidate["text"] for candidate in token["candidates"]] == list(map(server.generator.token_text, ids))
    assert any(token["changed"] for token in tokens)
    assert not all(token["changed"] for token in tokens)
    chunks = stream(client, extra_body={"pad": pad})
    streamed = [
        token for chunk in chunks for token in (chunk.choices[0].model_extra.get("pad") or {}).get("tokens", ())
    ]
    assert streamed == tokens


def test_the_choice_of_the_end_is_explained(server: LiveServer, client: openai.OpenAI) -> None:
    """Its text is that which was held back until then: nothing, here."""
    bias = {"2": 100}
    reply = ask(client, logit_bias=bias, extra_body={"pad": {"weights": WEIGHTS, "explain": True}})
    tokens = reply.choices[0].model_extra["pad"]["tokens"]
    assert (reply.choices[0].finish_reason, reply.choices[0].message.content) == ("stop", "")
    assert [(token["id"], token["text"]) for token in tokens] == [(2, "")]
    assert reply.usage.completion_tokens == 0


# -- models -------------------------------------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == ["tiny", "tiny:anna", "tiny:ben"]
    pads = [model.model_extra["pad"] for model in models]
    assert pads[0]["person"] is None
    assert pads[1]["person"] == {"weights": {"kind": 1.5, "brief": -0.75}, "beta": 1.25}
    for pad in pads:
        assert {"kind", "brief", "odd"} <= set(pad["features"])
        assert (pad["reads_words"], pad["max_top_k"], pad["max_length"]) == (True, 20, 512)
    assert client.models.retrieve("tiny:ben").id == "tiny:ben"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("tiny:nobody")


# -- texts --------------------------------------------------------------------------------------------------------


def complete(client: openai.OpenAI, prompt: Any, **options: Any) -> Any:
    return client.completions.create(
        **{"model": "tiny", "prompt": prompt, "max_tokens": 12, "temperature": 0, **options}
    )


def test_texts_are_continued_without_a_chat_template(server: LiveServer, client: openai.OpenAI) -> None:
    ids = server.generator.encode("the cook")
    expected = alone(server, EncodedPrompt(ids), max_new_tokens=12)
    reply = complete(client, "the cook")
    assert (reply.object, reply.choices[0].text) == ("text_completion", expected.text)
    assert expected.text != alone(server, "the cook", max_new_tokens=12).text
    assert complete(client, ids).choices[0].text == expected.text
    chunks = list(complete(client, "the cook", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected.text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 12


def test_several_texts_with_several_samples(server: LiveServer, client: openai.OpenAI) -> None:
    ids = [server.generator.encode(text) for text in ("the cook", "an egg")]
    expected = [
        alone(server, EncodedPrompt(each), max_new_tokens=12, temperature=1.2, seed=7 + sample).text
        for each in ids
        for sample in range(2)
    ]
    for prompt in (["the cook", "an egg"], ids):
        reply = complete(client, prompt, n=2, seed=7, temperature=1.2)
        assert [choice.text for choice in reply.choices] == expected
        assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
        assert reply.usage.prompt_tokens == sum(map(len, ids))
    assert len(set(expected)) == 4


def test_log_probabilities_of_a_text(server: LiveServer, client: openai.OpenAI) -> None:
    expected = alone(server, EncodedPrompt(server.generator.encode("the cook")), max_new_tokens=12, logprobs=2)
    told = complete(client, "the cook", logprobs=2).choices[0].logprobs
    name = server.generator.token_text
    assert told.tokens == [name(id) for id in expected.token_ids]
    assert told.token_logprobs == pytest.approx([each.logprob for each in expected.logprobs])
    assert told.top_logprobs[0] == pytest.approx({name(id): value for id, value in expected.logprobs[0].likeliest})
    assert told.text_offset[0] == 0
    chunks = list(complete(client, "the cook", logprobs=2, stream=True))
    offsets = [offset for chunk in chunks for offset in chunk.choices[0].logprobs.text_offset]
    assert offsets == told.text_offset
    assert len(offsets) == 12


def test_texts_are_guided_by_weights_alone(server: LiveServer, client: openai.OpenAI) -> None:
    ids = server.generator.encode("the cook")
    guided = alone(server, EncodedPrompt(ids, ids), GUIDED, max_new_tokens=12)
    assert complete(client, "the cook", extra_body={"pad": {"weights": WEIGHTS}}).choices[0].text == guided.text
    assert complete(client, "the cook", model="tiny:anna").choices[0].text not in (
        guided.text,
        complete(client, "the cook").choices[0].text,
    )
    with pytest.raises(openai.BadRequestError, match="send a chat") as caught:
        complete(client, "the cook", extra_body={"pad": {"preference": "be kind"}})
    assert caught.value.param == "pad.preference"


# -- many at once -------------------------------------------------------------------------------------------------


def test_many_at_once_are_each_as_alone(server: LiveServer) -> None:
    wishes = [None, {"weights": WEIGHTS}, {"preference": "be kind"}]
    prompts = ["How do I boil an egg?", "the cook", "a", "naïve"]
    asked = [(prompt, pad, seed) for seed, pad in enumerate(wishes) for prompt in prompts]

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:

            async def one(prompt: str, pad: Any, seed: int) -> str:
                chunks = await client.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": prompt}],
                    max_tokens=16,
                    seed=seed,
                    stream=True,
                    extra_body={"pad": pad} if pad else {},
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            return await asyncio.gather(*(one(*each) for each in asked))

    texts = asyncio.run(ask_all())
    preferences = {0: None, 1: GUIDED, 2: "be kind"}
    expected = [
        alone(server, prompt, preferences[seed], max_new_tokens=16, temperature=1.0, seed=seed).text
        for prompt, _, seed in asked
    ]
    assert texts == expected
    assert len(set(expected)) == len(expected)
