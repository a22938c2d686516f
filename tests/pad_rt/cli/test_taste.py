"""`pad taste`: the questions, the file, logs, and what --taste makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pad_rt import Generator, Preference, Taste
from pad_rt.cli import taste as command
from pad_rt.cli.main import main
from pad_rt.taste.taste import Estimate
from tests.support.error_checks import error_line
from tests.support.pad_command import pipe_in


@pytest.fixture(autouse=True)
def ask_whatever_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny PersRM's replies hardly differ."""
    monkeypatch.setattr("pad_rt.taste.taste.Taste.ask.__kwdefaults__", {"least_bits": 0.0, "skip": ()})


def run(*arguments: object) -> int:
    return main(["taste", *map(str, arguments), "--threads", "1"])


def test_questions_answers_and_what_is_kept(
    tiny_bundle: Path,
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts, me = tmp_path / "prompts.txt", tmp_path / "me.json"
    prompts.write_text("the cook\n\nHow do I boil an egg?\n")
    pipe_in(monkeypatch, "s\nx\nA\n")
    assert run(tiny_bundle, "-o", me, "--prompts", prompts) == 0
    out, err = capsys.readouterr()
    assert "1. the cook" in out
    assert "2. How do I boil an egg?" in out
    assert "a)  " in out
    assert "b)  " in out
    assert "'x' is none of a, b, s and q." in err
    assert "After 1 answer, your weights" in out
    assert out.endswith(f'pad generate {tiny_bundle} "How was your day?" --taste {me}\n')
    learned = Taste.load(me, generator)
    assert learned.num_answers == 1

    pipe_in(monkeypatch, "b\n")  # goes on; the input ends, and so do the questions
    assert run(tiny_bundle, "-o", me, "--prompts", prompts) == 0
    assert "After 2 answers" in capsys.readouterr().out
    pipe_in(monkeypatch, "")
    assert run(tiny_bundle, "-o", me, "--show") == 0
    assert capsys.readouterr().out == command.beliefs(Taste.load(me, generator)) + "\n"

    weights = Taste.load(me, generator).preference().weights
    assert main(["generate", str(tiny_bundle), "the cook", "--taste", str(me), "--max-new-tokens", "5", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["preference"]["weights"] == weights
    expected = generator.generate("the cook", preference=Preference(weights=weights), config={"max_new_tokens": 5})
    assert record["text"] == expected.text


def test_learning_from_a_log(
    tiny_bundle: Path, generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = [{"role": "user", "content": "the cook"}, {"role": "assistant", "content": "an egg"}]
    rows = [{"messages": chat, "edited": "a kind egg"}, {"messages": chat, "rating": -1}, {"messages": chat}, 7]
    log, me = tmp_path / "chats.jsonl", tmp_path / "me.json"
    log.write_text("\n".join(map(json.dumps, rows)))
    assert run(tiny_bundle, "-o", me, "--from", log) == 0
    out = capsys.readouterr().out
    assert f"{log}: learned from 2 of 2 choices (1 edited, 1 rated)" in out
    assert "1 skipped: no rating, edit or regenerated reply, first in line 3" in out
    assert "1 skipped: no JSON object, first in line 4" in out
    expected = Taste(generator)
    expected.edit(chat[:1], "an egg", "a kind egg")
    expected.rate(chat[:1], "an egg", -1)
    assert Taste.load(me, generator).preference() == expected.preference()


def test_the_bars() -> None:
    assert command._bar(Estimate(0.0, -1.0, 1.0)) == "-" * 10 + "o" + "-" * 10
    assert command._bar(Estimate(0.8, 0.5, 1.0)) == " " * 10 + "." + " " * 4 + "---o--"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--questions", "0"], "--questions 0"),
        (["-o", "none/me.json"], "-o none/me.json; expected the path of a file"),
        (["-o", "."], "-o .; expected the path of a file"),
        (["--prompts", "none.txt"], "--prompts none.txt cannot be read"),
        (["--from", "none.jsonl"], "--from none.jsonl cannot be read"),
    ],
)
def test_bad_input(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert run(tiny_bundle, "-o", tmp_path / "me.json", *arguments) == 2
    assert line in error_line(capsys.readouterr().err, "pad")
    assert not (tmp_path / "me.json").exists()


def test_where_nothing_is_learned_nothing_is_saved(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("no log\n")
    for arguments in (["--from", tmp_path / "log"], []):
        pipe_in(monkeypatch, "")
        assert run(tiny_bundle, "-o", tmp_path / "me.json", *arguments) == 0
        assert capsys.readouterr().out.endswith("Nothing was learned, so nothing is saved.\n")
        assert not (tmp_path / "me.json").exists()


def test_a_file_that_is_no_taste(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "me.json").write_text("{}")
    assert run(tiny_bundle, "-o", tmp_path / "me.json") == 2
    assert "is no saved taste" in error_line(capsys.readouterr().err, "pad")
    assert (tmp_path / "me.json").read_text() == "{}"
    command = ["generate", str(tiny_bundle), "the cook", "--taste", str(tmp_path / "me.json")]
    assert main([*command, "--weight", "kind=1"]) == 2
    assert "--weight beside --taste" in error_line(capsys.readouterr().err, "pad")
    assert main(command) == 2
    assert "is no saved taste" in error_line(capsys.readouterr().err, "pad")
