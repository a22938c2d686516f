"""The `pad-export` command: what it says, its exit codes, and signals to it."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pad_export import export
from pad_export.cli import main
from pad_runtime.loaded_bundle import Bundle
from tests.support.error_checks import error_line, snapshot
from tests.support.tiny_models import TinyModels


def test_the_command_writes_a_bundle_and_says_what_to_try(
    tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pad_rt.cli import main as cli

    output = tmp_path / "my bundle"
    options = ["--base", str(tiny.base), "--persrm", str(tiny.adapter), "-o", str(output)]
    limits = ["--max-length", "200", "--max-batch", "2", "--max-top-k", "12", "--reference", "backbone"]
    assert main([*options, *limits]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == "loading torch"
    assert "verified against torch" in err
    assert "writing weights: 2 layers" in err.splitlines()
    assert "\r" not in err  # no bar where no terminal shows it
    wrote, command = out.splitlines()
    assert wrote.startswith(f"wrote {output} (")
    manifest = Bundle(output).manifest
    assert (manifest.max_length, manifest.max_batch, manifest.max_top_k) == (200, 2, 12)
    assert manifest.reference == "backbone"
    words = shlex.split(command.removeprefix("try: "))
    assert words[:3] == ["pad", "generate", str(output)]
    assert cli.main([*words[1:], "--max-new-tokens", "2"]) == 0


def test_what_to_try_with_a_persrm_without_words(
    tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pad_rt.cli import main as cli

    adapter = Path(shutil.copytree(tiny.adapter, tmp_path / "adapter"))
    settings = {"prompt_template": "{x}", "features": ["short"]}
    (adapter / "pad_persrm.json").write_text(json.dumps(settings), encoding="utf-8")
    output = tmp_path / "bundle"
    assert main(["--base", str(tiny.base), "--persrm", str(adapter), "-o", str(output), "--no-verify", "--quiet"]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[1].removeprefix("try: "))
    assert words[-2:] == ["--weight", "short=1"]
    assert cli.main([*words[1:], "--max-new-tokens", "2"]) == 0
    assert cli.main([*words[1:-2], "--preference", "short", "--max-new-tokens", "2"]) == 2  # the control


def test_a_quiet_command(tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base", str(tiny.base), "-o", str(tmp_path / "bundle"), "--no-verify", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_an_error_of_the_command_is_one_line(
    tiny: TinyModels, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--base", str(tiny.base), "-o", str(target), "--max-length", "1000"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert error_line(err, "pad-export") == "pad-export: error: --max-length 1000; expected 2 to 256"


@pytest.mark.parametrize(
    "arguments", [[], ["--base", "x"], ["--base", "x", "-o", "y", "--precision", "int3"], ["--prec", "fp16"]]
)
def test_wrong_options_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "pad-export: error: " in capsys.readouterr().err


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "pad_export.export")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["--base", "x", "-o", "y"]) == 2
    assert error_line(capsys.readouterr().err, "pad-export").endswith(
        "onnx is not installed; pip install 'pad-rt[export]'"
    )


def test_a_bug_keeps_its_traceback(tiny: TinyModels, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(export, "write_weights", fail)
    with pytest.raises(ZeroDivisionError):
        main(["--base", str(tiny.base), "-o", str(target)])


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_a_real_process(tiny: TinyModels, tmp_path: Path, signal_number: int, code: int) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    before = snapshot(tmp_path)
    arguments = ["--base", str(tiny.base), "--persrm", str(tiny.adapter), "-o", str(bundle)]
    script = "import sys; from pad_export.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.pad-export/new/weights.bin")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert snapshot(tmp_path) == before
