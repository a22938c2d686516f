"""The token with which a chat template closes the assistant's turn."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Tokenizer

from pad_runtime.errors import CheckpointError
from pad_runtime.template_sandbox import SandboxedTemplate, TemplateLimitError

_USER, _REPLY = "zqjuser", "zqjreply"  # words that no template writes
_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


def find_turn_end(template: str, backend: Tokenizer, special_tokens: dict[str, str]) -> int | None:
    """Find the token that stands right behind the assistant's words.

    A chat is rendered that ends with them, and one in which the user goes on, for templates that close turns only
    then. A token counts if it is special or added, or written like a tag and one token to the tokenizer; white space
    before it does not matter. What opens the next turn closes none.

    Args:
        template: the Jinja source.
        backend: the tokenizer.
        special_tokens: what the template may name, such as "bos_token".

    Returns:
        The token's id; None for a template that closes turns with no token, and for one that refuses such chats.

    Raises:
        CheckpointError: the template is no Jinja, or does not end.
    """
    try:
        compiled = SandboxedTemplate(template)
    except Exception as error:  # Jinja's own, and those of nesting too deep for Python
        raise CheckpointError(
            f"the chat template is not valid ({error})", expected="a Jinja template", hint="correct the chat_template"
        ) from error
    ask, answer = {"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}
    asked, opened, closed, continued = (
        _render(compiled, chat, special_tokens, add_generation_prompt=add_generation_prompt)
        for chat, add_generation_prompt in (
            ([ask], False),
            ([ask], True),
            ([ask, answer], False),
            ([ask, answer, ask], False),
        )
    )
    # What begins a reply, where the template tells it apart from the end of the user's turn.
    openers: set[int | None] = set()
    if asked and opened.startswith(asked):
        opening = opened.removeprefix(asked)
        # A token at its beginning that no turn begins with closes the user's: the template does so only here.
        openers = _ids(backend, opening) - ({_first_token(backend, opening)} - _ids(backend, asked.partition(_USER)[0]))
    found = _first_token(backend, closed.partition(_REPLY)[2])
    if found is None and continued.count(_REPLY) == 1:
        before, _, behind = continued.partition(_REPLY)
        head, _, between = before.partition(_USER)
        openers |= _ids(backend, head) - {_first_token(backend, between)}
        found = _first_token(backend, behind)
    return None if found in openers else found


def _render(
    template: SandboxedTemplate, messages: list[dict[str, str]], special_tokens: dict[str, str], **options: Any
) -> str:
    try:
        return template.render(messages=messages, tools=None, documents=None, **options, **special_tokens)
    except TemplateLimitError as error:
        raise CheckpointError(
            f"the chat template was stopped: {error}", expected="a template that ends", hint="correct the chat_template"
        ) from error
    except Exception:  # it refuses such a chat, or fails in any way that an expression can
        return ""


def _ids(backend: Tokenizer, text: str) -> set[int | None]:
    return set(backend.encode(text, add_special_tokens=False).ids)


def _first_token(backend: Tokenizer, text: str) -> int | None:
    """Return the special or added token, or the tag that is one token, with which a text begins."""
    text = text.lstrip()
    ids = backend.encode(text, add_special_tokens=False).ids
    added = backend.get_added_tokens_decoder().get(ids[0]) if ids else None
    if added is not None and text.startswith(added.content):
        return int(ids[0])
    tag = _TAG.match(text)
    tag_ids = backend.encode(tag[0], add_special_tokens=False).ids if tag else []
    return int(tag_ids[0]) if len(tag_ids) == 1 else None
