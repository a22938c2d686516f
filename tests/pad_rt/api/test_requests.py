"""Bodies that are read: every field by its name, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pad_rt.api.chat_request import read_chat_request
from pad_rt.api.completion_request import read_completion_request
from pad_rt.api.error import ApiError
from pad_rt.api.guidance import Guidance
from pad_rt.api.json_text import parse

MESSAGES = [{"role": "user", "content": "How do I boil an egg?"}]
CHAT = {"model": "m", "messages": MESSAGES}
TEXT = {"model": "m", "prompt": "the cook"}


def refused(read: Any, body: object, param: str | None, *words: str) -> ApiError:
    """Reading must fail, with a 400 that names the field and has these words."""
    with pytest.raises(ApiError) as caught:
        read(body)
    error = caught.value
    assert (error.status, error.type, error.param) == (400, "invalid_request_error", param)
    assert error.body["error"]["param"] == param
    for word in words:
        assert word in str(error)
    assert len(str(error).splitlines()) == 1
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.5),
        ("top_p", 0.5),
        ("min_p", 0.1),
        ("presence_penalty", 1.5),
        ("frequency_penalty", -1.5),
        ("repetition_penalty", 1.25),
        ("logit_bias", {"5": -100}),
        ("stop", ["END"]),
    ],
)
def test_options_of_both_bodies_are_those_of_a_config(field: str, value: object) -> None:
    for read, body in ((read_chat_request, CHAT), (read_completion_request, TEXT)):
        assert read({**body, field: value}).options[field] == value
        assert field not in read({**body, field: None}).options
        assert field not in read(body).options


@pytest.mark.parametrize(("given", "seed"), [(7, 7), (-1, 2**63 - 1), (2**63 + 5, 5), (0, 0)])
def test_any_integer_is_a_seed(given: int, seed: int) -> None:
    assert read_chat_request({**CHAT, "seed": given}).options["seed"] == seed


def test_without_a_seed_each_reply_has_another() -> None:
    seeds = {read_chat_request(CHAT).options["seed"] for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_both_names_of_the_most_tokens() -> None:
    assert read_chat_request({**CHAT, "max_tokens": 5}).max_new_tokens == 5
    assert read_chat_request({**CHAT, "max_completion_tokens": 6}).max_new_tokens == 6
    assert read_chat_request({**CHAT, "max_tokens": 7, "max_completion_tokens": 7}).max_new_tokens == 7
    assert read_chat_request(CHAT).max_new_tokens is None
    refused(
        read_chat_request,
        {**CHAT, "max_tokens": 7, "max_completion_tokens": 8},
        "max_completion_tokens",
        "max_tokens=7",
    )
    refused(
        read_completion_request,
        {**TEXT, "max_completion_tokens": 8},
        "max_completion_tokens",
        "did you mean max_tokens",
    )


def test_log_probabilities_of_both_bodies() -> None:
    assert read_chat_request({**CHAT, "logprobs": True, "top_logprobs": 3}).top_logprobs == 3
    assert read_chat_request({**CHAT, "logprobs": True}).top_logprobs == 0
    assert read_chat_request({**CHAT, "logprobs": False}).top_logprobs is None
    assert read_completion_request({**TEXT, "logprobs": 2}).top_logprobs == 2
    assert read_completion_request({**TEXT, "logprobs": 0}).top_logprobs == 0
    assert read_completion_request(TEXT).top_logprobs is None
    refused(read_chat_request, {**CHAT, "top_logprobs": 3}, "top_logprobs", "logprobs: true")
    refused(read_chat_request, {**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20")
    refused(read_chat_request, {**CHAT, "logprobs": 3}, "logprobs", "true or false")
    refused(read_completion_request, {**TEXT, "logprobs": True}, "logprobs", "an integer")


def test_forms_of_a_reply() -> None:
    schema = {"type": "object", "properties": {"dish": {"type": "string"}}}
    asked = {"type": "json_schema", "json_schema": {"name": "dish", "schema": schema, "strict": True}}
    assert read_chat_request({**CHAT, "response_format": asked}).options["json_schema"] == schema
    assert read_chat_request({**CHAT, "response_format": {"type": "json_object"}}).options["json_schema"] == {
        "type": "object"
    }
    assert "json_schema" not in read_chat_request({**CHAT, "response_format": {"type": "text"}}).options
    for form, param in (
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": schema}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}, "response_format.json_schema.schema"),
        ({"type": "text", "schema": schema}, "response_format.schema"),
        ("json", "response_format"),
    ):
        refused(read_chat_request, {**CHAT, "response_format": form}, param)
    refused(read_completion_request, {**TEXT, "response_format": asked}, "response_format", "not implemented")


def test_streams() -> None:
    request = read_chat_request({**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    assert request.stream
    assert request.include_usage
    assert not read_chat_request({**CHAT, "stream": True}).include_usage
    refused(read_chat_request, {**CHAT, "stream_options": {"include_usage": True}}, "stream_options", "without stream")
    refused(
        read_chat_request,
        {**CHAT, "stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "false",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("tool_choice", "required"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "high"),
        ("web_search_options", {"a": 1}),
        ("store", True),
        ("service_tier", "priority"),
        ("ignore_eos", True),
        ("guided_json", {"a": 1}),
        ("chat_template_kwargs", {"a": 1}),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(field: str, value: object) -> None:
    refused(read_chat_request, {**CHAT, field: value}, field, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [("best_of", 2), ("echo", True), ("suffix", "x"), ("messages", MESSAGES), ("store", True)],
)
def test_what_texts_do_not_have_is_refused_by_name(field: str, value: object) -> None:
    refused(read_completion_request, {**TEXT, field: value}, field, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", []),
        ("tools", None),
        ("tool_choice", "auto"),
        ("parallel_tool_calls", True),
        ("store", False),
        ("n", 1),
        ("n", None),
        ("logit_bias", {}),
        ("modalities", ["text"]),
        ("service_tier", "auto"),
        ("user", "u-1"),
        ("safety_identifier", "u-1"),
        ("prompt_cache_key", "u-1"),
        ("metadata", {"a": "b"}),
        ("anything", None),
    ],
)
def test_what_asks_for_nothing_is_taken(field: str, value: object) -> None:
    """The same request as without the field, but for the seed and an empty bias."""
    with_field, without = (read_chat_request({**body, "seed": 1}) for body in ({**CHAT, field: value}, CHAT))
    assert {**with_field.options, "logit_bias": {}} == {**without.options, "logit_bias": {}}
    assert with_field.n == without.n
    assert with_field.guidance is None


@pytest.mark.parametrize(("field", "nearest"), [("temprature", "temperature"), ("max_token", "max_tokens")])
def test_a_name_that_is_almost_right_is_corrected(field: str, nearest: str) -> None:
    refused(read_chat_request, {**CHAT, field: 1}, field, f"did you mean {nearest}")


@pytest.mark.parametrize("field", ["weights", "preference", "beta", "top_k", "offer_end", "explain"])
def test_guidance_outside_its_object_is_sent_there(field: str) -> None:
    refused(read_chat_request, {**CHAT, field: 1}, field, f"pad.{field}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None),
        ("model", 5),
        ("n", 0),
        ("n", 129),
        ("n", True),
        ("n", 1.0),
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("seed", 1.5),
        ("seed", True),
        ("stream", "yes"),
        ("user", 5),
        ("metadata", "x"),
        ("pad", []),
        ("pad", "kind"),
        ("messages", "hello"),
        ("messages", None),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(field: str, value: object) -> None:
    refused(read_chat_request, {**CHAT, field: value}, field, field)


@pytest.mark.parametrize(
    ("pad", "param"),
    [
        ({"weights": {"kind": "much"}}, "pad.weights.kind"),
        ({"weights": {"kind": True}}, "pad.weights.kind"),
        ({"weights": ["kind"]}, "pad.weights"),
        ({"preference": 5}, "pad.preference"),
        ({"beta": "1"}, "pad.beta"),
        ({"top_k": 0}, "pad.top_k"),
        ({"offer_end": 1}, "pad.offer_end"),
        ({"explain": "yes"}, "pad.explain"),
        ({"weigths": {"kind": 1}}, "pad.weigths"),
    ],
)
def test_fields_of_guidance_are_refused_by_their_path(pad: object, param: str) -> None:
    refused(read_chat_request, {**CHAT, "pad": pad}, param)


def test_prompts_of_texts() -> None:
    def prompts(given: object) -> tuple[Any, ...]:
        return read_completion_request({**TEXT, "prompt": given}).prompts

    assert prompts("a") == ("a",)
    assert prompts(["a", "b"]) == ("a", "b")
    assert prompts([1, 2]) == ([1, 2],)
    assert prompts([[1, 2], [3]]) == ([1, 2], [3])
    assert read_completion_request({**TEXT, "prompt": ["a", "b"], "n": 3}).num_choices == 6
    for wrong in (None, 5, [], [[]], ["a", 5], [1, -2], [True], [1.5], {"a": 1}, [["a"]]):
        refused(read_completion_request, {**TEXT, "prompt": wrong}, "prompt")
    refused(read_completion_request, {**TEXT, "prompt": ["a", "b"], "n": 65}, "prompt", "at most 128 replies")


@pytest.mark.parametrize(("read", "field"), [(read_chat_request, "messages"), (read_completion_request, "prompt")])
def test_no_prompt_is_in_an_error(read: Any, field: str) -> None:
    for secret in ({"a": "open sesame"}, "open sesame" if field == "messages" else ["open sesame", 5]):
        error = refused(read, {"model": "m", field: secret}, field, f"{field} of type")
        assert "sesame" not in str(error)


def test_guidance_of_a_body_goes_over_that_of_a_person() -> None:
    person = Guidance(weights={"kind": 1.0}, beta=2.0, offer_end=True)
    assert Guidance(beta=0.5).over(person) == Guidance(weights={"kind": 1.0}, beta=0.5, offer_end=True)
    assert Guidance(weights={}, offer_end=False).over(person) == Guidance(weights={}, beta=2.0, offer_end=False)
    assert Guidance().over(person) == person
    assert person.over(Guidance()) == person
    assert Guidance(weights={}).wish() is None


def test_bodies_that_are_no_objects() -> None:
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000):
        with pytest.raises(ApiError, match="not JSON"):
            parse(body)
    refused(read_chat_request, [], None, "a JSON object")
    refused(read_chat_request, None, None, "null")


def test_a_message_is_short_whatever_was_given() -> None:
    error = refused(read_chat_request, {**CHAT, "x" * 5000: 1}, "x" * 200)
    assert len(str(error)) < 1100


def test_what_would_take_others_time_is_refused_by_its_size() -> None:
    """Thousands of stop strings at every token, schemas that compile for minutes, and names of a MiB."""
    for read, body in ((read_chat_request, CHAT), (read_completion_request, TEXT)):
        assert len(read({**body, "stop": ["ab"] * 128}).options["stop"]) == 128
        refused(read, {**body, "stop": ["ab"] * 129}, "stop", "at most 128 strings", "129")

    def form(schema: object) -> dict[str, Any]:
        return {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}

    limit = 100_000 - len('{"const": ""}')
    assert read_chat_request(form({"const": "x" * limit})).options["json_schema"]
    param = "response_format.json_schema.schema"
    refused(read_chat_request, form({"const": "x" * (limit + 1)}), param, "at most 100,000", "100,001")
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    refused(read_chat_request, form(deep), param, "less deeply")
    refused(read_chat_request, {**CHAT, "temperatur" + "e" * 2**22: 1}, "temperatur" + "e" * 190, "not implemented")
