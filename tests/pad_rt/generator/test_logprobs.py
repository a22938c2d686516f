"""Log-probabilities of whole replies, guided and plain, against torch; and where they are found."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pad_rt import EncodedPrompt, GenerationConfig, GenerationResult, Generator
from pad_runtime.errors import DeviceError
from tests.support import tiny_bundles
from tests.support.guided_models import BETA, TOP_K, Models, config
from tests.support.torch_oracle import OracleReward, decode, tolerance

BASE, REWARD = (5, 61, 62, 63, 8), (9, 8, 7, 6, 5, 4, 20)
PREFERENCES = [None, "x"]


@pytest.fixture(scope="module")
def ended(models: Models, generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A bundle whose end of turn is the token that the guided reply has third."""
    bundle = tiny_bundles.export(
        tmp_path_factory.mktemp("ended") / "bundle", models.folder / "base", [models.folder / "plain"]
    )
    third = generate(tiny_bundles.load(bundle), "x", config()).token_ids[2]
    tiny_bundles.set_eos(bundle, [third])
    return tiny_bundles.load(bundle)


def generate(
    generator: Generator, preference: str | None, settings: GenerationConfig, **options: Any
) -> GenerationResult:
    prompt = EncodedPrompt(BASE, None if preference is None else REWARD)
    return generator.generate(prompt, preference=preference, config=settings, **options)


@pytest.mark.parametrize("preference", PREFERENCES)
@pytest.mark.parametrize("temperature", [0.0, 2.5])
def test_logprobs_are_torch_s(models: Models, generator: Generator, preference: str | None, temperature: float) -> None:
    """Of the distribution that is sampled, with the candidates of the base; and of the base over its vocabulary."""
    settings = config(temperature=temperature, seed=8)
    reply = generate(generator, preference, replace(settings, logprobs=3))
    assert reply.token_ids == generate(generator, preference, settings).token_ids
    assert reply.trace == ()
    rewards = [OracleReward(models.persrms["plain"], REWARD)] if preference else []
    options: dict[str, Any] = {"beta": BETA, "top_k": TOP_K, "num_tokens": len(reply.token_ids)}
    decoded = decode(models.base, BASE, rewards, forced=reply.token_ids, **options)
    assert [each.token_id for each in reply.logprobs] == list(reply.token_ids)
    missed = 0.0
    for step, (found, candidates, scores) in enumerate(
        zip(reply.logprobs, decoded.candidates, decoded.scores, strict=True)
    ):
        logprobs = (scores / (temperature or 1.0)).log_softmax(-1)
        by_id = dict(zip(candidates.tolist(), logprobs.tolist(), strict=True))
        assert found.logprob == pytest.approx(by_id[found.token_id], abs=tolerance())
        best = sorted(by_id.items(), key=lambda item: -item[1])[:3]
        assert [id for id, _ in found.likeliest] == [id for id, _ in best]
        assert [value for _, value in found.likeliest] == pytest.approx([value for _, value in best], abs=tolerance())
        whole = models.base.logits([*BASE, *reply.token_ids[:step]])[0].log_softmax(-1)
        assert found.base_logprob == pytest.approx(float(whole[found.token_id]), abs=tolerance())
        missed = max(
            missed, abs(float(scores.log_softmax(-1).max() - logprobs.max())), abs(found.logprob - whole.max())
        )
    assert missed > 0.1


@pytest.mark.parametrize("preference", PREFERENCES)
def test_forms_and_bans_leave_nothing_to_others(generator: Generator, preference: str | None) -> None:
    """What is not allowed has no probability, and what alone is allowed has all of it."""
    settings = config(regex="the egg[ab]", stop_token_ids=2, logprobs=TOP_K, temperature=1.0)
    reply = generate(generator, preference, settings)
    assert reply.text[:-1] == "the egg"
    *forced, free, end = reply.logprobs
    assert [each.logprob for each in (*forced, end)] == [0.0] * (len(forced) + 1)
    assert len(free.likeliest) == 2
    assert sum(np.exp(value) for _, value in free.likeliest) == pytest.approx(1.0)
    assert end.token_id == 2
    assert all(each.base_logprob is not None and each.base_logprob < -1 for each in reply.logprobs)


def test_the_end_of_the_turn_has_its_own(models: Models, ended: Generator) -> None:
    reply = generate(ended, "x", config(logprobs=0))
    (end,) = ended.manifest.eos_token_ids
    assert [each.token_id for each in reply.logprobs] == [*reply.token_ids, end]
    whole = models.base.logits([*BASE, *reply.token_ids])[0].log_softmax(-1)
    assert reply.logprobs[-1].base_logprob == pytest.approx(float(whole[end]), abs=tolerance())
    assert reply.logprobs[-1].likeliest == ()


def test_events_have_them_without_the_base_s(ended: Generator) -> None:
    settings = config(logprobs=2)
    whole = generate(ended, "x", settings)
    prompt = EncodedPrompt(BASE, REWARD)
    ticket = ended.submit(prompt, preference="x", config=settings)
    events = [each for event in ticket for each in event.logprobs]
    assert events == [replace(each, base_logprob=None) for each in whole.logprobs]
    assert ticket.result().logprobs == whole.logprobs
    stream = ended.stream(prompt, preference="x", config=settings)
    assert "".join(stream) == whole.text
    assert stream.result is not None
    assert stream.result.logprobs == whole.logprobs
    assert asyncio.run(ended.agenerate(prompt, preference="x", config=settings)).logprobs == whole.logprobs
    assert generate(ended, "x", config()).logprobs == ()
    traced = generate(ended, "x", settings, trace=True)
    assert len(traced.trace) == len(traced.logprobs) == len(whole.logprobs)


def test_logprobs_beside_requests_that_ask_for_none(generator: Generator) -> None:
    configs = [config(logprobs=number if number % 2 else None) for number in range(5)]
    replies = generator.generate_batch(["the egg"] * 5, preferences=[None, "x", "x", None, None], configs=configs)
    assert [bool(reply.logprobs) for reply in replies] == [False, True, False, True, False]
    assert [len(reply.logprobs[0].likeliest) for reply in replies if reply.logprobs] == [1, 3]


def test_a_device_without_a_score_graph(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DeviceError("no engine of the score graph")

    monkeypatch.setattr("pad_runtime.loaded_bundle.Bundle.scorer", refuse)
    fresh = Generator(generator._bundle)
    reply = generate(fresh, None, config(logprobs=1))
    assert [each.base_logprob for each in reply.logprobs] == [None] * len(reply.token_ids)
    assert len(reply.logprobs[0].likeliest) == 1
    assert torch.isfinite(torch.tensor([each.logprob for each in reply.logprobs])).all()
