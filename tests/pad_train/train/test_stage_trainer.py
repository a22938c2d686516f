"""The loss of a whole batch, against loops over its tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pad_export.output.stages import Stages
from pad_train.options import TrainingOptions
from pad_train.train.example import Example, make_batch
from pad_train.train.reward_model import RewardModel
from pad_train.train.stage_trainer import (
    Item,
    StageTrainer,
    last_checkpoint,
    load_trained,
    measure,
    save_trained,
)
from tests.support import tiny_training

OPTIONS = TrainingOptions(beta=0.3, calm=0.7, imitate=0.4, lr=1e-3, head_lr=1e-3, batch=2)
PAPERS = replace(OPTIONS, calm=0.0, imitate=0.0)
LEARNED = (0.4, -0.9)
EXAMPLES = [
    Example([5, 6, 7], [5, 6, 7, 8], [10, 11, 12], [13, 14], (1.0, 0.0), "a"),
    Example([9], [9], [20], [21, 22, 23], (0.6, -0.8), "mixtures", (True, False)),
    Example([9, 30], [9, 30], [24, 25], [26], None, "words", (False, True)),
]


@pytest.fixture
def model(tmp_path: Path) -> RewardModel:
    backbone = tiny_training.make_backbone(tmp_path / "base")
    model = RewardModel(backbone, ("a", "b"), rank=3, alpha=6.0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.learned_weights.copy_(torch.tensor(LEARNED))
    return model


@pytest.fixture
def items(model: RewardModel) -> list[Item]:
    return [Item(example, model.run_base(make_batch([example], plain=True), 8)) for example in EXAMPLES]


@torch.no_grad()
def by_hand(model: RewardModel, items: list[Item]) -> tuple[list[float], float, float]:
    """R(chosen) - R(rejected) of each item, the spread of R over all positions, and what imitation costs."""
    margins, variances, surprises = [], [], []
    for item in items:
        phi = model(model.hidden(make_batch([item.example])), item.base)
        weights = item.example.weights or LEARNED
        margin = 0.0
        for token in range(phi.shape[1]):
            rewards = [
                sum(weight * float(phi[feature, token, candidate]) for feature, weight in enumerate(weights))
                for candidate in range(phi.shape[2])
            ]
            probs = [math.exp(value) for value in item.base.log_probs[token].tolist()]
            mean = sum(p * r for p, r in zip(probs, rewards, strict=True))
            variances.append(sum(p * (r - mean) ** 2 for p, r in zip(probs, rewards, strict=True)))
            chosen = token < len(item.example.chosen)
            sign = 1 if chosen else -1
            margin += sign * rewards[0]
            if item.example.imitated[0 if chosen else 1]:
                tilted = [p * math.exp(sign * r) for p, r in zip(probs, rewards, strict=True)]
                surprises.append(-math.log(tilted[0] / sum(tilted)))
        margins.append(margin)
    return margins, sum(variances) / len(variances) / 2, sum(surprises) / len(surprises)


def trainer_of(model: RewardModel, items: list[Item], folder: Path, options: TrainingOptions = OPTIONS) -> StageTrainer:
    with Stages().count("stage 1", "steps") as progress:
        return StageTrainer(model, items, [], folder, options, epochs=1.0, progress=progress)


def test_the_loss_by_hand(model: RewardModel, items: list[Item], tmp_path: Path) -> None:
    margins, calm, surprise = by_hand(model, items)
    ranking = sum(math.log1p(math.exp(-0.3 * margin)) for margin in margins) / 3
    loss = trainer_of(model, items, tmp_path).compute_loss(model, items).item()
    assert loss == pytest.approx(ranking + 0.7 * calm + 0.4 * surprise, rel=1e-4)
    assert calm > 0.01
    assert surprise > 0.1
    whole = [replace(item, example=replace(item.example, imitated=(True, True))) for item in items]
    assert by_hand(model, whole)[2] != pytest.approx(surprise, rel=1e-3)  # which replies are imitated matters
    trainer = trainer_of(model, items, tmp_path, PAPERS)
    loss, returned = trainer.compute_loss(model, items, return_outputs=True)
    assert loss.item() == pytest.approx(ranking, rel=1e-4)
    assert returned.tolist() == pytest.approx(margins, rel=1e-3)


def test_hidden_states_kept_for_stage_2_give_the_same_loss(
    model: RewardModel, items: list[Item], tmp_path: Path
) -> None:
    trainer = trainer_of(model, items, tmp_path)
    expected = trainer.compute_loss(model, items)
    with torch.no_grad():
        kept = [replace(item, hidden=model.hidden(make_batch([item.example]))) for item in items]
        torch.testing.assert_close(trainer.compute_loss(model, kept), expected, rtol=1e-4, atol=1e-5)
        swapped = [replace(kept[0], hidden=kept[0].hidden.flip(0)), *kept[1:]]  # type: ignore[union-attr]
        assert not torch.isclose(trainer.compute_loss(model, swapped), expected, rtol=1e-3)


def test_measure(model: RewardModel, items: list[Item]) -> None:
    margins, _, _ = by_hand(model, items)
    metrics = measure(model, items, PAPERS)
    assert metrics["loss"] == pytest.approx(
        sum(math.log1p(math.exp(-0.3 * margin)) for margin in margins) / 3, rel=1e-4
    )
    assert metrics["accuracy"] == sum(margin > 0 for margin in margins) / 3
    for name, margin in zip(("a", "mixtures", "words"), margins, strict=True):
        assert metrics[f"accuracy_{name}"] == float(margin > 0)
    swapped = [
        replace(
            item, example=replace(item.example, weights=tuple(-weight for weight in item.example.weights or LEARNED))
        )
        for item in items
    ]
    assert measure(model, swapped, OPTIONS)["accuracy"] == pytest.approx(1 - metrics["accuracy"])
    assert measure(model, [], OPTIONS) == {}


def test_head_and_adapter_have_learning_rates_of_their_own(
    model: RewardModel, items: list[Item], tmp_path: Path
) -> None:
    trainer = trainer_of(model, items, tmp_path, replace(OPTIONS, lr=0.25, head_lr=0.5))
    rates = {group["lr"]: len(group["params"]) for group in trainer.create_optimizer().param_groups}
    assert rates == {0.25: len(model.trainable()) - 3, 0.5: 3}
    for name, parameter in model.trainable().items():
        parameter.requires_grad_("lora_" not in name)
    assert [group["lr"] for group in trainer.create_optimizer().param_groups] == [0.5]


def test_what_is_saved_is_loaded(model: RewardModel, tmp_path: Path) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.trainable().items()}
    save_trained(model, tmp_path / "stage1.safetensors")
    assert [path.name for path in tmp_path.glob("stage1*")] == ["stage1.safetensors"]
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.zero_()
    load_trained(model, tmp_path / "stage1.safetensors")
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.trainable().items())


def test_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "absent") is None
    for step, complete in ((8, True), (10, True), (9, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()
