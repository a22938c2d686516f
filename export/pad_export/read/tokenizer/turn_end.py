"""The token with which a chat template closes the assistant's turn."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Tokenizer

from pad_runtime.errors import CheckpointError
from pad_runtime.template_sandbox import SandboxedTemplate, TemplateLimitError

_USER, _REPLY = "zqjuser", "zqjreply"  # words that stand in no template
_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


def find_turn_end(template: str, backend: Tokenizer, special_tokens: dict[str, str]) -> int | None:
    """Find the token right behind the assistant's words.

    Two chats are rendered: one that ends with the assistant's words, and one in which the user's next turn follows, for
    templates that close a turn only then. A token counts if it is special or added, or if it is written like a tag and
    is one token to the tokenizer; white space before it is ignored. A token that opens the next turn does not count.

    Args:
        template: the Jinja source.
        backend: the tokenizer.
        special_tokens: variables of the template, such as "bos_token".

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
    # Tokens that open a reply, if the template shows where the user's turn ends and the reply begins.
    openers: set[int | None] = set()
    if asked and opened.startswith(asked):
        opening = opened.removeprefix(asked)
        # If the opening begins with a token that begins no other turn, that token closes the user's turn.
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
    except Exception:  # the template refuses such a chat, or one of its expressions fails
        return ""


def _ids(backend: Tokenizer, text: str) -> set[int | None]:
    return set(backend.encode(text, add_special_tokens=False).ids)


def _first_token(backend: Tokenizer, text: str) -> int | None:
    """Return the special or added token, or the tag that is one token, at the beginning of a text."""
    text = text.lstrip()
    ids = backend.encode(text, add_special_tokens=False).ids
    added = backend.get_added_tokens_decoder().get(ids[0]) if ids else None
    if added is not None and text.startswith(added.content):
        return int(ids[0])
    tag = _TAG.match(text)
    tag_ids = backend.encode(tag[0], add_special_tokens=False).ids if tag else []
    return int(tag_ids[0]) if len(tag_ids) == 1 else None
