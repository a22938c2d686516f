"""Text to guided text: preferences against torch, sampling against the distribution, ends, overlapping streams."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_bundles
import tiny_models
from pad_rt import EncodedPrompt, GenerationConfig, GenerationResult, Generator, PadError, Preference
from torch_oracle import Decoded, Reward, TorchModel, decode, tolerance, trace_difference

PROMPTS = ("How do I boil an egg?", "the cook", "東京 naïve", "a")
TEMPLATE = "[{p}] {x}"  # of the tiny PersRMs; one keeps the paper's
PAPER_TEMPLATE = (
    "[Guidelines] Your task is to generate response by considering the following principle. "
    "[Principles] {p} [Instruction] {x}"
)
BETA, TOP_K, NUM_TOKENS = 1.25, 6, 24
TEMPLATES = {"plain": PAPER_TEMPLATE, "official": TEMPLATE, "many": TEMPLATE}
REFERENCES = ("base", "backbone")


@dataclass(frozen=True)
class Models:
    """A base and three PersRMs of it: without a head, with the official one, and with three features."""

    folder: Path
    base: TorchModel
    persrms: dict[str, TorchModel]

    def bundle(self, reference: str, **options: Any) -> Path:
        output = self.folder / "-".join(["bundle", reference, *map(str, options.values())])
        if not output.exists():
            persrms = [self.folder / name for name in self.persrms]
            tiny_bundles.export(output, self.folder / "base", persrms, reference=reference, **options)
        return output


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("generator")
    base = folder / "base"
    tiny_models.make_base(base, "llama", seed=41, max_position_embeddings=512)
    tiny_models.make_adapter(folder / "plain", base, seed=42)
    tiny_models.make_adapter(folder / "official", base, seed=43, rank=3, target_modules=["q_proj", "v_proj"])
    tiny_models.make_adapter(folder / "many", base, seed=44, rank=5)
    tiny_models.make_head(folder / "official", 84, seed=45)
    tiny_models.make_head(folder / "many", 84, d=3, seed=46)
    settings = {"prompt_template": TEMPLATE, "default_weights": [0.5]}
    (folder / "official" / "pad_persrm.json").write_text(json.dumps(settings))
    settings = {"prompt_template": TEMPLATE, "features": ["kind", "brief", "odd"]}
    (folder / "many" / "pad_persrm.json").write_text(json.dumps(settings))
    persrms = {
        "plain": TorchModel(base, adapter=folder / "plain"),
        "official": TorchModel(base, adapter=folder / "official", head=folder / "official"),
        "many": TorchModel(base, adapter=folder / "many", head=folder / "many"),
    }
    return Models(folder, TorchModel(base), persrms)


@pytest.fixture(scope="module")
def generator(models: Models) -> Generator:
    return tiny_bundles.load(models.bundle("base"))


# A preference as a user writes it; then as (PersRM, text or None, weights, scale), in the order of the reward rows.
Plan = list[tuple[str, str | None, tuple[float, ...], float]]
PREFERENCES: dict[str, tuple[Any, Plan]] = {
    "words": ("be kind", [("plain", "be kind", (1.0,), 1.0)]),
    "official head": (
        Preference(text="be kind", weights={"official": 1.0}),
        [("official", "be kind", (1.0,), 1.0)],
    ),
    "weights, one negative and one zero": (
        Preference(text="egg", weights={"kind": 1.5, "brief": -0.75, "odd": 0.0}),
        [("many", "egg", (1.5, -0.75, 0.0), 1.0)],
    ),
    "a feature left out": (
        Preference(text="egg", weights={"odd": 0.8}),
        [("many", "egg", (0.0, 0.0, 0.8), 1.0)],
    ),
    "weights that cancel": (
        Preference(text="egg", weights={"kind": 1.0, "brief": -1.0}),
        [("many", "egg", (1.0, -1.0, 0.0), 1.0)],
    ),
    "without words": (
        Preference(weights={"kind": 0.6, "odd": 0.9}),
        [("many", None, (0.6, 0.0, 0.9), 1.0)],
    ),
    "several PersRMs in one": (
        Preference(text="egg", weights={"odd": 0.5, "plain": 0.7, "official": -0.4}),
        [
            ("plain", "egg", (0.7,), 1.0),
            ("official", "egg", (-0.4,), 1.0),
            ("many", "egg", (0.0, 0.0, 0.5), 1.0),
        ],
    ),
    "several preferences with scales": (
        [
            (Preference(text="be kind", weights={"kind": 1.0, "brief": 0.5}), 0.8),
            ("cook", 0.6),
            (Preference(text="egg", weights={"official": 1.0}), -0.5),
            ("boil", 0.0),
        ],
        [
            ("many", "be kind", (1.0, 0.5, 0.0), 0.8),
            ("plain", "cook", (1.0,), 0.6),
            ("official", "egg", (1.0,), -0.5),
            ("plain", "boil", (1.0,), 0.0),
        ],
    ),
    "none": (None, []),
}


def config(**options: Any) -> GenerationConfig:
    return GenerationConfig(**{"beta": BETA, "top_k": TOP_K, "max_new_tokens": NUM_TOKENS, **options})


def fill(template: str, *, p: str | None, x: str) -> str:
    return x if p is None else template.replace("{p}", p).replace("{x}", x)


def expect(models: Models, reference: str, prompt: str, plan: Plan, **changes: Any) -> Decoded:
    """Torch's tokens for a plan. `changes` go into `decode`, or replace the models (for controls)."""
    bundle = models.bundle(reference)
    base, persrms = changes.pop("base", models.base), {**models.persrms, **changes.pop("persrms", {})}
    backbone = changes.pop("backbone", base)
    rewards = [
        Reward(
            persrms[name],
            tiny_bundles.encode_turn(bundle, fill(TEMPLATES[name], p=text, x=prompt)),
            weights,
            scale,
            None if reference == "base" else backbone,
        )
        for name, text, weights, scale in plan
    ]
    options = {"beta": BETA, "top_k": TOP_K, "num_tokens": NUM_TOKENS, **changes}
    return decode(base, tiny_bundles.encode_turn(bundle, prompt), rewards, **options)


