"""Training, and making pairs, on disks that fill up, in one place at once, and the rights of what they write."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pad_export.read.checkpoint import open_checkpoint
from pad_runtime.errors import CheckpointError, OptionError, PadError
from pad_train.pairs.feature import Feature
from pad_train.pairs.make_pairs import rank_replies
from pad_train.pairs.pair_choice import Answers, MadeReply
from pad_train.pairs.scorer import Critic
from pad_train.train.backbone import Backbone, load_backbone
from pad_train.train.stage_trainer import StageTrainer
from tests.support import small_disk, tiny_models, tiny_training
from tests.support.error_checks import check_line, refused, snapshot
from tests.support.sampled_pairs import feature, many_vowels, sample

OPTIONS = replace(tiny_training.QUICK, save_steps=2, epochs=0.5, head_epochs=0.5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "base"
    tiny_models.make_base(folder, "llama", seed=1, num_hidden_layers=1)
    return folder


@pytest.fixture(scope="module")
def backbone(base: Path) -> Backbone:
    return load_backbone(open_checkpoint(base), dtype=torch.float32)


def fit(base: Path, output: Path, **changes: Any) -> None:
    tiny_training.train(base, tiny_training.make_pairs(4), output, replace(OPTIONS, **changes))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_what_is_made_follows_the_umask(base: Path, backbone: Backbone, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        fit(base, tmp_path / "taste")
        sample(backbone, tmp_path / "pairs.jsonl")
    finally:
        os.umask(before)
    files = [tmp_path / "pairs.jsonl", *(tmp_path / "taste").iterdir()]
    assert len(files) > 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "taste").stat().st_mode) == 0o777 & ~umask


def test_a_disk_that_is_full_at_many_sizes(base: Path, tmp_path: Path) -> None:
    """What was trained is kept as long as there is any, and the next call goes on from it."""
    fit(base, tmp_path / "whole")
    with small_disk.mounted(tmp_path / "disk") as disk:
        output = disk.folder / "taste"
        refusals: list[PadError] = []
        for pages in (0, 1, 2, 3, 5, 8, 12, 16, 20, 25, 30, 40, 50, 60, 80, 100, 200, 1000):
            disk.leave(pages * 4096)
            try:
                fit(base, output)
            except PadError as error:
                refusals.append(error)
            else:
                break
            kept = {path.name for path in disk.folder.glob("taste.partial/*")}
            assert not output.exists()
            assert kept <= {"settings.json", "lock", "stage1", "stage2", "stage1.safetensors", "stage1.new", "persrm"}
            assert kept != {"settings.json", "lock"}
        for error in refusals:
            assert type(error) in (CheckpointError, OptionError)
            assert "o space left" in str(error)
            check_line(error)
        assert len(refusals) > 5
        assert disk.names() == ["taste"]
        assert snapshot(output) == snapshot(tmp_path / "whole")


def test_pairs_on_a_disk_that_is_full_at_many_sizes(backbone: Backbone, tmp_path: Path) -> None:
    sample(backbone, tmp_path / "whole.jsonl")
    size = (tmp_path / "whole.jsonl").stat().st_size
    for largest in (0, 10, size // 3, size // 2, size - 1):
        with (
            small_disk.largest_file(largest),
            refused(CheckpointError, given="no space left on the disk of", hint="goes on from there"),
        ):
            sample(backbone, tmp_path / "pairs.jsonl")
        assert not (tmp_path / "pairs.jsonl").exists()
    sample(backbone, tmp_path / "pairs.jsonl")
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "whole.jsonl"]


def test_two_trainings_in_one_folder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused while the first is at work, and when it has just ended; the first ends whole."""
    fit(base, tmp_path / "alone")
    real = StageTrainer.compute_loss
    calls: list[int] = []

    def another(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            with refused(OptionError, given="taste is being written by another process", hint="wait for it"):
                fit(base, tmp_path / "taste")
        return real(*args, **kwargs)

    monkeypatch.setattr(StageTrainer, "compute_loss", another)
    fit(base, tmp_path / "taste")
    whole = snapshot(tmp_path / "taste")
    assert whole == snapshot(tmp_path / "alone")
    with refused(OptionError, given="taste exists", hint="remove it"):
        fit(base, tmp_path / "taste")
    assert snapshot(tmp_path / "taste") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "taste"]


def test_what_appears_where_a_persrm_is_to_be(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not touched, and what was trained is kept for when it is gone."""
    real = StageTrainer.compute_loss

    def appear(*args: Any, **kwargs: Any) -> Any:
        (tmp_path / "taste").mkdir(exist_ok=True)
        (tmp_path / "taste" / "notes.txt").write_text("mine")
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(StageTrainer, "compute_loss", appear)
        with refused(OptionError, given="taste exists", hint="remove it"):
            fit(base, tmp_path / "taste")
    assert (tmp_path / "taste" / "notes.txt").read_text() == "mine"
    (tmp_path / "taste").rename(tmp_path / "elsewhere")
    fit(base, tmp_path / "taste")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "taste"]


def test_two_makers_of_one_file_of_pairs(backbone: Backbone, tmp_path: Path) -> None:
    sample(backbone, tmp_path / "alone.jsonl")
    tried: list[int] = []

    def score(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        if not tried:
            tried.append(1)
            with refused(OptionError, given="pairs.jsonl is being written by another process", hint="wait for it"):
                sample(backbone, tmp_path / "pairs.jsonl")
            with refused(OptionError, given="pairs.jsonl is being written by another process", hint="wait for it"):
                rank(tmp_path / "pairs.jsonl")
        return many_vowels(prompts, replies)

    sample(backbone, tmp_path / "pairs.jsonl", scorer=score)
    whole = (tmp_path / "pairs.jsonl").read_bytes()
    assert whole == (tmp_path / "alone.jsonl").read_bytes()
    for again in (lambda: sample(backbone, tmp_path / "pairs.jsonl"), lambda: rank(tmp_path / "pairs.jsonl")):
        with refused(OptionError, given="pairs.jsonl exists", hint="remove it"):
            again()
    assert (tmp_path / "pairs.jsonl").read_bytes() == whole


def rank(output: Path) -> None:
    """Pairs of replies that were given."""
    vowels: Feature = feature()
    asked = ({"role": "user", "content": "why?"},)
    replies = (MadeReply("aeiou", weights={"vowels": 1.0}), MadeReply("xyz"))
    rank_replies([Answers(asked, replies)], [vowels], {"vowels": Critic(many_vowels)}, output)
