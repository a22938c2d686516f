"""Every family that a folder can be, from a GGUF file: the tensors, spec and greedy tokens of the folder."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from pad_export.read.checkpoint import Checkpoint, open_checkpoint
from pad_export.read.gguf import tensor as gguf_tensor
from pad_export.read.gguf.header import GgufTensor
from pad_export.read.spec import DecoderSpec, read_spec
from pad_rt import EncodedPrompt, GenerationConfig, GenerationResult
from pad_runtime.errors import CheckpointError
from tests.support import tiny_bundles, tiny_models
from tests.support.error_checks import refused
from tests.support.tiny_gguf import fill_with_blocks, write_gguf
from tests.support.torch_oracle import OracleReward, TorchModel, decode, tolerance, trace_difference

WINDOW = 6
NUM_TOKENS = 24
PROMPT, REWARD_PROMPT = (5, 17, 300, 41, 8), (9, 8, 7, 6, 5, 4, 200, 2, 77, 31, 12)
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
GEMMA = {"sliding_window": WINDOW, "num_hidden_layers": 3, "query_pre_attn_scalar": 16}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
GLOBAL = {"rope_type": "default", "rope_theta": 1000000.0}
# In Gemma 2 every second layer attends to all, in Gemma 3 every sixth.
GEMMA2 = {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
SIX = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
GEMMA3 = {**GEMMA, "num_hidden_layers": 7, "layer_types": SIX}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tied": True}),
    "llama-untied": ("llama", {"tied": False, "head_dim": 32}),
    "llama-biased": ("llama", {"tied": False, "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "mistral": ("mistral", {"sliding_window": WINDOW, "head_dim": 48}),
    "qwen2": ("qwen2", {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN, "hidden_size": 96, "tied": True}),
    "qwen3": ("qwen3", {"tied": True}),
    "qwen3-yarn": ("qwen3", {"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0}, "tied": False}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {**GEMMA2, "final_logit_softcapping": 10.0, "attn_logit_softcapping": 5.0}),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3-linear": (
        "gemma3_text",
        {**GEMMA3, "tied": False, "rope_parameters": {"full_attention": {**GLOBAL, **LINEAR},
                                                      "sliding_attention": LOCAL}},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family's model and folder by name, made when first asked for."""

    @cache
    def make(name: str) -> tuple[Any, Path]:
        family, config = FAMILIES[name]
        folder = tmp_path_factory.mktemp(name) / "base"
        return tiny_models.make_base(folder, family, seed=7, **config), folder

    return make


def spec_of(checkpoint: Checkpoint) -> DecoderSpec:
    return read_spec(checkpoint.config, tied=checkpoint.tied)


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_and_spec_are_those_of_the_folder(folders: Any, name: str, tmp_path: Path) -> None:
    model, folder = folders(name)
    ours = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", model, kind=Kind.F32))
    theirs = open_checkpoint(folder)
    assert ours.model_type == theirs.model_type
    assert ours.names == theirs.names - ({"lm_head.weight"} if theirs.tied else set())
    for tensor in ours.names:
        difference = (ours.tensor(tensor) - theirs.tensor(tensor)).abs().max()
        assert difference <= (5e-7 if tensor.endswith("norm.weight") else 0), tensor  # Gemma's are stored with 1 added
    expected = replace(spec_of(theirs), norm_epsilon=float(np.float32(theirs.config.rms_norm_eps)))
    assert spec_of(ours) == expected


def run(gguf_file: Path, bundle: Path) -> GenerationResult:
    """Greedy tokens of an exported file, guided by contrast: two rows that read prompts of different lengths."""
    generator = tiny_bundles.load(tiny_bundles.export(bundle, gguf_file, []))
    config = GenerationConfig(beta=1.25, top_k=7, max_new_tokens=NUM_TOKENS)
    prompt = EncodedPrompt(PROMPT, REWARD_PROMPT)
    return generator.generate(prompt, preference="x", config=config, trace=True)


@pytest.fixture(scope="module")
def oracles(folders: Any) -> Any:
    return cache(lambda name: TorchModel(folders(name)[1]))


