"""What the score graph gives a reply is what training gives it: phi by feature, and the base's log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pad_runtime.loaded_bundle import Bundle
from pad_runtime.score.request import ReplyScores, RewardPrompt, ScoreRequest
from pad_train.train.example import Example, make_batch
from pad_train.train.persrm_folder import read_reward_model, write_persrm
from pad_train.train.reward_model import RewardModel
from tests.support import tiny_bundles, tiny_training
from tests.support.tiny_training import Trained

TOP_K = 9
TOLERANCE = 1e-4
PREFERENCES = (None, "boil the egg", None, "be quiet")  # by weights, and in words that the base does not read
REPLIES = (("the egg boil", "hush"), ("cook without !", "egg"), ("?", "the the boil !"), ("be loud", "egg egg egg"))


def make_examples(model: RewardModel) -> list[Example]:
    """Ragged prompts and replies, half of which ended by themselves."""
    examples = []
    for index, (preference, (chosen, rejected)) in enumerate(zip(PREFERENCES, REPLIES, strict=True)):
        messages = [{"role": "user", "content": "the cook " * (1 + index)}]
        plain = model.backbone.encode_prompt(messages)
        prompt = model.backbone.encode_prompt(messages, preference) if preference else plain
        replies = [model.backbone.encode_reply(text, finished=bool(index % 2)) for text in (chosen, rejected)]
        examples.append(Example(plain, prompt, *replies, None, "x"))
    return examples


def make_requests(examples: Sequence[Example]) -> list[ScoreRequest]:
    """The replies of the examples, in the order of a batch's targets."""
    return [
        ScoreRequest(tuple(example.plain), tuple(reply), (RewardPrompt(0, tuple(example.prompt)),))
        for example in examples
        for reply in (example.chosen, example.rejected)
    ]


@torch.no_grad()
def trained_phi(model: RewardModel, examples: Sequence[Example], top_k: int = TOP_K) -> np.ndarray:
    """phi of every token of every reply as training computes it: [n, d]."""
    reference = model.run_base(make_batch(examples, plain=True), top_k)
    return np.asarray(model(model.hidden(make_batch(examples)), reference)[..., 0].T)


@torch.no_grad()
def trained_log_probs(model: RewardModel, examples: Sequence[Example]) -> np.ndarray:
    """log p_base of every token: [n]."""
    batch = make_batch(examples, plain=True)
    with model.trunk.disable_adapter():
        logits = model.backbone.logits(model.hidden(batch))
    return np.asarray(logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0])


def joined(scores: Sequence[ReplyScores]) -> np.ndarray:
    return np.concatenate([each.phi[0] for each in scores])


def differs(given: np.ndarray, expected: np.ndarray) -> bool:
    return float(np.abs(given - expected).max()) > 100 * TOLERANCE


def assert_same(bundle: Path, model: RewardModel) -> None:
    """Scores of a bundle are those of training; those of what training does not compute are not."""
    examples = make_examples(model)
    requests = make_requests(examples)
    scorer = Bundle(bundle, device="cpu", num_threads=1).scorer()
    scores = scorer.score(requests, top_k=TOP_K)
    given, expected = joined(scores), trained_phi(model, examples)
    np.testing.assert_allclose(given, expected, atol=TOLERANCE, rtol=0)
    log_probs = np.concatenate([each.log_probs for each in scores])
    np.testing.assert_allclose(log_probs, trained_log_probs(model, examples), atol=TOLERANCE, rtol=0)
    assert np.abs(expected).max(0).min() > 0.1  # every feature says something
    vocabulary = model.backbone.model.config.vocab_size
    assert differs(given, trained_phi(model, examples, top_k=vocabulary))  # another normaliser
    assert differs(given[:-1], expected[1:])  # shifted by one token
    with model.trunk.disable_adapter():
        assert differs(given, trained_phi(model, examples))
    head = model.head_change.detach().clone()
    with torch.no_grad():
        model.head_change.zero_()
        assert differs(given, trained_phi(model, examples))
        model.head_change.copy_(head)
    worded = [example for example in examples if example.plain != example.prompt]
    unread = [Example(each.plain, each.plain, each.chosen, each.rejected, None, "x") for each in worded]
    assert differs(joined(scorer.score(make_requests(worded), top_k=TOP_K)), trained_phi(model, unread))


def test_a_trained_persrm(trained: Trained) -> None:
    assert_same(trained.bundle, trained.read_back())


@pytest.mark.parametrize(("family", "dialect"), [("gemma2", "ort"), ("gemma2", "standard"), ("qwen3", "ort")])
def test_other_families(tmp_path: Path, family: str, dialect: str) -> None:
    """Gemma 2 caps its logits, after the feature head."""
    backbone = tiny_training.make_backbone(tmp_path / "base", family)
    model = RewardModel(backbone, ("eggs", "noise"), rank=tiny_training.QUICK.rank, alpha=tiny_training.QUICK.alpha)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    write_persrm(tmp_path / "taste", model.eval(), name="taste", base_name="base", reads_words=True, record={})
    bundle = tiny_bundles.export(tmp_path / "bundle", tmp_path / "base", [tmp_path / "taste"], dialect=dialect)
    assert_same(bundle, read_reward_model(tmp_path / "taste", tiny_training.load(tmp_path / "base")))
