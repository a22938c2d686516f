"""Ends of the turn that are candidates at every step: what they change, and what they leave alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pad_export.read.checkpoint import open_checkpoint
from pad_rt import EncodedPrompt, GenerationConfig, Generator, PadError
from tests.support import tiny_bundles
from tests.support.guided_models import BETA, NUM_TOKENS, Models, config
from tests.support.torch_oracle import Decoded, OracleReward, decode, tolerance, trace_difference

FEW = 2  # candidates that the base proposes
READ = (((5, 17, 30, 41, 8), (9, 8, 7, 6, 5, 4, 20)), ((20, 21, 22), (25,)), ((3,), (4, 61, 60, 59)))
EVERYTHING = 10_000


def few(**options: Any) -> GenerationConfig:
    return config(**{"top_k": FEW, **options})


def expect(models: Models, index: int, *, top_k: int = FEW, num_tokens: int = NUM_TOKENS, **options: Any) -> Decoded:
    """Torch's tokens for one of the prompts."""
    base, reward = READ[index]
    rewards = [OracleReward(models.persrms["plain"], reward)]
    return decode(models.base, base, rewards, beta=BETA, top_k=top_k, num_tokens=num_tokens, **options)


@pytest.fixture(scope="module")
def wanted(models: Models) -> tuple[int, int]:
    """A prompt, and the token that its person wants first and the base does not propose."""
    for index in range(len(READ)):
        (token,) = expect(models, index, top_k=EVERYTHING, num_tokens=1).token_ids
        if token not in expect(models, index, num_tokens=1).candidates[0]:
            return index, token
    raise AssertionError("every person wants what the base proposes: take other prompts")


@pytest.fixture(scope="module", params=["ort", "standard"])
def ended(models: Models, wanted: tuple[int, int], request: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A bundle of a base with two ends of turn: the wanted token, and the tokenizer's own."""
    folder = tmp_path_factory.mktemp("ends")
    shutil.copytree(models.folder / "base", folder / "base")
    (folder / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": [wanted[1]]}))
    eos = open_checkpoint(folder / "base").eos_token_ids
    assert len(eos) == 2
    assert wanted[1] in eos
    options = {"eos": eos, "dialect": request.param, "max_top_k": EVERYTHING}
    tiny_bundles.export(folder / "bundle", folder / "base", [models.folder / "plain"], **options)
    return tiny_bundles.load(folder / "bundle")


def prompts(indices: Sequence[int] = range(len(READ))) -> list[EncodedPrompt]:
    return [EncodedPrompt(*READ[index]) for index in indices]


def test_offered_ends_are_weighed_beside_the_base_s_own_candidates(models: Models, ended: Generator) -> None:
    """Against torch, alone and in a batch, up to where the reply ends; the control is the same without the offer."""
    ends = ended.manifest.eos_token_ids
    batch = ended.generate_batch(prompts(), preferences=["x"] * 3, config=few(offer_end=True), trace=True)
    plain = ended.generate_batch(prompts(), preferences=["x"] * 3, config=few(), trace=True)
    for index, (result, without) in enumerate(zip(batch, plain, strict=True)):
        steps = len(result.trace)
        decoded = expect(models, index, num_tokens=steps, offered=ends)
        assert decoded.margin > 1e-4, "the models nearly tie: choose another prompt"
        assert list(result.token_ids) == [token for token in decoded.token_ids if token not in ends]
        assert result.trace[0].candidates.shape == (FEW + len(ends),)
        assert trace_difference(result.trace, decoded) < tolerance()
        control = expect(models, index, num_tokens=len(without.trace))
        assert trace_difference(without.trace, control) < tolerance()
        alone = ended.generate(prompts()[index], preference="x", config=few(offer_end=True))
        assert (alone.token_ids, alone.finish_reason) == (result.token_ids, result.finish_reason)


def test_a_reply_ends_where_its_person_wants_it_to(ended: Generator, wanted: tuple[int, int]) -> None:
    (prompt,) = prompts(wanted[:1])
    assert ended.generate(prompt, preference="x", config=few()).finish_reason == "length"
    offered = ended.generate(prompt, preference="x", config=few(offer_end=True))
    assert (offered.token_ids, offered.finish_reason) == ((), "stop")


def test_the_base_alone_is_offered_nothing(ended: Generator) -> None:
    read = [EncodedPrompt(base) for base, _ in READ]
    for options in ({}, {"temperature": 2.0, "seed": 3}):
        plain, offered = (ended.generate_batch(read, config=few(**options, offer_end=offer)) for offer in (False, True))
        assert [result.token_ids for result in plain] == [result.token_ids for result in offered]


def test_an_end_that_the_base_proposes_is_one_candidate(ended: Generator) -> None:
    """With every token a candidate there is nothing left to offer: no id comes twice, and nothing changes."""
    everything = ended.manifest.vocab_size
    plain, offered = (
        ended.generate(prompts()[1], preference="x", config=few(top_k=everything, offer_end=offer), trace=True)
        for offer in (False, True)
    )
    assert plain.token_ids == offered.token_ids
    for step in offered.trace:
        assert sorted(step.candidates) == list(range(everything))


def test_there_is_room_for_every_offered_end(models: Models, ended: Generator, tmp_path: Path) -> None:
    base, persrms = models.folder / "base", [models.folder / "plain"]
    tiny_bundles.export(tmp_path / "narrow", base, persrms, eos=open_checkpoint(base).eos_token_ids, max_top_k=4)
    narrow = tiny_bundles.load(tmp_path / "narrow")
    narrow.generate("a", preference="x", config=few(top_k=3, offer_end=True))
    narrow.generate("a", preference="x", config=few(top_k=4))
    with pytest.raises(PadError, match=r"top_k 4 beside 1 offered end.*at most 3"):
        narrow.generate("a", preference="x", config=few(top_k=4, offer_end=True))


def test_a_base_without_an_end_of_turn_can_offer_none(generator: Generator) -> None:
    with pytest.raises(PadError, match=r"offer_end.*has none"):
        generator.generate("a", preference="x", config=few(offer_end=True))
    with pytest.raises(PadError, match=r"offer_end='yes'.*True or False"):
        GenerationConfig(offer_end="yes")  # type: ignore[arg-type]
