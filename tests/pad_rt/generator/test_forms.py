"""Replies by a JSON schema, a regular expression or a grammar, guided and plain."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers

from pad_rt import GenerationConfig, Generator
from pad_runtime.errors import OptionError
from tests.support import tiny_bundles
from tests.support.error_checks import refused
from tests.support.guided_models import Models
from tests.support.random_schemas import draw_schema

ROOM, END = 400, 2
PERSON = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "word": {"type": "string", "maxLength": 20},
    },
    "required": ["age", "word"],
    "additionalProperties": False,
}

NESTED: dict[str, Any] = {}
for _ in range(200):
    NESTED = {"type": "array", "items": NESTED}


@pytest.fixture(scope="module")
def formed(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """Its vocabulary is padded beyond the tokenizer's."""
    folder = tmp_path_factory.mktemp("formed")
    persrms = [models.folder / "plain", models.folder / "many"]
    bundle = tiny_bundles.export(folder / "bundle", models.folder / "base", persrms, eos=[END], max_top_k=20)
    generator = tiny_bundles.load(bundle)
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    assert generator.manifest.vocab_size > tokenizer.get_vocab_size()
    return generator


def config(**options: Any) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": ROOM, **options})


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def test_replies_by_random_schemas_are_valid(formed: Generator) -> None:
    """All side by side, guided and plain, greedy and sampled; a schema is not met by what others made."""
    random = np.random.default_rng(19)
    schemas = [draw_schema(random) for _ in range(200)]
    configs = [
        config(json_schema=schema, temperature=float(index % 3), seed=index, offer_end=index % 4 == 0)
        for index, schema in enumerate(schemas)
    ]
    prompts = [f"the egg {index % 7}" for index in range(len(schemas))]
    replies = {}
    for preference in (None, "be kind"):
        results = formed.generate_batch(prompts, preferences=[preference] * len(schemas), configs=configs)
        replies[preference] = [result.text for result in results]
        for result, schema in zip(results, schemas, strict=True):
            assert result.finish_reason == "stop", schema
            assert is_valid(result.text, schema), (schema, result.text)
    others = [is_valid(text, schema) for text, schema in zip(replies[None][1:], schemas, strict=False)]
    assert sum(others) < len(others) / 2
    moved = [guided != plain for guided, plain in zip(*replies.values(), strict=True)]
    assert sum(moved) > len(moved) / 3


@pytest.mark.parametrize("preference", [None, "be kind"])
@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"regex": "(the|egg| ){3,9}"}, "(the|egg| ){3,9}"),
        ({"regex": "東京[é-ü]{2,5}"}, "東京[é-ü]{2,5}"),
        ({"regex": ""}, ""),
        ({"grammar": 'start: "<" word ("," word)* ">"\nword: /[a-f]{1,3}/'}, "<[a-f]{1,3}(,[a-f]{1,3})*>"),
        ({"json_schema": {"enum": ["né", 7]}}, '"né"|7'),
    ],
)
def test_a_reply_matches_as_a_whole(
    formed: Generator, options: dict[str, str], pattern: str, preference: str | None
) -> None:
    for temperature in (0.0, 2.0):
        settings = config(**options, temperature=temperature, banned_token_ids=END + 1, no_repeat_ngram=6)
        result = formed.generate("the egg", preference=preference, config=settings)
        assert re.fullmatch(pattern, result.text)
        assert result.finish_reason == "stop"
        assert END not in result.token_ids
    without = formed.generate("the egg", preference=preference, config=config(max_new_tokens=20))
    assert not re.fullmatch(pattern, without.text)


def test_the_end_of_the_turn_comes_where_the_form_may_end_and_nowhere_else(formed: Generator) -> None:
    """However much it is wanted; and at the end, however little."""
    for options, text in (
        ({"logit_bias": {END: 100.0}}, "aa"),
        ({"logit_bias": {END: -100.0}}, "aaaa"),
        ({"banned_token_ids": END}, "aaaa"),
    ):
        result = formed.generate("x", config=config(regex="a{2,4}", **options))
        assert (result.text, result.finish_reason) == (text, "stop")
    stopping = config(regex="[ab]{6}", stop_token_ids=[*range(3, 356)])
    assert len(formed.generate("x", config=config(regex="[ab]{6}")).text) == 6
    with refused(OptionError, given="cannot go on", expected="a form in which every beginning of a reply has an end"):
        formed.generate("x", config=stopping)


def test_a_reply_that_is_cut_says_so(formed: Generator) -> None:
    result = formed.generate("x", config=config(regex="[ab]{60,}", max_new_tokens=9))
    assert (result.finish_reason, result.usage.completion_tokens) == ("length", 9)


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({"json_schema": {"type": "intger"}}, "Invalid type: intger", "a schema that can be met"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "(Unsatisfiable schema: ", "can be met"),
        ({"json_schema": {"unevaluatedProperties": False}}, "Unimplemented keys", "keywords that llguidance knows"),
        ({"json_schema": {"enum": []}}, "(Unsatisfiable schema: ", "a schema that can be met"),
        ({"regex": "(a"}, "regex='(a' (", "a regular expression that can be met"),
        ({"regex": "a(?=b)"}, "look-around", "without look-around"),
        ({"regex": r"[^\s\S]"}, "regex=", "that can be met"),
        ({"regex": "a\ud800"}, "surrogates not allowed", "a regular expression that can be met"),
        ({"grammar": 'start: "\ud800"'}, "surrogates not allowed", "a grammar that can be met"),
        ({"json_schema": {"const": "\ud800"}}, "json_schema=", "a schema that can be met"),
        ({"json_schema": NESTED}, "recursion limit", "a schema that can be met"),
        ({"grammar": "start: nothing"}, 'unknown name: "nothing"', "a grammar that can be met"),
        ({"grammar": ""}, "grammar=''", "a grammar that can be met"),
        ({"grammar": 'start: "a" b\nb: /[^\\s\\S]/'}, "leads to a reply that cannot go on", "every beginning"),
        ({"grammar": 'start: "a" start'}, "leads to a reply that cannot go on", "every beginning"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_met_is_refused(
    formed: Generator, options: dict[str, Any], given: str, expected: str
) -> None:
    for preference in (None, "be kind"):
        with refused(OptionError, given=given, expected=expected):
            formed.generate("x", preference=preference, config=config(**options))
    assert formed.generate("x", config=config(regex="ab")).text == "ab"  # and the generator goes on


def test_a_form_needs_the_package_and_an_end(
    formed: Generator, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused(OptionError, given="regex", expected="a base with an end of turn, or stop_token_ids"):
        generator.generate("x", config=config(regex="a"))
    assert generator.generate("x", config=config(regex="ab", stop_token_ids=9)).text == "ab"
    monkeypatch.setitem(sys.modules, "llguidance", None)
    given = "json_schema without the package llguidance"
    with refused(OptionError, given=given, hint="pip install 'pad-rt[grammar]'"):
        formed.generate("x", config=config(json_schema=PERSON))
    assert formed.generate("x", config=config(max_new_tokens=2)).token_ids
