"""Samples: the same for the same seed, another for each sequence, and as often as their scores say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pad_rt import EncodedPrompt, Generator, Preference
from tests.support import tiny_bundles
from tests.support.guided_models import NUM_TOKENS, PROMPTS, TOP_K, Models, config


def test_a_seed_gives_its_tokens_again(generator: Generator) -> None:
    def sample(**options: Any) -> tuple[int, ...]:
        settings = config(temperature=3.0, **options)
        return generator.generate(PROMPTS[0], preference="be kind", config=settings).token_ids

    assert sample(seed=5) == sample(seed=5)
    assert sample(seed=5) != sample(seed=6)
    assert sample(seed=5, max_new_tokens=40)[:NUM_TOKENS] == sample(seed=5)
    assert sample(seed=2**63 - 1) == sample(seed=2**63 - 1)
    greedy = generator.generate(PROMPTS[0], preference="be kind", config=config()).token_ids
    cold = replace(config(), temperature=0.0, top_p=0.5, seed=9)
    assert generator.generate(PROMPTS[0], preference="be kind", config=cold).token_ids == greedy
    assert sample(seed=5) != greedy


@pytest.mark.parametrize("preference", [None, "be kind"])
def test_sequence_i_of_a_batch_samples_from_seed_plus_i(generator: Generator, preference: str | None) -> None:
    settings = config(temperature=2.5, top_p=0.9, seed=70)
    batch = generator.generate_batch(PROMPTS, preferences=[preference] * 4, config=settings)
    for index, (prompt, result) in enumerate(zip(PROMPTS, batch, strict=True)):
        alone = [
            generator.generate(prompt, preference=preference, config=replace(settings, seed=seed)).token_ids
            for seed in (70 + index, 71 + index)
        ]
        assert result.token_ids == alone[0]
        assert result.token_ids != alone[1]  # control


def chi_square(counts: Counter[int], chances: dict[int, float]) -> float:
    """Pearson's statistic; infinite for a token that the distribution does not have."""
    total = sum(counts.values())
    if set(counts) - set(chances):
        return float("inf")
    return sum((counts[token] - total * chance) ** 2 / (total * chance) for token, chance in chances.items())


def chances(trace: Any, temperature: float, top_p: float) -> dict[int, float]:
    """softmax(score / temperature) over the smallest set of candidates that holds top_p of the mass."""
    order = np.argsort(-trace.scores)
    weights = np.exp((trace.scores[order] - trace.scores.max()).astype(np.float64) / temperature)
    weights /= weights.sum()
    size = int(np.searchsorted(np.cumsum(weights), top_p)) + 1
    kept = weights[:size] / weights[:size].sum()
    return dict(zip(trace.candidates[order[:size]].tolist(), kept.tolist(), strict=True))


@pytest.mark.parametrize(("temperature", "top_p"), [(2.0, 1.0), (2.0, 0.8)])
def test_samples_follow_the_softmax_of_the_scores(
    models: Models, tmp_path: Path, temperature: float, top_p: float
) -> None:
    batch, rounds = 64, 32
    tiny_bundles.export(tmp_path / "wide", models.folder / "base", [models.folder / "many"], max_batch=batch)
    generator = tiny_bundles.load(tmp_path / "wide")
    prompt = EncodedPrompt((7, 8, 9), (11, 12))
    preference = Preference(weights={"kind": 0.5})
    options = {"temperature": temperature, "top_p": top_p, "max_new_tokens": 1}
    counts: Counter[int] = Counter()
    for index in range(rounds):
        settings = config(**options, seed=1000 + batch * index)
        results = generator.generate_batch([prompt] * batch, preferences=[preference] * batch, config=settings)
        counts.update(result.token_ids[0] for result in results)
    (trace,) = generator.generate(prompt, preference=preference, config=config(**options), trace=True).trace
    expected = chances(trace, temperature, top_p)
    assert 3 <= len(expected) <= TOP_K
    assert (len(expected) < TOP_K) is (top_p < 1.0)
    limit = 20.5  # of 5 degrees of freedom, exceeded by chance once in a thousand
    assert chi_square(counts, expected) < limit
    for wrong in (chances(trace, 0.5 * temperature, top_p), chances(trace, 2.0 * temperature, top_p)):
        assert chi_square(counts, wrong) > limit
    if top_p < 1.0:  # control: nothing cut
        assert chi_square(counts, chances(trace, temperature, 1.0)) > limit
