"""Every family, topology, reference and dialect against torch: tokens, logits, KV cache; with controls that fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pad_export.verify.tolerance import difference
from pad_runtime.decode.trace import SequenceTrace
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.rows import plan
from tests.support import tiny_bundles, tiny_models
from tests.support.guided_steps import Asked, open_slots
from tests.support.torch_oracle import (
    Decoded,
    OracleReward,
    TorchModel,
    cache_difference,
    decode,
    tolerance,
    trace_difference,
)

BETA, TOP_K, NUM_TOKENS = 1.25, 7, 64
NUM_CONTROL_TOKENS = 8
WINDOW = 6  # shorter than one prompt and than every sequence
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA_WINDOWS = {"sliding_window": WINDOW, "query_pre_attn_scalar": 20, "num_hidden_layers": 3}
SLIDING_AND_FULL = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", {"tied": True}),
    "llama3-untied": ("llama", {"tied": False, "rope_parameters": LLAMA3_ROPE, "head_dim": 32}),
    "mistral": ("mistral", {"sliding_window": WINDOW, "head_dim": 48}),
    "qwen2": ("qwen2", {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 48}),
    "qwen3": ("qwen3", {"tied": True}),
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        {
            **GEMMA_WINDOWS,
            "layer_types": SLIDING_AND_FULL,
            "final_logit_softcapping": 10.0,
            "attn_logit_softcapping": 5.0,
        },
    ),
    "gemma3": ("gemma3_text", {**GEMMA_WINDOWS, "layer_types": SLIDING_AND_FULL}),
}
# Of the weights, where 1 makes a near tie.
SEEDS = {"llama-tied": 5, "llama3-untied": 9, "mistral": 3, "qwen2": 5, "gemma": 15, "gemma2": 7, "gemma3": 7}
# What a wrong reader of the config would take for the model.
WRONG_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "rope scaling ignored": (
        "llama3-untied",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "rope theta ignored": ("llama-tied", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "window ignored (mistral)": ("mistral", {"sliding_window": None}),
    "window off by one (mistral)": ("mistral", {"sliding_window": WINDOW + 1}),
    "window ignored (gemma2)": ("gemma2", {"sliding_window": 4096}),
    "window off by one (gemma3)": ("gemma3", {"sliding_window": WINDOW - 1}),
    "attention softcap ignored": ("gemma2", {"attn_logit_softcapping": None}),
    "logit softcap ignored": ("gemma2", {"final_logit_softcapping": None}),
    "attention scale ignored": ("gemma3", {"query_pre_attn_scalar": 16}),
    "layer kinds ignored": ("gemma3", {"layer_types": ["full_attention"] * 3}),
    "epsilon ignored": ("qwen3", {"rms_norm_eps": 1e-2}),
}
# Base and reward rows of different lengths, and ragged across the batch; one row is a single token.
PROMPTS = (((5, 17, 300, 41, 8), (9, 8, 7, 6, 5, 4, 200, 2, 77, 31, 12)), ((*range(20, 33),), (250,)))
TOPOLOGIES = ("shared", "pair", "merged")
REFERENCES = ("base", "backbone")
DIALECTS = ("ort", "standard")


@dataclass(frozen=True)
class Family:
    """One family's checkpoints, and torch's reading of them."""

    folder: Path
    base: TorchModel
    persrm: TorchModel

    @cache  # noqa: B019 - lives as long as the module's tests
    def expected(self, reference: str, sequence: int) -> Decoded:
        return self.decode(reference, sequence)

    def decode(
        self,
        reference: str,
        sequence: int,
        *,
        base: TorchModel | None = None,
        persrm: TorchModel | None = None,
        beta: float = BETA,
        **options: Any,
    ) -> Decoded:
        prompt, reward_prompt = PROMPTS[sequence]
        base = base or self.base
        reward = OracleReward(persrm or self.persrm, reward_prompt, reference=None if reference == "base" else base)
        options = {"top_k": TOP_K, "num_tokens": NUM_TOKENS, **options}
        return decode(base, prompt, [reward], beta=beta, **options)

    def export(self, topology: str, reference: str, **options: Any) -> Bundle:
        output = self.folder / "-".join(["bundle", topology, reference, *map(str, options.values())])
        if not output.exists():
            base = self.folder / "base"
            if topology == "merged":
                backbone = base if reference == "backbone" else None
                options |= {"persrms": [self.folder / "merged"], "backbone": backbone}
            else:
                options |= {"persrms": [self.folder / "adapter"], "topology": topology}
            tiny_bundles.export(output, base, reference=reference, **options)
        return tiny_bundles.open_bundle(output)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family by its name, made when first asked for."""

    @cache
    def make(name: str) -> Family:
        family, config = FAMILIES[name]
        folder = tmp_path_factory.mktemp(name)
        seed = SEEDS.get(name, 1)
        tiny_models.make_base(folder / "base", family, seed=seed, **config)
        tiny_models.make_adapter(folder / "adapter", folder / "base", seed=seed + 1)
        tiny_models.make_merged(folder / "merged", folder / "base", folder / "adapter")
        persrm = TorchModel(folder / "base", adapter=folder / "adapter")
        return Family(folder, TorchModel(folder / "base"), persrm)

    return make