def assert_same(result: GenerationResult, decoded: Decoded) -> None:
    assert decoded.margin > 1e-4, "the models nearly tie: choose another prompt"
    assert list(result.token_ids) == decoded.token_ids
    if result.trace:
        assert trace_difference(result.trace, decoded) < tolerance()


# -- preferences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", PREFERENCES)
def test_every_kind_of_preference_is_the_paper_s_sum(models: Models, reference: str, name: str) -> None:
    preference, plan = PREFERENCES[name]
    prompt = PROMPTS[0]
    decoded = expect(models, reference, prompt, plan)
    for dialect in ("ort", "standard"):
        generator = tiny_bundles.load(models.bundle(reference, dialect=dialect))
        result = generator.generate(prompt, preference=preference, config=config(), trace=preference is not None)
        assert_same(result, decoded)


def test_heads_weights_and_scales_read_wrongly_do_not_match(models: Models, generator: Generator) -> None:
    folder = models.folder
    headless = {name: TorchModel(folder / "base", adapter=folder / name) for name in models.persrms}
    unbiased, swapped, transposed = (
        TorchModel(folder / "base", adapter=folder / name, head=folder / name)
        for name in ("official", "many", "official")
    )
    assert unbiased._heads is not None
    assert swapped._heads is not None
    assert transposed._heads is not None
    unbiased._heads = [(weight, torch.zeros_like(bias)) for weight, bias in unbiased._heads]
    swapped._heads = swapped._heads[::-1]
    transposed._heads = [(weight.T, bias) for weight, bias in transposed._heads]
    several, weights = "several preferences with scales", "weights, one negative and one zero"
    wrong: list[tuple[str, Any, dict[str, Any]]] = [
        ("official head", None, {"persrms": headless}),
        ("official head", None, {"persrms": {"official": unbiased}}),
        ("official head", None, {"persrms": {"official": transposed}}),
        (weights, None, {"persrms": {"many": swapped}}),
        (weights, lambda row: (*row[:2], tuple(map(abs, row[2])), row[3]), {}),
        (weights, lambda row: (*row[:2], (1.0, 1.0, 1.0), row[3]), {}),
        (several, lambda row: (*row[:3], 1.0), {}),
        (several, lambda row: (*row[:3], abs(row[3])), {}),
        ("words", lambda row: (row[0], None, *row[2:]), {}),
        ("words", lambda row: ("official", *row[1:]), {}),
    ]
    for name, change, options in wrong:
        preference, plan = PREFERENCES[name]
        result = generator.generate(PROMPTS[0], preference=preference, config=config(max_new_tokens=8), trace=True)
        changed = [change(row) for row in plan] if change else plan
        decoded = expect(models, "base", PROMPTS[0], changed, **options, num_tokens=8, forced=result.token_ids)
        assert trace_difference(result.trace, decoded) > 10 * tolerance(), (name, options)