def distance(oracle: TorchModel, result: GenerationResult) -> tuple[float, bool]:
    """Worst difference of the folder's scores along these tokens, and whether the folder chooses the same."""
    reward = [OracleReward(oracle, REWARD_PROMPT)]
    decoded = decode(oracle, PROMPT, reward, beta=1.25, top_k=7, num_tokens=NUM_TOKENS, forced=result.token_ids)
    return trace_difference(result.trace, decoded), list(result.token_ids) == decoded.token_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_the_folder(folders: Any, oracles: Any, name: str, tmp_path: Path) -> None:
    model, _ = folders(name)
    result = run(write_gguf(tmp_path / "tiny.gguf", model, kind=Kind.F32), tmp_path / "bundle")
    reward = [OracleReward(oracles(name), REWARD_PROMPT)]
    decoded = decode(oracles(name), PROMPT, reward, beta=1.25, top_k=7, num_tokens=NUM_TOKENS)
    assert list(result.token_ids) == decoded.token_ids
    assert trace_difference(result.trace, decoded) < tolerance()


# What a converter, or a reader that undoes it, could get wrong without any error: every one is another model.
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "norms without the 1 (gemma)": ("gemma", {"norm_offset": 0.0}),
    "norms without the 1 (gemma2)": ("gemma2", {"norm_offset": 0.0}),
    "norms without the 1 (gemma3)": ("gemma3", {"norm_offset": 0.0}),
    "norms with a 1 (llama)": ("llama", {"norm_offset": 1.0}),
    "rotary rows as they are (llama)": ("llama", {"interleave": False}),
    "rotary rows as they are (mistral)": ("mistral", {"interleave": False}),
    "rotary rows interleaved (gemma3)": ("gemma3", {"interleave": True}),
    "rotary rows interleaved (qwen2)": ("qwen2", {"interleave": True}),
    "no window (mistral)": ("mistral", {"window": False}),
    "no window (gemma3)": ("gemma3", {"window": False}),
    "window left out, so 4096 (gemma2)": ("gemma2", {"window": False}),
    "every fifth layer attends to all": ("gemma3", {"extend": lambda w: w.add_sliding_window_pattern(5)}),
    "no layer attends to all": ("gemma3", {"extend": lambda w: w.add_sliding_window_pattern([True] * 7)}),
    "another local rope": ("gemma3", {"extend": lambda w: w.add_float32("gemma3.rope.freq_base_swa", 1e6)}),
    "logits capped": ("gemma3", {"extend": lambda w: w.add_final_logit_softcapping(5.0)}),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_says_otherwise_is_another_model(folders: Any, oracles: Any, what: str, tmp_path: Path) -> None:
    name, options = WRONG[what]
    model, _ = folders(name)
    result = run(write_gguf(tmp_path / "tiny.gguf", model, kind=Kind.F32, **options), tmp_path / "bundle")
    assert distance(oracles(name), result)[0] > 10 * tolerance()


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [(0, "sssssss"), (1, "fffffff"), (3, "ssfssfs"), ([True, False, True, True, False, False, True], "sfssffs")],
)
def test_which_layers_of_gemma3_attend_to_all(folders: Any, pattern: Any, kinds: str, tmp_path: Path) -> None:
    model, _ = folders("gemma3")
    path = write_gguf(tmp_path / "g.gguf", model, extend=lambda w: w.add_sliding_window_pattern(pattern))
    names = {"s": "sliding_attention", "f": "full_attention"}
    assert open_checkpoint(path).config.layer_types == [names[kind] for kind in kinds]


