from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_runtime.errors import OptionError
from pad_train.pairs.feature import Feature, PairSampling, Style, read_features
from tests.support.error_checks import refused

FULL = {
    "more": ["cheerful", "be happy"],
    "less": ["gloomy"],
    "sampling": {
        "scorer": "scorers.py:cheerful",
        "veto": "scorers.py:unsound",
        "styles": [
            {"more": {"system": "You are happy.", "examples": [["Why?", "Joy!"]]}, "less": {"system": "You are sad."}},
            {},
        ],
        "contrast": 1,
        "samples": 4,
        "block": 8,
        "max_new_tokens": 32,
        "min_gap": 0.25,
        "min_words": 2,
        "ends_early": True,
    },
}


def write(folder: Path, value: Any) -> Path:
    path = folder / "features.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def sampling(**changes: Any) -> dict[str, Any]:
    return {"a": {"sampling": {"scorer": "m:f", **changes}}}


def test_a_feature_with_everything(tmp_path: Path) -> None:
    assert read_features(write(tmp_path, {"cheerful": FULL})) == {
        "cheerful": Feature(
            "cheerful",
            more=("cheerful", "be happy"),
            less=("gloomy",),
            sampling=PairSampling(
                ((f"{tmp_path / 'scorers.py'}:cheerful", 1.0),),
                veto=f"{tmp_path / 'scorers.py'}:unsound",
                styles=((Style("You are happy.", (("Why?", "Joy!"),)), Style("You are sad.")), (Style(), Style())),
                contrast=1.0,
                samples=4,
                block=8,
                max_new_tokens=32,
                min_gap=0.25,
                min_words=2,
                ends_early=True,
            ),
        )
    }


def test_features_with_the_least(tmp_path: Path) -> None:
    features = read_features(write(tmp_path, {"b": {}, "a": {"sampling": {"scorer": "package.module:name"}}}))
    assert features == {"b": Feature("b"), "a": Feature("a", sampling=PairSampling((("package.module:name", 1.0),)))}
    assert list(features) == ["b", "a"]


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        ("mine.py:f", "{folder}/mine.py:f"),
        ("../mine.py:f", "{folder}/../mine.py:f"),
        ("/else/mine.py:f", "/else/mine.py:f"),
        ("hf:./model", "hf:{folder}/model"),
        ("hf:/models/reward", "hf:/models/reward"),
        ("package:f", "package:f"),
        ("contrast", "contrast"),
    ],
)
def test_where_a_scorer_is_found(tmp_path: Path, scorer: str, expected: str) -> None:
    found = read_features(write(tmp_path, sampling(scorer=scorer, styles=[{}])))["a"].sampling
    assert found is not None
    assert found.scorer == ((expected.format(folder=tmp_path), 1.0),)


def test_several_scorers_have_factors(tmp_path: Path) -> None:
    entry = sampling(scorer={"contrast": 2, "mine.py:f": 0.5}, styles=[{}])
    found = read_features(write(tmp_path, entry))["a"].sampling
    assert found is not None
    assert found.scorer == (("contrast", 2.0), (f"{tmp_path / 'mine.py'}:f", 0.5))


@pytest.mark.parametrize(
    ("value", "given", "expected"),
    [
        ("{", "is not JSON", ""),
        ("[]", "holds no JSON object", ""),
        ({}, "names no feature", "at least one"),
        ({"a b": {}}, "a b is not a name", "letters"),
        ({"a": []}, "a is []", "an object with more, less, sampling"),
        ({"a": {"most": []}}, "a has the unknown key most", "only more, less, sampling"),
        ({"a": {"more": "cheerful"}}, "more is 'cheerful'", "a list of texts"),
        ({"a": {"less": ["x", " "]}}, "less is ['x', ' ']", "a list of texts"),
        ({"a": {"more": [1]}}, "more is [1]", "a list of texts"),
        ({"a": {"sampling": None}}, "a is None", "an object with scorer"),
        ({"a": {"sampling": {}}}, "scorer is None", "MODULE:NAME"),
        (sampling(scorer=3), "scorer is 3", "MODULE:NAME"),
        (sampling(scorer="mine"), "scorer is 'mine'", "MODULE:NAME"),
        (sampling(scorer={}), "scorer is {}", "MODULE:NAME"),
        (sampling(scorer={"m:f": 1.0, "mine": 1.0}), "scorer is 'mine'", "MODULE:NAME"),
        (sampling(scorer={"m:f": 0}), "factor of m:f is 0", "a number of at least"),
        (sampling(scorer={"contrast": 1, "m:f": 1}), "no styles for the scorer contrast", '"styles"'),
        (sampling(scorer="contrast"), "no styles for the scorer contrast", '"styles"'),
        (sampling(veto=""), "veto is ''", "MODULE:NAME or FILE.py:NAME"),
        (sampling(veto="hf:model"), "veto is 'hf:model'", "MODULE:NAME or FILE.py:NAME"),
        (sampling(temperature=1), "the unknown key temperature", "only scorer, veto, styles"),
        (sampling(styles={}), "styles is {}", "a list"),
        (sampling(styles=[[]]), "a is []", "an object with more, less"),
        (sampling(styles=[{"most": {}}]), "the unknown key most", "only more, less"),
        (sampling(styles=[{"more": {"begin": "x"}}]), "the unknown key begin", "only system, examples"),
        (sampling(styles=[{"more": {"system": 3}}]), "system is 3", "text"),
        (sampling(styles=[{"more": {"examples": [["Why?"]]}}]), "examples is", '["QUESTION", "ANSWER"]'),
        (sampling(contrast="2"), "contrast is '2'", "a number of at least 0"),
        (sampling(contrast=-1), "contrast is -1", "a number of at least 0"),
        (sampling(min_gap=True), "min_gap is True", "a number of at least 0"),
        (sampling(min_gap=float("nan")), "min_gap is nan", "a number of at least 0"),
        (sampling(samples=0), "samples is 0", "a positive integer"),
        (sampling(block=1.5), "block is 1.5", "a positive integer"),
        (sampling(max_new_tokens=True), "max_new_tokens is True", "a positive integer"),
        (sampling(min_words=10**9), "min_words is 1000000000", "a positive integer"),
        (sampling(ends_early=1), "ends_early is 1", "true or false"),
    ],
)
def test_what_is_refused(tmp_path: Path, value: Any, given: str, expected: str) -> None:
    path = write(tmp_path, value)
    with refused(OptionError, given=given, expected=expected):
        read_features(path)
    with refused(OptionError, given=str(path)):
        read_features(path)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with refused(OptionError, given=f"--features {path} does not exist", expected="a JSON file"):
            read_features(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FULL, *FULL["sampling"], "system", "examples", "x"]), inner, max_size=4)  # type: ignore[misc]
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(json_values | st.dictionaries(st.sampled_from(["a", "b c"]), json_values, max_size=2))
def test_any_file_gives_features_or_their_error(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = write(tmp_path_factory.getbasetemp(), value)
    try:
        assert all(isinstance(feature, Feature) for feature in read_features(path).values())
    except OptionError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
