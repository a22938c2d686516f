"""The body of POST /v1/completions: texts that are continued as they are, without a chat template."""

from __future__ import annotations

from typing import Any

from pad_rt.api.chat_request import IN_PAD
from pad_rt.api.error import refusal
from pad_rt.api.fields import Fields
from pad_rt.api.request import HARMLESS, MAX_CHOICES, MAX_TOP_LOGPROBS, ApiRequest, read_common

_EXPECTED = "a text, a list of texts, a list of token ids, or a list of such lists"
_HARMLESS = {**HARMLESS, "best_of": (1,), "echo": (False,), "suffix": ("",)}


def read_completion_request(body: object) -> ApiRequest:
    """Check the fields of a body.

    Raises:
        ApiError: a field is missing, of another type, or not implemented; it names the field.
    """
    fields = Fields(body)
    prompts = _read_prompts(fields)
    common = read_common(fields, ("max_tokens",))
    top_logprobs = fields.integer("logprobs", least=0, most=MAX_TOP_LOGPROBS)
    fields.finish(_HARMLESS, IN_PAD)
    request = ApiRequest("text", prompts=prompts, top_logprobs=top_logprobs, **common)
    if request.num_choices > MAX_CHOICES:
        raise refusal("prompt", f"{len(prompts)} prompts with n={request.n}", expected=f"at most {MAX_CHOICES} replies")
    return request


def _read_prompts(fields: Fields) -> tuple[Any, ...]:
    given = fields.value("prompt")
    if isinstance(given, str) or _is_ids(given):
        return (given,)
    if isinstance(given, list) and given and (all(isinstance(each, str) for each in given) or all(map(_is_ids, given))):
        return tuple(given)
    raise fields.refused_by_type("prompt", given, _EXPECTED)


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int and each >= 0 for each in value)