@pytest.mark.parametrize("topology", ["shared", "pair"])
@pytest.mark.parametrize("reference", REFERENCES)
def test_sequences_with_different_preferences_share_a_batch(models: Models, reference: str, topology: str) -> None:
    """Rows, adapters, heads and no preference at all side by side: each as if it were alone."""
    generator = tiny_bundles.load(models.bundle(reference, topology=topology))
    names = [
        "words",
        "none",
        "several preferences with scales",
        "without words",
        "official head",
        "weights that cancel",
    ]
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(len(names))]
    preferences = [PREFERENCES[name][0] for name in names]
    batch = generator.generate_batch(prompts, preferences=preferences, config=config())
    for prompt, preference, result in zip(prompts, preferences, batch, strict=True):
        alone = generator.generate(prompt, preference=preference, config=config())
        assert alone.token_ids == result.token_ids
        assert alone.text == result.text
    assert len({result.token_ids for result in batch}) == len(batch)


def test_a_chat_is_rendered_up_to_the_last_turn(models: Models, generator: Generator) -> None:
    turns = [
        {"role": "system", "content": "cook"},
        {"role": "user", "content": "the egg"},
        {"role": "assistant", "content": "boils"},
        {"role": "user", "content": "a?"},
    ]
    result = generator.generate(
        turns, preference=Preference(text="be kind", weights={"official": 1.0}), config=config()
    )
    backend = generator._tokenizer._backend

    def encode(last: str) -> tuple[int, ...]:
        text = f"<s><|system|>cook<|user|>the egg<|assistant|>boils<|user|>{last}<|assistant|>"
        return tuple(backend.encode(text, add_special_tokens=False).ids)

    reward = Reward(models.persrms["official"], encode("[be kind] a?"))
    options = {"beta": BETA, "top_k": TOP_K, "num_tokens": NUM_TOKENS}
    assert_same(result, decode(models.base, encode("a?"), [reward], **options))


@pytest.mark.parametrize("sees", [True, False])
def test_the_base_sees_the_preference_only_when_told_to(models: Models, generator: Generator, sees: bool) -> None:
    preference, prompt = Preference(text="be kind", weights={"official": 1.0}), PROMPTS[1]
    result = generator.generate(prompt, preference=preference, config=config(base_sees_preference=sees), trace=True)
    with_words = tiny_bundles.encode_turn(models.bundle("base"), f"[be kind] {prompt}")
    plain = tiny_bundles.encode_turn(models.bundle("base"), prompt)
    options = {"beta": BETA, "top_k": TOP_K, "num_tokens": NUM_TOKENS}
    for base_prompt, matches in ((with_words, sees), (plain, not sees)):
        decoded = decode(models.base, base_prompt, [Reward(models.persrms["official"], with_words)], **options)
        assert (list(result.token_ids) == decoded.token_ids) is matches
        assert (trace_difference(result.trace, decoded) < tolerance()) is matches


