"""One JSON object a request, on a line of its own; without prompts and replies unless the settings ask for them."""

from __future__ import annotations

import json
import traceback
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from pad_rt.result import FinishReason, Timing, Usage
from pad_rt.serve.line_writer import LineWriter
from pad_rt.serve.settings import ServeSettings

CLIENT_LEFT = 499  # nginx's status of a request whose client went away
MAX_TEXT = 200  # characters of a text that a client chose


@dataclass
class RequestRecord:
    """What the server comes to know of one request. The app fills it in; log and metrics are made of it.

    Attributes:
        id: of the request; also in the reply's header x-request-id.
        method, path: of the request line, without the query.
        status: of the reply; of its error, which the app sets, where it fails once it has begun; or `CLIENT_LEFT`.
        total_s: from the request's head to the end of the reply, in seconds.
        model: the name of the served bundle, without the person; None: none was found.
        person: the named person, or None.
        user: OpenAI's field.
        prompt, reply: whatever was asked and said, as JSON takes it; only --log-prompts logs them.
        replies: usage, timing and finish reason of each choice that ended.
        error: an exception that nothing else caught.
    """

    id: str
    method: str
    path: str
    status: int = CLIENT_LEFT
    total_s: float = 0.0
    model: str | None = None
    person: str | None = None
    user: str | None = None
    prompt: object = None
    reply: object = None
    replies: list[tuple[Usage, Timing, FinishReason]] = field(default_factory=list)
    error: Exception | None = None


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of a request, by its ASGI scope (`request.scope`)."""
    record: RequestRecord = scope["state"]["record"]
    return record


class RequestLog:
    """Writes the lines.

    Args:
        settings: whether prompts, replies and tracebacks are logged.
        lines: takes them.
    """

    def __init__(self, settings: ServeSettings, lines: LineWriter | TextIO) -> None:
        self._log_prompts = settings.log_prompts
        self._lines = lines

    def write(self, record: RequestRecord) -> None:
        """Write the line of a request that ended."""
        self._lines.write(json.dumps(self._line(record), default=str) + "\n")

    def _line(self, record: RequestRecord) -> dict[str, object]:
        """The fields that are known."""
        line: dict[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": record.id,
            "method": record.method,
            "path": _cut(record.path),
            "status": record.status,
            "model": record.model,
            "person": record.person,
            "user": _cut(record.user),
            **_describe_replies(record.replies),
            "total_s": round(record.total_s, 6),
            "error": None if record.error is None else _describe_error(record.error),
        }
        if self._log_prompts:
            line |= {"prompt": record.prompt, "reply": record.reply}
            if record.error is not None:
                line["traceback"] = "".join(traceback.format_exception(record.error))
        return {name: value for name, value in line.items() if value is not None}


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def _describe_replies(replies: list[tuple[Usage, Timing, FinishReason]]) -> dict[str, object]:
    """Tokens summed over the choices, their longest waits, and their finish reasons (one choice: a word)."""
    if not replies:
        return {}
    usages, timings, reasons = zip(*replies, strict=True)
    return {
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "queue_s": round(max(timing.queue_s for timing in timings), 6),
        "first_token_s": round(max(timing.first_token_s for timing in timings), 6),
        "finish_reason": reasons[0] if len(reasons) == 1 else reasons,
    }


def _describe_error(error: Exception) -> str:
    """The kind of an exception, and the last place in PAD-RT on its way; its message may have a prompt in it."""
    frames = [(frame.f_globals.get("__name__", "?"), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(module, line) for module, line in frames if module.partition(".")[0] in ("pad_rt", "pad_runtime")]
    places = (own or frames)[-1:]
    return type(error).__name__ + "".join(f" in {module}, line {line}" for module, line in places)
