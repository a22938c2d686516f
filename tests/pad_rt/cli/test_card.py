"""`pad card`: what the hub reads of it, and what a person does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pad_rt.cli.main import main
from tests.support.error_checks import edit_manifest, error_line

NAME = ("--name", "org/tiny-pad", "--base-license", "apache-2.0")


def card(bundle: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, object], str]:
    assert main(["card", str(bundle), *NAME, *arguments]) == 0
    _, header, text = capsys.readouterr().out.split("---\n", 2)
    return yaml.safe_load(header), text


def test_metadata_and_text(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_manifest(bundle, base="org/Base-1", precision="int4")
    metadata, text = card(bundle, capsys, "--persrm-license", "cc-by-sa-4.0")
    assert metadata == {
        "library_name": "pad-rt",
        "pipeline_tag": "text-generation",
        "license": ["apache-2.0", "cc-by-sa-4.0"],
        "base_model": "org/Base-1",
        "base_model_relation": "quantized",
        "tags": ["pad-rt", "onnx", "personalization", "reward-model"],
    }
    assert "| Base | org/Base-1; apache-2.0 |" in text
    assert "| PersRM `cheerful` | takes a preference in words, and weights of `cheerful`; cc-by-sa-4.0 |" in text
    assert "pad generate org/tiny-pad" in text
    assert 'Generator.load("org/tiny-pad")' in text


def test_a_base_that_is_known_by_a_folder_alone(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata, text = card(bundle, capsys)
    assert "base_model" not in metadata
    assert metadata["license"] == ["apache-2.0"]
    assert "| Base | llama; apache-2.0 |" in text
    metadata, _ = card(bundle, capsys, "--base", "org/other")
    assert metadata["base_model"] == "org/other"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "tiny"], "--name tiny is no name of a repository; expected OWNER/NAME"),
        (["--base", "org/name@v1"], "--base org/name@v1 is no name of a repository"),
        (["--base-license", "Apache 2.0"], "--base-license Apache 2.0; expected one as the hub writes it"),
    ],
)
def test_refusals(arguments: list[str], words: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(bundle), *NAME, *arguments]) == 2
    assert words in error_line(capsys.readouterr().err, "pad")
