"""The body of POST /v1/chat/completions."""

from __future__ import annotations

import json
from typing import Any

from pad_rt.api.fields import Fields
from pad_rt.api.guidance import Guidance
from pad_rt.api.request import HARMLESS, MAX_TOP_LOGPROBS, ApiRequest, read_common

_ANY_OBJECT = {"type": "object"}
_MAX_SCHEMA = 100_000  # characters; compiling takes time with the square of them
_HARMLESS = {
    **HARMLESS,
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
IN_PAD = {name: f"it belongs into the object pad: pad.{name}" for name in Guidance.__dataclass_fields__}


def read_chat_request(body: object) -> ApiRequest:
    """Check the fields of a body.

    Raises:
        ApiError: a field is missing, of another type, or not implemented; it names the field.
    """
    fields = Fields(body)
    messages = fields.value("messages")
    if not isinstance(messages, list):
        raise fields.refused_by_type("messages", messages, 'a list such as [{"role": "user", "content": "Hello"}]')
    common = read_common(fields, ("max_completion_tokens", "max_tokens"))
    common["options"] |= _read_format(fields)
    request = ApiRequest("chat", prompts=(messages,), top_logprobs=_read_logprobs(fields), **common)
    fields.finish(_HARMLESS, IN_PAD)
    return request


def _read_logprobs(fields: Fields) -> int | None:
    """Candidates beside each token, 0 and more; None without log-probabilities."""
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs", least=0, most=MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise fields.refused("top_logprobs", top, "logprobs: true beside it")
    return (top or 0) if wanted else None


def _read_format(fields: Fields) -> dict[str, Any]:
    """`response_format` as options of a `GenerationConfig`."""
    form = fields.nested("response_format")
    if form is None:
        return {}
    kind = form.text("type")
    options: dict[str, Any] = {}
    if kind == "json_object":
        options["json_schema"] = _ANY_OBJECT
    elif kind == "json_schema":
        options["json_schema"] = _read_schema(form)
    elif kind != "text":
        raise form.refused("type", kind, "text, json_object or json_schema")
    form.finish()
    return options


def _read_schema(form: Fields) -> dict[str, Any]:
    """The schema. A reply is valid by it whatever `strict` says."""
    named = form.nested("json_schema")
    if named is None:
        raise form.refused("json_schema", None, '{"name": ..., "schema": {...}}')
    if named.text("name") is None:
        raise named.refused("name", None, "a name of the schema")
    named.text("description")
    named.flag("strict")
    schema = named.mapping("schema")
    named.finish()
    if schema is None:
        return _ANY_OBJECT
    try:
        size = len(json.dumps(schema))
    except RecursionError:
        raise named.refused("schema", schema, "a schema that is nested less deeply") from None
    if size > _MAX_SCHEMA:
        raise named.refused("schema", schema, f"at most {_MAX_SCHEMA:,} characters of JSON; this has {size:,}")
    return schema
