"""The file of named people."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pad_rt.api.guidance import Guidance
from pad_rt.api.people import read_people
from pad_runtime.errors import OptionError
from tests.support.error_checks import refused


def write(tmp_path: Path, people: object) -> Path:
    file = tmp_path / "people.json"
    file.write_text(people if isinstance(people, str) else json.dumps(people), encoding="utf-8")
    return file


def test_people_are_guidance_by_name(tmp_path: Path) -> None:
    anna = {"weights": {"kind": 1.5, "brief": -0.75}, "beta": 1.25}
    ben = {"preference": "be kind", "top_k": 6, "offer_end": True, "explain": False}
    people = read_people(write(tmp_path, {"anna": anna, "ben": ben, "Jürgen": {}}))
    assert people == {"anna": Guidance(**anna), "ben": Guidance(**ben), "Jürgen": Guidance()}
    assert people["anna"].as_dict() == anna
    assert people["ben"].as_dict() == ben


@pytest.mark.parametrize("name", ["", "an na", "a:b", "a/b", "a" * 65, "a\n"])
def test_names_that_no_model_can_have(tmp_path: Path, name: str) -> None:
    with refused(OptionError, given="a person named", expected="without spaces"):
        read_people(write(tmp_path, {name: {}}))


@pytest.mark.parametrize(
    ("person", "words"),
    [
        ({"weights": {"kind": "much"}}, "'anna': pad.weights.kind"),
        ({"wieghts": {"kind": 1}}, "pad.wieghts"),
        ({"preference": " "}, "'anna': an empty preference"),
        ({"beta": math.inf}, "'anna': beta=inf"),
        ([], "pad of type array"),
    ],
)
def test_a_person_that_is_wrong_is_named(tmp_path: Path, person: object, words: str) -> None:
    with refused(OptionError, given=words, hint="correct this person"):
        read_people(write(tmp_path, {"anna": person}))


def test_files_that_hold_no_people(tmp_path: Path) -> None:
    for text in ("", "[]", "{", "5"):
        with refused(OptionError, given="people.json is not a JSON object", expected="anna"):
            read_people(write(tmp_path, text))
    with refused(OptionError, given="cannot be read: No such file", expected="a file"):
        read_people(tmp_path / "nobody.json")
