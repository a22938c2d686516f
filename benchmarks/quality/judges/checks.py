"""Texts whose answer is known, and how often a judge gives it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.judges.judge import Judge
from benchmarks.quality.replies import JudgedReply

DATA = Path(__file__).resolve().parents[1] / "data"
LEVELS = DATA.parents[2] / "demo" / "training" / "data" / "onestop-english" / "pairs.jsonl"
NUM_LEVELS = 400

Score = Callable[[Sequence[JudgedReply]], Sequence[float]]


@dataclass(frozen=True)
class Contrast:
    """Two texts on one subject, the first with more of a feature.

    Attributes:
        feature: that they differ in.
        prompt: what they answer.
        more: the text with more of the feature.
        less: the text with less.
        cut: whether a cap broke each of them off.
    """

    feature: str
    prompt: str
    more: str
    less: str
    cut: tuple[bool, bool] = (False, False)


def read_contrasts(path: Path = DATA / "judge-pairs.jsonl") -> list[Contrast]:
    """Pairs written for this benchmark by hand, at least twelve a feature: what nobody would doubt."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Contrast(row["feature"], row.get("prompt", "?"), row["more"], row["less"]) for row in rows]


def read_asked(path: Path = DATA / "asked-replies.jsonl") -> list[Contrast]:
    """What the base answers to questions of the training list when it is told the wish, and its opposite.

    SmolLM2-135M-Instruct, the wish in the system prompt and behind the question, temperature 0.7, at most 80 or 96
    tokens. It heeds a wish only now and then: a good judge is far from 100 %, and one that sees nothing is at 50 %.
    """
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Contrast(**{**row, "cut": tuple(row["cut"])}) for row in rows]


def read_levels(path: Path = LEVELS) -> list[Contrast]:
    """News sentences told for elementary and for advanced readers (OneStopEnglish): an even sample of the file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Contrast("simple", "?", row["elementary"], row["advanced"]) for row in rows[:: max(1, len(rows) // NUM_LEVELS)]
    ]


def read_films(folder: Path = DATA / "sentence-polarity") -> list[Contrast]:
    """Film sentences with praise beside such with blame (Pang and Lee 2005): the half that no training saw."""
    praise, blame = (_sentences(folder / f"{name}.txt") for name in ("pos", "neg"))
    return [Contrast("cheerful", "?", more, less) for more, less in zip(praise, blame, strict=False)]


def accuracy(score: Score, contrasts: Sequence[Contrast]) -> float:
    """Share of the pairs in which the text with more of the feature scores higher; a tie is half."""
    more = score([JudgedReply(each.prompt, each.more, (), each.cut[0]) for each in contrasts])
    less = score([JudgedReply(each.prompt, each.less, (), each.cut[1]) for each in contrasts])
    return sum((a > b) + (a == b) / 2 for a, b in zip(more, less, strict=True)) / len(contrasts)


def describe(judge: Judge, sets: Mapping[str, Sequence[Contrast]]) -> str:
    """A sentence of the judge's accuracy on those pairs of each set that differ in its feature."""
    own = {name: [each for each in contrasts if each.feature == judge.feature] for name, contrasts in sets.items()}
    return "; ".join(
        f"{accuracy(judge.score, contrasts):.0%} of {len(contrasts)} {name} right"
        for name, contrasts in own.items()
        if contrasts
    )


def _sentences(path: Path) -> list[str]:
    """The corpus has spaces before punctuation and no capitals."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [re.sub(r" ([,.;:!?'])", r"\1", line).strip() for line in lines if line.strip()]
