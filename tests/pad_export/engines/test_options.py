"""Options and libraries without which no engine is built, told before any work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from pad_export.cli import main
from pad_export.engines.build import EngineBuilder
from pad_runtime.bundle import contract
from pad_runtime.errors import EngineError
from tests.support import tiny_bundles
from tests.support.engine_models import needs_library
from tests.support.error_checks import error_line, refused

Refusal: TypeAlias = Callable[[list[str], str, str], None]


@pytest.fixture
def check_refused(models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs pad-export with options, and sees one line that says what was given and expected, and nothing written."""

    def check(options: list[str], given: str, expected: str) -> None:
        assert main(["--base", str(models[0]), "-o", str(tmp_path / "bundle"), "--quiet", *options]) == 2
        line = error_line(capsys.readouterr().err, "pad-export")
        assert given in line
        assert expected in line
        assert not any(tmp_path.iterdir())

    return check


@needs_library
@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        (["--target", "tensorrt-rtx"], "no --compute-capability", "sm86"),
        (["--target", "tensorrt-rtx", "--compute-capability", "sm90"], "--compute-capability sm90", "sm89, sm120"),
        (["--target", "tensorrt-rtx", "--compute-capability", "CURRENT"], "--compute-capability CURRENT", "sm89"),
        (
            ["--target", "tensorrt-rtx", "--compute-capability", "sm89", "--timing-cache", "x"],
            "--timing-cache",
            "leave it out",
        ),
    ],
)
def test_options_that_do_not_go_with_the_library(
    check_refused: Refusal, options: list[str], given: str, expected: str
) -> None:
    check_refused(options, given, expected)


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        (["--compute-capability", "sm89"], "--compute-capability sm89 without engines", "--target"),
        (["--timing-cache", "x"], "--timing-cache without engines", "--target"),
        (["--target", "tensorrt", "--dialect", "ort"], "--dialect ort with --target tensorrt", "--dialect standard"),
    ],
)
def test_options_that_do_not_go_together(check_refused: Refusal, options: list[str], given: str, expected: str) -> None:
    check_refused(options, given, expected)


@pytest.mark.parametrize("target", contract.ENGINE_TARGETS)
def test_a_library_that_is_missing_is_told_before_any_work(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = target.replace("-", "_")
    monkeypatch.setitem(sys.modules, module, None)
    with refused(EngineError, given=f"{module} is not installed", hint=f"pip install 'pad-rt[{target}]'"):
        tiny_bundles.export(tmp_path / "bundle", tmp_path / "no base", [], target=target, compute_capabilities=["sm89"])


def test_a_library_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise OSError('libnvinfer is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    with refused(EngineError, given="cannot be loaded: libnvinfer is missing", hint="pip install"):
        EngineBuilder("tensorrt-rtx", ["sm89"])


def test_engines_of_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", str(tmp_path), "--target", "tensorrt-rtx", "--compute-capability", "sm89"]) == 2
    assert "has no pad.json" in error_line(capsys.readouterr().err, "pad-export engines")
