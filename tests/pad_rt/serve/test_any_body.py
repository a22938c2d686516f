"""Bodies of any kind: never a fault of the server; what is refused is named; what is taken does what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pad_rt import EncodedPrompt, GenerationResult, Generator, Preference
from tests.pad_rt.serve.conftest import PEOPLE
from tests.support import tiny_bundles
from tests.support.live_server import Answer, LiveServer, serve

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MOST = 6  # tokens of a reply, by the server's limit
some = settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

numbers = st.floats(-1e3, 1e3) | st.integers(-5, 5)
texts = st.text(max_size=6) | st.sampled_from(["\ud800", "\x00", "<s>", "</s>", "a" * 3000])
junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**63, 10**400, float("nan"), float("inf"), -0.0, 1e-320])
    | numbers
    | texts,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(texts, values, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[LiveServer]:
    with serve(tiny_bundles.load(served_bundle), people=PEOPLE, max_new_tokens=MOST) as running:
        yield running


def merged(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda dicts: {name: value for each in dicts for name, value in each.items()})


def spoiled(valid: st.SearchStrategy[dict[str, Any]], *names: str) -> st.SearchStrategy[dict[str, Any]]:
    """As it is, or with one field, or one of its own, that may be anything."""
    wrong = st.dictionaries(st.sampled_from(names) | texts, junk, min_size=1, max_size=1)
    return st.one_of(valid, valid, merged(valid, wrong))


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def choice(*dicts: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(dicts)


message = spoiled(
    st.fixed_dictionaries(
        {"role": st.just("user"), "content": st.sampled_from(["a", "egg", [{"type": "text", "text": "a"}]])}
    ),
    *("role", "content", "name", "tool_calls", "annotations"),
)
earlier = st.sampled_from([[], [{"role": "system", "content": "b"}], [{"role": "assistant", "content": "b"}]])
messages = st.tuples(earlier, message).map(lambda parts: [*parts[0], parts[1]])
PAD = ("weights", "preference", "beta", "top_k", "offer_end", "explain")
weights = st.dictionaries(st.sampled_from(["kind", "brief", "odd"]), st.floats(-2, 2), min_size=1, max_size=3)
strengths = optional(beta=st.floats(-2, 2), top_k=st.integers(5, 18), offer_end=st.booleans())
pads = spoiled(merged(st.builds(lambda w: {"weights": w}, weights), strengths, optional(explain=st.booleans())), *PAD)
pads_in_words = spoiled(merged(optional(weights=weights), choice({"preference": "be kind"}), strengths), *PAD)
sampling = optional(
    temperature=st.floats(0, 3),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 0.9),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.5, 2),
    logit_bias=st.dictionaries(st.integers(0, 80).map(str), st.floats(-100, 100), max_size=3),
    stop=st.lists(st.text(min_size=1, max_size=2), max_size=3),
    n=st.integers(1, 3),
)
streams = choice({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, {"stream": False})
harmless = optional(
    user=st.just("u"),
    safety_identifier=st.just("u"),
    prompt_cache_key=st.just("u"),
    metadata=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    store=st.just(False),
    service_tier=st.just("auto"),
)
SHARED = ("model", "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
SHARED += (
    "logit_bias",
    "stop",
    "n",
    "stream",
    "stream_options",
    "pad",
    "user",
    "metadata",
    "store",
    "seed",
    "max_tokens",
)
SHARED += ("safety_identifier", "prompt_cache_key", "service_tier", "logprobs", "top_k", "ignore_eos")
SCHEMAS = [{"type": "object"}, {"type": "integer"}, {"type": "array", "items": {"enum": ["a", "b"]}}, {"type": 5}]
formats = st.sampled_from([{"type": "text"}, {"type": "json_object"}]) | st.builds(
    lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, st.sampled_from(SCHEMAS)
)
bodies_of_chats = spoiled(
    merged(
        st.fixed_dictionaries({"model": st.sampled_from(["tiny", "tiny:anna", "tiny:ben"])}),
        st.fixed_dictionaries({"messages": messages, "seed": st.integers()}, optional={"pad": pads | pads_in_words}),
        sampling,
        streams,
        harmless,
        choice({}, {"max_tokens": 3}, {"max_completion_tokens": 4}, {"max_tokens": 5, "max_completion_tokens": 5}),
        choice({}, {}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 4}, {"logprobs": False}),
        choice({}, {"tools": []}, {"tool_choice": "none", "parallel_tool_calls": True}, {"modalities": ["text"]}),
        st.just({}) | optional(response_format=formats),
    ),
    *SHARED,
    *("messages", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls", "modalities"),
    *("max_completion_tokens", "reasoning_effort"),
)
prompts = st.sampled_from(["a", "the cook", ["a", "egg"], [5, 6, 7], [[5, 6], [7]]])
bodies_of_texts = spoiled(
    merged(
        st.fixed_dictionaries(
            {"model": st.sampled_from(["tiny", "tiny:anna"]), "prompt": prompts, "seed": st.integers()}
        ),
        optional(pad=pads),
        sampling,
        streams,
        harmless,
        choice({}, {"max_tokens": 3}),
        choice({}, {}, {"logprobs": 0}, {"logprobs": 4}),
        choice({}, {"best_of": 1}, {"echo": False}, {"suffix": ""}),
    ),
    *SHARED,
    *("prompt", "best_of", "echo", "suffix"),
)
OPTIONS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias")


def expected(generator: Generator, body: dict[str, Any]) -> list[GenerationResult]:
    """What the documentation says of a body that is taken, with no code of the server's."""
    given = {name: value for name, value in body.items() if value is not None}
    person = PEOPLE[given["model"].partition(":")[2]].as_dict() if ":" in given["model"] else {}
    pad = person | {name: value for name, value in given.get("pad", {}).items() if value is not None}
    config = {"temperature": 1.0} | {name: given[name] for name in (*OPTIONS, "stop") if name in given}
    config |= {name: pad[name] for name in ("beta", "top_k", "offer_end") if name in pad}
    config["max_new_tokens"] = given.get("max_completion_tokens", given.get("max_tokens", MOST))
    form = given.get("response_format", {"type": "text"})
    if form["type"] != "text":
        config["json_schema"] = form.get("json_schema", {}).get("schema") or {"type": "object"}
    words, weights = pad.get("preference"), pad.get("weights") or {}
    preference = Preference(words, weights) if weights or words is not None else None
    if "messages" in given:
        prompts = [given["messages"]]
    else:
        prompt = given["prompt"]
        listed = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        ids = [generator.encode(each) if isinstance(each, str) else each for each in listed]
        prompts = [EncodedPrompt(each, each if preference else None) for each in ids]
    samples = [(prompt, sample) for prompt in prompts for sample in range(given.get("n", 1))]
    return generator.generate_batch(
        [prompt for prompt, _ in samples],
        preferences=[preference] * len(samples),
        configs=[{**config, "seed": (given["seed"] + sample) % 2**63} for _, sample in samples],
    )