def test_without_a_persrm_the_base_is_contrasted_with_itself(models: Models, tmp_path: Path) -> None:
    tiny_bundles.export(tmp_path / "bundle", models.folder / "base", [])
    contrast = tiny_bundles.load(tmp_path / "bundle")
    result = contrast.generate(PROMPTS[1], preference="be kind", config=config(beta=2.0), trace=True)
    words = tiny_bundles.encode_turn(tmp_path / "bundle", fill(PAPER_TEMPLATE, p="be kind", x=PROMPTS[1]))
    plain = tiny_bundles.encode_turn(tmp_path / "bundle", PROMPTS[1])
    options = {"beta": 2.0, "top_k": TOP_K, "num_tokens": NUM_TOKENS}
    assert_same(result, decode(models.base, plain, [Reward(models.base, words)], **options))
    assert list(result.token_ids) != decode(models.base, plain, [], **options).token_ids  # control: no guidance
    assert list(result.token_ids) != decode(models.base, words, [], **options).token_ids  # control: prompted only
    with pytest.raises(PadError, match="words"):
        contrast.generate(PROMPTS[1], preference=Preference(weights={"contrast": 1.0}))
    # Against the same words in its own prompt there is nothing to contrast, and still something to trace.
    seen = contrast.generate(PROMPTS[1], preference="be kind", config=config(base_sees_preference=True), trace=True)
    assert list(seen.token_ids) == decode(models.base, words, [], **options).token_ids
    assert {step.row_logits.shape[0] for step in seen.trace} == {1}


@pytest.mark.parametrize("topology", ["pair", "merged"])
@pytest.mark.parametrize("reference", REFERENCES)
def test_heads_on_a_trunk_of_their_own(models: Models, tmp_path: Path, topology: str, reference: str) -> None:
    """The three features on a second trunk, from the adapter or from a merged checkpoint with the head beside it."""
    base, options = models.folder / "base", {"reference": reference}
    persrm = models.folder / "many"
    if topology == "merged":
        persrm = tmp_path / "merged"
        tiny_models.make_merged(persrm, base, models.folder / "many")
        for name in ("value_head.safetensors", "pad_persrm.json"):
            (persrm / name).write_bytes((models.folder / "many" / name).read_bytes())
        options |= {"backbone": base} if reference == "backbone" else {}
    else:
        options["topology"] = "pair"
    generator = tiny_bundles.load(tiny_bundles.export(tmp_path / "bundle", base, [persrm], **options))
    for name in ("weights, one negative and one zero", "without words"):
        preference, plan = PREFERENCES[name]
        result = generator.generate(PROMPTS[2], preference=preference, config=config(), trace=True)
        backbone = copy.copy(models.base)  # its rows run on a trunk of their own, whatever they read
        assert_same(result, expect(models, reference, PROMPTS[2], plan, backbone=backbone))


@pytest.mark.parametrize("reference", REFERENCES)
def test_several_persrms_on_a_trunk_of_their_own(models: Models, reference: str) -> None:
    generator = tiny_bundles.load(models.bundle(reference, topology="pair"))
    assert [trunk.name for trunk in generator.manifest.trunks] == ["base", "reward"]
    for name in ("several PersRMs in one", "several preferences with scales", "words"):
        preference, plan = PREFERENCES[name]
        result = generator.generate(PROMPTS[1], preference=preference, config=config(), trace=True)
        assert_same(result, expect(models, reference, PROMPTS[1], plan))


@pytest.mark.parametrize(("name", "weights"), [("official", (0.5,)), ("many", (1.0, 1.0, 1.0))])
def test_words_alone_take_the_default_weights(
    models: Models, tmp_path: Path, name: str, weights: tuple[float, ...]
) -> None:
    tiny_bundles.export(tmp_path / "bundle", models.folder / "base", [models.folder / name])
    generator = tiny_bundles.load(tmp_path / "bundle")
    result = generator.generate(PROMPTS[1], preference="be kind", config=config(), trace=True)
    assert_same(result, expect(models, "base", PROMPTS[1], [(name, "be kind", weights, 1.0)]))