@dataclass
class Reply:
    """What a decoder chose and weighed for one sequence, and what it has in the cache then.

    Attributes:
        cache: keys and values [kv_heads, length, head_dim], by layer of each row: the base's, the reward's, and its
            reference's where that is not the base.
    """

    token_ids: list[int] = field(default_factory=list)
    trace: list[SequenceTrace] = field(default_factory=list)
    cache: list[list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=list)


def run(bundle: Bundle, num_tokens: int = NUM_TOKENS) -> list[Reply]:
    """Both sequences in one ragged batch."""
    decoder, manifest = bundle.decoder(), bundle.manifest
    asked = [
        Asked.of(
            plan.plan_rows(
                manifest, base, [plan.Reward(0, tuple(manifest.persrms[0].default_weights), 1.0, reward)], BETA
            ),
            new_tokens=num_tokens,
            top_k=TOP_K,
        )
        for base, reward in PROMPTS
    ]
    slots, replies = open_slots(decoder, asked), [Reply() for _ in asked]
    for _ in range(num_tokens):
        chosen = decoder.step(slots, trace=True)
        for reply, token, trace in zip(replies, chosen.ids, chosen.trace(), strict=True):
            reply.token_ids.append(token)
            reply.trace.append(trace)
    for slot, reply in zip(slots, replies, strict=True):
        for number, row in enumerate(slot.sequence.rows):
            layers = range(manifest.trunks[row.trunk].num_layers)
            reply.cache.append([decoder.cache(slot, number, layer) for layer in layers])
    return replies


def worst_cache(family: Family, replies: list[Reply], *, shift: int = 0) -> float:
    """Worst difference over every KV tensor, row by row; the last chosen id is not in the cache yet."""
    worst = 0.0
    for prompts, reply in zip(PROMPTS, replies, strict=True):
        readers = ((family.base, prompts[0]), (family.persrm, prompts[1]), (family.base, prompts[1]))
        for (model, prompt), layers in zip(readers, reply.cache, strict=False):
            expected = model.cache([*prompt, *reply.token_ids[:-1]])
            for ours, theirs in zip(layers, expected, strict=True):
                worst = max(worst, cache_difference(ours, theirs, shift=shift))
    return worst


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("reference", REFERENCES)
def test_every_graph_chooses_weighs_and_stores_what_torch_does(families: Any, name: str, reference: str) -> None:
    family = families(name)
    expected = [family.expected(reference, sequence) for sequence in range(len(PROMPTS))]
    for decoded in expected:
        assert decoded.margin > 5e-4, "the models nearly tie: choose another seed"
        assert len(set(decoded.token_ids)) > 10, "the models loop: choose another seed"
    for topology in TOPOLOGIES:
        for dialect in DIALECTS:
            replies = run(family.export(topology, reference, dialect=dialect))
            for reply, decoded in zip(replies, expected, strict=True):
                assert reply.token_ids == decoded.token_ids, (topology, dialect)
                assert trace_difference(reply.trace, decoded) < tolerance(), (topology, dialect)
                assert len(reply.cache) == {"base": 2, "backbone": 3}[reference]
            assert worst_cache(family, replies) < tolerance(), (topology, dialect)


