"""The text of a chat: what a template makes of messages, held against what they say."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pad_rt.chat_template import ChatTemplate, Message
from pad_runtime.errors import BundleError, PadError, PromptError


def write_chat(template: ChatTemplate, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
    """The prompt's text: it ends with the opening of the assistant's turn, or with the assistant's last message.

    A template that leaves out a string is given a list of one text part instead: templates of models that see images
    read nothing else.

    Args:
        template: of the base.
        messages: as `read_messages` gives them.
        arguments: further variables of the template.

    Raises:
        PromptError: the template refuses these messages, or leaves one of them out.
        BundleError: the template fails in any other way.
    """
    error: PadError | None
    try:
        text, error = _write(template, messages, arguments), _find_lost(template, messages, arguments)
    except BundleError as failure:
        text, error = "", failure
    if error is None:
        return text
    parts = [
        {**message, "content": [{"type": "text", "text": message["content"]}]} if message.get("content") else message
        for message in messages
    ]
    try:
        text, still = _write(template, parts, arguments), _find_lost(template, parts, arguments)
    except PadError:
        raise error from None
    if still is not None:
        raise error
    return text


def _write(template: ChatTemplate, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
    """Render, and of a message that is to be continued keep what comes up to its end, as transformers does."""
    if messages[-1]["role"] != "assistant":
        return template.render(messages, arguments=arguments)
    mark = _mark(len(messages) - 1)
    continued = [*messages[:-1], _with_end(messages[-1], mark + " ")]
    text = template.render(continued, add_generation_prompt=False, arguments=arguments)
    head, found, tail = text.rpartition(mark)
    return head if not found or tail.startswith(" ") else head.rstrip()  # the template trims what a turn ends with


def _find_lost(template: ChatTemplate, messages: Sequence[Message], arguments: Mapping[str, Any]) -> PromptError | None:
    """The first message that the template leaves out, found by marks at the end of contents and of tools' names.

    Where a template writes the end of a content and not all of it, a warning says so.
    """
    marked = [_marked(message, index) for index, message in enumerate(messages)]
    try:
        text = template.render(marked, add_generation_prompt=messages[-1]["role"] != "assistant", arguments=arguments)
    except PadError:  # a template that wants JSON, for example: nothing can be said
        return None
    for index, message in enumerate(messages):
        role, content = message["role"], _text_of(message)
        before, found, _ = text.partition(_mark(index))
        lost = " with tool calls" if any(_mark(index, n) not in text for n in range(_num_calls(message))) else ""
        if lost or (content and not found):
            return PromptError(
                f"message {index} of the {role}{lost}",
                expected="messages that the base's chat template writes into the prompt",
                hint="it leaves this one out",
            )
        forms = (content.lstrip(), json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
        if content and not before.endswith(forms):
            warnings.warn(
                f"the base's chat template writes a message of the {role} with a part left out, such as its reasoning",
                RuntimeWarning,
                stacklevel=2,
            )
    return None


def _mark(*place: int) -> str:
    """For the content of a message, or for one of its tool calls."""
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
    text = _text_of(message) + end
    return {**message, "content": [{"type": "text", "text": text}] if isinstance(message["content"], list) else text}


def _num_calls(message: Message) -> int:
    return len(message.get("tool_calls", ()))
