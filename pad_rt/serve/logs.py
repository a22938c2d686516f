"""One JSON object a request, on a line of its own; without prompts and replies unless settings ask for them."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from pad_rt.result import FinishReason, Timing, Usage
from pad_rt.serve.settings import ServeSettings


@dataclass
class RequestRecord:
    """What the server comes to know of one request. The app fills it in; log and metrics are made of it.

    Attributes:
        id: of the request; also in the reply's header x-request-id.
        model: the name of the served bundle, without the person; None: none was found.
        person: the named person, or None.
        user: OpenAI's field.
        prompt, reply: texts, which only --log-prompts logs. The app may set them always.
        failure: the status that a stream would have ended with if it had not begun.
        replies: usage, timing and finish reason of each choice that ended.
    """

    id: str
    model: str | None = None
    person: str | None = None
    user: str | None = None
    prompt: object = None
    reply: object = None
    failure: int | None = None
    replies: list[tuple[Usage, Timing, FinishReason]] = field(default_factory=list)


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of a request, by its ASGI scope (`request.scope`)."""
    record: RequestRecord = scope["state"]["record"]
    return record


class RequestLog:
    """Writes the lines.

    Args:
        settings: whether prompts are logged.
        stream: where to; None: stderr.
    """

    def __init__(self, settings: ServeSettings, stream: TextIO | None = None) -> None:
        raise NotImplementedError
