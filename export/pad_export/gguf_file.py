"""A GGUF file as a checkpoint: its metadata, and its tensors under Hugging Face names, dequantised one at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
import numpy.typing as npt
import torch

from pad_export.blocks import BLOCK, Blocks
from pad_export.gguf_vocabulary import GgufVocabulary, read_vocabulary
from pad_export.model_class import foreign_hint
from pad_runtime.errors import CheckpointError

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}

_T = TypeVar("_T", bound=np.generic)

_MODULES = ("model.embed_tokens", "model.norm", "lm_head")
_LAYER_MODULES = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_CONFIG_KEYS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_ROPE_FACTORS = "rope_freqs.weight"
# Every Llama 3.1, 3.2 and 3.3 release has these; a GGUF keeps only the factors that follow from them.
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# (stored as, bits wanted) -> the zero point that says the same
_ZERO_POINTS = {
    (gguf.GGMLQuantizationType.Q4_0, 4): 8,
    (gguf.GGMLQuantizationType.Q4_0, 8): 128,
    (gguf.GGMLQuantizationType.Q8_0, 8): 128,
}
_UNCLEAR = "export from the model's safetensors folder"


@dataclass(frozen=True)
class _Block:
    """Where one tensor lies in the file, and how it is stored."""

    offset: int
    nbytes: int
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    stored_dtype: np.dtype[Any]
    kind: Any
    num_heads: int  # heads whose rotary rows llama.cpp interleaved, 0 for none


@dataclass(frozen=True)
class GgufWeights:
    """Tensors under Hugging Face names, dequantised to float32 as they are read.

    Attributes:
        architecture: one of ARCHITECTURES, which is also transformers' model type.
        shapes: shape of each tensor in Hugging Face order, known without reading it.
        nbytes: bytes on disk.
        config: the model's configuration, as keywords of the architecture's transformers class.
        vocabulary: the tokenizer's data.
        eos_token_ids: end-of-sequence, end-of-turn and end-of-message ids, as far as given.
        names: what the file calls its model.
    """

    path: Path
    architecture: str
    shapes: dict[str, tuple[int, ...]]
    nbytes: int
    config: dict[str, Any]
    vocabulary: GgufVocabulary
    eos_token_ids: tuple[int, ...]
    names: tuple[str, ...]
    _blocks: dict[str, _Block]

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, float32.

        Raises:
            CheckpointError: a quantisation that the gguf package cannot undo.
        """
        block = self._blocks[name]
        return torch.from_numpy(_dequantise(self.path, name, block))

    def read_blocks(self, name: str, bits: int) -> Blocks | None:
        """Return a matrix as it is stored, or None where `bits` bits with an integer zero point cannot say the same.

        Q4_0 and Q8_0 can be said; Q4_1, whose blocks have a minimum that is no multiple of their scale, cannot.
        """
        block = self._blocks[name]
        zero = _ZERO_POINTS.get((block.kind, bits))
        return None if zero is None else _carry_over(self.path, block, bits, zero)


