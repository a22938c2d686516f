"""Chat messages as clients send them, turned into the form that chat templates read."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from pad_rt.text.chat_template import Message
from pad_runtime.errors import PromptError

_ROLES = ("system", "developer", "user", "assistant", "tool")
_EXPECTED = '{"role": ..., "content": ...}'
_PART = '{"type": "text", "text": ...}'
_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id")
_PART_KEYS = ("type", "text", "cache_control")  # cache_control tells a service what it may keep; nothing is kept here
_UNSENT: tuple[object, ...] = (None, [], {})  # clients send such values back as they got them: "annotations": []


def read_messages(messages: Sequence[object], words: frozenset[str]) -> list[Message]:
    """Messages with a string as content (or None beside tool calls), and objects as arguments of tool calls.

    A key whose value is None, an empty list or an empty object counts as missing. Text parts are joined as they are.
    The role developer becomes system if the template does not name developers.

    Args:
        messages: of the roles system, developer, user, assistant and tool. The last message is the user's or a tool's,
            and is replied to; or it is the assistant's, and is continued.
        words: names and strings in the chat template. A message may have other keys if the template names them, such
            as reasoning_content.

    Raises:
        PromptError: a message has another form; says which, and what was expected.
    """
    if not messages:
        raise PromptError("an empty list of messages", expected="at least one user turn")
    checked = [_read_message(message, index, words) for index, message in enumerate(messages)]
    role = checked[-1]["role"]
    if role not in ("user", "tool", "assistant"):
        raise PromptError(
            f"the last message is of the {role}", expected="a user turn", hint="add the user's message to answer"
        )
    if role == "assistant" and checked[-1].get("tool_calls"):
        raise PromptError(
            "the last message calls tools", expected="what the tools gave", hint="add a message of the role tool"
        )
    if not checked[last_user_turn(checked)]["content"].strip():
        raise PromptError("the last user turn is empty", expected="some text")
    return checked


def last_user_turn(messages: Sequence[Message]) -> int:
    """Index of the user's last message."""
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            return index
    raise PromptError("messages without a user turn", expected="at least one", hint="add the user's message")


def _read_message(message: object, index: int, words: frozenset[str]) -> Message:
    if not isinstance(message, Mapping):
        raise PromptError(f"message {index} of type {type(message).__name__}", expected=_EXPECTED)
    for key in message:
        if message[key] not in _UNSENT and key not in _KEYS and key not in words:
            raise PromptError(
                f"message {index} with the key {reprlib.repr(key)}",
                expected=f"{_EXPECTED}, {', '.join(_KEYS[2:])}, or a key that the chat template reads",
            )
    role = message.get("role")
    if role is None:
        raise PromptError(f"message {index} without role", expected=_EXPECTED)
    if role not in _ROLES:
        raise PromptError(f"message {index} with the role {reprlib.repr(role)}", expected=f"one of {', '.join(_ROLES)}")
    read = {key: value for key, value in message.items() if value not in _UNSENT or key == "content"}
    if role == "developer" and role not in words:
        read["role"] = "system"
    for key in read.keys() - {"role", "content", "tool_calls"}:
        if not isinstance(read[key], str):
            raise PromptError(f"message {index} with {key} of type {type(read[key]).__name__}", expected="a string")
    if not read.get("tool_calls"):
        read.pop("tool_calls", None)
    elif role != "assistant":
        raise PromptError(f"message {index} with tool_calls of the {role}", expected="tool calls of the assistant")
    else:
        read["tool_calls"] = _read_tool_calls(read["tool_calls"], f"message {index}")
    if "tool_calls" in read and read.get("content") is None:
        return read
    if "content" not in read:
        raise PromptError(f"message {index} without content", expected=_EXPECTED)
    read["content"] = _read_content(read["content"], f"message {index}")
    return read


def _read_content(content: object, at: str) -> str:
    """The text of a message's content; the texts of parts are joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise PromptError(f"{at} with content of type {type(content).__name__}", expected=f"a string, or parts {_PART}")
    texts = []
    for part in content:
        if not isinstance(part, Mapping):
            raise PromptError(f"{at} with a content part of type {type(part).__name__}", expected=_PART)
        if part.get("type") != "text":
            raise PromptError(
                f"{at} with a part of type {reprlib.repr(part.get('type'))}", expected=_PART, hint="only text is read"
            )
        if not isinstance(part.get("text"), str):
            raise PromptError(f"{at} with a text part of type {type(part.get('text')).__name__}", expected=_PART)
        odd = [key for key in part if key not in _PART_KEYS and part[key] not in _UNSENT]
        if odd:
            raise PromptError(f"{at} with a text part that has {reprlib.repr(odd[0])}", expected=_PART)
        texts.append(part["text"])
    return "".join(texts)


def _read_tool_calls(calls: object, at: str) -> list[dict[str, Any]]:
    expected = '[{"type": "function", "function": {"name": ..., "arguments": {...}}}]'
    if not isinstance(calls, list | tuple):
        raise PromptError(f"{at} with tool_calls of type {type(calls).__name__}", expected=expected)
    read = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise PromptError(f"{at} with the tool call {reprlib.repr(call)}", expected=expected)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):  # OpenAI sends JSON text; templates turn objects into JSON themselves
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, Mapping):
            raise PromptError(f"{at} with arguments of {reprlib.repr(function['name'])}", expected="a JSON object")
        read.append({**call, "function": {**function, "arguments": dict(arguments)}})
    return read
