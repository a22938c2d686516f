"""From pairs to guided text: what training rewards is what the runtime adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from pad_export.read.persrm import read_persrm
from pad_rt import GenerationConfig, Preference
from pad_train.train.example import Example, make_batch
from pad_train.train.reward_model import BaseLogProbs, RewardModel
from tests.support.tiny_training import Trained

CONFIG = GenerationConfig(beta=1.0, top_k=8, max_new_tokens=5, base_sees_preference=False)


def test_what_can_be_learned_is(trained: Trained) -> None:
    assert trained.metrics["accuracy_eggs"] > 0.95
    assert trained.metrics["accuracy_noise"] > 0.95
    assert trained.metrics["accuracy_words"] > 0.8
    assert trained.metrics["loss"] < 0.4  # log 2 is that of a coin


def test_the_bundle_names_what_was_trained(trained: Trained) -> None:
    (info,) = trained.generator.manifest.persrms
    assert trained.generator.manifest.topology == "shared"
    assert tuple(info.features) == ("eggs", "noise", "words")
    assert info.takes_text
    assert tuple(info.default_weights) == read_persrm(trained.folder).default_weights


@pytest.mark.parametrize(
    "preference",
    [
        Preference(weights={"eggs": 1.0}),
        Preference(weights={"eggs": 1.0, "noise": -0.5}),
        Preference(text="boil the egg"),
        Preference(text="be loud", weights={"noise": 0.75, "words": 1.0}),
    ],
    ids=["one feature", "two features", "words", "both"],
)
@torch.no_grad()
def test_the_runtime_adds_what_training_rewarded(trained: Trained, preference: Preference) -> None:
    model = trained.read_back()
    messages = [{"role": "user", "content": "the 7 cook, {x} and {p}"}]
    result = trained.generator.generate(messages, preference=preference, config=CONFIG, trace=True)
    plain = model.backbone.encode_prompt(messages)
    prompt = model.backbone.encode_prompt(messages, preference.text) if preference.text else plain
    weights = _weights(preference.weights, model)
    reply = list(result.token_ids)
    candidates = torch.tensor(np.stack([step.candidates for step in result.trace]))
    row_logits = torch.tensor(np.stack([step.row_logits for step in result.trace]))  # [steps, rows, k]
    scores = torch.tensor(np.stack([step.scores for step in result.trace]))
    batch = make_batch([Example(plain, prompt, reply, [0], None, "x")])
    with model.trunk.disable_adapter():
        plain_batch = make_batch([Example(plain, prompt, reply, [0], None, "x")], plain=True)
        base = model.backbone.candidate_logits(model.hidden(plain_batch)[: len(reply)], candidates)
    torch.testing.assert_close(row_logits[:, 0], base, atol=1e-3, rtol=1e-3)
    phi = model(model.hidden(batch)[: len(reply)], BaseLogProbs(candidates, base.log_softmax(-1)))  # [d, steps, k]
    reward = torch.einsum("d,dnk->nk", weights, phi)
    added = scores - row_logits[:, 0]
    # Normalisers are the same for all candidates of a step, and choose nothing.
    torch.testing.assert_close(_centred(added), _centred(reward), atol=3e-3, rtol=1e-3)
    assert _centred(reward).abs().max() > 0.1
    assert not torch.allclose(_centred(added), _centred(-reward), atol=3e-3)
    if len(preference.weights) > 1:
        first = torch.einsum("d,dnk->nk", _weights({"eggs": 1.0}, model), phi)
        assert not torch.allclose(_centred(added), _centred(first), atol=3e-3)


def test_a_preference_steers(trained: Trained) -> None:
    config = replace(CONFIG, beta=3.0, top_k=20, max_new_tokens=24, temperature=1.0)
    prompts = [f"the {index} cook a" for index in range(4)]
    counts = {}
    for sign in (1.0, -1.0):
        texts = [
            trained.generator.generate(prompt, preference=Preference(weights={"eggs": sign}), config=config).text
            for prompt in prompts
        ]
        counts[sign] = sum(text.count("egg") + text.count("boil") for text in texts)
    assert counts[1.0] > counts[-1.0]


def _weights(named: Mapping[str, float], model: RewardModel) -> torch.Tensor:
    if not named:
        return model.learned_weights
    return torch.tensor([named.get(name, 0.0) for name in model.features])


def _centred(values: torch.Tensor) -> torch.Tensor:
    return values - values.mean(-1, keepdim=True)
