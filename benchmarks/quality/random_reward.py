"""A random reward as large as the trained one: what any push of that size does, whatever it means.

Every question of every user gets a random reward of its own, a random direction in the space of some random features.
One reward drawn once for all questions would lean one way (one such draw made sentences longer with weight 1, shorter
with -1), and an interval over questions would not know of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pad_rt import GenerationConfig, Generator, Preference

NAME = "random"
NUM_FEATURES = 8  # that directions are drawn in
FEATURES = tuple(f"{NAME}-{index}" for index in range(NUM_FEATURES))
STEPS = 24  # of the base's own reply to each prompt; the reward is compared over the candidates of each


@dataclass(frozen=True)
class Scale:
    """One feature's reward R beside random ones, over the same candidates on the base's own path.

    Attributes:
        trained, random: standard deviation of R over a step's k candidates, root mean square over steps.
        factor: the length of a random direction that gives its reward the trained one's scale.
        trained_to_base, random_to_base: correlation of R with the base's logits over a step's candidates.
        trained_to_random: correlation of the two.
    """

    trained: float
    random: float
    factor: float
    trained_to_base: float
    random_to_base: float
    trained_to_random: float


def write_random_persrm(persrm: Path, folder: Path, *, seed: int) -> Path:
    """A PersRM of `FEATURES`, whose every tensor is random and has the Frobenius norm of a trained one.

    A head W is I + D, and D is what is made anew: with a random W, phi = z_row - z_base would above all be -z_base,
    which is a push against whatever the base likes and not a random one. The trained heads lend their norms in turn.
    """
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(persrm / "adapter_config.json", folder / "adapter_config.json")
    adapter = load_file(persrm / "adapter_model.safetensors")
    made = {name: _random_like(adapter[name], generator) for name in sorted(adapter)}
    save_file(made, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    head = load_file(persrm / "value_head.safetensors")
    for name, tensor in sorted(head.items()):
        identity = torch.eye(tensor.shape[-1]) if name.endswith("weight") else torch.zeros(())
        models = [tensor[index % len(tensor)].float() - identity for index in range(NUM_FEATURES)]
        head[name] = torch.stack([identity + _random_like(model, generator) for model in models])
    save_file(head, folder / "value_head.safetensors")
    settings = json.loads((persrm / "pad_persrm.json").read_text(encoding="utf-8"))
    settings |= {"name": NAME, "features": FEATURES, "default_weights": direction("default")}
    (folder / "pad_persrm.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def direction(key: str) -> list[float]:
    """A random unit vector over `FEATURES`; a key always has the same one, and its opposite is as likely."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
    drawn = np.random.default_rng(seed).standard_normal(NUM_FEATURES)
    return [round(float(value), 6) for value in drawn / np.linalg.norm(drawn)]


def random_weights(prompt: str, wanted: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    """The random preference that stands for what a user wants, on one prompt: each trait's has that trait's scale."""
    total = np.zeros(NUM_FEATURES)
    for name, weight in wanted.items():
        total += abs(weight) * factors[name] * np.array(direction(f"{name} {weight:+g} {prompt}"))
    return dict(zip(FEATURES, total.tolist(), strict=True))


def calibrate(generator: Generator, prompts: Sequence[str], features: Sequence[str], *, top_k: int) -> dict[str, Scale]:
    """Compare both rewards while the base writes its own replies (beta 0: both are read, neither counts)."""
    scales, unscaled = {}, dict.fromkeys(features, 1.0)
    for feature in features:
        wanted = {feature: 1.0}
        logits, totals = [], []
        for prompt in prompts:
            drawn = random_weights(prompt, wanted, unscaled)
            result = generator.generate(
                prompt,
                preference=[(Preference(weights=wanted), 1.0), (Preference(weights=drawn), 1.0)],
                config=GenerationConfig(beta=0.0, top_k=top_k, max_new_tokens=STEPS),
                trace=True,
            )
            logits.append(np.stack([step.row_logits for step in result.trace or ()]))  # [steps, 3 rows, k]
            totals.append(np.full(len(logits[-1]), sum(drawn.values())))
        scales[feature] = compare(np.concatenate(logits), np.concatenate(totals))
    return scales


def compare(logits: np.ndarray, totals: np.ndarray) -> Scale:
    """The scale of two rewards, R = z_row - (sum of the row's weights) * z_base.

    Args:
        logits: of the rows base, trained (its weights sum to 1) and random, [steps, 3, k].
        totals: sum of the random row's weights, [steps].
    """
    base, trained, random = np.moveaxis(logits.astype(np.float64), 1, 0)
    rows = {"base": base, "trained": trained - base, "random": random - totals[:, None] * base}
    centred = {name: row - row.mean(axis=-1, keepdims=True) for name, row in rows.items()}
    std = {name: float(np.sqrt(np.square(row).mean())) for name, row in centred.items()}

    def correlation(one: str, other: str) -> float:
        return float((centred[one] * centred[other]).mean() / (std[one] * std[other]))

    return Scale(
        trained=std["trained"],
        random=std["random"],
        factor=std["trained"] / std["random"],
        trained_to_base=correlation("trained", "base"),
        random_to_base=correlation("random", "base"),
        trained_to_random=correlation("trained", "random"),
    )


def factors(scales: Mapping[str, Scale]) -> dict[str, float]:
    """The calibrating weight of each feature, rounded so that it can be told."""
    return {feature: round(scale.factor, 4) for feature, scale in scales.items()}


def _random_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    made = torch.randn(tensor.shape, generator=generator)
    scaled: torch.Tensor = made * (torch.linalg.vector_norm(tensor.float()) / torch.linalg.vector_norm(made))
    return scaled
