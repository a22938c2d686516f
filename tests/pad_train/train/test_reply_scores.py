"""What an app is told of a reply is what training computes of it: `Generator.score` from texts, training from pairs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pad_rt import Preference, ReplyScore
from pad_train.train.example import Example, make_batch
from pad_train.train.reward_model import RewardModel
from tests.support import tiny_bundles
from tests.support.tiny_training import Trained

TOLERANCE = 1e-4
PROMPT = [{"role": "user", "content": "the 7 cook, {x} and {p}"}]
REPLY = "the egg boil ! hush"
FEATURES = ("eggs", "noise", "words")


@torch.no_grad()
def by_training(
    model: RewardModel, *, words: str | None, finished: bool, top_k: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """log p_base [n] and phi [n, d] of the reply, as training encodes and computes them."""
    plain = model.backbone.encode_prompt(PROMPT)
    prompt = model.backbone.encode_prompt(PROMPT, words) if words else plain
    reply = model.backbone.encode_reply(REPLY, finished=finished)
    example = Example(plain, prompt, reply, [0], None, "x")
    count, base = len(reply), make_batch([example], plain=True)
    with model.trunk.disable_adapter():
        logits = model.backbone.logits(model.hidden(base)).log_softmax(-1)
    phi = model(model.hidden(make_batch([example])), model.run_base(base, top_k))[:, :count, 0].T
    return np.asarray(logits.gather(1, base.targets[:, None])[:count, 0]), np.asarray(phi)


def by_token(score: ReplyScore) -> np.ndarray:
    return np.array([list(token.features.values()) for token in score.per_token])


def test_scores_are_training_s(trained: Trained, tmp_path: Path) -> None:
    model = trained.read_back()
    bundle = Path(shutil.copytree(trained.bundle, tmp_path / "bundle"))
    generator = tiny_bundles.load(tiny_bundles.set_eos(bundle, (1, model.backbone.eos_id)))
    cases: list[tuple[Any, str | None, bool]] = [
        (None, None, True),
        (Preference(weights={"eggs": 1.0, "noise": -0.5}), None, False),
        ("be loud", "be loud", True),
        (Preference(text="boil the egg", weights={"words": 2.0}), "boil the egg", False),
    ]
    for preference, words, finished in cases:
        score = generator.score(PROMPT, REPLY, preference, ended=finished)
        log_probs, phi = by_training(model, words=words, finished=finished)
        assert tuple(score.features) == FEATURES
        np.testing.assert_allclose([token.logprob for token in score.per_token], log_probs, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(by_token(score), phi, atol=TOLERANCE, rtol=0)
        for wrong in (
            by_training(model, words="be quiet", finished=finished)[1],
            by_training(model, words=words, finished=finished, top_k=5)[1],
        ):
            assert np.abs(by_token(score) - wrong).max() > 100 * TOLERANCE


def test_words_without_weights_have_the_learned_ones(trained: Trained) -> None:
    score = trained.generator.score(PROMPT, REPLY, "be loud")
    weights = np.asarray(trained.read_back().learned_weights.detach())
    np.testing.assert_allclose([token.reward for token in score.per_token], by_token(score) @ weights, atol=1e-3)
