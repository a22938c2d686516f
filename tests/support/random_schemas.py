"""Random JSON schemas whose documents are short."""

from __future__ import annotations

from typing import Any

import numpy as np

Schema = dict[str, Any]
NAMES = ("name", "age", "Größe", "a b", 'qu"ote', "x", "tags", "next")
WORDS = ("red", "green", "", "né", "a\nb", "1")


def draw_schema(random: np.random.Generator, depth: int = 2) -> Schema:
    """An object schema at the top, as clients ask for it, or anything else."""
    if depth == 2 and random.random() < 0.7:
        return _object(random, depth)
    kinds = [_integer, _number, _string, _pattern, _enum, _plain]
    if depth:
        kinds += [_object, _array, _any_of]
    return kinds[random.integers(len(kinds))](random, depth)


def _integer(random: np.random.Generator, depth: int) -> Schema:
    least = int(random.integers(-300, 300))
    return {"type": "integer", "minimum": least, "maximum": least + int(random.integers(0, 500))}


def _number(random: np.random.Generator, depth: int) -> Schema:
    return {"enum": [round(float(value), 2) for value in random.uniform(-9, 9, 3)]}


def _string(random: np.random.Generator, depth: int) -> Schema:
    least = int(random.integers(0, 3))
    return {"type": "string", "minLength": least, "maxLength": least + int(random.integers(1, 9))}


def _pattern(random: np.random.Generator, depth: int) -> Schema:
    return {"type": "string", "pattern": str(random.choice(["^[a-z]{2,6}$", "^(the|egg){1,3}$", r"^\d{4}-\d\d$"]))}


def _enum(random: np.random.Generator, depth: int) -> Schema:
    return {"enum": [str(word) for word in random.choice(WORDS, random.integers(1, 4), replace=False)]}


def _plain(random: np.random.Generator, depth: int) -> Schema:
    choices: list[Schema] = [{"type": "boolean"}, {"type": "null"}, {"const": [1, {"a": None}]}]
    return choices[random.integers(len(choices))]


def _object(random: np.random.Generator, depth: int) -> Schema:
    names = [str(name) for name in random.choice(NAMES, random.integers(0, 4), replace=False)]
    return {
        "type": "object",
        "properties": {name: draw_schema(random, depth - 1) for name in names},
        "required": [name for name in names if random.random() < 0.6],
        "additionalProperties": False,
    }


def _array(random: np.random.Generator, depth: int) -> Schema:
    least = int(random.integers(0, 3))
    items = draw_schema(random, depth - 1)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + int(random.integers(0, 3))}


def _any_of(random: np.random.Generator, depth: int) -> Schema:
    return {"anyOf": [draw_schema(random, depth - 1) for _ in range(2)]}
