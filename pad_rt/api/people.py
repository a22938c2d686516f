"""A file of named people: how each of them wants replies to be."""

from __future__ import annotations

import re
from pathlib import Path

from pad_rt.api.error import ApiError
from pad_rt.api.guidance import Guidance
from pad_rt.api.json_text import parse
from pad_rt.config import GenerationConfig
from pad_runtime.errors import OptionError, PreferenceError

_NAME = re.compile(r"[^\s:/]{1,64}")
_EXPECTED = '{"anna": {"weights": {"cheerful": 1.0}}, ...}'


def read_people(file: Path) -> dict[str, Guidance]:
    """Guidance by a person's name.

    Args:
        file: JSON: an object with a person's object "pad" by name.

    Raises:
        OptionError: it cannot be read, or a person's object is wrong; says whose.
    """
    try:
        people = parse(file.read_bytes())
    except OSError as error:
        raise OptionError(f"people {file} cannot be read: {error.strerror}", expected="a file in JSON") from None
    except ApiError:
        people = None
    if not isinstance(people, dict):
        raise OptionError(f"people {file} is not a JSON object", expected=_EXPECTED)
    return {_check_name(name, file): _read_person(name, value, file) for name, value in people.items()}


def may_name_a_person(name: str) -> bool:
    """Whether a name has no spaces, colons and slashes, and at most 64 characters."""
    return _NAME.fullmatch(name) is not None


def _check_name(name: str, file: Path) -> str:
    if not may_name_a_person(name):
        raise OptionError(
            f"people {file}: a person named {name!r:.80}", expected="a name without spaces, colons and slashes"
        )
    return name


def _read_person(name: str, value: object, file: Path) -> Guidance:
    try:
        person = Guidance.read(value)
        person.wish()
        GenerationConfig(**person.options)
    except (ApiError, OptionError, PreferenceError) as error:
        raise OptionError(f"people {file}: the person {name!r}: {error}", hint="correct this person's object") from None
    return person
