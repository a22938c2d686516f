"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import re
from typing import Any

from pad_runtime.errors import (
    CancelledError,
    OptionError,
    OutOfMemoryError,
    PadError,
    PreferenceError,
    PromptError,
    QueueFullError,
)

RETRY_AFTER_S = 1  # of a queue that is full: a place is free again when any reply ends
INTERNAL = "the server failed to reply; this is a fault of the server, which has logged it"
_MAX_MESSAGE, _MAX_PARAM = 1000, 200  # characters; what was given may be long


class ApiError(PadError):
    """An error with its HTTP status.

    Args:
        status: 400 and above.
        type: the kind, such as "invalid_request_error".
        code: a word for programs, such as "model_not_found"; None for those that OpenAI gives none.
        param: the field of the body that it is about.
        message: one line for people.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self, status: int, type: str, code: str | None, param: str | None, message: str, retry_after: int | None = None
    ) -> None:
        super().__init__(message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "...")
        self.status, self.type, self.code, self.retry_after = status, type, code, retry_after
        self.param = param if param is None else param[:_MAX_PARAM]

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that is sent."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


def refusal(param: str | None, given: str, *, expected: str = "", hint: str = "", code: str | None = None) -> ApiError:
    """The error of a body with a field that is wrong."""
    return ApiError(400, "invalid_request_error", code, param, str(PadError(given, expected=expected, hint=hint)))


def unavailable(code: str, message: str, retry_after: int = RETRY_AFTER_S) -> ApiError:
    """The error of a request that may succeed later."""
    return ApiError(503, "service_unavailable_error", code, None, message, retry_after)


def to_api_error(error: Exception, *, prompt: str, options: dict[str, str]) -> ApiError:
    """What a client is told of an error of the generator.

    A fault of the server itself is one fixed sentence: its message may hold paths.

    Args:
        error: that was raised by `submit` or by a ticket.
        prompt: name of the body's field with the prompt.
        options: names of the body's fields, by the options of a `GenerationConfig` that they set.
    """
    if isinstance(error, QueueFullError):
        return ApiError(429, "rate_limit_error", "queue_full", None, "too many requests wait already", RETRY_AFTER_S)
    if isinstance(error, PromptError):
        return refusal(prompt, str(error))
    if isinstance(error, PreferenceError):
        return refusal("pad", str(error))
    if isinstance(error, OptionError):
        named = re.search(rf"\b({'|'.join(options)})\b", error.given)  # messages begin with the option's name
        return refusal(options[named[1]] if named else None, str(error))
    if isinstance(error, OutOfMemoryError):
        return unavailable("out_of_memory", "too little memory for this request beside the others")
    if isinstance(error, CancelledError):
        return unavailable("cancelled", "the server ended this request")
    return ApiError(500, "server_error", "internal_error", None, INTERNAL)