@pytest.mark.parametrize("d", [1, 3])
def test_capped_logits_are_capped_feature_by_feature(tmp_path: Path, d: int) -> None:
    """Gemma 2 caps its logits: R = sum_i w_i * phi_i caps every phi_i, and not their sum."""
    config_fields = {"final_logit_softcapping": 6.0, "attn_logit_softcapping": 5.0}
    tiny_models.make_base(tmp_path / "base", "gemma2", seed=51, **config_fields)
    tiny_models.make_adapter(tmp_path / "many", tmp_path / "base", seed=52)
    tiny_models.make_head(tmp_path / "many", 84, d=d, seed=53)
    tiny_bundles.export(tmp_path / "bundle", tmp_path / "base", [tmp_path / "many"])
    generator = tiny_bundles.load(tmp_path / "bundle")
    weights = (0.4,) if d == 1 else (1.2, -0.5, 0.25)
    features = generator.manifest.persrms[0].features
    prompt = EncodedPrompt(range(5, 14), range(40, 55))
    preference = Preference(weights=dict(zip(features, weights, strict=True)))
    result = generator.generate(prompt, preference=preference, config=config(), trace=True)
    persrm = TorchModel(tmp_path / "base", adapter=tmp_path / "many", head=tmp_path / "many")
    reward = Reward(persrm, prompt.reward, weights)
    options = {"beta": BETA, "top_k": TOP_K, "num_tokens": NUM_TOKENS}
    decoded = decode(TorchModel(tmp_path / "base"), prompt.base, [reward], **options)
    assert_same(result, decoded)


# -- one bundle, many PersRMs -----------------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d", "e", "f")  # more than the adapter sets that are kept on the device
RANKS = {"a": 4, "b": 2, "c": 7, "d": 1, "e": 3, "f": 4}


@pytest.fixture(scope="module")
def bank(models: Models) -> Path:
    """One bundle with six adapters of different ranks and sites, and bundles of each alone."""
    folder = models.folder / "bank"
    sites = {"b": ["q_proj"], "c": ["down_proj", "o_proj"], "d": ["gate_proj", "k_proj"]}
    for index, name in enumerate(NAMES):
        options = {"target_modules": sites[name]} if name in sites else {}
        tiny_models.make_adapter(folder / name, models.folder / "base", seed=60 + index, rank=RANKS[name], **options)
        (folder / name / "pad_persrm.json").write_text(json.dumps({"prompt_template": TEMPLATE}))
        tiny_bundles.export(folder / f"only-{name}", models.folder / "base", [folder / name])
    return tiny_bundles.export(folder / "all", models.folder / "base", [folder / name for name in NAMES])


def wish(*names: str) -> Preference:
    return Preference(text="be kind", weights=dict.fromkeys(names, 1.0))


def test_adapters_are_swapped_without_another_export(bank: Path) -> None:
    generator = tiny_bundles.load(bank)
    alone = {}
    for name in NAMES:
        single = tiny_bundles.load(bank.parent / f"only-{name}")
        alone[name] = single.generate(PROMPTS[0], preference=wish(name), config=config(), trace=True)
    assert len({result.token_ids for result in alone.values()}) == len(NAMES)
    for name in "abacbdecffedcba":
        result = generator.generate(PROMPTS[0], preference=wish(name), config=config(), trace=True)
        assert result.token_ids == alone[name].token_ids
        for ours, theirs in zip(result.trace, alone[name].trace, strict=True):
            np.testing.assert_allclose(ours.row_logits, theirs.row_logits, atol=10 * tolerance())
        generator.generate(PROMPTS[1], config=config(max_new_tokens=2))  # the base in between
        generator.generate(PROMPTS[1], preference=wish("a", name), config=config(max_new_tokens=2))


def test_adapters_side_by_side_in_a_batch_are_the_adapters_alone(bank: Path) -> None:
    generator = tiny_bundles.load(bank)
    preferences = [wish(name) for name in NAMES]
    batch = generator.generate_batch([PROMPTS[0]] * len(NAMES), preferences=preferences, config=config())
    for name, result in zip(NAMES, batch, strict=True):
        single = tiny_bundles.load(bank.parent / f"only-{name}")
        assert result.token_ids == single.generate(PROMPTS[0], preference=wish(name), config=config()).token_ids


