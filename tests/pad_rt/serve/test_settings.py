"""Every setting: a field, a flag, an environment variable, and one line of error for a value that is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pad_rt.cli.main import main
from pad_rt.serve.settings import ServeSettings, flags
from pad_runtime.errors import OptionError
from tests.support.error_checks import error_line, refused

BUNDLES = [Path("bundle")]
# By field: a value that is not the default as a flag has it, another one, what they mean, and one that is wrong.
VALUES: dict[str, tuple[str, str, Any, Any, str]] = {
    "name": ("a", "b", "a", "b", "\n"),
    "people": ("a.json", "b.json", Path("a.json"), Path("b.json"), ""),
    "tastes": ("me.json", "you.json", (Path("me.json"),), (Path("you.json"),), ""),
    "learn": ("people.db", "sqlite:///a.db", "people.db", "sqlite:///a.db", "\n"),
    "host": ("::1", "0.0.0.0", "::1", "0.0.0.0", "münchen"),
    "port": ("1", "65535", 1, 65535, "65536"),
    "api_keys": ("one", "two", ("one",), ("two",), "sesame open"),
    "cors_origins": ("https://A.example/", "*", ("https://a.example",), ("*",), "a.example"),
    "max_body_mib": ("0.5", "2", 0.5, 2.0, "0"),
    "max_waiting": ("1", "2", 1, 2, "0"),
    "max_cache_mib": ("64", "65", 64.0, 65.0, "-1"),
    "keep_mib": ("0", "1", 0.0, 1.0, "-1"),
    "queue_timeout": ("0.5", "2", 0.5, 2.0, "0"),
    "request_timeout": ("0.5", "2", 0.5, 2.0, "inf"),
    "client_timeout": ("0.5", "2", 0.5, 2.0, "nan"),
    "drain_timeout": ("0.5", "2", 0.5, 2.0, "soon"),
    "keepalive": ("0.5", "2", 0.5, 2.0, "-1"),
    "max_new_tokens": ("1", "2", 1, 2, "1.5"),
    "log_prompts": ("1", "on", True, True, "maybe"),
    "no_page": ("1", "yes", True, True, "2"),
    "device": ("cpu", "cuda", "cpu", "cuda", "tpu"),
    "threads": ("1", "2", 1, 2, "0"),
}


def test_every_setting_has_a_flag() -> None:
    assert list(flags()) == [field.name for field in dataclasses.fields(ServeSettings) if field.name != "bundles"]
    assert list(flags()) == list(VALUES)


@pytest.mark.parametrize("field", VALUES)
def test_a_flag_goes_before_its_variable(field: str) -> None:
    flag, (first, second, first_value, second_value, _) = flags()[field], VALUES[field]
    given: Any = True if flag.is_switch else [first] if flag.is_list else first
    variable = {flag.variable: second}
    default = getattr(ServeSettings(), field)
    assert getattr(ServeSettings.read(BUNDLES, {}, {}), field) == default != first_value
    assert getattr(ServeSettings.read(BUNDLES, {field: given}, {}), field) == first_value
    assert getattr(ServeSettings.read(BUNDLES, {}, variable), field) == second_value
    assert getattr(ServeSettings.read(BUNDLES, {field: given}, variable), field) == first_value
    assert getattr(ServeSettings.read(BUNDLES, {}, {flag.variable: ""}), field) == default, "empty is not given"


@pytest.mark.parametrize("field", [field for field in VALUES if field not in ("people", "tastes")])
def test_a_wrong_value(field: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the flag or the variable, and exit code 2; what was meant for a key is not shown."""
    flag, wrong = flags()[field], VALUES[field][-1]
    shown = "" if field == "api_keys" else f" {wrong!r}"
    if not flag.is_switch:
        assert main(["serve", "no-bundle", f"--{flag.name}={wrong}"]) == 2
        line = error_line(capsys.readouterr().err, "pad")
        assert line.startswith(f"pad: error: --{flag.name}{shown}; expected ")
    monkeypatch.setenv(flag.variable, wrong)
    assert main(["serve", "no-bundle"]) == 2
    out, err = capsys.readouterr()
    assert error_line(err, "pad").startswith(f"pad: error: {flag.variable}{shown}; expected ")
    assert out == ""
    assert err.count("\n") == 1
    assert field != "api_keys" or wrong not in err


def test_several_values() -> None:
    given = ServeSettings.read(BUNDLES, {}, {"PAD_API_KEY": " one, two ,", "PAD_CORS_ORIGIN": "https://a.b,null"})
    assert (given.api_keys, given.cors_origins) == (("one", "two"), ("https://a.b", "null"))
    assert ServeSettings.read(BUNDLES, {"api_keys": ["three"]}, {"PAD_API_KEY": "one"}).api_keys == ("three",)


@pytest.mark.parametrize(("text", "on"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("off", False)])
def test_a_switch_in_the_environment(text: str, on: bool) -> None:
    assert ServeSettings.read(BUNDLES, {}, {"PAD_LOG_PROMPTS": text}).log_prompts is on


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"port": "8080"},
        {"port": True},
        {"max_waiting": 0},
        {"max_waiting": 1.5},
        {"keepalive": float("nan")},
        {"keepalive": None},
        {"log_prompts": "yes"},
        {"host": ""},
        {"device": "tpu"},
        {"cors_origins": ("example.org",)},
        {"api_keys": "sesame"},
        {"api_keys": ("open sesame",)},
        {"people": "people.json"},
    ],
)
def test_wrong_values_of_an_app(wrong: dict[str, Any]) -> None:
    """Where settings are made in Python, they are checked too."""
    (field,) = wrong
    with refused(OptionError, given=field, expected=flags()[field].kind.expected):
        ServeSettings(**wrong)


def test_a_name_is_of_a_single_bundle() -> None:
    with refused(OptionError, given="--name for 2 bundles", expected="a single bundle"):
        ServeSettings(bundles=(Path("a"), Path("b")), name="c")
    assert ServeSettings(bundles=(Path("a"),), name="c").name == "c"


def test_keys_are_not_shown() -> None:
    settings = ServeSettings(api_keys=("sesame",), name=None)
    assert "sesame" not in repr(settings)
    with pytest.raises(OptionError) as caught:
        ServeSettings(api_keys=("sesame open",))
    assert "sesame" not in str(caught.value)
