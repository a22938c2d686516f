"""`pad score`: the table, the object, every option, and what cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pad_rt import Generator, Preference
from pad_rt.cli.main import main
from pad_rt.cli.score import as_table
from pad_rt.score.reply_score import ReplyScore, TokenScore
from tests.support.error_checks import error_line
from tests.support.pad_command import pipe_in

SCORE = ReplyScore(
    (
        TokenScore(7, "I'm", -0.5, {"kind": 1.25, "a long feature": -0.004}, 2.5),
        TokenScore(8, " 東京", -12.25, {"kind": -101.0, "a long feature": 0.5}, -202.0),
        TokenScore(9, "\n", -0.001, {"kind": 0.0, "a long feature": 0.0}, 0.0),
        TokenScore(10, "", -2.0, {"kind": 0.0, "a long feature": 0.0}, 0.0),
    )
)
TABLE = """\
token                  log-prob      kind  a long feature    reward
"I'm"                     -0.50     +1.25           -0.00     +2.50
" 東京"                  -12.25   -101.00           +0.50   -202.00
"\\n"                      -0.00     +0.00           +0.00     +0.00
(part of a character)     -2.00     +0.00           +0.00     +0.00

all 4 tokens             -14.75    -99.75           +0.50   -199.50
mean                      -3.69    -24.94           +0.12    -49.88
"""


def test_the_table() -> None:
    """Columns line up where characters are wide, and the key names every column."""
    table = as_table(SCORE)
    assert table.startswith(TABLE + "\nlog-prob: ")
    key = table.removeprefix(TABLE).splitlines()[1:]
    assert [line.split(":")[0] for line in key] == ["log-prob", "kind, a long feature", "reward"]


def test_the_table_of_a_reply_without_features_and_preference() -> None:
    table = as_table(ReplyScore((TokenScore(7, "no", -1.0, {}),)))
    assert table.splitlines()[:5] == [
        "token          log-prob",
        '"no"              -1.00',
        "",
        "the one token     -1.00",
        "mean              -1.00",
    ]
    assert "reward" not in table


def test_it_prints_what_the_library_says(
    tiny_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, preference in (
        ([], None),
        (["--preference", "short"], "short"),
        (["--preference", "short", "--weight", "cheerful=0.5"], Preference("short", {"cheerful": 0.5})),
    ):
        assert main(["score", str(tiny_bundle), "hi", "the egg boils", *options]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == (as_table(generator.score("hi", "the egg boils", preference)) + "\n", "")


def test_json(tiny_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weight", "cheerful=2", "--ended", "--top-k", "9", "--system", "Be odd.", "--json", "--threads", "1"]
    assert main(["score", str(tiny_bundle), "hi", "naïve egg", *options]) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    messages = [{"role": "system", "content": "Be odd."}, {"role": "user", "content": "hi"}]
    preference = Preference(weights={"cheerful": 2.0})
    score = generator.score(messages, "naïve egg", preference, ended=True, top_k=9)
    record = json.loads(out)
    assert record["logprob"] == pytest.approx(score.logprob, abs=1e-4)
    assert record["features"] == pytest.approx(score.features, abs=1e-4)
    assert record["reward"] == pytest.approx(2 * score.features["cheerful"], abs=1e-4)
    assert record["token_ids"] == list(score.token_ids)
    assert record["preference"] == {"text": None, "weights": {"cheerful": 2.0}}
    assert [token["text"] for token in record["per_token"]] == [token.text for token in score.per_token]
    assert record["per_token"][-1]["text"] == "</s>"
    assert record["per_token"][0].keys() == {"id", "text", "logprob", "features", "reward"}


def test_a_reply_or_a_prompt_from_stdin(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(tiny_bundle), "hi", "two\nlines"]) == 0
    expected = capsys.readouterr().out
    for prompt, reply, text in (("hi", "-", "two\nlines"), ("-", "two\nlines", "hi")):
        pipe_in(monkeypatch, text + "\r\n")
        assert main(["score", str(tiny_bundle), prompt, reply]) == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "a"], "an empty prompt; expected some text"),
        (["hi", ""], "an empty reply; expected some text or token ids"),
        (["-", "-"], "- for both PROMPT and REPLY; expected one of them on stdin"),
        (["hi", "a", "--top-k", "0"], "top_k=0; expected an integer >= 1"),
        (["hi", "a", "--weight", "sad=1"], "unknown feature 'sad'; expected one of cheerful"),
        (["hi", "a", "--weight", "cheerful"], "--weight 'cheerful'; expected NAME=W"),
        (["hi", "a", "--device", "tpu"], "device 'tpu'; expected one of auto"),
        (["hi", "ab " * 200], "tokens; expected at most 256 together, the bundle's max_length"),
        (["hi", "a\udcffb"], "lone surrogate"),
        (["hi", "a", "--template-arg", "x=1"], "template argument 'x'"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    for extra in ([], ["--json"]):
        assert main(["score", str(tiny_bundle), *arguments, *extra]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert words in error_line(err, "pad")


def test_a_closed_stdin(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["score", str(tiny_bundle), "hi", "-"]) == 2
    assert "stdin is closed; expected the reply on stdin" in error_line(capsys.readouterr().err, "pad")


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path / "absent"), "hi", "a"]) == 2
    assert "no bundle at" in error_line(capsys.readouterr().err, "pad")