# -- sampling -------------------------------------------------------------------------------------------------------


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


# -- how replies end ------------------------------------------------------------------------------------------------


def first_time(ids: Sequence[int], *, after: int) -> int:
    """Position of the first id from there on that does not come earlier."""
    return next(place for place in range(after, len(ids)) if ids[place] not in ids[:place])


@pytest.mark.parametrize("preference", [None, "be kind"])
def test_sequences_end_one_by_one(models: Models, tmp_path: Path, preference: str | None) -> None:
    """Two ids that end a reply, at different steps of a batch; the others go on as if alone."""
    tiny_bundles.export(tmp_path / "bundle", models.folder / "base", [models.folder / "plain"])
    endless = tiny_bundles.load(tmp_path / "bundle")
    preferences = [preference] * len(PROMPTS)
    full = [result.token_ids for result in endless.generate_batch(PROMPTS, preferences=preferences, config=config())]
    eos = [full[0][first_time(full[0], after=3)], full[2][first_time(full[2], after=7)]]
    tiny_bundles.set_eos(tmp_path / "bundle", eos)
    generator = tiny_bundles.load(tmp_path / "bundle")
    batch = generator.generate_batch(PROMPTS, preferences=preferences, config=config(), trace=preference is not None)
    lengths = set()
    for ids, result, prompt in zip(full, batch, PROMPTS, strict=True):
        end = next((place for place, token in enumerate(ids) if token in eos), None)
        assert result.token_ids == ids[:end]
        assert result.finish_reason == ("length" if end is None else "stop")
        if preference is not None:
            assert len(result.trace) == (NUM_TOKENS if end is None else end + 1)
        alone = generator.generate(prompt, preference=preference, config=config())
        assert (alone.token_ids, alone.text, alone.finish_reason) == (ids[:end], result.text, result.finish_reason)
        assert "".join(generator.stream(prompt, preference=preference, config=config())) == result.text
        lengths.add(len(result.token_ids))
    assert len(lengths) > 2


def test_a_stop_string_is_found_across_tokens(generator: Generator) -> None:
    checked = 0
    for prompt in PROMPTS:
        for preference in (None, "be kind"):
            settings = config(max_new_tokens=60)
            pieces = list(generator.stream(prompt, preference=preference, config=settings))
            text = "".join(pieces)
            ends = np.cumsum([len(piece) for piece in pieces])[:-1].tolist()
            for end in ends:
                stop = text[end - 2 : end + 2]
                if len(stop) < 4 or "\ufffd" in stop or text.find(stop) != end - 2:
                    continue
                checked += 1
                cut = replace(settings, stop=("never there", stop))
                result = generator.generate(prompt, preference=preference, config=cut)
                assert result.text == text[: end - 2]
                assert result.finish_reason == "stop"
                assert len(result.token_ids) < 60
                assert "".join(generator.stream(prompt, preference=preference, config=cut)) == result.text
                break
            never = generator.generate(prompt, preference=preference, config=replace(settings, stop="never there"))
            assert (never.text, never.finish_reason) == (text, "length")
    assert checked > 3


def test_pieces_of_a_stream_are_the_text(generator: Generator) -> None:
    """With characters that span tokens, and one that the end cuts off."""
    for count in (1, 2, 7, 60):
        for preference in (None, "be kind"):
            for prompt in PROMPTS:
                settings = config(max_new_tokens=count)
                pieces = list(generator.stream(prompt, preference=preference, config=settings))
                result = generator.generate(prompt, preference=preference, config=settings)
                assert "".join(pieces) == result.text
                assert len(pieces) <= count + 1
                assert "" not in pieces
                raw = generator._tokenizer._backend.decode(list(result.token_ids), skip_special_tokens=True)
                assert result.text == raw


