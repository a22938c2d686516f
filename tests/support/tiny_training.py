"""What training a PersRM of a tiny model needs: backbones, people with tastes that can be learned, quick options."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pad_export.read.checkpoint import Checkpoint, open_checkpoint
from pad_rt import Generator
from pad_train.options import ALL_LINEAR, TrainingOptions
from pad_train.pairs.feature import Feature
from pad_train.pairs.pair import Pair
from pad_train.train.backbone import Backbone, load_backbone
from pad_train.train.persrm_folder import read_reward_model, write_persrm
from pad_train.train.reward_model import RewardModel
from pad_train.train.train import train_persrm
from tests.support import tiny_models

QUICK = TrainingOptions(
    beta=0.1,
    calm=0.0,
    imitate=0.0,
    modules=ALL_LINEAR,
    layers=1.0,
    rank=4,
    alpha=8.0,
    lr=5e-3,
    head_lr=2e-3,
    epochs=1.0,
    head_epochs=1.0,
    candidates=16,
    held_out=0.25,
    dtype="fp32",
)
FEATURES = {
    "eggs": Feature("eggs", more=("eggs!", "boil the egg"), less=("no eggs", "cook without")),
    "noise": Feature("noise", more=("loud", "be loud"), less=("hush", "be quiet")),
}
_WORDS = {"eggs": (["egg", "boil"], ["the", "cook"]), "noise": (["!", "?"], [".", ","])}  # more, less


@dataclass(frozen=True)
class Trained:
    """A PersRM and what came of it: its base and itself as folders, a bundle of both, and how training went."""

    base: Path
    folder: Path
    bundle: Path
    metrics: dict[str, float]
    generator: Generator

    def read_back(self) -> RewardModel:
        """The reward model as the folder holds it."""
        return read_reward_model(self.folder, load(self.base))


def make_backbone(folder: Path, family: str = "llama", *, seed: int = 1, **config: Any) -> Backbone:
    """A tiny base, loaded in fp32."""
    tiny_models.make_base(folder, family, seed=seed, **config)
    return load(folder)


def load(base: Path) -> Backbone:
    """A base in fp32."""
    return load_backbone(open_checkpoint(base), dtype=torch.float32)


def make_pairs(num_prompts: int, *, seed: int = 0, features: Sequence[str] = ("eggs", "noise")) -> list[Pair]:
    """For each prompt and feature two replies that differ in nothing but how much of the feature they have."""
    rng, pairs = random.Random(seed), []
    for index in range(num_prompts):
        prompt = f"the {index} cook {rng.choice('abcde')}"
        for feature in features:
            more, less = ([rng.choice(words) for _ in range(3)] for words in _WORDS[feature])
            pairs.append(
                Pair(
                    messages=({"role": "user", "content": prompt},),
                    chosen=" ".join(more),
                    rejected=" ".join(less),
                    weights={feature: 1.0},
                    chosen_finished=bool(index % 2),
                    rejected_finished=bool(index % 2),
                )
            )
    return pairs


def train(
    base: Checkpoint | Path, pairs: Sequence[Pair], output: Path, options: TrainingOptions = QUICK, **changes: Any
) -> dict[str, float]:
    """Train. `changes` are other arguments of `train_persrm`."""
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    arguments = {"features": ("eggs", "noise"), "name": "taste", "base_name": str(checkpoint.path)} | changes
    return train_persrm(checkpoint, pairs, output=output, options=options, **arguments)


def write_random_persrm(root: Path, features: Sequence[str]) -> tuple[Path, Path]:
    """A tiny base and an untrained PersRM of it whose features differ: folders `base` and `taste`."""
    model = RewardModel(make_backbone(root / "base"), features, rank=3, alpha=6.0, layers=0.5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    write_persrm(root / "taste", model, name="taste", base_name="someone/base", reads_words=False, record={})
    return root / "base", root / "taste"
