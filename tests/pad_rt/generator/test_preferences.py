"""Every kind of preference against torch, and what the base reads beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pad_export.verify.tolerance import difference
from pad_rt import EncodedPrompt, GenerationResult, Generator, PadError, Preference
from pad_runtime.decode.trace import SequenceTrace
from tests.support import tiny_bundles, tiny_models
from tests.support.bundle_text import read_tokenizer
from tests.support.guided_models import BETA, NUM_TOKENS, PREFERENCES, PROMPTS, TEMPLATE, TOP_K, Models, Plan, config
from tests.support.torch_oracle import Decoded, OracleReward, TorchModel, decode, tolerance, trace_difference

PAPER_TEMPLATE = (
    "[Guidelines] Your task is to generate response by considering the following principle. "
    "[Principles] {p} [Instruction] {x}"
)
TEMPLATES = {"plain": PAPER_TEMPLATE, "official": TEMPLATE, "many": TEMPLATE}
REFERENCES = ("base", "backbone")


def fill(template: str, *, p: str | None, x: str) -> str:
    return x if p is None else template.replace("{p}", p).replace("{x}", x)


def expect(models: Models, reference: str, prompt: str, plan: Plan, **changes: Any) -> Decoded:
    """Torch's tokens for a plan. `changes` go into `decode`, or replace the models (for controls)."""
    bundle = models.bundle(reference)
    base, persrms = changes.pop("base", models.base), {**models.persrms, **changes.pop("persrms", {})}
    backbone = changes.pop("backbone", base)
    rewards = [
        OracleReward(
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


WEIGHED: Plan = [
    ("many", "egg", (1.0, 0.5, 0.0), 0.8),
    ("many", "egg", (0.0, 0.0, -1.0), 0.5),
    ("many", "egg", (-0.3, 0.0, 0.4), 1.0),
    ("many", "egg", (0.0, 0.7, 0.0), -0.6),
]


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("count", [2, 4])
def test_preferences_by_weights_are_one_row_and_their_sum(models: Models, reference: str, count: int) -> None:
    plan, features = WEIGHED[:count], ("kind", "brief", "odd")
    preferences = [
        (Preference(text=text, weights=dict(zip(features, weights, strict=True))), scale)
        for _, text, weights, scale in plan
    ]
    decoded = expect(models, reference, PROMPTS[0], plan)
    assert decoded.margin > 1e-4, "the models nearly tie: choose another prompt"
    wrong = expect(models, reference, PROMPTS[0], plan[:-1])
    for dialect in ("ort", "standard"):
        generator = tiny_bundles.load(models.bundle(reference, dialect=dialect))
        result = generator.generate(PROMPTS[0], preference=preferences, config=config(), trace=True)
        assert list(result.token_ids) == decoded.token_ids
        assert {len(step.reading_logits) for step in result.trace} == {1 if reference == "base" else 2}
        assert max(score_difference(step, decoded, at) for at, step in enumerate(result.trace)) < tolerance()
        assert score_difference(result.trace[0], wrong) > 10 * tolerance()  # control: the last one left out


def score_difference(step: SequenceTrace, decoded: Decoded, at: int = 0) -> float:
    """Of the scores of one step, up to a constant; infinite for other candidates."""
    ours, theirs = np.argsort(step.candidates), np.argsort(decoded.candidates[at].numpy())
    if not np.array_equal(step.candidates[ours], decoded.candidates[at].numpy()[theirs]):
        return float("inf")
    scores, expected = torch.tensor(step.scores[ours]).double(), decoded.scores[at][theirs]
    return difference(scores - scores.mean() + expected.mean(), expected)


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
    tokenizer = read_tokenizer(models.bundle("base"))

    def encode(last: str) -> tuple[int, ...]:
        text = f"<s><|system|>cook<|user|>the egg<|assistant|>boils<|user|>{last}<|assistant|>"
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    reward = OracleReward(models.persrms["official"], encode("[be kind] a?"))
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
        decoded = decode(models.base, base_prompt, [OracleReward(models.persrms["official"], with_words)], **options)
        assert (list(result.token_ids) == decoded.token_ids) is matches
        assert (trace_difference(result.trace, decoded) < tolerance()) is matches


def test_without_a_persrm_the_base_is_contrasted_with_itself(models: Models, tmp_path: Path) -> None:
    tiny_bundles.export(tmp_path / "bundle", models.folder / "base", [])
    contrast = tiny_bundles.load(tmp_path / "bundle")
    result = contrast.generate(PROMPTS[1], preference="be kind", config=config(beta=2.0), trace=True)
    words = tiny_bundles.encode_turn(tmp_path / "bundle", fill(PAPER_TEMPLATE, p="be kind", x=PROMPTS[1]))
    plain = tiny_bundles.encode_turn(tmp_path / "bundle", PROMPTS[1])
    options = {"beta": 2.0, "top_k": TOP_K, "num_tokens": NUM_TOKENS}
    assert_same(result, decode(models.base, plain, [OracleReward(models.base, words)], **options))
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
    reward = OracleReward(persrm, prompt.reward, weights)
    options = {"beta": BETA, "top_k": TOP_K, "num_tokens": NUM_TOKENS}
    decoded = decode(TorchModel(tmp_path / "base"), prompt.base, [reward], **options)
    assert_same(result, decoded)