def test_max_length_ends_a_reply(models: Models, tmp_path: Path) -> None:
    max_length = 40
    plain, base = models.folder / "plain", models.folder / "base"
    tiny_bundles.export(tmp_path / "short", base, [plain], max_length=max_length)
    short = tiny_bundles.load(tmp_path / "short")
    tiny_bundles.export(tmp_path / "long", base, [plain])
    long = tiny_bundles.load(tmp_path / "long")
    for size in (1, 10, max_length - 2, max_length - 1):
        for prompt, preference in (
            (EncodedPrompt(range(1, size + 1), (5, 6)), "x"),
            (EncodedPrompt((7,), range(1, size + 1)), "x"),
            (EncodedPrompt(range(1, size + 1)), None),
        ):
            longest = max(size, len(prompt.reward or ()))
            result = short.generate(prompt, preference=preference, config=config(max_new_tokens=100))
            expected = long.generate(prompt, preference=preference, config=config(max_new_tokens=100))
            assert len(result.token_ids) == max_length - longest
            assert result.finish_reason == "length"
            assert result.token_ids == expected.token_ids[: max_length - longest]
    for prompt in (EncodedPrompt(range(1, max_length + 1), (5,)), EncodedPrompt((5,), range(1, max_length + 1))):
        with pytest.raises(PadError, match="max_length"):
            short.generate(prompt, preference="x")


def test_a_long_prompt_does_not_shorten_its_neighbours(models: Models, tmp_path: Path) -> None:
    """Each sequence of a batch has max_length to itself: a row of a batch is the row alone."""
    base, plain = models.folder / "base", models.folder / "plain"
    prompts = [EncodedPrompt(range(1, 31), range(2, 20)), EncodedPrompt((3, 4), (5,)), EncodedPrompt((9,) * 20, (8,))]
    for dialect in ("ort", "standard"):
        tiny_bundles.export(tmp_path / dialect, base, [plain], max_length=40, dialect=dialect)
        generator = tiny_bundles.load(tmp_path / dialect)
        for preferences in (["x"] * 3, [None] * 3):
            settings = config(max_new_tokens=100)
            batch = generator.generate_batch(prompts, preferences=preferences, config=settings)
            for prompt, preference, result in zip(prompts, preferences, batch, strict=True):
                alone = generator.generate(prompt, preference=preference, config=settings)
                assert result.token_ids == alone.token_ids
                assert result.finish_reason == "length"


# -- one generator, many calls --------------------------------------------------------------------------------------


def test_requests_of_different_sizes_leave_nothing_behind(models: Models) -> None:
    used = tiny_bundles.load(models.bundle("base"))
    calls: list[tuple[list[str], str, GenerationConfig]] = [
        ([PROMPTS[0]], "words", config()),
        (list(PROMPTS), "several preferences with scales", config(max_new_tokens=5)),
        ([PROMPTS[0] * 8], "without words", config(max_new_tokens=300)),
        ([PROMPTS[3]], "none", config()),
        ([PROMPTS[3]], "words", config(top_k=1)),
        ([PROMPTS[3]], "official head", config(top_k=30, temperature=2.0)),
        ([PROMPTS[2], PROMPTS[1]], "words", config(beta=-1.0)),
        ([PROMPTS[0]], "words", config()),
    ]
    for prompts, name, settings in calls:
        preferences = [PREFERENCES[name][0]] * len(prompts)
        fresh = tiny_bundles.load(models.bundle("base"))
        ours = used.generate_batch(prompts, preferences=preferences, config=settings)
        theirs = fresh.generate_batch(prompts, preferences=preferences, config=settings)
        assert [result.token_ids for result in ours] == [result.token_ids for result in theirs]
    assert {guided: len(idle) for guided, idle in used._idle.items()} == {True: 1, False: 1}