def test_gemma_27b_scales_attention_by_hidden_over_heads(tmp_path: Path) -> None:
    """Nothing in the file says so; llama.cpp goes by the number of layers too."""
    sizes = {"hidden_size": 42, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    for family, num_layers, expected in (
        ("gemma2", 46, 21), ("gemma2", 45, 16), ("gemma3_text", 62, 21), ("gemma3_text", 61, 16)
    ):  # fmt: skip
        model = tiny_models.make_base(
            tmp_path / "base", family, seed=1, num_hidden_layers=num_layers, intermediate_size=8, **sizes
        )
        checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", model, kind=Kind.F32))
        assert spec_of(checkpoint).attention_scale == expected**-0.5


KINDS = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS",
         "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ4_NL", "IQ4_XS"]  # fmt: skip
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("family", "kind"), [*(("llama", kind) for kind in KINDS), *(("gemma3_text", kind) for kind in KINDS[::4])]
)
def test_every_quantisation_reads_as_gguf_undoes_it(
    family: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.make_base(tmp_path / "base", family, seed=3, **WIDE)
    raw = fill_with_blocks(model, Kind[kind], seed=4)
    path = write_gguf(tmp_path / "tiny.gguf", model, kind=Kind[kind], raw=raw)
    monkeypatch.setattr(gguf_tensor, "_SLICE", 5 * 256)  # rows at once: less than any matrix has, and no divisor
    checkpoint = open_checkpoint(path)
    assert len(raw) == (16 if family == "llama" else 15)  # llama has a matrix of its own for lm_head
    for name in raw:
        assert torch.equal(checkpoint.tensor(name), model.get_parameter(name)), name
        assert model.get_parameter(name).std() > 0.01


def test_a_type_that_gguf_cannot_undo_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    model = tiny_models.make_base(tmp_path / "base", "gemma3_text", seed=3, **WIDE)
    name = "model.layers.1.mlp.up_proj.weight"
    raw = {name: np.zeros((256, gguf.GGML_QUANT_SIZES[Kind.Q8_K][1]), np.uint8)}
    path = write_gguf(tmp_path / "tiny.gguf", model, raw=raw, raw_kind=Kind.Q8_K)
    with refused(CheckpointError, given="blk.1.ffn_up.weight as Q8_K", hint="safetensors folder"):
        open_checkpoint(path)


def test_a_file_that_is_gone_or_became_shorter_is_one_line(folders: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", folders("gemma3")[0], kind=Kind.F32)
    name = "model.layers.6.mlp.down_proj.weight"
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensor(name).shape == (84, 72)
    path.write_bytes(path.read_bytes()[:4096])
    with refused(CheckpointError, given="ends within blk.6.ffn_down.weight", hint="download it again"):
        checkpoint.tensor(name)
    path.unlink()
    with refused(CheckpointError, given="cannot be read any more"):
        checkpoint.tensor(name)


def test_reading_takes_little_more_memory_than_the_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gguf undoes a whole tensor in pieces that it joins at the end, so that all of it would be there twice."""
    monkeypatch.setattr(gguf_tensor, "_SLICE", 1 << 18)
    shape = (4096, 1024)
    raw = np.zeros((shape[0], shape[1] // 32 * 34), np.uint8)
    path = tmp_path / "raw"
    path.write_bytes(raw.tobytes())
    tensor = gguf_tensor.StoredTensor(path, GgufTensor("one", Kind.Q8_0, shape, 0, raw.nbytes))
    peaks = []
    for read in (tensor.read, lambda: gguf.quants.dequantize(raw, Kind.Q8_0)):
        tracemalloc.start()
        assert read().nbytes == 16 << 20
        peaks.append(tracemalloc.get_traced_memory()[1] / (16 << 20))
        tracemalloc.stop()
    assert peaks[0] < 1.5
    assert peaks[1] > 1.9


def test_greedy_tokens_of_a_k_quant_are_those_of_its_dequantised_folder(tmp_path: Path) -> None:
    model = tiny_models.make_base(
        tmp_path / "base", "gemma3_text", seed=3, **WIDE, **{**GEMMA3, "num_hidden_layers": 7}
    )
    raw = fill_with_blocks(model, Kind.Q4_K, seed=4)
    model.save_pretrained(tmp_path / "base")
    result = run(write_gguf(tmp_path / "tiny.gguf", model, kind=Kind.Q4_K, raw=raw), tmp_path / "bundle")
    worst, same = distance(TorchModel(tmp_path / "base"), result)
    assert worst < tolerance()
    assert same