@pytest.mark.parametrize("name", FAMILIES)
def test_wrong_formulas_do_not_match(families: Any, name: str) -> None:
    family = families(name)
    for reference, other in (REFERENCES, REFERENCES[::-1]):
        results = run(family.export("shared", reference, dialect="ort"), num_tokens=NUM_CONTROL_TOKENS)
        for sequence, result in enumerate(results):
            forced = {"forced": result.token_ids, "num_tokens": NUM_CONTROL_TOKENS}
            wrong = {
                "sign of beta": family.decode(reference, sequence, beta=-BETA, **forced),
                "no reward": family.decode(reference, sequence, beta=0.0, **forced),
                "adapter left out": family.decode(reference, sequence, persrm=family.base, **forced),
                "reference swapped": family.decode(other, sequence, **forced),
                "one candidate fewer": family.decode(reference, sequence, **forced, top_k=TOP_K - 1),
            }
            for what, decoded in wrong.items():
                if what != "one candidate fewer":
                    assert decoded.token_ids != result.token_ids, what
                assert trace_difference(result.trace, decoded) > 10 * tolerance(), what


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_off_by_one_does_not_match(families: Any, name: str) -> None:
    family = families(name)
    results = run(family.export("shared", "backbone", dialect="ort"))
    assert worst_cache(family, results, shift=1) > 100 * tolerance()
    for sequence, result in enumerate(results):
        prompt, reward_prompt = PROMPTS[sequence]
        if len(reward_prompt) < 2:
            continue
        # A reader that loses the token before the last one.
        short = (*prompt[:-2], prompt[-1]), (*reward_prompt[:-2], reward_prompt[-1])
        reward = OracleReward(family.persrm, short[1], reference=family.base)
        decoded = decode(family.base, short[0], [reward], beta=BETA, top_k=TOP_K, num_tokens=8)
        assert decoded.token_ids != result.token_ids[:8]


@pytest.mark.parametrize("what", WRONG_CONFIGS)
def test_a_config_misread_does_not_match(families: Any, what: str) -> None:
    name, config = WRONG_CONFIGS[what]
    family = families(name)
    wrong = TorchModel(family.folder / "base", **config)
    wrong_persrm = TorchModel(family.folder / "base", adapter=family.folder / "adapter", **config)
    results = run(family.export("shared", "base", dialect="ort"), num_tokens=NUM_CONTROL_TOKENS)
    for sequence, result in enumerate(results):
        forced = {"forced": result.token_ids, "num_tokens": NUM_CONTROL_TOKENS}
        decoded = family.decode("base", sequence, base=wrong, persrm=wrong_persrm, **forced)
        assert trace_difference(result.trace, decoded) > 10 * tolerance()


@pytest.mark.parametrize("name", FAMILIES)
def test_dialects_agree_on_tokens_logits_and_cache(families: Any, name: str) -> None:
    family = families(name)
    for topology in TOPOLOGIES:
        ours, theirs = (run(family.export(topology, "backbone", dialect=dialect)) for dialect in DIALECTS)
        for one, other, prompts in zip(ours, theirs, PROMPTS, strict=True):
            assert one.token_ids == other.token_ids
            for a, b in zip(one.trace, other.trace, strict=True):
                np.testing.assert_array_equal(a.candidates, b.candidates)
                assert difference(torch.tensor(a.row_logits), torch.tensor(b.row_logits)) < tolerance()
            assert len(one.cache) == len(other.cache) == 3
            lengths = [len(prompts[number]) + NUM_TOKENS - 1 for number in (0, 1, 1)]
            for mine, its, length in zip(one.cache, other.cache, lengths, strict=True):
                for pairs in zip(mine, its, strict=True):
                    for a_cache, b_cache in zip(*pairs, strict=True):
                        assert a_cache.shape[1] == b_cache.shape[1] == length
                        assert difference(torch.tensor(a_cache), torch.tensor(b_cache)) < tolerance()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_half_precision_is_within_its_tolerance(families: Any, name: str, dialect: str) -> None:
    family = families(name)
    bundle = family.export("shared", "backbone", dialect=dialect, precision="fp16")
    results = run(bundle, num_tokens=2 * NUM_CONTROL_TOKENS)
    arrays = [array for result in results for layers in result.cache for pair in layers for array in pair]
    assert {array.dtype for array in arrays} == {np.dtype(np.float16)}
    assert worst_cache(family, results) < tolerance("float16")
    assert worst_cache(family, results) > tolerance(), "this is not fp16"
    assert worst_cache(family, results, shift=1) > 5 * tolerance("float16")
    for sequence, result in enumerate(results):
        decoded = family.decode("backbone", sequence, forced=result.token_ids, num_tokens=2 * NUM_CONTROL_TOKENS)
        for ours, candidates, row_logits in zip(result.trace, decoded.candidates, decoded.row_logits, strict=True):
            shared = np.intersect1d(ours.candidates, candidates.numpy())
            assert len(shared) >= TOP_K - 2  # near ties at the edge of the candidates may fall either way
            at = [int(np.flatnonzero(ours.candidates == token)[0]) for token in shared]
            there = [int(np.flatnonzero(candidates.numpy() == token)[0]) for token in shared]
            assert difference(torch.tensor(ours.row_logits[:, at]), row_logits[:, there]) < tolerance("float16")