def test_streams_read_in_turns_do_not_mix(generator: Generator) -> None:
    names = ("words", "none", "official head", "words", "several preferences with scales")
    wishes = [(PROMPTS[index % 4], PREFERENCES[name][0]) for index, name in enumerate(names)]
    expected = [
        generator.generate(prompt, preference=preference, config=config()).text for prompt, preference in wishes
    ]
    assert len(set(expected)) == len(expected)
    abandoned = generator.stream(PROMPTS[0], preference="egg", config=config())
    next(abandoned)
    streams = [generator.stream(prompt, preference=preference, config=config()) for prompt, preference in wishes]
    texts = [""] * len(streams)
    for round_ in zip_longest(*streams, fillvalue=""):
        for index, piece in enumerate(round_):
            texts[index] += piece
        if abandoned is not None:
            next(abandoned)
            abandoned.close()
            abandoned = None
    assert texts == expected
    again = [generator.generate(prompt, preference=preference, config=config()).text for prompt, preference in wishes]
    assert again == expected


def test_a_stream_left_half_read_gives_its_buffers_back(models: Models) -> None:
    generator = tiny_bundles.load(models.bundle("base"))
    (step,) = generator._idle[True]
    for _ in range(3):
        stream = generator.stream(PROMPTS[0], preference="be kind", config=config())
        next(stream)
        assert generator._idle[True] == []
        del stream
        assert generator._idle[True] == [step]


def test_threads_do_not_mix(bank: Path) -> None:
    """Threads that switch between more adapters than are kept, guided and not, each against its own calls in turn."""
    generator = tiny_bundles.load(bank)
    wishes = [(PROMPTS[0], wish(name)) for name in NAMES] + [(PROMPTS[1], None), (PROMPTS[2], wish("a", "c"))]
    expected = [
        generator.generate(prompt, preference=preference, config=config()).token_ids for prompt, preference in wishes
    ]
    failures: list[str] = []
    started = threading.Barrier(4)

    def work(first: int) -> None:
        try:
            started.wait(timeout=60)
            for turn in range(12):
                index = (first * 3 + turn) % len(wishes)
                prompt, preference = wishes[index]
                found = generator.generate(prompt, preference=preference, config=config()).token_ids
                if found != expected[index]:
                    failures.append(f"thread {first}, call {turn}: another reply")
        except BaseException as error:
            failures.append(f"thread {first}: {error!r}")

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_an_adapter_set_dropped_by_another_thread_is_no_loss(bank: Path) -> None:
    """The worst moment: between finding a set of adapters and taking it, another thread's requests push it out."""
    generator = tiny_bundles.load(bank)
    adapters = generator._bundle._bank
    others = [*itertools.combinations(range(1, 6), 1), *itertools.combinations(range(1, 6), 2)]
    pushed: list[object] = []

    def push() -> None:
        pushed.extend(adapters.factors(active) for active in others)

    other = threading.Thread(target=push, daemon=True)

    class Interrupted(OrderedDict[Any, Any]):
        waiting = True

        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            if found and self.waiting:
                self.waiting = False
                other.start()
                other.join(timeout=0.3)
            return found

    expected = generator.generate(PROMPTS[0], preference=wish("a"), config=config()).token_ids
    adapters._sets = Interrupted(adapters._sets)
    assert generator.generate(PROMPTS[0], preference=wish("a"), config=config()).token_ids == expected
    other.join()  # it was started: the set had been found
    assert len(pushed) == len(others)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("preference", [None, "be kind"])
def test_eight_bytes_a_token_are_reported(generator: Generator, count: int, preference: str | None) -> None:
    results = generator.generate_batch(PROMPTS[:count], preferences=[preference] * count, config=config())
    assert {result.timing.bytes_to_host_per_token for result in results} == {8}


# -- what is imported -----------------------------------------------------------------------------------------------


def imported_after(code: str) -> set[str]:
    heavy = ["torch", "transformers", "peft", "onnx", "onnxruntime", "pad_export"]
    code = f"import sys\n{code}\nprint(*[name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(found.stdout.split())


def test_importing_and_generating_load_nothing_heavy(models: Models) -> None:
    assert imported_after("import pad_rt") == set()
    bundle = str(models.bundle("base"))
    assert imported_after(f"import pad_rt; pad_rt.Generator.load({bundle!r}).generate('a', preference='b')") == {
        "onnxruntime"
    }
    assert "onnx" in imported_after("import onnx")  # control
