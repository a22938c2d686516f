"""`pad generate`: the reply as it streams, as JSON, and with every option."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pad_rt import GenerationConfig, GenerationResult, Generator, Preference, Timing
from pad_rt.cli.main import main
from tests.support import tiny_bundles
from tests.support.error_checks import edit_manifest, error_line
from tests.support.pad_command import CUT, PAD, SHORT, pipe_in


def test_generate_streams_the_reply(
    tiny_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, preference in (([], None), (["--preference", "short"], "short")):
        assert main(["generate", str(tiny_bundle), "hi", "--max-new-tokens", "6", *options]) == 0
        out, err = capsys.readouterr()
        assert out == generator.generate("hi", preference=preference, config=SHORT).text + "\n"
        assert err == CUT


def test_a_reply_that_was_cut_is_marked(bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    """At the limit asked for, or at the bundle's; not where it ended."""
    long = "x " * 120
    room = generator.room(long)
    assert main(["generate", str(bundle), long, "--max-new-tokens", "200"]) == 0
    assert capsys.readouterr().err == f"pad: cut at {room} tokens (max_length of the bundle)\n"
    ids = generator.generate("hi", config=SHORT).token_ids
    assert main(["generate", str(bundle), "hi", "--max-new-tokens", "6", "--stop-token-id", str(ids[-1])]) == 0
    assert capsys.readouterr().err == ""
    for options, reason in (([], "length"), (["--stop-token-id", str(ids[-1])], "stop")):
        assert main(["generate", str(bundle), "hi", "--max-new-tokens", "6", "--json", *options]) == 0
        out, err = capsys.readouterr()
        record = json.loads(out)
        assert (record["finish_reason"], err) == (reason, "")
        assert record["usage"] == {
            "prompt_tokens": len(tiny_bundles.encode_turn(bundle, "hi")),
            "completion_tokens": len(record["token_ids"]),
            "cached_tokens": 0,
        }


def test_a_system_message(tiny_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_bundle), "hi", "--max-new-tokens", "6", "--system", "Be odd."]) == 0
    messages = [{"role": "system", "content": "Be odd."}, {"role": "user", "content": "hi"}]
    text = generator.generate(messages, config=SHORT).text
    assert capsys.readouterr().out == text + "\n"
    assert text != generator.generate("hi", config=SHORT).text


class FakeStream(Iterator[str]):
    """A stream of these pieces, without a result."""

    result: GenerationResult | None = None

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces

    def __next__(self) -> str:
        return next(self._pieces)


def test_every_piece_is_flushed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.BytesIO()
    seen: list[bytes] = []

    def pieces() -> Iterator[str]:
        for piece in ("one ", "two"):
            yield piece
            seen.append(terminal.getvalue())

    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(terminal, encoding="utf-8"))
    monkeypatch.setattr(Generator, "stream", lambda *args, **kwargs: FakeStream(pieces()))
    assert main(["generate", str(tiny_bundle), "hi"]) == 0
    assert seen == [b"one ", b"one two"]
    assert terminal.getvalue() == b"one two\n"


