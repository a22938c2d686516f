from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pad_runtime.errors import OptionError
from pad_train.train.backbone import Backbone
from pad_train.train.example import Example, make_batch
from pad_train.train.reward_model import BaseLogProbs, RewardModel
from tests.support import tiny_training
from tests.support.error_checks import refused

Array = npt.NDArray[Any]
EXAMPLES = [
    Example([5, 6, 7], [5, 6, 7], [10, 11, 12], [13, 14], None, "x"),
    Example([9, 40], [9, 31, 40, 30], [20], [13, 60, 61], None, "words"),  # the PersRM reads more than the base
]
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(params=["llama", "gemma2"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Backbone:
    return tiny_training.make_backbone(tmp_path / "base", request.param)


def make_model(backbone: Backbone, *, trained: bool = True) -> RewardModel:
    """A PersRM with two features; `trained`, none of its parts does nothing."""
    model = RewardModel(backbone, ("a", "b"), rank=3, alpha=6.0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values() if trained else ():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@torch.no_grad()
def brute_force(model: RewardModel, *, adapter: bool = True) -> tuple[Array, Array]:
    """Full-vocabulary logits of base [n, vocab] and PersRM [d, n, vocab]: each reply by itself, NumPy from there on."""
    trunk = model.trunk
    base, persrm = [], []
    for example in EXAMPLES:
        for reply in (example.chosen, example.rejected):
            with trunk.disable_adapter():
                output = trunk(torch.tensor([example.plain + reply]))
            base.append(output.logits[0, len(example.plain) - 1 : -1].double().numpy())
            ids = torch.tensor([example.prompt + reply])
            decoder = trunk.get_base_model().model
            if adapter:
                states = decoder(ids).last_hidden_state
            else:
                with trunk.disable_adapter():
                    states = decoder(ids).last_hidden_state
            persrm.append(states[0, len(example.prompt) - 1 : -1].double().numpy())
    hidden = np.concatenate(persrm)
    lm_head = trunk.get_base_model().lm_head.weight.double().numpy()
    logits = []
    for weight, bias in zip(model.head_change.double().numpy(), model.bias.double().numpy(), strict=True):
        mapped = np.stack([state + weight @ state + bias for state in hidden])
        logits.append(mapped @ lm_head.T)
    cap = getattr(model.backbone.model.config, "final_logit_softcapping", None)
    full = np.stack(logits)
    return np.concatenate(base), full if cap is None else np.tanh(full / cap) * cap


def log_softmax(values: Array) -> Array:
    shifted = values - values.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def rewards(model: RewardModel, k: int) -> tuple[Array, BaseLogProbs]:
    with torch.no_grad():
        reference = model.run_base(make_batch(EXAMPLES, plain=True), k)
        return model(model.hidden(make_batch(EXAMPLES)), reference).numpy(), reference


@pytest.mark.parametrize("k", [1, 2, 8, 10**6])
def test_rewards_are_log_ratios_over_the_candidates(backbone: Backbone, k: int) -> None:
    model = make_model(backbone)
    phi, reference = rewards(model, k)
    base, persrm = brute_force(model)
    vocab = base.shape[-1]
    candidates = reference.candidates.numpy()
    assert candidates.shape == (9, min(k, vocab))
    targets = [10, 11, 12, 13, 14, 20, 13, 60, 61]
    assert candidates[:, 0].tolist() == targets  # the reply's own token
    for row, target in enumerate(targets):
        others = [token for token in np.argsort(-base[row]) if token != target]
        assert set(candidates[row, 1:].tolist()) == set(others[: min(k, vocab) - 1])
    over_t = np.take_along_axis(base, candidates, -1)
    expected_base = log_softmax(over_t)
    np.testing.assert_allclose(reference.log_probs.numpy(), expected_base, **TOLERANCE)
    rows = np.take_along_axis(persrm, np.broadcast_to(candidates, (2, *candidates.shape)), -1)
    np.testing.assert_allclose(phi, log_softmax(rows) - expected_base, **TOLERANCE)
    if k == 1:
        assert not phi.any()  # one token alone has every probability
        return
    whole = np.take_along_axis(log_softmax(persrm), np.broadcast_to(candidates, (2, *candidates.shape)), -1)
    log_ratio = whole - np.take_along_axis(log_softmax(base), candidates, -1)
    assert np.allclose(phi, log_ratio, **TOLERANCE) == (k >= vocab)
    # What decoding sees of a reward are differences between candidates, which no normaliser changes.
    np.testing.assert_allclose(phi - phi[..., :1], log_ratio - log_ratio[..., :1], atol=1e-3)


def test_every_part_counts(backbone: Backbone) -> None:
    model = make_model(backbone)
    phi, reference = rewards(model, 8)
    batch = make_batch(EXAMPLES)
    with torch.no_grad():
        with model.trunk.disable_adapter():
            off = model(model.hidden(batch), reference).numpy()
        assert not np.allclose(off, phi, atol=1e-2)
        _, without = brute_force(model, adapter=False)
        wide = np.broadcast_to(reference.candidates.numpy(), phi.shape)
        expected = log_softmax(np.take_along_axis(without, wide, -1)) - reference.log_probs.numpy()
        np.testing.assert_allclose(off, expected, **TOLERANCE)
        unworded = model(model.hidden(make_batch(EXAMPLES, plain=True)), reference).numpy()
        assert np.allclose(unworded[:, :5], phi[:, :5], **TOLERANCE)  # its first prompt is as plain as the base's
        assert not np.allclose(unworded[:, 5:], phi[:, 5:], atol=1e-2)
        model.head_change.copy_(model.head_change.transpose(1, 2).clone())
        assert not np.allclose(model(model.hidden(batch), reference).numpy(), phi, atol=1e-2)
    assert not np.allclose(phi[0], phi[1], atol=1e-2)


def test_a_fresh_persrm_rewards_nothing_but_its_prompt(backbone: Backbone) -> None:
    phi, _ = rewards(make_model(backbone, trained=False), 8)
    assert np.abs(phi[:, :5]).max() < 1e-4
    assert np.abs(phi[:, 5:]).max() > 0.05  # the words of the second example move the frozen base


def test_what_trains(backbone: Backbone) -> None:
    model = make_model(backbone, trained=False)
    trainable = model.trainable()
    num_linear = 7 * backbone.model.config.num_hidden_layers
    assert sum("lora_A" in name for name in trainable) == sum("lora_B" in name for name in trainable) == num_linear
    assert {"head_change", "bias", "learned_weights"} < trainable.keys()
    assert len(trainable) == 2 * num_linear + 3
    assert {parameter.dtype for parameter in trainable.values()} == {torch.float32}
    frozen = [parameter for name, parameter in model.named_parameters() if name not in trainable]
    assert not any(parameter.requires_grad for parameter in frozen)


def test_gradients_reach_adapter_and_head_and_nothing_else(backbone: Backbone) -> None:
    model = make_model(backbone)
    reference = model.run_base(make_batch(EXAMPLES, plain=True), 8)
    model(model.hidden(make_batch(EXAMPLES)), reference)[..., 0].sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == model.trainable().keys() - {"learned_weights"}
    assert all(parameter.grad.abs().max() > 0 for name, parameter in model.trainable().items() if name in touched)


def test_only_the_named_linears_wear_the_lora(backbone: Backbone) -> None:
    model = RewardModel(backbone, ("a",), rank=2, alpha=4.0, modules="v_proj,down_proj")
    worn = {name.split(".lora_")[0].rpartition(".")[2] for name in model.trainable() if "lora_" in name}
    assert worn == {"v_proj", "down_proj"}


@pytest.mark.parametrize(("share", "first"), [(1.0, 0), (0.5, 1), (0.33, 1), (0.0, 1)])
def test_only_the_last_layers_wear_the_lora(backbone: Backbone, share: float, first: int) -> None:
    """A share of two layers; one at least."""
    model = RewardModel(backbone, ("a",), rank=2, alpha=4.0, layers=share)
    worn = {int(name.split(".layers.")[1].split(".")[0]) for name in model.trainable() if "lora_" in name}
    assert worn == set(range(first, 2))
    assert len(model.trainable()) == 3 + 2 * 7 * (2 - first)  # every linear of those layers, and nothing of the lm_head


def test_an_unknown_linear_is_refused(backbone: Backbone) -> None:
    with refused(OptionError, given="--modules w_proj", expected="down_proj"):
        RewardModel(backbone, ("a",), rank=2, alpha=4.0, modules="v_proj,w_proj")
