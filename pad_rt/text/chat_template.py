"""A chat template: messages to the text the model was trained on, as Hugging Face renders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from pad_runtime.errors import BundleError, PromptError
from pad_runtime.template_sandbox import SandboxedTemplate, TemplateLimitError, TemplateRefusalError

Message: TypeAlias = Mapping[str, Any]
"""One turn of a chat: {"role": "system" | "user" | "assistant" | ..., "content": text}, and further keys."""
_GIVEN = ("messages", "add_generation_prompt", "bos_token", "eos_token")


class ChatTemplate:
    """A Jinja chat template, compiled once, rendered in a sandbox with limits.

    The template sees what `transformers` gives it for a text chat: `messages`, `add_generation_prompt`, `tools` and
    `documents` (both None), the special tokens that exist, and the functions `raise_exception` and `strftime_now`.

    Args:
        source: the template's text.
        bos_token: text of `{{ bos_token }}`; None leaves the name undefined, and the template then writes nothing.
        eos_token: the same for `{{ eos_token }}`.

    Raises:
        BundleError: the template is not valid Jinja.
    """

    def __init__(self, source: str, *, bos_token: str | None, eos_token: str | None) -> None:
        special_tokens = {"bos_token": bos_token, "eos_token": eos_token}
        # Jinja would write a None as the text "None".
        self._special_tokens = {name: token for name, token in special_tokens.items() if token is not None}
        try:
            self._template = SandboxedTemplate(source)
        except Exception as error:  # Jinja's own errors, and Python's for templates that are nested too deeply
            # Python's errors count lines of the code that the template was compiled to.
            is_jinja = type(error).__module__.startswith("jinja2")
            where = f" in line {getattr(error, 'lineno', '?')}" if is_jinja else ""
            raise BundleError(
                f"the chat template has an error{where}: {getattr(error, 'message', error)}",
                expected="a valid Jinja template",
                hint="correct the model's chat_template and export the bundle again",
            ) from error

    @cached_property
    def words(self) -> frozenset[str]:
        """Strings and names of attributes in the template, among them the roles and message keys that it knows."""
        from jinja2 import nodes

        tree = self._template.parse()
        strings = (node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))
        return frozenset((*strings, *(node.attr for node in tree.find_all(nodes.Getattr))))

    @cached_property
    def variables(self) -> frozenset[str]:
        """Variables that the template reads, without those that `render` sets."""
        from jinja2 import meta

        tree = self._template.parse()
        return frozenset(meta.find_undeclared_variables(tree)).difference(_GIVEN)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text. It contains its special tokens: encode it with add_special_tokens=False.

        Args:
            messages: the chat, oldest turn first.
            add_generation_prompt: end with the opening of the assistant's turn.
            arguments: further variables, such as {"enable_thinking": False}.

        Raises:
            PromptError: the template refuses these messages (its message is quoted).
            BundleError: the template fails in any other way.
        """
        try:
            return self._template.render(
                {"tools": None, "documents": None, **(arguments or {})},
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except TemplateRefusalError as error:
            raise PromptError(
                f"the chat template refuses these messages: {error}", hint="change the messages accordingly"
            ) from error
        except TemplateLimitError as error:
            raise BundleError(
                f"the chat template was stopped: {error}",
                expected="a template that ends",
                hint="correct the model's chat_template and export the bundle again",
            ) from error
        except Exception as error:  # an expression in a template can raise anything
            raise BundleError(
                f"the chat template failed with {type(error).__name__}: {error}",
                expected="a template for role and content messages",
                hint="correct the model's chat_template and export the bundle again",
            ) from error
