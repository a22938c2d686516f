"""The text of a chat: messages rendered by a chat template, with a check that no message is left out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pad_rt.text.chat_template import ChatTemplate, Message
from pad_runtime.errors import BundleError, PadError, PromptError


def write_chat(template: ChatTemplate, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
    """The prompt's text, which ends with the opening of the assistant's turn or with the assistant's last message.

    If a template leaves out string content, it is given lists of one text part instead: templates of models that see
    images read only parts.

    Args:
        template: the base's chat template.
        messages: as `read_messages` gives them.
        arguments: further variables of the template.

    Raises:
        PromptError: the template refuses these messages, fails on them, or leaves one of them out.
        BundleError: the template fails whatever the messages are.
    """
    failure: BundleError | None = None
    try:
        text, lost = _write(template, messages, arguments), _find_lost(template, messages, arguments)
    except BundleError as error:
        text, lost, failure = "", None, error
    if lost or failure:
        parts = [_in_parts(message) for message in messages]
        try:
            text, still = _write(template, parts, arguments), _find_lost(template, parts, arguments)
        except PadError:
            raise _blame(template, failure) or _left_out(messages, lost) from None
        if still:
            raise _blame(template, failure) or _left_out(messages, max(filter(None, (lost, still))))
    return text


def _blame(template: ChatTemplate, failure: BundleError | None) -> PadError | None:
    """A template's failure: the messages' own fault if the template writes the simplest chat."""
    if failure is not None:
        with suppress(PadError):
            template.render([{"role": "user", "content": "?"}])
            return PromptError(failure.given, expected="messages that the base's chat template can write")
    return failure


def _write(template: ChatTemplate, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
    """Render the messages; if the last message is to be continued, cut the text behind it, as transformers does."""
    if messages[-1]["role"] != "assistant":
        return template.render(messages, arguments=arguments)
    mark = _mark(len(messages) - 1)
    continued = [*messages[:-1], _with_end(messages[-1], mark + " ")]
    text = template.render(continued, add_generation_prompt=False, arguments=arguments)
    head, found, tail = text.rpartition(mark)
    return head if not found or tail.startswith(" ") else head.rstrip()  # this template trims the end of a turn


def _find_lost(
    template: ChatTemplate, messages: Sequence[Message], arguments: Mapping[str, Any]
) -> tuple[int, str] | None:
    """The first message that the template leaves out: its index, and " with tool calls" if only those are left out.

    It is found by marks that are put at the end of contents and of tools' names. A template that writes the end of a
    content and leaves out its beginning gives a warning.
    """
    marked = [_marked(message, index) for index, message in enumerate(messages)]
    try:
        text = template.render(marked, add_generation_prompt=messages[-1]["role"] != "assistant", arguments=arguments)
    except PadError:  # the marks disturb this template, which may want JSON, for example: nothing can be found
        return None
    for index, message in enumerate(messages):
        content, mark = _text_of(message), _mark(index)
        place = text.find(mark)
        if any(_mark(index, number) not in text for number in range(_num_calls(message))):
            return index, " with tool calls"
        is_lost = place < 0 or text.startswith("'}]", place + len(mark))  # parts, written as Python's repr
        if content and is_lost and not _num_calls(message):
            return index, ""
        forms = (content.lstrip(), json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
        if content and (is_lost or not text.endswith(forms, 0, place)):
            warnings.warn(
                f"the base's chat template leaves out part of a message of the {message['role']}, such as reasoning",
                RuntimeWarning,
                stacklevel=2,
            )
    return None


def _left_out(messages: Sequence[Message], lost: tuple[int, str] | None) -> PromptError:
    index, what = lost or (0, "")
    return PromptError(
        f"message {index} of the {messages[index]['role']}{what}",
        expected="messages that the base's chat template writes into the prompt",
        hint="it leaves this one out: say it in another message",
    )


def _in_parts(message: Message) -> Message:
    text = _text_of(message)
    return {**message, "content": [{"type": "text", "text": text}]} if text else message


def _mark(*place: int) -> str:
    """The mark of a message's content, or of one of its tool calls."""
    return f"[[pad {'.'.join(map(str, place))}]]"


def _marked(message: Message, index: int) -> Message:
    marked = _with_end(message, _mark(index)) if _text_of(message) else message
    if not _num_calls(message):
        return marked
    names = [call["function"]["name"] + _mark(index, number) for number, call in enumerate(message["tool_calls"])]
    calls = [
        {**call, "function": {**call["function"], "name": name}}
        for call, name in zip(message["tool_calls"], names, strict=True)
    ]
    return {**marked, "tool_calls": calls}


def _text_of(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else str(content[0]["text"])


def _with_end(message: Message, end: str) -> Message:
    whole = {**message, "content": _text_of(message) + end}
    return _in_parts(whole) if isinstance(message["content"], list) else whole


def _num_calls(message: Message) -> int:
    return len(message.get("tool_calls", ()))
