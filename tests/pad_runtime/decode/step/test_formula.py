"""What a step computes, against torch, a fresh prefill, a step alone, and the other topology."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pad_runtime.decode.step import GraphStep

from pad_rt import Generator
from tests.support import tiny_bundles
from tests.support.guided_steps import NUM_STEPS, PROMPTS, Models, make_request, new_step, run
from tests.support.torch_oracle import Reward, decode, tolerance


@pytest.mark.parametrize("config", [{"beta": 0.0}, {"top_k": 1, "beta": 3.0}])
def test_without_weight_or_choice_it_is_base_greedy(
    generator: Generator, models: Models, config: dict[str, Any]
) -> None:
    ids = run(new_step(generator), make_request(generator, 0, 1, 2, **config))
    alone = generator._bundle.base_step()
    assert run(alone, make_request(generator, 0, 1, 2, preference=None)) == ids
    for (prompt, _), found in zip(PROMPTS, ids, strict=True):
        greedy = decode(models.base, prompt, [], beta=1.0, top_k=1, num_tokens=NUM_STEPS)
        assert found == greedy.token_ids
    assert ids != run(new_step(generator), make_request(generator, 0, 1, 2, beta=1.0))


def test_beta_one_over_the_whole_vocabulary_is_persrm_greedy(generator: Generator, models: Models) -> None:
    vocab_size = generator.manifest.vocab_size
    ids = run(new_step(generator), make_request(generator, 0, 1, 2, top_k=vocab_size, beta=1.0))
    for (_, prompt), found in zip(PROMPTS, ids, strict=True):
        assert found == decode(models.persrm, prompt, [], beta=1.0, top_k=1, num_tokens=NUM_STEPS).token_ids
    fewer = run(new_step(generator), make_request(generator, 0, 1, 2, top_k=3, beta=1.0))
    assert fewer != ids


def test_cached_is_uncached(generator: Generator) -> None:
    """Every step against a fresh prefill of the prompt and all ids so far."""
    step, fresh = new_step(generator), new_step(generator)
    request = make_request(generator, 0, 1, 2, trace=True)
    found = [list(step.prefill(request))]
    ids: list[list[int]] = [[] for _ in PROMPTS]
    for _ in range(12):
        for sequence, token in zip(ids, found[-1], strict=True):
            sequence.append(token)
        grown = [((*base, *new), (*reward, *new)) for (base, reward), new in zip(PROMPTS, ids, strict=True)]
        expected = list(fresh.prefill(make_request(generator, 0, 1, 2, trace=True, prompts=grown)))
        assert expected == list(step.step())
        found.append(expected)
        assert traces_differ(step, fresh) < tolerance()
    # Control: the same without the newest token.
    short = [(base[:-1], reward[:-1]) for base, reward in grown]
    fresh.prefill(make_request(generator, 0, 1, 2, trace=True, prompts=short))
    assert traces_differ(step, fresh) > 10 * tolerance()


def traces_differ(one: GraphStep, other: GraphStep) -> float:
    a, b = one.trace(), other.trace()
    if not np.array_equal(a.candidates, b.candidates):
        return math.inf
    return float(np.abs(a.row_logits - b.row_logits).max() / max(1.0, np.abs(b.row_logits).max()))


def test_a_row_of_a_batch_is_the_row_alone(generator: Generator) -> None:
    batch, request = new_step(generator), make_request(generator, 0, 1, 2, trace=True)
    alone = [new_step(generator) for _ in PROMPTS]
    requests = [make_request(generator, index, trace=True) for index in range(3)]
    for turn in range(NUM_STEPS):
        ids = list(batch.prefill(request) if turn == 0 else batch.step())
        for index, step in enumerate(alone):
            (single,) = step.prefill(requests[index]) if turn == 0 else step.step()
            assert ids[index] == single
            a, b = batch.trace(), step.trace()
            np.testing.assert_array_equal(a.candidates[index], b.candidates[0])
            np.testing.assert_allclose(a.row_logits[index], b.row_logits[0], atol=10 * tolerance())
            other = a.row_logits[(index + 1) % 3]
            assert np.abs(other - b.row_logits[0]).max() > 0.1  # control: another sequence's row


def test_shared_is_pair_on_the_same_weights(models: Models) -> None:
    shared, pair = (tiny_bundles.load(models.bundle(topology)) for topology in ("shared", "pair"))
    one, other = new_step(shared), new_step(pair)
    requests = make_request(shared, 0, 1, 2, trace=True), make_request(pair, 0, 1, 2, trace=True)
    assert list(one.prefill(requests[0])) == list(other.prefill(requests[1]))
    for _ in range(NUM_STEPS):
        assert traces_differ(one, other) < tolerance()
        assert list(one.step()) == list(other.step())
    unguided = new_step(pair)
    assert run(unguided, make_request(pair, 0, 1, 2, beta=0.0)) != run(one, requests[0])  # control


def test_the_log_ratio_form_is_the_blended_form(models: Models) -> None:
    """z + beta (log pi_persrm - log pi_base) against (1 - beta) z_base + beta z_persrm, from torch's own logits."""
    shared = tiny_bundles.load(models.bundle("shared"))
    for beta in (0.5, 1.0, -0.75, 2.5):
        step, request = new_step(shared), make_request(shared, 0, trace=True, beta=beta)
        step.prefill(request)
        prompt, reward_prompt = PROMPTS[0]
        log_ratio = decode(
            models.base, prompt, [Reward(models.persrm, reward_prompt)], beta=beta, top_k=10, num_tokens=1
        )
        trace = step.trace()
        base, persrm = (row.numpy() for row in log_ratio.row_logits[0])
        blended = (1 - beta) * base + beta * persrm
        np.testing.assert_array_equal(trace.candidates[0], log_ratio.candidates[0])
        np.testing.assert_allclose(trace.scores[0], blended, atol=10 * tolerance())
        shifted = log_ratio.scores[0].numpy() - blended
        np.testing.assert_allclose(shifted, shifted[0], atol=10 * tolerance())  # a constant, and nothing else
        assert np.abs(trace.scores[0] - (base + beta * persrm)).max() > 0.1  # control: the base counted twice
