"""`pad generate`: the reply as it streams, as JSON, and with every option."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pad_command import PAD, SHORT, pipe_in
from pad_rt import GenerationConfig, Generator, Preference
from pad_rt.cli import main


def test_generate_streams_the_reply(
    tiny_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, preference in (([], None), (["--preference", "short"], "short")):
        assert main(["generate", str(tiny_bundle), "hi", "--max-new-tokens", "6", *options]) == 0
        out, err = capsys.readouterr()
        assert out == generator.generate("hi", preference=preference, config=SHORT).text + "\n"
        assert err == ""


def test_every_piece_is_flushed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.BytesIO()
    seen: list[bytes] = []

    def stream(*args: Any, **kwargs: Any) -> Iterator[str]:
        for piece in ("one ", "two"):
            yield piece
            seen.append(terminal.getvalue())

    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(terminal, encoding="utf-8"))
    monkeypatch.setattr(Generator, "stream", stream)
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
    assert timing.keys() == {"prefill_s", "first_token_s", "step_s", "tokens_per_s", "bytes_to_host_per_token"}
    assert 0 < timing["prefill_s"] < timing["first_token_s"]
    assert GenerationConfig.from_mapping(record["config"]) == config


def test_every_option_arrives(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "--beta": ("-0.5", "beta", -0.5),
        "--top-k": ("3", "top_k", 3),
        "--max-new-tokens": ("2", "max_new_tokens", 2),
        "--temperature": ("0.7", "temperature", 0.7),
        "--top-p": ("0.9", "top_p", 0.9),
        "--seed": ("7", "seed", 7),
    }
    arguments = [word for option, (text, _, _) in options.items() for word in (option, text)]
    arguments += ["--stop", "xx", "--stop", "yy", "--base-sees-preference", "--offer-end"]
    arguments += ["--device", "cpu", "--threads", "1"]
    assert main(["generate", str(tiny_bundle), "hi", "--json", *arguments]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    expected = {name: value for _, name, value in options.values()}
    assert config == {**expected, "stop": ["xx", "yy"], "base_sees_preference": True, "offer_end": True}


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
