"""The fields of a JSON object, read by name: what nobody read is refused."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pad_rt.api.error import ApiError, refusal

T = TypeVar("T")
_UNSENT: tuple[object, ...] = (None, [], {})  # as good as missing: what clients send of what they leave out
_NOTHING: Mapping[str, Any] = {}
_MAX_NAME = 100  # characters of a name that are compared with those that are known


class Fields:
    """The fields of an object. Each reader gives None for a field that is missing or null.

    Args:
        value: what should be an object.
        path: where it stands in the body, such as "stream_options"; "" for the body itself.

    Raises:
        ApiError: here and in the readers: a value of another type. It names the field.
    """

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, Mapping):
            raise refusal(path or None, f"{path or 'a body'} of type {_kind(value)}", expected="a JSON object")
        self._fields, self._path = dict(value), path
        self._known: list[str] = []

    def path(self, name: str) -> str:
        """The field's name as errors give it."""
        return f"{self._path}.{name}" if self._path else name

    def value(self, name: str) -> Any:
        """A value of any type."""
        self._known.append(name)
        return self._fields.get(name)

    def text(self, name: str) -> str | None:
        """A string."""
        return self._typed(name, str, "a string")

    def flag(self, name: str) -> bool | None:
        """True or false."""
        return self._typed(name, bool, "true or false")

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object."""
        return self._typed(name, dict, "a JSON object")

    def integer(self, name: str, *, least: int | None = None, most: int | None = None) -> int | None:
        """An integer within limits."""
        value = self.value(name)
        if value is None:
            return None
        is_within = isinstance(value, int) and (least is None or value >= least) and (most is None or value <= most)
        if isinstance(value, bool) or not is_within:
            limits = "" if least is None else f" >= {least}" if most is None else f" from {least} to {most}"
            raise self.refused(name, value, f"an integer{limits}")
        return int(value)

    def number(self, name: str) -> float | None:
        """A number; its range is its reader's to check."""
        value = self.value(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.refused(name, value, "a number")
        return value  # not as a float, which an integer may be too large for

    def nested(self, name: str) -> Fields | None:
        """The fields of an object in this one."""
        value = self.value(name)
        return None if value is None else Fields(value, self.path(name))

    def refused(self, name: str, value: object, expected: str) -> ApiError:
        """The error of a field with a value that it may not have."""
        path = self.path(name)
        return refusal(path, f"{path}={reprlib.repr(value)}", expected=expected)

    def refused_by_type(self, name: str, value: object, expected: str) -> Exception:
        """The error of a field whose value is a prompt, or was meant to be one: it is not told again."""
        path = self.path(name)
        return refusal(path, f"{path} of type {_kind(value)}", expected=expected)

    def finish(self, harmless: Mapping[str, Iterable[object]] = _NOTHING, hints: Mapping[str, str] = _NOTHING) -> None:
        """Refuse the fields that nobody has read, unless they ask for nothing.

        Args:
            harmless: values that ask for nothing, by the name of a field that is not implemented. Of any field that is
                null, an empty list and an empty object.
            hints: what to do instead, by name.
        """
        for name, value in self._fields.items():
            if name in self._known or value in _UNSENT:
                continue
            usual = harmless.get(name, ())
            if any(type(value) is type(each) and value == each for each in usual):
                continue
            path = self.path(name)
            nearest = difflib.get_close_matches(name[:_MAX_NAME], self._known, n=1)
            hint = hints.get(name) or (f"did you mean {nearest[0]}?" if nearest else "leave it out")
            if name in harmless:
                raise self.refused(name, value, f"{' or '.join(map(json.dumps, usual))}: no more is implemented")
            raise refusal(
                path, f"the field {reprlib.repr(path)} is not implemented", hint=hint, code="unsupported_field"
            )

    def _typed(self, name: str, kind: type[T], expected: str) -> T | None:
        value = self.value(name)
        if value is None or isinstance(value, kind):
            return value
        raise self.refused(name, value, expected)


def _kind(value: object) -> str:
    """A value's type, as JSON calls it."""
    names = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names.get(type(value), type(value).__name__)
