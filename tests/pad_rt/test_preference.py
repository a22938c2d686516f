from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_rt.preference import Preference, normalize_preferences, parse_weight
from pad_runtime.errors import OptionError, PreferenceError


def test_forms() -> None:
    assert normalize_preferences(None) == ()
    assert normalize_preferences("cheerful") == ((Preference("cheerful"), 1.0),)
    weights = Preference(weights={"simple": 0.5})
    assert normalize_preferences(weights) == ((weights, 1.0),)
    assert normalize_preferences([("cheerful", 2), (weights, -0.5)]) == ((Preference("cheerful"), 2.0), (weights, -0.5))


def test_is_a_frozen_value_with_its_own_weights() -> None:
    given_weights = {"simple": 1}
    preference = Preference("short", given_weights)
    given_weights["simple"] = 9
    assert preference.weights == {"simple": 1.0}
    assert preference == Preference("short", {"simple": 1.0}) != Preference("short")
    assert hash(preference) == hash(Preference("short", {"simple": 1.0}))
    assert dataclasses.asdict(preference) == {"text": "short", "weights": {"simple": 1.0}}
    with pytest.raises(dataclasses.FrozenInstanceError):
        preference.text = "long"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        (None, {}), ("", {}), (" \n", {"a": 1.0}), (3, {}), (None, {"a": math.nan}), (None, {"a": math.inf}),
        (None, {"a": "1"}), (None, {"a": True}), (None, {"a": 10**400}), (None, {"": 1.0}), (None, {1: 1.0}),
        (None, ["a"]), ("x", None),
    ],
)  # fmt: skip
def test_refuses(text: Any, weights: Any) -> None:
    with pytest.raises(PreferenceError):
        Preference(text, weights)


@pytest.mark.parametrize(
    ("preference", "words"),
    [
        ("", "empty preference text"),
        ([], "use None"),
        (["cheerful", "concise"], "item 0 .* pair; expected a list such as"),
        ([Preference("a"), Preference("b")], "give every preference its weight"),
        (("cheerful", 0.5), "item 0"),
        ([("a", 1.0), ("b", math.nan)], "the weight of item 1 is nan"),
        ([("a", "b")], "the weight of item 0 is 'b'"),
        ([("a", 1.0, 2.0)], "item 0"),
        ([(None, 1.0)], "item 0"),
        ({"cheerful": 1.0}, "type dict"),
        (3, "type int"),
    ],
)
def test_refuses_in_words(preference: Any, words: str) -> None:
    with pytest.raises(PreferenceError, match=words):
        normalize_preferences(preference)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
)


@settings(deadline=None)
@given(json_values)
def test_any_value_gives_pairs_or_a_preference_error(value: Any) -> None:
    try:
        pairs = normalize_preferences(value)
    except PreferenceError:
        return
    assert all(isinstance(preference, Preference) and math.isfinite(weight) for preference, weight in pairs)


@pytest.mark.parametrize(
    ("argument", "pair"),
    [("cheerful=1", ("cheerful", 1.0)), ("a=b=-0.5", ("a=b", -0.5)), (" big words = 2e-1 ", ("big words", 0.2))],
)
def test_parse_weight(argument: str, pair: tuple[str, float]) -> None:
    assert parse_weight(argument) == pair


@pytest.mark.parametrize("argument", ["", "a", "=1", " =1", "a=", "a=b", "a=nan", "a=inf", "a=1e999", "1.0"])
def test_parse_weight_refuses(argument: str) -> None:
    with pytest.raises(OptionError, match="--weight"):
        parse_weight(argument)
