"""Prompts, and how they become token ids for the base row and the reward rows."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral
from typing import TypeAlias

from pad_rt.chat_template import ChatTemplate, Message
from pad_rt.tokenizer import Tokenizer
from pad_runtime.errors import BundleError, PromptError

_ROLES = ("system", "user", "assistant")
_PLACEHOLDER = re.compile(r"\{[px]\}")


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt that is token ids already.

    Args:
        base: ids for the base row.
        reward: ids for the reward rows, the preference's words included; None when no preference is used.

    Raises:
        PromptError: empty, or something other than integers >= 0.
    """

    base: Sequence[int]
    reward: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", _check_ids(self.base, name="base"))
        if self.reward is not None:
            object.__setattr__(self, "reward", _check_ids(self.reward, name="reward"))


Prompt: TypeAlias = str | Sequence[Message] | EncodedPrompt
"""What a caller may give: one user turn, a chat that ends with a user turn, or token ids."""


class PromptEncoder:
    """Turns prompts into token ids.

    With a chat template, the rendered text is encoded as it is (the template writes BOS itself). Without one, a prompt
    is raw text and gets the special tokens that the tokenizer's post-processor adds.

    Args:
        tokenizer: the bundle's tokenizer.
        chat_template: None for a base that was not trained on chats.
        vocab_size: number of ids the model knows; None takes the tokenizer's.
    """

    def __init__(
        self, tokenizer: Tokenizer, chat_template: ChatTemplate | None, *, vocab_size: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of the base row.

        Raises:
            PromptError: the prompt is empty, malformed, or refused by the chat template.
        """
        if isinstance(prompt, EncodedPrompt):
            return self._check_range(prompt.base)
        return self._encode_turns(_check_turns(prompt))

    def encode_reward(self, prompt: Prompt, text: str | None, template: str) -> list[int]:
        """Ids of a reward row: the last user turn's content x becomes the template filled with it and the preference.

        Args:
            prompt: as for `encode`; of an `EncodedPrompt`, the reward ids are taken as they are.
            text: the preference p in words; None leaves the turn as it is where the template has a place for p.
            template: the PersRM's prompt text, with {x} and, unless it knows no words, {p} where the two belong.

        Raises:
            PromptError: as `encode`, and for an `EncodedPrompt` without reward ids.
            BundleError: the template lacks {x}, or {p} for a text.
        """
        if isinstance(prompt, EncodedPrompt):
            if prompt.reward is None:
                raise PromptError(
                    "a preference with an EncodedPrompt that has no reward ids",
                    expected="EncodedPrompt(base=..., reward=...)",
                    hint="encode the preference into the reward ids",
                )
            return self._check_range(prompt.reward)
        turns = _check_turns(prompt)
        if text is None and "{p}" in template:
            return self._encode_turns(turns)
        values = {"{x}": turns if isinstance(turns, str) else turns[-1]["content"]}
        if text is not None:
            values["{p}"] = text
        filled = _fill(template, values)
        if isinstance(turns, str):
            return self._encode_turns(filled)
        return self._encode_turns([*turns[:-1], {"role": "user", "content": filled}])

    def _encode_turns(self, turns: str | list[Message]) -> list[int]:
        if self._chat_template is not None:
            messages = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
            ids = self._tokenizer.encode(self._chat_template.render(messages), add_special_tokens=False)
        elif isinstance(turns, str):
            ids = self._tokenizer.encode(turns, add_special_tokens=True)
        else:
            raise PromptError(
                "chat messages for a base without a chat template",
                expected="a string",
                hint="write the chat as one text, or export a chat model",
            )
        if not ids:
            raise PromptError("a prompt that gives no tokens", expected="some text")
        if max(ids) >= self._vocab_size:
            raise PromptError(
                f"a prompt with the token {self._tokenizer.decode([max(ids)], skip_special_tokens=False)!r}",
                expected=f"tokens that the model has: its ids end at {self._vocab_size - 1}",
                hint="leave that token out",
            )
        return ids

    def _check_range(self, ids: Sequence[int]) -> list[int]:
        if max(ids) >= self._vocab_size:
            raise PromptError(
                f"token id {reprlib.repr(max(ids))}",
                expected=f"ids below {self._vocab_size}, the vocabulary's size",
                hint="encode with the bundle's tokenizer",
            )
        return list(ids)


def _check_turns(prompt: object) -> str | list[Message]:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError("an empty prompt", expected="some text")
        return prompt
    if not isinstance(prompt, list | tuple):
        raise PromptError(
            f"a prompt of type {type(prompt).__name__}",
            expected="a string, a list of messages, or an EncodedPrompt",
            hint="a single message goes into a list" if isinstance(prompt, Mapping) else "",
        )
    if not prompt:
        raise PromptError("an empty list of messages", expected="at least one user turn")
    messages = [_check_message(message, index) for index, message in enumerate(prompt)]
    last = messages[-1]
    if last["role"] != "user":
        raise PromptError(
            f"the last message is of the {last['role']}",
            expected="a user turn",
            hint="add the user's message to answer",
        )
    if not last["content"].strip():
        raise PromptError("the last user turn is empty", expected="some text")
    return messages


def _check_message(message: object, index: int) -> Message:
    expected = '{"role": ..., "content": ...}'
    if not isinstance(message, Mapping):
        raise PromptError(f"message {index} of type {type(message).__name__}", expected=expected)
    for key in message:
        if key not in ("role", "content"):
            raise PromptError(f"message {index} with the key {reprlib.repr(key)}", expected=expected)
    for key in ("role", "content"):
        if key not in message:
            raise PromptError(f"message {index} without {key}", expected=expected)
    if message["role"] not in _ROLES:
        raise PromptError(
            f"message {index} with the role {reprlib.repr(message['role'])}", expected=f"one of {', '.join(_ROLES)}"
        )
    if not isinstance(message["content"], str):
        raise PromptError(
            f"message {index} with content of type {type(message['content']).__name__}", expected="a string"
        )
    return message


def _check_ids(ids: object, *, name: str) -> tuple[int, ...]:
    expected = "a non-empty sequence of integers >= 0"
    if isinstance(ids, str | bytes | Mapping | Set) or not isinstance(ids, Iterable):
        raise PromptError(f"{name} ids of type {type(ids).__name__}", expected=expected)
    checked = []
    for index, token_id in enumerate(ids):
        if isinstance(token_id, bool) or not isinstance(token_id, Integral) or token_id < 0:
            raise PromptError(f"{name} id {index} is {reprlib.repr(token_id)}", expected=expected)
        checked.append(int(token_id))
    if not checked:
        raise PromptError(f"no {name} ids", expected=expected)
    return tuple(checked)


def _fill(template: str, values: Mapping[str, str]) -> str:
    """All values in one pass over the template, so that braces in them stay what they are."""
    if not values.keys() <= set(_PLACEHOLDER.findall(template)):
        raise BundleError(
            f"PersRM prompt template {reprlib.repr(template)}",
            expected=f"one with {' and '.join(sorted(values))}",
            hint="correct the template and export the bundle again",
        )
    return _PLACEHOLDER.sub(lambda found: values[found[0]], template)
