"""Prompts, encoded as token ids for the base and for PersRMs."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

from pad_rt.text.chat_template import ChatTemplate, Message
from pad_rt.text.chat_text import write_chat
from pad_rt.text.messages import last_user_turn, read_messages
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.errors import BundleError, OptionError, PromptError

_PLACEHOLDER = re.compile(r"\{[px]\}")


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt that is given as token ids.

    Args:
        base: ids of the base's prompt.
        reward: ids of the PersRM's prompt, with the preference's words; None for generation without a preference.

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
"""What a caller may give: one user turn; a chat, which ends with a message to reply to or with the beginning of the
reply; or token ids."""
ReplyLike: TypeAlias = str | Sequence[int]
"""A reply that is given: text, or token ids."""


class PromptEncoder:
    """Turns prompts into token ids.

    If the base has a chat template, the rendered text is encoded as it is (the template writes BOS itself). Otherwise a
    prompt is raw text, and gets the special tokens that the tokenizer's post-processor adds.

    Args:
        tokenizer: the bundle's tokenizer.
        chat_template: None for a base without one.
        vocab_size: number of ids the model knows; None takes the tokenizer's.
        max_length: most tokens of prompt and reply; a text that is surely longer is refused unencoded. None: no limit.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None,
        *,
        vocab_size: int | None = None,
        max_length: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._max_length = max_length

    def encode(self, prompt: Prompt, arguments: Mapping[str, Any] | None = None) -> list[int]:
        """Ids of the base row.

        Args:
            prompt: a string, messages, or ids.
            arguments: further variables of the chat template.

        Raises:
            PromptError: the prompt is empty, malformed, too long, or refused by the chat template.
            OptionError: arguments that the chat template does not read.
        """
        if isinstance(prompt, EncodedPrompt):
            return self._check_range(prompt.base)
        return self._encode_turns(self._check_turns(prompt), arguments or {})

    def encode_reward(
        self, prompt: Prompt, text: str | None, template: str, arguments: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Ids of a reward row: the last user turn's content x becomes the template filled with it and the preference.

        Args:
            prompt: as for `encode`; of an `EncodedPrompt`, the reward ids are taken as they are.
            text: the preference p in words; None leaves the turn as it is where the template has a place for p.
            template: the PersRM's prompt text, with {x} and, unless it knows no words, {p} where the two belong.
            arguments: as for `encode`.

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
        arguments = arguments or {}
        turns = self._check_turns(prompt)
        if text is None and "{p}" in template:
            return self._encode_turns(turns, arguments)
        asked = -1 if isinstance(turns, str) else last_user_turn(turns)
        values = {"{x}": turns if isinstance(turns, str) else turns[asked]["content"]}
        if text is not None:
            values["{p}"] = text
        filled = _fill(template, values)
        if isinstance(turns, str):
            return self._encode_turns(filled, arguments)
        reworded = {**turns[asked], "content": filled}
        return self._encode_turns([*turns[:asked], reworded, *turns[asked + 1 :]], arguments)

    def encode_raw(self, text: str) -> list[int]:
        """Ids of a text without the chat template, with the special tokens that the tokenizer adds.

        Raises:
            PromptError: it is too long, or has tokens that the model has not.
        """
        return self._check_known(self._encode_text(text, add_special_tokens=True), what="prompt")

    def encode_reply(self, reply: ReplyLike, *, has_begun: bool = False) -> list[int]:
        """Ids of a reply that is given, to stand behind a prompt's.

        A text is encoded by itself, as in training: the prompt's last token and the reply's first never merge.

        Args:
            reply: a string, in which special tokens that are written out become those tokens; or ids.
            has_begun: the prompt ends with the beginning of the reply.

        Raises:
            PromptError: it is neither, too long, or has tokens that the model has not.
        """
        if isinstance(reply, str):
            ids = self._encode_text(reply, add_special_tokens=False, what="reply", has_begun=has_begun)
            return self._check_known(ids, what="reply")
        return self._check_range(_check_ids(reply, name="reply")) if reply not in ([], ()) else []

    def _check_turns(self, prompt: object) -> str | list[Message]:
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
        return read_messages(prompt, self._chat_template.words if self._chat_template else frozenset())

    def _encode_turns(self, turns: str | list[Message], arguments: Mapping[str, Any]) -> list[int]:
        self._check_arguments(arguments)
        if self._chat_template is not None:
            self._check_size(turns)
            messages = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
            ids = self._encode_text(write_chat(self._chat_template, messages, arguments), add_special_tokens=False)
        elif isinstance(turns, str):
            ids = self._encode_text(turns, add_special_tokens=True)
        else:
            raise PromptError(
                "chat messages for a base without a chat template",
                expected="a string",
                hint="write the chat as one text, or export a chat model",
            )
        if not ids:
            raise PromptError("a prompt that gives no tokens", expected="some text")
        return self._check_known(ids, what="prompt")

    def _check_size(self, turns: str | list[Message]) -> None:
        """Refuse a chat that is too long whatever its template writes: looking for what it leaves out takes long."""
        limit = self._max_length
        if limit is None or isinstance(turns, str):
            return
        if len(turns) > limit:
            raise _too_long(f"a chat of {len(turns):,} messages", limit)
        num_characters = sum(len(turn.get("content") or "") for turn in turns)
        if num_characters > limit and num_characters > limit * self._tokenizer.longest_token:
            raise _too_long(f"a chat of {num_characters:,} characters", limit)

    def _encode_text(
        self, text: str, *, add_special_tokens: bool, what: str = "prompt", has_begun: bool = False
    ) -> list[int]:
        """Encode a text, unless it is too long even if all its tokens are the vocabulary's longest."""
        limit = self._max_length
        if limit is not None and len(text) > limit and len(text) > limit * self._tokenizer.longest_token:
            raise _too_long(f"a {what} of {len(text):,} characters", limit)
        if has_begun:
            return self._tokenizer.encode_continuation(text)
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _check_known(self, ids: list[int], *, what: str) -> list[int]:
        if ids and max(ids) >= self._vocab_size:
            raise PromptError(
                f"a {what} with the token {self._tokenizer.decode([max(ids)], skip_special_tokens=False)!r}",
                expected=f"tokens that the model has: its ids end at {self._vocab_size - 1}",
                hint="leave that token out",
            )
        return ids

    def _check_arguments(self, arguments: Mapping[str, Any]) -> None:
        read = sorted(self._chat_template.variables) if self._chat_template and arguments else []
        for name in arguments:
            if name not in read:
                raise OptionError(
                    f"template argument {name!r}",
                    expected=f"one of {', '.join(read)}: what the base's chat template reads"
                    if read
                    else "none: the base has no chat template that reads any",
                )

    def _check_range(self, ids: Sequence[int]) -> list[int]:
        if max(ids) >= self._vocab_size:
            raise PromptError(
                f"token id {reprlib.repr(max(ids))}",
                expected=f"ids below {self._vocab_size}, the vocabulary's size",
                hint="encode with the bundle's tokenizer",
            )
        return list(ids)


def continues_reply(prompt: Prompt) -> bool:
    """Whether the prompt ends with the beginning of the reply."""
    return not isinstance(prompt, str | EncodedPrompt) and prompt[-1]["role"] == "assistant"


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


def _too_long(given: str, max_length: int) -> PromptError:
    return PromptError(
        given,
        expected=f"at most {max_length - 1} tokens: the bundle's max_length, less a token of reply",
        hint="shorten it, or export with a larger --max-length",
    )


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Fill all values in by one pass over the template, so that braces in a value are not taken for placeholders."""
    if not values.keys() <= set(_PLACEHOLDER.findall(template)):
        raise BundleError(
            f"PersRM prompt template {reprlib.repr(template)}",
            expected=f"one with {' and '.join(sorted(values))}",
            hint="correct the template and export the bundle again",
        )
    return _PLACEHOLDER.sub(lambda found: values[found[0]], template)
