from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pad_export import cli as export_cli
from pad_export.output import stages
from pad_export.read.persrm import read_persrm
from pad_train.cli import main
from pad_train.pairs.own_layout import pair_to_record
from pad_train.pairs.pair import Pair
from pad_train.pairs.pair_file import PairSource, read_pairs
from pad_train.train.stage_trainer import StageTrainer
from tests.support import tiny_models, tiny_training
from tests.support.error_checks import error_line, snapshot

QUICK = ["--dtype", "fp32", "--rank", "2", "--epochs", "1", "--head-epochs", "1", "--held-out", "0.3"]
QUICK += ["--candidates", "8", "--save-steps", "2", "--lr", "5e-3", "--modules", "all-linear", "--layers", "1"]
SCORER = "def vowels(prompts, replies):\n    return [sum(r.count(v) for v in 'aeiou') for r in replies]\n"
WORDINGS = {name: {"more": feature.more, "less": feature.less} for name, feature in tiny_training.FEATURES.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "base"
    tiny_models.make_base(folder, "llama", seed=1, num_hidden_layers=1)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", tiny_training.make_pairs(4))


def write_pairs(path: Path, pairs: Sequence[Pair]) -> Path:
    path.write_text("".join(json.dumps(pair_to_record(pair)) + "\n" for pair in pairs))
    return path


def write_features(folder: Path, **sampling: Any) -> Path:
    (folder / "scorers.py").write_text(SCORER)
    fields = {"scorer": "scorers.py:vowels", "samples": 2, "block": 4, "max_new_tokens": 8, "min_words": 1} | sampling
    (folder / "features.json").write_text(json.dumps({"vowels": {"sampling": fields}, "unsampled": {}}))
    return folder / "features.json"


def train(base: Path, data: Path | str, output: Path, *options: str) -> int:
    return main(["--base", str(base), "--data", str(data), "-o", str(output), *options])


# -- pad-train ------------------------------------------------------------------------------------------------------


def test_from_pairs_to_a_bundle(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "features.json").write_text(json.dumps(WORDINGS))
    output = tmp_path / "sub" / "my taste"
    options = [
        "--features",
        str(tmp_path / "features.json"),
        "--name",
        "taste",
        "--worded",
        "1",
        "--threads",
        str(torch.get_num_threads()),
    ]
    assert train(base, data, output, *QUICK, *options) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[:2] == [f"{data}: 8 pairs of 8 rows", "loading torch"]
    assert "training: 8 examples" in err  # 2 of 4 prompts, with a second pair in words for each
    lines = out.splitlines()
    assert lines[0] == f"wrote {output}"
    accuracies = [line.split(":")[0] for line in lines[1:-1]]
    assert accuracies == [
        f"  held-out pairwise accuracy, {name}" for name in ("all features", "eggs", "noise", "words")
    ]
    persrm = read_persrm(output)
    assert (persrm.name, persrm.features) == ("taste", ("eggs", "noise", "words"))
    words = shlex.split(lines[-1].removeprefix("try: "))
    assert words[0] == "pad-export"
    words[words.index("BUNDLE")] = str(tmp_path / "bundle")
    assert export_cli.main([*words[1:], "--no-verify", "--quiet"]) == 0
    manifest = json.loads((tmp_path / "bundle" / "pad.json").read_text())
    assert manifest["topology"] == "shared"  # the adapter's base is the base


def test_quiet(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_pairs(tmp_path / "p.jsonl", [replace(pair, weights={}) for pair in tiny_training.make_pairs(3)])
    arguments = ["--quiet", "--base-name", "someone/base", "--epochs", "0.5", "--head-epochs", "0"]
    assert train(base, f"kind={data}", tmp_path / "taste", *QUICK, *arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0] == f"wrote {tmp_path / 'taste'}"
    assert read_persrm(tmp_path / "taste").features == ("kind",)
    config = json.loads((tmp_path / "taste" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/base"


def test_what_training_says(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words alone, where transformers' trainer prints its dicts between bars."""
    assert train(base, data, tmp_path / "taste", *QUICK) == 0
    err = capsys.readouterr().err
    assert "{" not in err
    assert "\r" not in err
    lines = err.splitlines()
    number = r"\d+\.\d+"
    for pattern in (
        r"asking the base: \d+ examples",
        r"stage 1: LoRA and head on \d+ examples",
        r"stage 1: \d+ steps",
        rf"stage 1: held-out loss {number}, accuracy {number}% \(eggs {number}%, noise {number}%\)",
        r"stage 2: reading hidden states: \d+ examples",
        r"stage 2: \d+ steps",
        rf"stage 2: held-out loss {number}, accuracy {number}% \(eggs {number}%, noise {number}%\)",
    ):
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, err)


def test_steps_in_words(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no pause between two lines: stage, step, loss, accuracy, seconds left."""
    monkeypatch.setattr(stages, "_INTERVAL", 0.0)
    assert train(base, data, tmp_path / "taste", *QUICK, "--batch", "1") == 0
    lines = capsys.readouterr().err.splitlines()
    line = r"stage 1: \d+ of \d+ steps, loss \d+\.\d+, accuracy \d+\.\d%, \d+ s left"
    assert any(re.fullmatch(line, shown) for shown in lines), lines


def test_people_in_words_need_no_feature(base: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text(json.dumps(WORDINGS))
    pairs = [replace(pair, weights={}, preference="kind") for pair in tiny_training.make_pairs(3)]
    words = write_pairs(tmp_path / "words.jsonl", pairs)
    arguments = ["--features", str(tmp_path / "features.json"), "--epochs", "0.2", "--head-epochs", "0", "--quiet"]
    assert (
        main(["--base", str(base), "--data", str(data), str(words), "-o", str(tmp_path / "o"), *QUICK, *arguments]) == 0
    )
    assert read_persrm(tmp_path / "o").features == ("eggs", "noise", "words")


def test_a_base_without_a_chat_template(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Path(shutil.copytree(base, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    assert train(plain, data, tmp_path / "taste", *QUICK, "--epochs", "0.2", "--head-epochs", "0") == 0
    assert f"note: {plain} has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_done(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: signal.Signals, code: int,
) -> None:  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(StageTrainer, "compute_loss", lambda *_, **__: signal.raise_signal(number))
        assert train(base, data, tmp_path / "taste", *QUICK) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "error" not in err
    kept = tmp_path / "taste.partial"
    assert err.endswith(f"what is done is kept in {kept}; the same command goes on from there\n")
    assert [path.name for path in tmp_path.iterdir()] == ["taste.partial"]
    assert train(base, data, tmp_path / "taste", *QUICK) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["taste"]


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str], command: str = "pad-train") -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return error_line(err, command)


def test_more_threads_than_any_machine_has(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--base", str(base), "--data", str(data), "-o", str(tmp_path / "o"), "--threads", "1000000"]
    assert "--threads 1000000; expected a whole number, at least 1 and at most " in refusal(capsys, given)


def test_paths_that_cannot_be(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = snapshot(tmp_path)
    given = ["--base", str(base), "--data", str(data), "-o"]
    for name in ("mine", "file", "link"):
        line = refusal(capsys, [*given, str(tmp_path / name)])
        assert line.endswith(f"-o {tmp_path / name} exists; choose another path, or remove it")
    assert "cannot be written: " in refusal(capsys, [*given, str(tmp_path / "file" / "x")])
    output = str(tmp_path / "o")
    assert f"{tmp_path / 'no'} does not exist" in refusal(
        capsys, ["--base", str(tmp_path / "no"), "--data", str(data), "-o", output]
    )
    assert "absent.jsonl does not exist" in refusal(
        capsys, ["--base", str(base), "--data", "absent.jsonl", "-o", output]
    )
    assert "is empty" in refusal(capsys, ["--base", str(base), "--data", str(tmp_path / "file"), "-o", output])
    assert "--features absent.json does not exist" in refusal(capsys, [*given, output, "--features", "absent.json"])
    assert snapshot(tmp_path) == before


def test_a_feature_that_the_features_file_does_not_know(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "features.json").write_text('{"eggs": {}, "kind": {}}')
    arguments = ["--base", str(base), "--data", str(data), "-o", str(tmp_path / "o")]
    line = refusal(capsys, [*arguments, "--features", str(tmp_path / "features.json")])
    assert "the data speaks of the feature noise; expected one of eggs, kind, those of" in line
    assert not list(tmp_path.glob("o*"))


def test_a_name_that_is_no_feature(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--base", str(base), "-o", str(tmp_path / "o"), "--data"]
    assert "does not exist" in refusal(capsys, [*arguments, f"no name={data}"])
    assert "expected PATH or NAME=PATH" in refusal(capsys, [*arguments, f"={data}"])


@pytest.mark.parametrize(
    "option",
    [
        ["--lr", "2"], ["--lr", "nan"], ["--beta", "inf"], ["--epochs", "-1"], ["--rank", "0"], ["--rank", "2.5"],
        ["--seed", "-1"], ["--held-out", "1"], ["--dtype", "fp64"], ["--learn", "1"],
    ],
)  # fmt: skip
def test_values_out_of_range(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--base", "b", "--data", "d", "-o", "o", *option])
    assert caught.value.code == 2
    assert f"pad-train: error: {'unrecognized' if option[0] == '--learn' else f'argument {option[0]}'}" in (
        capsys.readouterr().err
    )


def test_a_missing_package(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    line = refusal(capsys, ["--base", str(base), "--data", str(data), "-o", str(tmp_path / "o")])
    assert line.endswith("accelerate is not installed; pip install 'pad-rt[train]'")
    assert not list(tmp_path.iterdir())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["pairs", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert "goes on" in " ".join(text.split())
        assert "None" not in text


# -- pad-train pairs ------------------------------------------------------------------------------------------------


def test_pairs_of_the_bases_own_replies(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = write_features(tmp_path)
    (tmp_path / "prompts.txt").write_text("the egg\n\nthe cook\nthe egg\n  why?\nno more\n")
    output = tmp_path / "sub" / "pairs.jsonl"
    arguments = ["pairs", "--base", str(base), "--features", str(features), "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*arguments, "-o", str(output), "--limit", "3", "--batch", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    num_pairs = int(lines[0].removeprefix(f"wrote {output}: pairs by feature: vowels "))
    assert num_pairs + sum(int(line.split()[0]) for line in lines[1:]) == 6  # two a prompt
    assert len(output.read_text().splitlines()) == num_pairs
    assert [path.name for path in output.parent.iterdir()] == ["pairs.jsonl"]


def test_replies_that_were_given(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pairs", "--features", str(write_features(tmp_path)), "--replies", str(data)]
    assert main([*arguments, "-o", str(tmp_path / "ranked.jsonl")]) == 0
    assert "wrote" in capsys.readouterr().out
    pairs, _ = read_pairs([PairSource(tmp_path / "ranked.jsonl")])
    assert {name for pair in pairs for name in pair.weights} == {"vowels"}


def test_what_pairs_cannot_be_made_of(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = str(write_features(tmp_path))
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "some.txt").write_text("why?\n")
    (tmp_path / "unscored.json").write_text('{"a": {"more": ["x"]}}')
    (tmp_path / "nan.py").write_text("def score(prompts, replies):\n    return [float('nan')] * len(replies)\n")
    (tmp_path / "nan.json").write_text('{"a": {"sampling": {"scorer": "nan.py:score"}}}')
    styled = {"vowels": {"sampling": {"scorer": "contrast", "styles": [{"more": {"system": "x"}}]}}}
    (tmp_path / "styled.json").write_text(json.dumps(styled))
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    (bare / "chat_template.jinja").unlink()
    (tmp_path / "kind.jsonl").write_text('{"prompt": "p", "reply": "x", "weights": {"kindd": 1}}')
    blank, some, output = str(tmp_path / "blank.txt"), str(tmp_path / "some.txt"), str(tmp_path / "o.jsonl")
    with_base = ["--base", str(base), "--prompts"]
    for arguments, words in [
        (["--features", features, *with_base, blank], "holds no prompt"),
        (["--features", features, *with_base, str(tmp_path / "absent.txt")], "absent.txt cannot be read"),
        (["--features", features, *with_base, some, "--replies", str(data)], "--prompts and --replies; expected one"),
        (["--features", features, "--base", str(base)], "no prompts to sample replies for"),
        (["--features", features, "--prompts", some], "expected --base and --prompts, or --replies"),
        (["--features", features, "--base", str(tmp_path / "no"), "--prompts", some], "no does not exist"),
        (["--features", str(tmp_path / "unscored.json"), *with_base, some], "has no feature with a scorer"),
        (["--features", str(tmp_path / "nan.json"), *with_base, some], "gave [nan"),
        (
            ["--features", str(tmp_path / "styled.json"), "--base", str(bare), "--prompts", some],
            "bare has no chat template",
        ),
        (["--features", str(tmp_path / "nan.json"), "--replies", str(data)], "gave [nan"),
        (["--features", features, "--replies", str(tmp_path / "kind.jsonl")], "the replies speak of the feature kindd"),
    ]:
        line = refusal(capsys, ["pairs", *arguments, "-o", output], "pad-train pairs")
        assert words in line
        assert not Path(output).exists()
    line = refusal(capsys, ["pairs", "--features", features, "--replies", str(data), "-o", some], "pad-train pairs")
    assert "exists; choose another path" in line
