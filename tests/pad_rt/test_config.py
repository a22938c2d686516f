from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_rt.config import GenerationConfig
from pad_runtime.errors import OptionError


def test_defaults_are_the_papers() -> None:
    config = GenerationConfig()
    assert (config.beta, config.top_k, config.temperature) == (1.0, 10, 0.0)
    assert dataclasses.asdict(config) == {
        "beta": 1.0,
        "top_k": 10,
        "max_new_tokens": 128,
        "temperature": 0.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "no_repeat_ngram": 0,
        "logit_bias": {},
        "banned_token_ids": (),
        "json_schema": None,
        "regex": None,
        "grammar": None,
        "logprobs": None,
        "stop": (),
        "stop_token_ids": (),
        "base_sees_preference": False,
        "offer_end": False,
        "template_args": {},
    }


def test_is_frozen_and_keyword_only() -> None:
    config = GenerationConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.beta = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        GenerationConfig(2.0)  # type: ignore[call-arg]
    assert config == GenerationConfig()
    assert hash(config) == hash(GenerationConfig())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta", -3), ("beta", np.float32(0.5)), ("top_k", 1), ("top_k", np.int64(7)), ("max_new_tokens", 1),
        ("temperature", 0), ("top_p", 1), ("top_p", 1e-6), ("seed", 2**63 - 1), ("base_sees_preference", True),
        ("min_p", 0), ("min_p", 0.999), ("repetition_penalty", 0.5), ("repetition_penalty", 1e25),
        ("repetition_penalty", 1e-25),
        ("presence_penalty", -2), ("frequency_penalty", np.float32(1.5)), ("frequency_penalty", -1e25),
        ("no_repeat_ngram", 1), ("no_repeat_ngram", np.int64(3)), ("logprobs", 0), ("logprobs", 10),
    ],
)  # fmt: skip
def test_accepts(name: str, value: Any) -> None:
    kept = getattr(GenerationConfig(**{name: value}), name)
    assert kept == value
    assert type(kept) in (int, float, bool)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta", math.nan), ("beta", math.inf), ("beta", "1"), ("beta", True), ("beta", None), ("beta", 10**400),
        ("top_k", 0), ("top_k", 1.0), ("top_k", True), ("top_k", "10"), ("max_new_tokens", 0), ("max_new_tokens", None),
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
        ("top_p", 0), ("top_p", 1.01), ("top_p", -1), ("top_p", math.nan),
        ("seed", -1), ("seed", 2**63), ("seed", 0.0), ("base_sees_preference", 1), ("base_sees_preference", "yes"),
        ("stop", ""), ("stop", ["a", ""]), ("stop", [1]), ("stop", None), ("stop", {"a": 1}), ("stop", b"a"),
        ("stop_token_ids", -1), ("stop_token_ids", True), ("stop_token_ids", "2"), ("stop_token_ids", None),
        ("stop_token_ids", 1.0), ("banned_token_ids", -1), ("banned_token_ids", "2"), ("banned_token_ids", None),
        ("min_p", 1), ("min_p", -0.1), ("min_p", math.nan), ("repetition_penalty", 0), ("repetition_penalty", -1),
        ("repetition_penalty", 1e-26), ("repetition_penalty", 1e26), ("repetition_penalty", math.inf),
        ("repetition_penalty", True), ("presence_penalty", 1e26), ("presence_penalty", math.nan),
        ("presence_penalty", "1"), ("frequency_penalty", -1e26), ("frequency_penalty", None),
        ("no_repeat_ngram", -1), ("no_repeat_ngram", 2.0), ("no_repeat_ngram", True),
        ("logit_bias", None), ("logit_bias", [(5, 1.0)]), ("logit_bias", "5"),
        ("json_schema", "{"), ("json_schema", "[1]"), ("json_schema", 5), ("json_schema", {1: 2}),
        ("json_schema", {"a": math.nan}), ("regex", 5), ("grammar", b"start"), ("logprobs", -1), ("logprobs", 11),
        ("logprobs", True), ("logprobs", "1"),
    ],
)  # fmt: skip
def test_refuses_with_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        GenerationConfig(**{name: value})
    assert caught.value.given.startswith(f"{name}=")
    assert caught.value.expected
    assert repr(value)[:20] in str(caught.value)


def test_stop_forms() -> None:
    assert GenerationConfig(stop="\n\n").stop == ("\n\n",)
    assert GenerationConfig(stop=["a", "b"]).stop == ("a", "b")


