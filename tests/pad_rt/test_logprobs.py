"""Log-probabilities of a step, against transformers' warpers in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from pad_rt.logprobs import sampled_logprobs, token_logprobs
from pad_runtime.decode.trace import SequenceTrace
from pad_runtime.rows.sequence import Sampling

DEAD = -1e30  # what a score of a token that is not allowed comes to


def expected(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    logits = torch.tensor(scores, dtype=torch.float64)[None]
    logits = logits.masked_fill(logits < -1e29, -torch.inf)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    if sampling.temperature:
        logits = theirs.TemperatureLogitsWarper(sampling.temperature)(ids, logits)
    if sampling.top_p < 1:
        logits = theirs.TopPLogitsWarper(sampling.top_p)(ids, logits)
    if sampling.min_p:
        logits = theirs.MinPLogitsWarper(sampling.min_p)(ids, logits)
    return logits.log_softmax(-1)[0].numpy()


def draw(random: np.random.Generator) -> tuple[np.ndarray, Sampling]:
    scores = random.normal(0, 2, 12).astype(np.float32)
    scores[random.integers(1, 12, 3)] += DEAD
    sampling = Sampling(
        top_k=12,
        temperature=float(random.choice([0.0, 0.5, 1.0, 3.0])),
        top_p=float(random.choice([1.0, 0.4, 0.9])),
        min_p=float(random.choice([0.0, 0.1, 0.5])),
    )
    return scores, sampling


def test_logprobs_are_those_of_the_distribution_that_is_sampled() -> None:
    random = np.random.default_rng(1)
    wrong = dict.fromkeys(("temperature", "top_p", "min_p"), 0)
    for _ in range(300):
        scores, sampling = draw(random)
        found = sampled_logprobs(scores, sampling, int(scores.argmax()))
        np.testing.assert_allclose(found, expected(scores, sampling), atol=1e-9)
        assert np.exp(found).sum() == pytest.approx(1.0)
        for name, value in (("temperature", 1.3), ("top_p", 1.0), ("min_p", 0.0)):
            other = expected(scores, replace(sampling, **{name: value}))
            wrong[name] += not np.allclose(found, other, atol=1e-3)
    assert min(wrong.values()) > 50


def test_the_likeliest_candidates_and_the_chosen_one() -> None:
    candidates = np.array([40, 7, 9, 2], np.int64)
    scores = np.array([1.0, 3.0, DEAD, 2.0], np.float32)
    trace = SequenceTrace(candidates, scores, scores[None], scores)
    found = token_logprobs(trace, 40, Sampling(top_k=4, temperature=2.0), 2)
    total = np.logaddexp.reduce([0.5, 1.5, 1.0])
    assert (found.token_id, found.base_logprob) == (40, None)
    assert found.logprob == pytest.approx(0.5 - total)
    assert [id for id, _ in found.likeliest] == [7, 2]
    assert [value for _, value in found.likeliest] == pytest.approx([1.5 - total, 1.0 - total])
    assert len(token_logprobs(trace, 40, Sampling(top_k=4), 4).likeliest) == 3  # one is not allowed
    assert token_logprobs(trace, 7, Sampling(top_k=4), 0).likeliest == ()


def test_a_chosen_candidate_is_possible_however_limits_are_rounded() -> None:
    scores = np.array([2.0, 1.0, 0.0], np.float32)
    first, second, _ = np.exp(scores) / np.exp(scores).sum()
    just_below = Sampling(top_k=3, temperature=1.0, top_p=float(first) - 1e-9)
    assert np.isneginf(sampled_logprobs(scores, just_below, 0)[1])
    assert np.exp(sampled_logprobs(scores, just_below, 1)) == pytest.approx(
        [*(np.array([first, second]) / (first + second)), 0]
    )


def test_strange_temperatures() -> None:
    scores = np.array([2.0, 1.0, 0.0], np.float32)
    greedy = sampled_logprobs(scores, Sampling(top_k=3), 0)
    assert greedy == pytest.approx(sampled_logprobs(scores, Sampling(top_k=3, temperature=1e-320), 0))  # 0 in float32
    assert np.exp(sampled_logprobs(scores, Sampling(top_k=3, temperature=1e25), 0)) == pytest.approx([1 / 3] * 3)
    assert np.exp(sampled_logprobs(scores, Sampling(top_k=3, temperature=1e-30), 0)) == pytest.approx([1, 0, 0])