def open_gguf(path: Path) -> GgufWeights:
    """Read a GGUF file's metadata and tensor table.

    Raises:
        CheckpointError: not a whole GGUF file, an architecture other than llama, qwen2 and qwen3, or one of
            their features that would be lost (unknown rotary scaling, sliding windows, unknown tensors, splits).
    """
    reader = _open(path)
    metadata = {name: _scalar(field) for name, field in reader.fields.items()}
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise CheckpointError(
            f"{path} has the general.type {kind!r}",
            expected="'model'",
            hint="give the model's own file; of a LoRA, PEFT's",
        )
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} has the architecture {architecture!r}",
            expected=f"one of {', '.join(ARCHITECTURES)}",
            hint=_UNCLEAR,
        )
    if missing := [key for key in _CONFIG_KEYS.values() if not _is_positive(metadata.get(f"{architecture}.{key}"))]:
        raise _incomplete(path, f"{architecture}.{missing[0]}")
    for key, harmless in _harmless(architecture, metadata).items():
        if metadata.get(key) not in harmless:
            raise CheckpointError(f"{path} has {key} = {metadata[key]}", expected="a model without it", hint=_UNCLEAR)
    blocks = _find_blocks(path, reader, architecture, metadata)
    return GgufWeights(
        path=path,
        architecture=architecture,
        shapes={name: block.shape for name, block in blocks.items() if name != _ROPE_FACTORS},
        nbytes=path.stat().st_size,
        config=_read_config(path, architecture, metadata, blocks),
        vocabulary=read_vocabulary(path, reader, metadata),
        eos_token_ids=tuple(
            metadata[key]
            for key in (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
            if isinstance(metadata.get(key), int)
        ),
        names=_names(metadata),
        _blocks=blocks,
    )


def _names(metadata: dict[str, Any]) -> tuple[str, ...]:
    """general.name, and what llama.cpp's naming convention makes of the parts: base name, size, fine-tune, version."""
    parts = [metadata.get(f"general.{key}") for key in ("basename", "size_label", "finetune", "version")]
    joined = "-".join(part for part in parts if isinstance(part, str) and part)
    return tuple(name for name in (metadata.get("general.name"), joined) if isinstance(name, str) and name)


def _open(path: Path) -> Any:
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # a short file fails wherever the reader happens to be: index, reshape, decode
        raise CheckpointError(
            f"{path} is truncated or not a GGUF file ({error})", expected="a whole GGUF file", hint="download it again"
        ) from error
    if reader.byte_order != "I":
        raise CheckpointError(f"{path} is stored in the other byte order", hint="download the little-endian file")
    return reader


def _scalar(field: Any) -> Any:
    """Return a number or string; arrays, which are vocabularies and merges, count as None."""
    return None if field.types and field.types[0] == gguf.GGUFValueType.ARRAY else field.contents()


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _harmless(architecture: str, metadata: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the values under which each key changes nothing; any other would be lost on the way."""
    return {
        "split.count": (None, 0, 1),
        f"{architecture}.rope.dimension_count": (None, _head_dim(architecture, metadata)),
        f"{architecture}.rope.scaling.type": (None, "", "none"),
        f"{architecture}.rope.scale_linear": (None, 1.0),
        f"{architecture}.attention.sliding_window": (None, 0, metadata.get(f"{architecture}.context_length")),
        f"{architecture}.expert_count": (None, 0),
        f"{architecture}.attention.causal": (None, True),
        f"{architecture}.pooling_type": (None, 0),  # others: embedding models and rankers
    }


def _find_blocks(path: Path, reader: Any, architecture: str, metadata: dict[str, Any]) -> dict[str, _Block]:
    num_layers = int(metadata[f"{architecture}.block_count"])
    num_heads = int(metadata[f"{architecture}.attention.head_count"])
    num_kv_heads = int(metadata.get(f"{architecture}.attention.head_count_kv") or num_heads)
    names = _hugging_face_names(architecture, num_layers)
    blocks = {}
    for tensor in reader.tensors:
        stem, _, suffix = tensor.name.rpartition(".")
        if tensor.name != _ROPE_FACTORS and (stem not in names or suffix not in {"weight", "bias"}):
            raise CheckpointError(
                f"{path} has the tensor {tensor.name}",
                expected=f"those of a plain {architecture} model",
                hint=foreign_hint(stem) if stem.startswith("cls") else _UNCLEAR,
            )
        module = names.get(stem, "")
        heads = 0
        if architecture == "llama":
            heads = num_heads if module.endswith("q_proj") else num_kv_heads if module.endswith("k_proj") else 0
        blocks[f"{module}.{suffix}" if module else tensor.name] = _Block(
            offset=int(tensor.data_offset),
            nbytes=int(tensor.n_bytes),
            shape=tuple(int(size) for size in reversed(tensor.shape.tolist())),
            stored_shape=tensor.data.shape,
            stored_dtype=tensor.data.dtype,
            kind=tensor.tensor_type,
            num_heads=heads,
        )
    return blocks


def _hugging_face_names(architecture: str, num_layers: int) -> dict[str, str]:
    """Return the Hugging Face module of each GGUF one: {"blk.0.attn_q": "model.layers.0.self_attn.q_proj"}."""
    name_map = gguf.get_tensor_name_map(ARCHITECTURES[architecture], num_layers)
    modules = [*_MODULES, *(f"model.layers.{i}.{module}" for i in range(num_layers) for module in _LAYER_MODULES)]
    return {stem: module for module in modules if (stem := name_map.get_name(module)) is not None}


def _read_config(path: Path, architecture: str, metadata: dict[str, Any], blocks: dict[str, _Block]) -> dict[str, Any]:
    # Not left to transformers' GGUF loading, which drops qwen3's head size, biases and Llama 3's rotary scaling,
    # and takes the file's whole vocabulary apart once more to do so.
    if "model.embed_tokens.weight" not in blocks:
        raise _incomplete(path, "token_embd.weight")
    config = {name: metadata[f"{architecture}.{key}"] for name, key in _CONFIG_KEYS.items()}
    config["vocab_size"] = blocks["model.embed_tokens.weight"].shape[0]
    theta = float(metadata.get(f"{architecture}.rope.freq_base") or 10000.0)
    config["num_key_value_heads"] = (
        metadata.get(f"{architecture}.attention.head_count_kv") or config["num_attention_heads"]
    )
    config["head_dim"] = _head_dim(architecture, metadata)
    config["rope_parameters"] = _read_rope(path, theta, blocks)
    config["tie_word_embeddings"] = "lm_head.weight" not in blocks
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{name}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if architecture == "llama":
        config["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in blocks
        config["mlp_bias"] = "model.layers.0.mlp.gate_proj.bias" in blocks
    return config


def _head_dim(architecture: str, metadata: dict[str, Any]) -> int:
    given = metadata.get(f"{architecture}.attention.key_length")
    if given:
        return int(given)
    return int(metadata[f"{architecture}.embedding_length"]) // int(metadata[f"{architecture}.attention.head_count"])


def _read_rope(path: Path, theta: float, blocks: dict[str, _Block]) -> dict[str, Any]:
    if _ROPE_FACTORS not in blocks:
        return {"rope_type": "default", "rope_theta": theta}
    factors = _dequantise(path, _ROPE_FACTORS, blocks[_ROPE_FACTORS])  # [head_dim / 2]
    factor = float(factors.max())
    if not np.allclose(factors, _llama3_factors(theta, len(factors), factor), rtol=1e-3):
        raise CheckpointError(
            f"{path} scales its rotary frequencies with {_ROPE_FACTORS}",
            expected="no scaling, or that of Llama 3",
            hint=_UNCLEAR,
        )
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **_LLAMA3_ROPE}


def _incomplete(path: Path, missing: str) -> CheckpointError:
    return CheckpointError(f"{path} lacks {missing}", expected="a whole GGUF file", hint="download it again")


def _llama3_factors(theta: float, num_frequencies: int, factor: float) -> npt.NDArray[np.float64]:
    """Return what Llama 3 divides each rotary frequency by.

    Args:
        theta: base of the rotary frequencies.
        num_frequencies: head_dim / 2.
        factor: what long wavelengths are divided by; short ones are kept, those between interpolated.
    """
    low, high = _LLAMA3_ROPE["low_freq_factor"], _LLAMA3_ROPE["high_freq_factor"]
    wavelengths = 2 * math.pi * theta ** (np.arange(num_frequencies) / num_frequencies)
    turns = _LLAMA3_ROPE["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    divided: npt.NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return divided


def _dequantise(path: Path, name: str, block: _Block) -> npt.NDArray[np.float32]:
    # Mapped anew for every tensor, so that the pages of those read before are released.
    raw = np.memmap(path, dtype=np.uint8, mode="r", offset=block.offset, shape=(block.nbytes,))
    try:
        values = gguf.quants.dequantize(raw.view(block.stored_dtype).reshape(block.stored_shape), block.kind)
    except (NotImplementedError, ValueError) as error:
        raise CheckpointError(
            f"{path} stores {name} as {block.kind.name}, which the gguf package cannot read ({error})", hint=_UNCLEAR
        ) from error
    values = np.asarray(values, dtype=np.float32).reshape(block.shape)
    if block.num_heads:
        values = _split_rotary_halves(values, block.num_heads)
    return values if values.flags.writeable and values.base is not raw else np.array(values)


def _carry_over(path: Path, block: _Block, bits: int, zero: int) -> Blocks:
    """Codes and scales of a Q4_0 or Q8_0 tensor: each block is a float16 scale, then its codes.

    Q4_0 keeps the codes of a block's first half in the low four bits of its bytes, and those of the second in the high.
    """
    raw = np.fromfile(path, dtype=np.uint8, count=block.nbytes, offset=block.offset)
    rows, columns = block.shape
    stored = raw.reshape(rows, columns // BLOCK, -1)  # [out, in / 32, bytes of a block]
    scales = np.ascontiguousarray(stored[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    codes = stored[..., 2:]
    if block.kind == gguf.GGMLQuantizationType.Q4_0:
        codes = np.concatenate([codes & 15, codes >> 4], axis=-1) + np.uint8(zero - 8)
    else:
        codes = codes ^ np.uint8(zero)  # from two's complement to an offset of 128
    codes = codes.reshape(rows, columns)
    if block.num_heads:
        codes = _split_rotary_halves(codes, block.num_heads)
        scales = _split_rotary_halves(scales, block.num_heads)
    zero_points = torch.full(scales.shape, zero, dtype=torch.uint8)
    return Blocks(bits, torch.from_numpy(codes), torch.from_numpy(scales), zero_points)


def _split_rotary_halves(values: npt.NDArray[_T], num_heads: int) -> npt.NDArray[_T]:
    """Reorder each head's rows from llama.cpp's (0, d/2, 1, d/2 + 1, ...) back to (0, 1, ..., d - 1).

    Args:
        values: [heads * head_dim, ...], weight or bias of a query or key projection.
        num_heads: heads of that projection.
    """
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])  # [heads, head_dim / 2, half, ...]
    return pairs.swapaxes(1, 2).reshape(values.shape)
