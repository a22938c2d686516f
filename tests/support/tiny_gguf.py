"""GGUF files of transformers models, written as llama.cpp's converter writes each architecture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers.pre_tokenizers import ByteLevel

Extend = Callable[[gguf.GGUFWriter], None]

TOKENS = ["<|unk|>", "<|start|>", "<|end|>", *ByteLevel.alphabet(), "Ġ2", "ĠĠ"]
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
# Bytes of a block's half-precision scales; what else is in it may be any bits.
_SCALES = {
    Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,),
    Kind.IQ2_XXS: (0,), Kind.IQ2_XS: (0,), Kind.IQ2_S: (0,), Kind.IQ3_XXS: (0,), Kind.IQ3_S: (0,), Kind.IQ1_S: (0,),
    Kind.IQ4_NL: (0,), Kind.IQ4_XS: (0,),
}  # fmt: skip


def write_gguf(
    path: Path,
    model: Any,
    *,
    kind: Kind = Kind.F16,
    raw: Mapping[str, np.ndarray] | None = None,
    raw_kind: Kind | None = None,
    tokenizer: bool = True,
    extend: Extend | None = None,
    window: bool = True,
    norm_offset: float | None = None,
    interleave: bool | None = None,
    architecture: str | None = None,
) -> Path:
    """Write a model.

    Args:
        path: the file to write.
        model: a causal language model of transformers.
        kind: how matrices are stored; norms and biases are float32.
        raw: blocks of matrices by their names, [rows, bytes], in place of the model's own numbers.
        raw_kind: how these are stored, by default as `kind`.
        tokenizer: whether there is a vocabulary.
        extend: writes more into the file.
        window: whether the attention window is written.
        norm_offset, interleave: what is done to norms and rotary rows, by default what the architecture has.
        architecture: its name in the file, by default the model's.
    """
    config = model.config
    arch = ARCHITECTURES[config.model_type]
    name = gguf.MODEL_ARCH_NAMES[arch]
    writer = gguf.GGUFWriter(path, architecture or name)
    writer.add_name("tiny")
    _write_sizes(writer, config, window=window)
    if tokenizer:
        _write_tokenizer(writer, config.vocab_size, "smollm" if name == "llama" else "qwen2")
    if extend is not None:
        extend(writer)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    if norm_offset is None:
        norm_offset = 1.0 if name.startswith("gemma") else 0.0
    if interleave is None:
        interleave = name == "llama"
    for parameter, array in _parameters(model).items():
        stem, _, suffix = parameter.rpartition(".")
        stored = f"{names.get_name(stem)}.{suffix}"
        rows = (raw or {}).get(parameter, array)
        if interleave and stem.endswith((".q_proj", ".k_proj")):
            heads = config.num_attention_heads if stem.endswith(".q_proj") else config.num_key_value_heads
            rows = interleave_rotary_halves(rows, heads)
        if parameter in (raw or {}):
            writer.add_tensor(stored, rows, raw_dtype=raw_kind or kind)
        elif array.ndim == 2:
            writer.add_tensor(stored, gguf.quants.quantize(rows, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, rows + np.float32(norm_offset) if stem.endswith("norm") else rows)
    _write_llama3_factors(writer, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleave_rotary_halves(values: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows, as its converter for `llama` writes them."""
    halves = values.reshape(num_heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def fill_with_blocks(model: Any, kind: Kind, *, seed: int) -> dict[str, np.ndarray]:
    """Give a model matrices that `kind` can say without rounding, and return their blocks by name, [rows, bytes]."""
    generator = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw: dict[str, np.ndarray] = {}
    for name, array in _parameters(model).items():
        if array.ndim != 2:
            continue
        rows, columns = array.shape
        if kind in _SCALES:
            blocks = generator.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
            for at in _SCALES[kind]:
                scales = generator.uniform(0.5, 1.5, (rows, columns // block, 1)) * _unit(kind)
                blocks[..., at : at + 2] = scales.astype(np.float16).view(np.uint8)
            raw[name] = blocks.reshape(rows, -1)
        else:
            raw[name] = gguf.quants.quantize(array, kind)
        model.get_parameter(name).data = torch.from_numpy(gguf.quants.dequantize(raw[name], kind).copy())
    return raw


def _unit(kind: Kind) -> float:
    """Scale at which random blocks of a kind have about the size of weights."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = np.random.default_rng(0).integers(0, 256, (64, size), dtype=np.uint8)
    for at in _SCALES[kind]:
        blocks[:, at : at + 2] = np.full((64, 1), 1.0, np.float16).view(np.uint8)
    return 0.2 / float(gguf.quants.dequantize(blocks, kind).std())


def _parameters(model: Any) -> dict[str, np.ndarray]:
    """What a file holds: every parameter once."""
    tied = model.config.tie_word_embeddings
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    return {name: value for name, value in state.items() if not (tied and name == "lm_head.weight")}


def _write_sizes(writer: gguf.GGUFWriter, config: Any, *, window: bool) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if head_dim := getattr(config, "head_dim", None):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        if config.model_type in ("llama", "mistral"):
            writer.add_rope_dimension_count(head_dim)
    if window and config.model_type in ("mistral", "gemma2", "gemma3_text") and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key in ("beta_fast", "beta_slow"):
            if key in rope:
                writer.add_float32(f"{writer.arch}.rope.scaling.yarn_{key}", rope[key])


def _write_llama3_factors(writer: gguf.GGUFWriter, config: Any) -> None:
    """What each rotary frequency is divided by, of long wavelengths the factor itself."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return
    low, high, original = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for index in range(config.head_dim // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * index / config.head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))


def _write_tokenizer(writer: gguf.GGUFWriter, vocab_size: int, pre: str) -> None:
    tokens = [*TOKENS, *(f"[PAD{index}]" for index in range(len(TOKENS), vocab_size))][:vocab_size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ 2", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(0)
    writer.add_chat_template("{{ messages }}")