def test_stop_token_ids_are_one_or_a_list() -> None:
    assert GenerationConfig(stop_token_ids=7).stop_token_ids == (7,)  # type: ignore[arg-type]
    assert GenerationConfig(stop_token_ids=[np.int64(2), 0]).stop_token_ids == (2, 0)
    for bad in ([1, -2], [True], ["2"], [1.5]):
        with pytest.raises(OptionError, match=r"stop_token_ids=.*expected an integer >= 0"):
            GenerationConfig(stop_token_ids=bad)  # type: ignore[arg-type]


def test_logit_bias_takes_ids_as_numbers_and_as_openai_writes_them() -> None:
    given = {"7": 1, np.int64(2): -100.0, "08": np.float32(0.5)}
    kept = GenerationConfig(logit_bias=given).logit_bias  # type: ignore[arg-type]
    given["9"] = 2
    assert kept == {7: 1.0, 2: -100.0, 8: 0.5}
    assert all(type(id) is int and type(value) is float for id, value in kept.items())
    assert GenerationConfig.from_mapping({"logit_bias": {"7": 1}}).logit_bias == {7: 1.0}


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({-1: 1.0}, "token id of logit_bias=-1; expected an integer >= 0"),
        ({"-1": 1.0}, "token id of logit_bias='-1'; expected an integer >= 0"),
        ({"²": 1.0}, "token id of logit_bias='²'; expected an integer >= 0"),
        ({" a": 1.0}, "token id of logit_bias=' a'; expected an integer >= 0"),
        ({1.0: 1.0}, "token id of logit_bias=1.0; expected an integer >= 0"),
        ({True: 1.0}, "token id of logit_bias=True; expected an integer >= 0"),
        ({5: math.inf}, r"logit_bias of token 5=inf; expected a number from -1e\+25 to 1e\+25"),
        ({5: "1"}, "logit_bias of token 5='1'; expected a number from"),
        ({5: 1e26}, "logit_bias of token 5=1e[+]26; expected a number from"),
        ({5: 1.0, "5": 2.0}, "logit_bias of token 5 given twice; expected one number a token"),
    ],
)
def test_a_logit_bias_that_is_none(bias: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GenerationConfig(logit_bias=bias)


def test_a_schema_is_an_object_or_its_text() -> None:
    given: dict[str, Any] = {"enum": [1]}
    kept = GenerationConfig(json_schema=given)
    given["enum"].append(2)
    assert kept.json_schema == {"enum": [1]}
    assert kept.form == ("json_schema", {"enum": [1]})
    assert GenerationConfig(json_schema='{"enum": [1]}') == kept
    assert GenerationConfig(regex="").form == ("regex", "")
    assert GenerationConfig(grammar="start:").form == ("grammar", "start:")
    assert GenerationConfig().form is None


def test_one_form_at_most() -> None:
    for forms in ({"json_schema": {}, "regex": "a"}, {"regex": "", "grammar": ""}):
        with pytest.raises(OptionError, match=r"beside .*; expected at most one of json_schema, regex and grammar"):
            GenerationConfig(**forms)  # type: ignore[arg-type]


def test_template_args_are_a_copy_of_json_values() -> None:
    given: dict[str, Any] = {"enable_thinking": False, "tools": [{"name": ("a", 1)}]}
    kept = GenerationConfig(template_args=given).template_args
    given["tools"].append(2)
    assert kept == {"enable_thinking": False, "tools": [{"name": ["a", 1]}]}
    looped: list[Any] = []
    looped.append(looped)
    for bad in (None, [("a", 1)], {1: 2}, {"a": {1, 2}}, {"a": math.nan}, {"a": looped}, {"a": object()}, "a"):
        with pytest.raises(OptionError, match=r"template_args=.*expected names and JSON values"):
            GenerationConfig(template_args=bad)  # type: ignore[arg-type]


def test_from_mapping() -> None:
    assert GenerationConfig.from_mapping({"beta": 2, "stop": ["x"]}) == GenerationConfig(beta=2.0, stop=("x",))
    with pytest.raises(OptionError, match=r"unknown option 'topk'.*did you mean top_k\?"):
        GenerationConfig.from_mapping({"topk": 3})
    with pytest.raises(OptionError, match=r"did you mean max_new_tokens\?"):
        GenerationConfig.from_mapping({"max-new-tokens": 3})
    with pytest.raises(OptionError, match="unknown option 'zzz'; expected one of beta, top_k"):
        GenerationConfig.from_mapping({"zzz": 3})


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(GenerationConfig)]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text())),
    )
)
def test_any_values_give_a_config_or_an_option_error(options: dict[str, Any]) -> None:
    try:
        config = GenerationConfig.from_mapping(options)
    except OptionError:
        return
    assert config == GenerationConfig.from_mapping(dataclasses.asdict(config))
