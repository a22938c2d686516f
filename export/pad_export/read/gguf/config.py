"""The metadata of a GGUF file as the configuration of a transformers model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_export.read.gguf.header import GgufField, GgufTensor
from pad_export.read.gguf.metadata import UNCLEAR, GgufMetadata
from pad_runtime.errors import CheckpointError

# general.architecture -> transformers' model type. llama.cpp's converter writes Mistral as llama.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
# Every Llama 3.1, 3.2 and 3.3 release has these; a GGUF keeps only the factors that follow from them.
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# llama.cpp's defaults for Gemma files: window, period of the layers without a window, softcaps.
_WINDOWS = {"gemma2": 4096, "gemma3": 0}
_PATTERNS = {"gemma2": 2, "gemma3": 6}
_ATTENTION_SOFTCAP = 50.0
_LOGIT_SOFTCAPS = {"gemma2": 30.0, "gemma3": 0.0}
_LOCAL_THETA = 10000.0
# Default bases of the rotary frequencies, which llama.cpp's converter leaves out in these architectures. In others it
# always writes the base, so that a file without it is from an unknown converter and is refused.
_THETAS = {"llama": 10000.0, "gemma": 10000.0, "gemma2": 10000.0}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}  # attention scaled by hidden / heads; in other sizes by head_dim


@dataclass(frozen=True)
class GgufConfig:
    """A model's configuration, read from metadata.

    Attributes:
        architecture: one of ARCHITECTURES.
        model_type: transformers' name of the architecture.
        values: keywords of transformers' configuration class.
        eos_token_ids: end-of-sequence, end-of-turn and end-of-message ids, as far as given.
    """

    architecture: str
    model_type: str
    values: dict[str, Any]
    eos_token_ids: tuple[int, ...]


def read_config(
    path: Path,
    fields: dict[str, GgufField],
    tensors: Mapping[str, GgufTensor],
    *,
    rope_factors: npt.NDArray[np.float32] | None,
) -> GgufConfig:
    """Read the configuration.

    Args:
        path: the file, for messages.
        fields: the file's metadata.
        tensors: places of the file's tensors, by name.
        rope_factors: divisors of the rotary frequencies, [head_dim / 2], if the file has them.

    Raises:
        CheckpointError: another architecture, or a key that is missing, impossible, or without a place in the config.
    """
    general = GgufMetadata(path, fields)
    architecture = general.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} has the architecture {architecture!r}",
            expected=f"one of {', '.join(ARCHITECTURES)}",
            hint=UNCLEAR,
        )
    if (kind := general.text("general.type", "model")) != "model":
        raise CheckpointError(
            f"{path} has general.type = {kind}",
            expected="model",
            hint="give the model's own file; of a LoRA, PEFT's",
        )
    if (splits := general.whole("split.count", 1, least=0)) > 1:
        raise CheckpointError(
            f"{path} has split.count = {splits}", expected="one file", hint="merge the parts with llama-gguf-split"
        )
    given = GgufMetadata(path, fields, f"{architecture}.")
    values = _sizes(given)
    values["vocab_size"] = _vocab_size(path, tensors)
    values["rope_parameters"] = _rope(given, _THETAS.get(architecture), values["head_dim"], rope_factors)
    values["tie_word_embeddings"] = "output.weight" not in tensors
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        values[f"{name}_token_id"] = general.token(f"tokenizer.ggml.{key}_token_id", below=values["vocab_size"])
    model_type = ARCHITECTURES[architecture]
    if architecture in _PATTERNS:
        values |= _gemma_layers(given, architecture, values)
    elif window := _window(given):
        if architecture != "llama":
            raise given.refuse("attention.sliding_window", window, "a model without it")
        model_type = "mistral"
        values["sliding_window"] = window
    if model_type == "llama":
        values["attention_bias"] = any(name.endswith(".bias") and ".attn_" in name for name in tensors)
        values["mlp_bias"] = any(name.endswith(".bias") and ".ffn_" in name for name in tensors)
    given.check_rest()
    rows = values["vocab_size"]
    ends = (general.token(f"tokenizer.ggml.{name}_token_id", below=rows) for name in ("eos", "eot", "eom"))
    return GgufConfig(architecture, model_type, values, tuple(token for token in ends if token is not None))


def _sizes(given: GgufMetadata) -> dict[str, Any]:
    """Return the sizes that every architecture has: numbers of layers, heads and positions, and widths."""
    values: dict[str, Any] = {
        "max_position_embeddings": given.whole("context_length"),
        "num_hidden_layers": given.whole("block_count"),
        "intermediate_size": given.whole("feed_forward_length"),
        "hidden_size": given.whole("embedding_length"),
        "num_attention_heads": given.whole("attention.head_count"),
        "rms_norm_eps": given.positive("attention.layer_norm_rms_epsilon"),
    }
    heads = values["num_attention_heads"]
    values["num_key_value_heads"] = given.whole("attention.head_count_kv", heads)
    if heads % values["num_key_value_heads"]:
        raise given.refuse("attention.head_count_kv", values["num_key_value_heads"], f"a divisor of {heads} heads")
    values["head_dim"] = given.whole("attention.key_length", values["hidden_size"] // heads or 1)
    for key in ("attention.value_length", "rope.dimension_count"):
        given.check(key, values["head_dim"], what="the width of a key")
    return values


def _vocab_size(path: Path, tensors: Mapping[str, GgufTensor]) -> int:
    """Return how many rows the embedding has."""
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{path} lacks token_embd.weight", expected="a whole GGUF file", hint="download it again")
    return embedding.shape[0]


def _rope(
    given: GgufMetadata, default_theta: float | None, head_dim: int, factors: npt.NDArray[np.float32] | None
) -> dict[str, Any]:
    """Return transformers' rotary parameters; those of layers without a window if some layers have one."""
    theta = given.positive("rope.freq_base", default_theta)
    kind = given.text("rope.scaling.type", "linear")  # llama.cpp's own default
    factor = given.positive("rope.scaling.factor", given.positive("rope.scale_linear", 1.0, zero=True), zero=True)
    original = given.get("rope.scaling.original_context_length")
    default = {"rope_type": "default", "rope_theta": theta}
    if factors is not None:
        if kind != "none" and factor not in (0.0, 1.0):
            raise given.refuse("rope.scaling.factor", factor, "none beside rope_freqs.weight")
        if factors.shape != (head_dim // 2,):
            raise given.refuse("attention.key_length", head_dim, f"twice the {factors.shape} of rope_freqs.weight")
        return _llama3_rope(given, theta, factors)
    if kind == "none":
        return default
    if kind == "linear":
        return default if factor in (0.0, 1.0) else {**default, "rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise given.refuse("rope.scaling.type", kind, "none, linear or yarn")
    scaled = {**default, "rope_type": "yarn", "factor": given.positive("rope.scaling.factor")}
    scaled["original_max_position_embeddings"] = (
        given.whole("context_length") if original is None else given.whole("rope.scaling.original_context_length")
    )
    for name in ("beta_fast", "beta_slow"):
        if given.get(f"rope.scaling.yarn_{name}") is not None:
            scaled[name] = given.positive(f"rope.scaling.yarn_{name}")
    return scaled


def _llama3_rope(given: GgufMetadata, theta: float, factors: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the parameters of Llama 3's scaling that give these factors."""
    factor = float(factors.max())
    expected = _llama3_factors(theta, len(factors), factor)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise given.refuse("rope_freqs.weight", factors.tolist(), "no scaling, or that of Llama 3")
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **_LLAMA3_ROPE}


def _llama3_factors(theta: float, num_frequencies: int, factor: float) -> npt.NDArray[np.float64]:
    """Return the divisors of Llama 3's rotary frequencies.

    Args:
        theta: base of the rotary frequencies.
        num_frequencies: head_dim / 2.
        factor: divisor of the frequencies of long wavelengths; short ones are kept, those between interpolated.
    """
    low, high = _LLAMA3_ROPE["low_freq_factor"], _LLAMA3_ROPE["high_freq_factor"]
    wavelengths = 2 * math.pi * theta ** (np.arange(num_frequencies) / num_frequencies)
    turns = _LLAMA3_ROPE["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    divided: npt.NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return divided


def _window(given: GgufMetadata) -> int:
    """Return Mistral's attention window in tokens, 0 for none."""
    window = given.whole("attention.sliding_window", 0, least=0)
    return 0 if window >= given.whole("context_length") else window


def _gemma_layers(given: GgufMetadata, architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return Gemma 2's and 3's own parameters: kinds of layers and their ropes, softcaps, the scale of attention."""
    num_layers, heads = values["num_hidden_layers"], values["num_attention_heads"]
    window = given.whole("attention.sliding_window", _WINDOWS[architecture], least=0)
    sliding = _sliding_layers(given, architecture, num_layers) if window else [False] * num_layers
    own: dict[str, Any] = {
        "sliding_window": window or None,
        "layer_types": ["sliding_attention" if slides else "full_attention" for slides in sliding],
        "final_logit_softcapping": given.positive("final_logit_softcapping", _LOGIT_SOFTCAPS[architecture], zero=True)
        or None,
    }
    is_27b = num_layers == _LAYERS_OF_27B[architecture]
    own["query_pre_attn_scalar"] = values["hidden_size"] // heads if is_27b else values["head_dim"]
    theta = values["rope_parameters"]["rope_theta"]
    if architecture == "gemma2":
        own["attn_logit_softcapping"] = given.positive("attn_logit_softcapping", _ATTENTION_SOFTCAP, zero=True) or None
        given.check("rope.freq_base_swa", theta, what="that of the other layers")
        return own
    given.check("attn_logit_softcapping", 0.0, what="none")
    local = {"rope_type": "default", "rope_theta": given.positive("rope.freq_base_swa", _LOCAL_THETA)}
    own["rope_parameters"] = {"full_attention": values["rope_parameters"], "sliding_attention": local}
    return own


def _sliding_layers(given: GgufMetadata, architecture: str, num_layers: int) -> list[bool]:
    """Return for each layer whether it has the window: all but each n-th, or as an array says."""
    key = "attention.sliding_window_pattern"
    flags = given.flags(key)
    if flags is None:
        every = given.whole(key, _PATTERNS[architecture], least=0)
        return [every == 0 or layer % every < every - 1 for layer in range(num_layers)]
    if len(flags) != num_layers:
        raise given.refuse(key, flags, f"one for each of {num_layers} layers")
    return flags
