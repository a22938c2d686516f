"""A chat template: messages to the text the model was trained on, as Hugging Face renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from pad_runtime.errors import BundleError, PromptError

if TYPE_CHECKING:
    import jinja2
    from jinja2.parser import Parser

Message: TypeAlias = Mapping[str, Any]
"""One turn of a chat: {"role": "system" | "user" | "assistant" | ..., "content": text}, and further keys."""
_GIVEN = ("messages", "add_generation_prompt", "bos_token", "eos_token")


class ChatTemplate:
    """A Jinja chat template, compiled once in a sandbox.

    It sees what `transformers` gives it for a text chat: `messages`, `add_generation_prompt`, `tools` and `documents`
    (both None), the special tokens that exist, and the functions `raise_exception` and `strftime_now`.

    Args:
        source: the template's text.
        bos_token: what `{{ bos_token }}` writes; None leaves the name undefined, which writes nothing.
        eos_token: the same for `{{ eos_token }}`.

    Raises:
        BundleError: the template is not valid Jinja.
    """

    def __init__(self, source: str, *, bos_token: str | None, eos_token: str | None) -> None:
        import jinja2

        special_tokens = {"bos_token": bos_token, "eos_token": eos_token}
        # Jinja would write a None as the text "None".
        self._special_tokens = {name: token for name, token in special_tokens.items() if token is not None}
        self._source, environment = source, _make_environment()
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BundleError(
                f"the chat template has an error in line {error.lineno}: {error.message}",
                expected="a valid Jinja template",
                hint="correct the model's chat_template and export the bundle again",
            ) from error

    @cached_property
    def words(self) -> frozenset[str]:
        """Strings and attributes' names in the template: roles and keys of messages that it knows are among them."""
        from jinja2 import nodes

        tree = self._template.environment.parse(self._source)
        strings = (node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))
        return frozenset((*strings, *(node.attr for node in tree.find_all(nodes.Getattr))))

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads beside those that `render` gives it."""
        from jinja2 import meta

        tree = self._template.environment.parse(self._source)
        return frozenset(meta.find_undeclared_variables(tree)).difference(_GIVEN)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text, its special tokens written out: encode it with add_special_tokens=False.

        Args:
            messages: the chat, oldest turn first.
            add_generation_prompt: end with the opening of the assistant's turn.
            arguments: further variables, such as {"enable_thinking": False}.

        Raises:
            PromptError: the template refuses these messages (its own words are quoted).
            BundleError: the template fails in any other way.
        """
        try:
            return self._template.render(
                {"tools": None, "documents": None, **(arguments or {})},
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except PromptError:
            raise
        except Exception as error:  # a template can fail in any way that an expression can
            raise BundleError(
                f"the chat template failed with {type(error).__name__}: {error}",
                expected="a template for role and content messages",
                hint="correct the model's chat_template and export the bundle again",
            ) from error


def _make_environment() -> jinja2.Environment:
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """`{% generation %}`: marks the assistant's words for training, and only passes them through here."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise PromptError(f"the chat template refuses these messages: {message}", hint="change the messages accordingly")


def _strftime_now(time_format: str) -> str:
    return datetime.now().strftime(time_format)
