"""`pad generate --explain`: the reply as ever, and the page beside it; a page that cannot be written costs no reply."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pad_rt import GenerationConfig, Generator, Preference
from pad_rt.cli.main import main
from tests.support.error_checks import error_line
from tests.support.html_page import HtmlPage
from tests.support.pad_command import CUT, SHORT

GUIDED = ["--preference", "short", "--max-new-tokens", "6"]


def test_the_page_is_the_library_s(
    tiny_bundle: Path, generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    for options, preference in ((["--weight", "cheerful=0.5"], Preference("short", {"cheerful": 0.5})), ([], "short")):
        result = generator.generate("hi", preference=preference, config=SHORT, trace=True)
        expected = generator.explain(result, "hi", preference=preference, config=SHORT)
        assert main(["generate", str(tiny_bundle), "hi", *GUIDED, *options, "--explain", str(page)]) == 0
        assert capsys.readouterr() == (result.text + "\n", CUT)
        assert page.read_text(encoding="utf-8") == expected  # the second replaces the first
        assert main(["generate", str(tiny_bundle), "hi", *GUIDED, *options, "--json", "--explain", str(page)]) == 0
        assert json.loads(capsys.readouterr().out)["text"] == result.text
        assert page.read_text(encoding="utf-8") == expected
    assert list(tmp_path.iterdir()) == [page]


def test_a_system_message_and_an_end(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The step that chose the end of the turn is on the page, too."""
    ids = Generator.load(bundle, num_threads=1).generate("hi", preference="short", config=SHORT).token_ids
    page = tmp_path / "page.html"
    place = next(place for place, id in enumerate(ids) if id not in ids[:place] and place)
    options = [*GUIDED, "--stop-token-id", str(ids[place]), "--explain", str(page)]
    assert main(["generate", str(bundle), "hi", *options]) == 0
    assert capsys.readouterr().err == ""
    tokens = HtmlPage.parse(page.read_text(encoding="utf-8")).find("span", css_class="t")
    assert [token.has_class("end") for token in tokens] == [False] * place + [True]
    assert main(["generate", str(bundle), "hi", "--system", "Be <odd>.", *options]) == 0
    said = HtmlPage.parse(page.read_text(encoding="utf-8")).find("p", css_class="said")
    assert [turn.text for turn in said] == ["Be <odd>.", "hi"]


def test_a_plain_reply_has_nothing_to_explain(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["generate", str(tiny_bundle), "hi", "--explain", str(page)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), page.exists()) == ("", 1, False)
    assert "--explain without a preference; expected --preference, --weight or --taste" in error_line(err, "pad")


@pytest.mark.parametrize("output", [[], ["--json"]])
@pytest.mark.parametrize(
    ("name", "words"), [("absent/page.html", "No such file or directory"), (".", "directory"), ("", "empty name")]
)
def test_a_page_that_cannot_be_written(
    tiny_bundle: Path,
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: list[str],
    name: str,
    words: str,
) -> None:
    """The reply stands on stdout; then one line, and exit code 2."""
    monkeypatch.chdir(tmp_path)
    path = name and str(tmp_path / name)
    config = GenerationConfig(max_new_tokens=6)
    assert main(["generate", str(tiny_bundle), "hi", *GUIDED, *output, "--explain", path]) == 2
    out, err = capsys.readouterr()
    text = generator.generate("hi", preference="short", config=config).text
    assert (json.loads(out)["text"] if output else out.removesuffix("\n")) == text
    line = error_line(err, "pad")
    assert "cannot be written: " in line
    assert words in line
    assert "expected the path of a file, in a folder that exists" in line
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_page_that_was_there(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    page.write_text("before")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert main(["generate", str(tiny_bundle), "hi", *GUIDED, "--explain", str(page)]) == 2
    assert "No space left on device" in error_line(capsys.readouterr().err, "pad")
    assert page.read_text() == "before"
