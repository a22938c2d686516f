"""Sampling again: a seed gives the same pairs, interrupted or not; with other settings nothing goes on."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pad_runtime.errors import CheckpointError, OptionError
from pad_train.pairs.scorer import Scorer
from pad_train.train.backbone import Backbone
from tests.support.error_checks import refused
from tests.support.sampled_pairs import PROMPTS, feature, many_vowels, sample

TWO = (feature(), feature("length", samples=1))


def test_a_seed_gives_the_same_pairs_whatever_was_sampled_before(backbone: Backbone, tmp_path: Path) -> None:
    sample(backbone, tmp_path / "a.jsonl", TWO)
    sample(backbone, tmp_path / "b.jsonl", TWO)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    sample(backbone, tmp_path / "c.jsonl", TWO[1:], prompts=PROMPTS[2:])
    rows, some = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("a.jsonl", "c.jsonl")
    )
    assert some == [row for row in rows if row["weights"] == {"length": 1.0} and row["prompt"] not in PROMPTS[:2]]
    sample(backbone, tmp_path / "d.jsonl", TWO, seed=1)
    assert (tmp_path / "a.jsonl").read_bytes() != (tmp_path / "d.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]


def failing(number: int, error: BaseException) -> Scorer:
    calls = [0]

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        calls[0] += 1
        if calls[0] == number:
            raise error
        return many_vowels(prompts, texts)

    return score


@pytest.mark.parametrize("cut", ["", "half a line", "half a character", "header"])
def test_interrupted_is_uninterrupted(backbone: Backbone, tmp_path: Path, cut: str) -> None:
    sample(backbone, tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        sample(backbone, tmp_path / "pairs.jsonl", scorer=failing(7, KeyboardInterrupt()))
    assert not (tmp_path / "pairs.jsonl").exists()
    partial = tmp_path / "pairs.jsonl.partial"
    data = partial.read_bytes()
    assert data.count(b"\n") == 2  # the settings, and the one batch that was done
    if cut == "half a line":
        partial.write_bytes(data[:-20])
    elif cut == "half a character":
        partial.write_bytes(data + '{"task": "é'.encode()[:-1])
    elif cut == "header":
        partial.write_bytes(data[:30])
    calls: list[int] = []

    def count(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        calls.append(1)
        return many_vowels(prompts, texts)

    counts = sample(backbone, tmp_path / "pairs.jsonl", scorer=count)
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sum(counts.values()) == 2 * len(PROMPTS)
    assert len(calls) == (12 if cut in ("half a line", "header") else 8)  # four a batch; what was done is not repeated
    assert not partial.exists()


@pytest.mark.parametrize("change", ["seed", "settings", "feature"])
def test_other_settings_do_not_go_on(backbone: Backbone, tmp_path: Path, change: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        sample(backbone, tmp_path / "pairs.jsonl", scorer=failing(7, KeyboardInterrupt()))
    before = (tmp_path / "pairs.jsonl.partial").read_bytes()
    changes: dict[str, Any] = {
        "seed": {"seed": 1}, "settings": {"settings": {"batch": 3}}, "feature": {"features": [feature(samples=2)]},
    }[change]  # fmt: skip
    with refused(OptionError, given="pairs.jsonl.partial was begun with other settings", hint="remove it"):
        sample(backbone, tmp_path / "pairs.jsonl", **changes)
    assert (tmp_path / "pairs.jsonl.partial").read_bytes() == before


def test_a_full_disk(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(backbone, tmp_path / "whole.jsonl")
    real, calls = Path.open, [0]

    class Full:
        """A file on a disk with room for half a line."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[: len(text) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        calls[0] += mode == "a"
        file = real(path, mode, *arguments, **options)
        return Full(file) if mode == "a" and calls[0] == 2 else file

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", opened)
        with refused(CheckpointError, given="no space left on the disk of", hint="repeat"):
            sample(backbone, tmp_path / "pairs.jsonl")
    sample(backbone, tmp_path / "pairs.jsonl")
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