def test_generate_json(tiny_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preference", "short", "--weight", "cheerful=0.5", "--max-new-tokens", "6", "--beta", "2", "--json"]
    assert main(["generate", str(tiny_bundle), "hi", *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    record = json.loads(out)
    config = GenerationConfig(beta=2.0, max_new_tokens=6)
    expected = generator.generate("hi", preference=Preference("short", {"cheerful": 0.5}), config=config)
    assert record["text"] == expected.text
    assert record["token_ids"] == list(expected.token_ids)
    assert record["finish_reason"] == expected.finish_reason
    assert record["preference"] == {"text": "short", "weights": {"cheerful": 0.5}}
    timing = record["timing"]
    assert timing.keys() == {field.name for field in dataclasses.fields(Timing)}
    assert 0 < timing["prefill_s"] < timing["first_token_s"]
    assert GenerationConfig.from_mapping(record["config"]) == config


def test_every_option_arrives(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "--beta": ("-0.5", "beta", -0.5),
        "--top-k": ("3", "top_k", 3),
        "--max-new-tokens": ("2", "max_new_tokens", 2),
        "--temperature": ("0.7", "temperature", 0.7),
        "--top-p": ("0.9", "top_p", 0.9),
        "--min-p": ("0.01", "min_p", 0.01),
        "--seed": ("7", "seed", 7),
        "--repetition-penalty": ("1.1", "repetition_penalty", 1.1),
        "--presence-penalty": ("-0.5", "presence_penalty", -0.5),
        "--frequency-penalty": ("0.25", "frequency_penalty", 0.25),
        "--no-repeat-ngram": ("3", "no_repeat_ngram", 3),
        "--regex": ("[ab]{9}", "regex", "[ab]{9}"),
        "--logprobs": ("2", "logprobs", 2),
    }
    arguments = [word for option, (text, _, _) in options.items() for word in (option, text)]
    arguments += [
        "--stop",
        "xx",
        "--stop",
        "yy",
        "--stop-token-id",
        "7",
        "--stop-token-id",
        "9",
        "--logit-bias",
        "5=-1.5",
        "--logit-bias",
        "6=2",
        "--banned-token-id",
        "8",
        "--base-sees-preference",
        "--offer-end",
    ]
    arguments += ["--device", "cpu", "--threads", "1"]
    assert main(["generate", str(tiny_bundle), "hi", "--json", *arguments]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    expected = {name: value for _, name, value in options.values()}
    expected |= {"stop": ["xx", "yy"], "stop_token_ids": [7, 9], "banned_token_ids": [8]}
    expected |= {"logit_bias": {"5": -1.5, "6": 2.0}, "template_args": {}}
    expected |= {"json_schema": None, "grammar": None}
    assert config == {**expected, "base_sees_preference": True, "offer_end": True}


def test_a_form_is_given_as_text_or_as_a_file(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schema.json").write_text('{"enum": ["é"]}', encoding="utf-8")
    (tmp_path / "latin1").write_bytes(b"\xe9")
    (tmp_path / "lark").write_text("start: /[ab]{3}/")
    command = ["generate", str(tiny_bundle), "hi", "--stop-token-id", "9"]
    for options, text in (
        (["--json-schema", '{"const": 7}'], "7"),
        (["--json-schema", f"@{tmp_path / 'schema.json'}"], '"é"'),
        (["--regex", "@x"], "@x"),
        (["--grammar", 'start: "eg" "g"'], "egg"),
    ):
        assert main([*command, *options]) == 0
        assert capsys.readouterr() == (f"{text}\n", "")
    assert main([*command, "--grammar", f"@{tmp_path / 'lark'}"]) == 0
    assert len(capsys.readouterr().out) == 4
    for file in ("missing", "latin1"):
        assert main([*command, "--json-schema", f"@{tmp_path / file}"]) == 2
        line = error_line(capsys.readouterr().err, "pad")
        assert f"{file} cannot be read: " in line
        assert "expected a file in UTF-8" in line


def test_logprobs_are_part_of_the_json(
    tiny_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", str(tiny_bundle), "hi", "--max-new-tokens", "6", "--logprobs", "1"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["logprobs"]
    expected = generator.generate("hi", config=GenerationConfig(max_new_tokens=6, logprobs=1)).logprobs
    assert [each["token_id"] for each in found] == [each.token_id for each in expected]
    for each, other in zip(found, expected, strict=True):
        assert each["logprob"] == other.logprob
        assert each["likeliest"] == [[id, value] for id, value in other.likeliest]
        assert each["base_logprob"] == other.base_logprob
    assert main(command) == 2
    assert "--logprobs without --json; expected both" in error_line(capsys.readouterr().err, "pad")


def test_the_defaults_are_those_of_the_library(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_bundle), "hi", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert GenerationConfig.from_mapping(record["config"]) == GenerationConfig()
    assert record["preference"] is None


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_prompt_from_stdin(
    tiny_bundle: Path,
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ending: str,
) -> None:
    pipe_in(monkeypatch, "naïve\ncafé" + ending)
    assert main(["generate", str(tiny_bundle), "-", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out == generator.generate("naïve\ncafé", config=SHORT).text + "\n"


def test_a_narrow_terminal(tiny_bundle: Path, generator: Generator) -> None:
    arguments = [*PAD, "generate", str(tiny_bundle), "hi", "--max-new-tokens", "6"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = subprocess.run(arguments, env=environment, capture_output=True, check=False, timeout=60)
    assert process.returncode == 0, process.stderr
    expected = generator.generate("hi", config=SHORT).text
    assert process.stdout == expected.encode("ascii", "replace") + b"\n"


def test_template_arguments(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON, Python's constants, or text; the template's own words where none is given."""
    template = "{{ messages[0].content }}{{ a | default('-') }}{{ b | default('-') | string }}"
    (bundle / "chat_template.jinja").write_text(template, encoding="utf-8")
    edit_manifest(bundle, rehash=True)
    arguments = ["generate", str(bundle), "hi", "--max-new-tokens", "2", "--json"]
    for options, read in (
        ([], {}),
        (["a=false", "b=False"], {"a": False, "b": False}),
        (["a=None", "b=[1, 2.5]"], {"a": None, "b": [1, 2.5]}),
        (["a=low=er", "b="], {"a": "low=er", "b": ""}),
    ):
        assert main([*arguments, *(word for option in options for word in ("--template-arg", option))]) == 0
        assert json.loads(capsys.readouterr().out)["config"]["template_args"] == read
    for option, words in (
        ("a", "--template-arg 'a'; expected NAME=VALUE; such as enable_thinking=false"),
        ("=1", "--template-arg '=1'; expected NAME=VALUE"),
        ("c=1", "template argument 'c'; expected one of a, b: what the base's chat template reads"),
        ("a=NaN", "template_args={'a': nan}; expected names and JSON values"),
    ):
        assert main([*arguments, "--template-arg", option]) == 2
        assert words in error_line(capsys.readouterr().err, "pad")
    assert main([*arguments, "--template-arg", "a=1", "--template-arg", "a=2"]) == 2
    assert "--template-arg a given twice" in error_line(capsys.readouterr().err, "pad")