def test_another_backbone_guides_the_base(families: Any, tmp_path: Path) -> None:
    """A PersRM of another family, depth, width and number of KV heads; its head has more rows than the base's."""
    base = families("llama-tied")
    vocab_size = 420
    other = {"hidden_size": 60, "num_hidden_layers": 3, "num_attention_heads": 5, "num_key_value_heads": 1}
    tiny_models.make_base(tmp_path / "other", "qwen2", seed=21, vocab_size=vocab_size, **other)
    tiny_models.make_adapter(tmp_path / "adapter", tmp_path / "other", seed=22)
    backbone = TorchModel(tmp_path / "other")
    persrm = TorchModel(tmp_path / "other", adapter=tmp_path / "adapter")
    for reference in REFERENCES:
        output = tmp_path / reference
        options = {"reference": reference, "backbone": tmp_path / "other"}
        tiny_bundles.export(output, base.folder / "base", [tmp_path / "adapter"], **options)
        bundle = tiny_bundles.open_bundle(output)
        assert bundle.manifest.topology == "pair"
        for (prompt, reward_prompt), result in zip(PROMPTS, run(bundle), strict=True):
            for used, matches in ((persrm, True), (backbone, False)):
                reward = OracleReward(used, reward_prompt, reference=backbone if reference == "backbone" else None)
                decoded = decode(base.base, prompt, [reward], beta=BETA, top_k=TOP_K, num_tokens=NUM_TOKENS)
                assert (result.token_ids == decoded.token_ids) is matches
                if matches:
                    assert trace_difference(result.trace, decoded) < tolerance()


def test_a_head_of_any_even_size_goes_the_standard_way(tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "base", "llama", seed=31, head_dim=14)
    tiny_models.make_adapter(tmp_path / "adapter", tmp_path / "base", seed=32)
    tiny_bundles.export(tmp_path / "bundle", tmp_path / "base", [tmp_path / "adapter"], dialect="standard")
    base = TorchModel(tmp_path / "base")
    persrm = TorchModel(tmp_path / "base", adapter=tmp_path / "adapter")
    results = run(tiny_bundles.open_bundle(tmp_path / "bundle"), 16)
    for (prompt, reward_prompt), result in zip(PROMPTS, results, strict=True):
        decoded = decode(base, prompt, [OracleReward(persrm, reward_prompt)], beta=BETA, top_k=TOP_K, num_tokens=16)
        assert trace_difference(result.trace, decoded) < tolerance()
        assert result.token_ids == decoded.token_ids


LORA_KINDS: dict[str, dict[str, Any]] = {
    "rank-stabilised": {"use_rslora": True},
    "ranks by module": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7}, "alpha_pattern": {"o_proj": 3}},
    "one layer": {"layers_to_transform": [1], "target_modules": ["q_proj", "o_proj", "down_proj"]},
    "one site": {"target_modules": ["gate_proj"]},
    "half of a packed matrix": {"target_modules": ["k_proj", "up_proj"]},
}


@pytest.mark.parametrize("kind", LORA_KINDS)
@pytest.mark.parametrize("topology", ["shared", "pair"])
def test_adapters_of_every_kind(families: Any, tmp_path: Path, kind: str, topology: str) -> None:
    family = families("llama3-untied")
    tiny_models.make_adapter(tmp_path / "adapter", family.folder / "base", seed=41, **LORA_KINDS[kind])
    options = {"topology": topology, "reference": "base"}
    tiny_bundles.export(tmp_path / "bundle", family.folder / "base", [tmp_path / "adapter"], **options)
    persrm = TorchModel(family.folder / "base", adapter=tmp_path / "adapter")
    results = run(tiny_bundles.open_bundle(tmp_path / "bundle"), NUM_CONTROL_TOKENS)
    for sequence, result in enumerate(results):
        forced = {"forced": result.token_ids, "num_tokens": NUM_CONTROL_TOKENS}
        assert trace_difference(result.trace, family.decode("base", sequence, persrm=persrm, **forced)) < tolerance()
        for wrong in (family.base, family.persrm):
            decoded = family.decode("base", sequence, persrm=wrong, **forced)
            assert trace_difference(result.trace, decoded) > 10 * tolerance()