def check(server: LiveServer, path: str, body: dict[str, Any]) -> int:
    """Hold what the server says of a body against the documentation; returns the status."""
    answer = server.post(path, body)
    assert answer.status in ((200, 400) if body["model"] in ("tiny", "tiny:anna", "tiny:ben", None) else (400, 404))
    if answer.status == 404:
        return 404
    if answer.status == 400:
        param = answer.json()["error"]["param"]
        assert param is not None, answer.body
        of_person = ["pad"] if ":" in str(body["model"]) else []
        known = {
            *(name[:200] for name in body),
            "messages",
            "prompt",
            *of_person,
        }  # of a long name the beginning is told
        assert {param, param.partition(".")[0]} & known, answer.body
        return 400
    told = _told(answer, body)
    results = expected(server.generator, body)
    assert [(text, reason) for text, reason, _ in told] == [(each.text, each.finish_reason) for each in results]
    wants_logprobs = bool(body.get("logprobs")) if path == CHAT else body.get("logprobs") is not None
    for (_, _, num_logprobs), result in zip(told, results, strict=True):
        assert num_logprobs == (len(result.token_ids) if wants_logprobs else 0)
    return 200


def _told(answer: Answer, body: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Text, finish reason and number of log-probabilities of each choice, whole or streamed."""
    if not body.get("stream"):
        objects = [answer.json()]
        assert "usage" in objects[0]
    else:
        *objects, done = answer.events()
        assert done == "[DONE]"
        asked = (body.get("stream_options") or {}).get("include_usage") is True
        assert (objects[-1].get("usage") is not None) == asked
        assert not any(each.get("usage") for each in objects[:-1])
    assert ("pad" in objects[-1]) == (body.get("pad") is not None)
    found: dict[int, list[Any]] = {}
    for choice in (choice for each in objects for choice in each["choices"]):
        part = choice.get("message") or choice.get("delta") or choice
        text, reason, count = found.setdefault(choice["index"], ["", None, 0])
        logprobs = choice["logprobs"] or {}
        told = len(logprobs.get("content") or logprobs.get("tokens") or ())
        found[choice["index"]] = [
            text + (part.get("content") or part.get("text") or ""),
            choice["finish_reason"] or reason,
            count + told,
        ]
    return [tuple(found[index]) for index in sorted(found)]


@some
@given(body=bodies_of_chats)
def test_any_chat(server: LiveServer, body: dict[str, Any]) -> None:
    check(server, CHAT, body)


@some
@given(body=bodies_of_texts)
def test_any_text(server: LiveServer, body: dict[str, Any]) -> None:
    check(server, TEXT, body)


@settings(some, max_examples=100)
@given(body=bodies_of_chats, name=st.text(min_size=1, max_size=12), value=junk)
def test_a_field_that_nobody_knows(server: LiveServer, body: dict[str, Any], name: str, value: Any) -> None:
    plain = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    status = server.post(CHAT, {**plain, f"x_{name}": value}).status
    assert status == (200 if value in (None, [], {}) else 400)


@settings(some, max_examples=150)
@given(body=bodies_of_chats, place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.booleans())
def test_a_body_with_a_wrong_byte(server: LiveServer, body: dict[str, Any], place: int, byte: int, cut: bool) -> None:
    data = bytearray(json.dumps({**body, "max_tokens": 1, "max_completion_tokens": None}).encode())
    place %= len(data)
    if cut:
        data = data[:place]
    else:
        data[place] = byte
    answer = server.post(CHAT, bytes(data))
    assert answer.status in (200, 400, 404), answer.body
    assert answer.status == 200 or set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("path", "bodies"), [(CHAT, bodies_of_chats), (TEXT, bodies_of_texts)])
def test_many_are_taken_and_many_are_refused(server: LiveServer, path: str, bodies: Any) -> None:
    statuses: list[int] = []

    @settings(some, max_examples=60)
    @given(body=bodies)
    def count(body: dict[str, Any]) -> None:
        statuses.append(check(server, path, body))

    count()
    assert 0.2 < statuses.count(200) / len(statuses) < 0.9


def test_an_expectation_that_ignores_a_field_is_wrong(server: LiveServer) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5, "seed": 1}
    for field, value in (("temperature", 0), ("logit_bias", {"40": 50}), ("pad", {"weights": {"kind": 2}})):
        told = _told(server.post(CHAT, body | {field: value}), body | {field: value})
        assert told[0][0] != expected(server.generator, body)[0].text
