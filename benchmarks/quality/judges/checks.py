"""Texts whose answer is known, and how often a judge gives it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.replies import JudgedReply

DATA = Path(__file__).resolve().parents[1] / "data"
LEVELS = DATA.parents[2] / "demo" / "training" / "data" / "onestop-english" / "pairs.jsonl"
NUM_LEVELS = 400

Score = Callable[[Sequence[JudgedReply]], Sequence[float]]


@dataclass(frozen=True)
class Contrast:
    """Two texts on one subject, the first with clearly more of a feature."""

    feature: str
    prompt: str
    more: str
    less: str


def read_contrasts(path: Path = DATA / "judge-pairs.jsonl") -> list[Contrast]:
    """Pairs written for this benchmark by hand, at least twelve a feature."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Contrast(row["feature"], row.get("prompt", "?"), row["more"], row["less"]) for row in rows]


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
    more, less = (
        score(
            [JudgedReply(contrast.prompt, text, (), cut=False) for contrast, text in zip(contrasts, side, strict=True)]
        )
        for side in ([each.more for each in contrasts], [each.less for each in contrasts])
    )
    return sum((a > b) + (a == b) / 2 for a, b in zip(more, less, strict=True)) / len(contrasts)


def describe(score: Score, sets: Sequence[tuple[str, Sequence[Contrast]]]) -> str:
    """A sentence of the accuracies on sets of pairs, each with its name."""
    return "; ".join(f"{accuracy(score, contrasts):.0%} of {len(contrasts)} {name} right" for name, contrasts in sets)


def _sentences(path: Path) -> list[str]:
    """The corpus has spaces before punctuation and no capitals."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [re.sub(r" ([,.;:!?'])", r"\1", line).strip() for line in lines if line.strip()]
