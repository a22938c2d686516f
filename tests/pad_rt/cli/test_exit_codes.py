"""How `pad` ends: an error in one line, an exit code for everything, and quiet where a pipe was closed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pad_rt import Generator
from pad_rt.cli.main import main
from pad_rt.engine.ticket import Ticket
from tests.support.error_checks import edit_manifest, error_line
from tests.support.pad_command import PAD, interrupted_reply, pipe_in


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "--beta", "1"], "an empty prompt; expected some text"),
        (["hi", "--beta", "nan"], "beta=nan; expected a finite number"),
        (["hi", "--top-k", "0"], "top_k=0; expected an integer >= 1"),
        (["hi", "--top-k", "21"], "top_k 21; expected at most 20; export with a larger --max-top-k"),
        (["hi", "--temperature", "-1"], "temperature=-1.0; expected a finite number >= 0"),
        (["hi", "--stop", ""], "stop=['']; expected a non-empty string"),
        (["hi", "--preference", " "], "an empty preference text; expected words"),
        (["hi", "--weight", "cheerful"], "--weight 'cheerful'; expected NAME=W"),
        (["hi", "--weight", "sad=1"], "unknown feature 'sad'; expected one of cheerful"),
        (["hi", "--weight", "a=1", "--weight", "a=2"], "--weight a given twice; expected one weight a feature"),
        (["hi", "--device", "tpu"], "device 'tpu'; expected one of auto, tensorrt, tensorrt-rtx, cuda,"),
        (["hi", "--threads", "0"], "num_threads 0; expected a whole number, at least 1"),
        (["x" * 300], "tokens; expected at most 255"),
        (["a\udcffb"], "lone surrogate"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    for extra in ([], ["--json"]):
        assert main(["generate", str(tiny_bundle), *arguments, *extra]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert words in error_line(err, "pad")
        assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["generate", "BUNDLE", "hi"], ["chat", "BUNDLE"], ["info", "BUNDLE"]])
def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    for folder, words in ((tmp_path / "absent", "no bundle at"), (tmp_path, "has no pad.json")):
        assert main([str(folder) if word == "BUNDLE" else word for word in command]) == 2
        assert words in error_line(capsys.readouterr().err, "pad")


@pytest.mark.parametrize(
    "arguments",
    [[], ["bake"], ["generate"], ["generate", "x"], ["generate", "x", "y", "--beta", "much"], ["info", "x", "--chec"]],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Generator, "open", fail)
    with pytest.raises(ZeroDivisionError):
        main(["generate", str(tiny_bundle), "hi"])


def test_bytes_that_are_no_text(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe_in(monkeypatch, b"a\xffb")
    assert main(["generate", str(tiny_bundle), "-"]) == 2
    assert "lone surrogate" in error_line(capsys.readouterr().err, "pad")


def test_onnxruntime_adds_no_lines_of_its_own(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (bundle / "weights.bin").write_bytes(b"")
    edit_manifest(bundle, rehash=True)
    assert main(["generate", str(bundle), "hi"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert f"ONNX Runtime cannot open {bundle / 'base.onnx'}" in error_line(err, "pad")
    assert err.count("\n") == 1


def test_ctrl_c_ends_generate(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Ticket, "__next__", interrupted_reply())
    assert main(["generate", str(tiny_bundle), "hi"]) == 130
    out, err = capsys.readouterr()
    assert out == "some"
    assert err == "\n"


def test_a_closed_pipe_is_quiet(tiny_bundle: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    for arguments in (["generate", str(tiny_bundle), "hi"], ["info", str(tiny_bundle)]):
        process = subprocess.run([*PAD, *arguments], stdout=write, stderr=subprocess.PIPE, check=False, timeout=60)
        assert process.returncode == 141
        assert process.stderr == b""
    os.close(write)


def test_help_and_version_load_nothing_heavy() -> None:
    script = (
        "import sys\nfrom pad_rt.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'jinja2'} & sys.modules.keys()\n"
        "sys.exit(f'{code} {sorted(heavy)}' if code or heavy else 0)"
    )
    for argument, words in (("--help", "generate"), ("--version", "pad 0.")):
        process = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        assert words in process.stdout
