"""A soup: LoRAs that were trained for one feature each, added to the base's weights as the user weighs the features.

Source: Rewarded soups (Rame et al. 2023, arXiv 2306.04488); Personalized Soups (Jang et al. 2023, arXiv 2310.11564).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.common.kept import stamped
from pad_export.read.adapter import LowRank
from pad_export.read.checkpoint import Checkpoint
from pad_export.read.persrm import read_persrm
from pad_train.options import TrainingOptions
from pad_train.pairs.pair import Pair
from pad_train.train.backbone import Backbone
from pad_train.train.train import train_persrm

Lora = Mapping[str, LowRank]  # change of each linear, by its name in the model
IDENTITY_HEAD = replace(TrainingOptions(), epochs=1.0, head_lr=0.0, head_epochs=0.0)  # a soup adds trunks, not heads


def pairs_of(pairs: Sequence[Pair], feature: str) -> list[Pair]:
    """The pairs that are about one feature alone."""
    return [pair for pair in pairs if list(pair.weights) == [feature] and pair.preference is None]


def ensure_loras(
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    features: Sequence[str],
    work: Path,
    options: TrainingOptions = IDENTITY_HEAD,
) -> dict[str, Lora]:
    """One LoRA a feature, trained as a PersRM of that feature alone, unless it is there and of the same pairs."""
    loras = {}
    for feature in features:
        own, folder = pairs_of(pairs, feature), work / feature
        mark = hashlib.sha256(repr((own, options, checkpoint.path.name)).encode()).hexdigest()
        make = partial(_train, checkpoint, own, feature, folder, options)
        loras[feature] = read_lora(stamped(folder, mark, make))
    return loras


def _train(checkpoint: Checkpoint, pairs: Sequence[Pair], feature: str, folder: Path, options: TrainingOptions) -> None:
    print(f"training the LoRA of {feature} on {len(pairs)} pairs", flush=True)
    shutil.rmtree(folder, ignore_errors=True)  # one of other pairs
    name = f"soup-{feature}"
    train_persrm(checkpoint, pairs, (feature,), folder, options, name=name, base_name=checkpoint.path.stem)


def read_lora(folder: Path) -> Lora:
    """The adapter of a PersRM that `ensure_loras` trained."""
    adapter = read_persrm(folder).adapter
    assert adapter is not None
    return adapter.delta


@contextmanager
def stirred(backbone: Backbone, loras: Mapping[str, Lora], weights: Mapping[str, float]) -> Iterator[None]:
    """W + sum_i w_i b_i a_i in the base's linears; afterwards the very weights that were there."""
    modules = dict(backbone.model.named_modules())
    names = sorted({name for feature in weights for name in loras[feature]})
    kept = {name: modules[name].weight.data for name in names}
    try:
        for name, weight in kept.items():
            change = torch.zeros(weight.shape)
            for feature, wanted in weights.items():
                low_rank = loras[feature].get(name)
                if low_rank is not None:
                    change += wanted * (low_rank.b @ low_rank.a)
            modules[name].weight.data = (weight.float() + change).to(weight.dtype)
        yield
    finally:
        for name, weight in kept.items():
            modules[name].weight.data = weight
