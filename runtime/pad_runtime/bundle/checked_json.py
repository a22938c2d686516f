"""JSON parsed into dataclasses: each value is checked against its field's type and against the type's `Check`s."""

from __future__ import annotations

import dataclasses
import json
import reprlib
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias

from pad_runtime.errors import BundleError

HINT = "export it again with pad-export, or copy it again"


@dataclass(frozen=True)
class Check:
    """A condition on a value beside its type: `Annotated[int, Check(...)]`."""

    expected: str
    accepts: Callable[[Any], object]


def between(low: int, high: int) -> Check:
    """A number from `low` to `high`, both included."""
    return Check(f"{low} to {high}", lambda value: low <= value <= high)


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and "\0" not in path and not path.startswith("/") and ".." not in parts


Count: TypeAlias = Annotated[int, between(0, 2**63 - 1)]
Name: TypeAlias = Annotated[str, Check("a name", lambda value: bool(value.strip()))]
Digest: TypeAlias = Annotated[
    str, Check("a SHA-256", lambda value: len(value) == 64 and set(value) <= set("0123456789abcdef"))
]
FileName: TypeAlias = Annotated[str, Check("a path inside the bundle", _is_inside)]


def parse(value: Any, kind: Any, at: str) -> Any:
    """Build `kind` from JSON.

    Args:
        value: of `json.loads`.
        kind: a dataclass, or the type of a field.
        at: path of the value in the JSON, for errors.

    Raises:
        BundleError: a wrong type, a value that a `Check` refuses, a missing field or an unknown one, by its path.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        parsed = parse(value, arguments[0], at)
        for check in arguments[1:]:
            if not check.accepts(parsed):
                raise _wrong(at, value, check.expected)
        return parsed
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parse_dataclass(value, kind, at)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise _wrong(at, value, " or ".join(map(repr, arguments)))
        return value
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(at, value, "a list")
        return [parse(item, arguments[0], f"{at}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(at, value, "an object")
        return {
            parse(key, arguments[0], f"a key of {at}"): parse(item, arguments[1], f"{at}.{key}")
            for key, item in value.items()
        }
    if origin in (types.UnionType, typing.Union):  # the latter where one side is Annotated
        return None if value is None else parse(value, arguments[0], at)
    return _parse_scalar(value, kind, at)


def _parse_scalar(value: Any, kind: Any, at: str) -> Any:
    if kind is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:  # JSON has NaN, Infinity, and integers of any size
            raise _wrong(at, value, "a finite number")
        return float(value)
    if type(value) is not kind:
        raise _wrong(
            at, value, {"str": "text", "int": "a whole number", "bool": "true or false"}.get(kind.__name__, "a number")
        )
    if kind is str and not _has_utf8(value):  # JSON has lone surrogates, and neither files nor terminals take them
        raise _wrong(at, value, "text that UTF-8 can carry")
    return value


def _parse_dataclass(value: Any, kind: Any, at: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(at, value, "an object")
    hints = typing.get_type_hints(kind, include_extras=True)
    for name in value:
        if name not in hints:
            raise BundleError(f"{at}: unknown field {ascii(name)[:60]}", hint=HINT)
    given = {}
    for item in dataclasses.fields(kind):
        if item.name in value:
            given[item.name] = parse(value[item.name], hints[item.name], f"{at}.{item.name}")
        elif item.default_factory is dataclasses.MISSING:
            raise BundleError(f"{at}: field '{item.name}' is missing", hint=HINT)
    return kind(**given)


def _has_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show(value: Any) -> str:
    shown = reprlib.repr(value) if isinstance(value, dict | list) else json.dumps(value)  # nested or long as they like
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _wrong(at: str, value: Any, expected: str) -> BundleError:
    return BundleError(f"{at} is {_show(value)}", expected=expected, hint=HINT)
