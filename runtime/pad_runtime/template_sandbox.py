"""Chat templates from model files, rendered in a Jinja sandbox with limits on steps, time and size."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sized
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes
    from jinja2.parser import Parser

MAX_STEPS = 1_000_000  # enough for a chat of a thousand turns whose template looks at all turns for each turn
MAX_CHARACTERS = 1 << 26
MAX_SECONDS = 60.0
_MAX_BITS = 1 << 16  # size of an integer
_CALL = 8  # steps that a call counts
_ITEM = 64  # characters that an item of a list counts
_COUNT, _CHECK = "count_step", "check_size"


class TemplateLimitError(Exception):
    """A template was stopped: it took too many steps or too long, or made a value that is too large."""


class TemplateRefusalError(Exception):
    """A template called `raise_exception`; the message is the template's."""


class SandboxedTemplate:
    """A Jinja template, compiled once, that sees the functions that transformers gives to chat templates.

    Each pass of a loop counts one step, each call several. A rendering ends with an error after too many steps or too
    long a time, or if a value or the text grows too large. That works in any thread.

    Args:
        source: the template's text.

    Raises:
        Exception: of any kind, for a text that is no template; jinja2.TemplateSyntaxError for most.
    """

    def __init__(self, source: str) -> None:
        self._source, self._environment = source, _make_environment()
        with _Budget():  # constants are computed while compiling
            tree = self.parse()
            _count_steps(tree, self._environment)
            self._template = self._environment.from_string(tree)

    def parse(self) -> nodes.Template:
        """Return the template as Jinja reads it."""
        return self._environment.parse(self._source)

    def render(self, *variables: Mapping[str, object], **more: object) -> str:
        """Return the text.

        Raises:
            TemplateRefusalError: the template refuses the variables.
            TemplateLimitError: the rendering was stopped.
            Exception: of any other kind, raised by an expression of the template.
        """
        pieces, size = [], 0
        with _Budget():
            for piece in self._template.generate(*variables, **more):
                size += len(piece)
                _check_size(size)
                pieces.append(piece)
        return "".join(pieces)


@dataclass
class _Budget:
    """Steps and time that one rendering may take; found through a context variable."""

    steps: int = MAX_STEPS
    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)

    def __enter__(self) -> None:
        self._token = _BUDGET.set(self)

    def __exit__(self, *_: object) -> None:
        _BUDGET.reset(self._token)

    def spend(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TemplateLimitError(f"it took more than {MAX_STEPS:,} steps")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"it took more than {MAX_SECONDS:.0f} s")


_BUDGET: ContextVar[_Budget] = ContextVar("budget of the template being rendered")


def _make_environment() -> jinja2.Environment:
    from jinja2 import ext, nodes, sandbox
    from jinja2.runtime import Context

    class Generation(ext.Extension):
        """`{% generation %}`: marks the assistant's words for training, and only passes them through here."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Bounded(sandbox.ImmutableSandboxedEnvironment):
        """Calls are steps, and no operator makes a value that is too large."""

        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def call(self, context: Context, obj: Any, /, *args: Any, **options: Any) -> Any:
            _BUDGET.get().spend(_CALL)
            is_of_text = isinstance(getattr(obj, "__self__", None), str)  # such as "".center
            _check_arguments(args, options, has_widths=is_of_text)
            return _check(super().call(context, obj, *args, **options))

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            if operator == "*":
                for value, times in ((left, right), (right, left)):
                    if isinstance(value, Sized) and isinstance(times, int):
                        _check_size(len(value) * times)
            if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
                bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
                if bits > _MAX_BITS:
                    raise TemplateLimitError(f"it computed a number of more than {_MAX_BITS:,} bits")
            return _check(super().call_binop(context, operator, left, right))

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation])
    environment.filters["tojson"] = _tojson
    environment.filters = {name: _bounded(function) for name, function in environment.filters.items()}
    environment.filters[_COUNT] = _count_step()
    environment.filters[_CHECK] = _check
    del environment.globals["lipsum"]  # any number of paragraphs
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _count_steps(tree: nodes.Template, environment: jinja2.Environment) -> None:
    """Add a step count to each loop, and a check of its value to each assignment."""
    from jinja2 import nodes

    def count(line: int) -> nodes.Filter:
        return nodes.Filter(nodes.Const(True), _COUNT, [], [], None, None, lineno=line)

    def check(value: Any, line: int) -> nodes.Filter:
        return nodes.Filter(value, _CHECK, [], [], None, None, lineno=line)

    for loop in list(tree.find_all(nodes.For)):
        loop.body.insert(0, nodes.ExprStmt(count(loop.lineno), lineno=loop.lineno))
        if loop.test is not None:
            loop.test = nodes.And(count(loop.lineno), loop.test, lineno=loop.lineno)
    for assignment in list(tree.find_all(nodes.Assign)):
        assignment.node = check(assignment.node, assignment.lineno)
    for block in list(tree.find_all(nodes.AssignBlock)):
        block.filter = check(block.filter, block.lineno)
    tree.set_environment(environment)


def _count_step() -> Callable[..., bool]:
    from jinja2 import pass_context

    @pass_context  # or Jinja would compute the call once, while compiling
    def count_step(_context: object, value: bool) -> bool:
        _BUDGET.get().spend()
        return value

    return count_step


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # with Jinja's marks of what a filter is passed
    def bounded(*args: Any, **options: Any) -> Any:
        _check_arguments(args, options, has_widths=True)
        return _check(function(*args, **options))

    return bounded


def _check_arguments(args: tuple[Any, ...], options: dict[str, Any], *, has_widths: bool) -> None:
    for value in (*args, *options.values()):
        _check(value)
        if has_widths and isinstance(value, int):
            _check_size(value)


def _check(value: Any) -> Any:
    """Return the value, unless it is too large."""
    if isinstance(value, str):
        _check_size(len(value))
    elif isinstance(value, list | tuple):
        _check_size(_ITEM * len(value))
        _check_size(sum(len(item) for item in value if isinstance(item, str)))  # what a filter may join
    return value


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise TemplateLimitError(f"it wrote more than {MAX_CHARACTERS:,} characters")


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusalError(str(message))


def _strftime_now(time_format: str) -> str:
    return datetime.now().strftime(time_format)
