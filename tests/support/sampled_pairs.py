"""Pairs sampled for features that a count of letters can see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pad_export.output.stages import Stages
from pad_train.pairs.feature import Feature, PairSampling
from pad_train.pairs.make_pairs import make_pairs, plan_tasks
from pad_train.pairs.pair import Pair
from pad_train.pairs.pair_file import PairSource, read_pairs
from pad_train.pairs.scorer import Critic, Scorer
from pad_train.train.backbone import Backbone

PROMPTS = [f"the egg {number}" for number in range(6)]
SAMPLING = PairSampling((("test:none", 1.0),), samples=3, block=4, max_new_tokens=12, min_words=0)
SETTINGS = {"batch": 2}


def many_vowels(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    return [float(sum(reply.count(vowel) for vowel in "aeiou")) for reply in replies]


def length(_: Sequence[str], replies: Sequence[str]) -> list[float]:
    return [float(len(reply)) for reply in replies]


def feature(name: str = "vowels", **sampling: Any) -> Feature:
    return Feature(name, sampling=replace(SAMPLING, **sampling))


def sample(
    backbone: Backbone, output: Path, features: Sequence[Feature] = (feature(),), scorer: Scorer = many_vowels,
    prompts: Sequence[str] = PROMPTS, seed: int = 0, settings: dict[str, Any] = SETTINGS,
) -> dict[str, int]:  # fmt: skip
    critics = {entry.name: Critic(scorer) for entry in features}
    return make_pairs(
        backbone, plan_tasks(prompts, features, batch=2), critics, output,
        settings=settings, seed=seed, stages=Stages(),
    )  # fmt: skip


def pairs_of(output: Path) -> list[Pair]:
    return read_pairs([PairSource(output)])[0]
