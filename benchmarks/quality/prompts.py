"""The questions: those that no training saw, and those of the training list that no pair was made of."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.common.records import ROOT

UNSEEN = Path(__file__).parent / "data" / "prompts" / "unseen.txt"
TRAINING = ROOT / "demo" / "training"


def read_prompts(number: int) -> list[str]:
    """The first of all unseen ones, in an order drawn once: a smaller run's prompts are part of a larger one's."""
    lines = _lines(UNSEEN)
    if number > len(lines):
        raise SystemExit(f"--prompts {number}: there are {len(lines)}")
    return random.Random(0).sample(lines, len(lines))[:number]


def read_unpaired(number: int) -> list[str]:
    """The first of the training list that are in no pair: what is chosen on them is chosen before the others are asked.

    Raises:
        SystemExit: there are fewer, or one of them is among the unseen ones.
    """
    paired = {
        json.loads(line)["prompt"] for name in ("pairs.jsonl", "guided-pairs.jsonl") for line in _lines(TRAINING / name)
    }
    unpaired = [line for line in _lines(TRAINING / "data" / "prompts" / "training.txt") if line not in paired]
    if number > len(unpaired):
        raise SystemExit(f"{number} questions without pairs were asked for: there are {len(unpaired)}")
    if both := set(unpaired) & set(_lines(UNSEEN)):
        raise SystemExit(f"{len(both)} questions are in both lists, such as {min(both)!r}")
    return unpaired[:number]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
