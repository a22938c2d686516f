"""A GGUF file as a checkpoint: its configuration, and its tensors under Hugging Face names, dequantised one at a time.

The changes of llama.cpp's converter are undone: it interleaves the rotary rows of the llama architecture, adds 1 to
Gemma's norm weights, and renames all tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pad_export.read.gguf.config import GgufConfig, read_config
from pad_export.read.gguf.header import GgufHeader, GgufTensor, read_header
from pad_export.read.gguf.metadata import UNCLEAR
from pad_export.read.gguf.tensor import StoredTensor
from pad_export.read.gguf.vocabulary import GgufVocabulary, read_vocabulary
from pad_export.read.model_class import foreign_hint
from pad_export.weights.blocks import Blocks
from pad_runtime.errors import CheckpointError

_ROPE_FACTORS = "rope_freqs.weight"
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_POST_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_BIASES = {"llama": (*_ATTENTION, *_MLP), "qwen2": ("attn_q", "attn_k", "attn_v")}


@dataclass(frozen=True)
class GgufWeights:
    """Tensors under Hugging Face names, dequantised to float32 as they are read.

    Attributes:
        model_type: transformers' name of the architecture.
        shapes: shape of each tensor in Hugging Face order, known without reading it.
        nbytes: bytes on disk.
        config: the model's configuration, as keywords of the model type's transformers class.
        vocabulary: the tokenizer's data.
        eos_token_ids: end-of-sequence, end-of-turn and end-of-message ids, as far as given.
        names: the model's names in the file.
    """

    path: Path
    model_type: str
    shapes: dict[str, tuple[int, ...]]
    nbytes: int
    config: dict[str, Any]
    vocabulary: GgufVocabulary
    eos_token_ids: tuple[int, ...]
    names: tuple[str, ...]
    _tensors: dict[str, StoredTensor]

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, float32.

        Raises:
            CheckpointError: a quantisation that the gguf package cannot undo.
        """
        return torch.from_numpy(self._tensors[name].read())

    def read_blocks(self, name: str, bits: int) -> Blocks | None:
        """Return a matrix in its stored blocks, or None if `bits` bits with an integer zero point cannot hold them."""
        return self._tensors[name].read_blocks(bits)


def open_gguf(path: Path) -> GgufWeights:
    """Read a GGUF file's metadata and tensor table.

    Raises:
        CheckpointError: not a whole GGUF file, an architecture that is not in `config.ARCHITECTURES`, or content of the
            file that would be lost (unknown keys and rotary scalings, unknown tensors, splits).
    """
    header = read_header(path)
    factors = header.tensors.get(_ROPE_FACTORS)
    config = read_config(
        path,
        header.fields,
        header.tensors,
        rope_factors=StoredTensor(path, factors).read() if factors else None,
    )
    tensors = _find_tensors(path, header, config)
    metadata = {key: field.contents() for key, field in header.fields.items() if field.count is None}
    tokens = header.get_field("tokenizer.ggml.tokens")
    if tokens and tokens.count is not None and tokens.count > config.values["vocab_size"]:
        raise CheckpointError(
            f"{path} has {tokens.count} tokens and embeddings of {config.values['vocab_size']}",
            expected="one embedding for each token",
            hint=UNCLEAR,
        )
    return GgufWeights(
        path=path,
        model_type=config.model_type,
        shapes={name: stored.tensor.shape for name, stored in tensors.items()},
        nbytes=path.stat().st_size,
        config=config.values,
        vocabulary=read_vocabulary(path, header, metadata),
        eos_token_ids=config.eos_token_ids,
        names=_names(metadata),
        _tensors=tensors,
    )


def _names(metadata: dict[str, Any]) -> tuple[str, ...]:
    """general.name, and the name that llama.cpp's convention builds of base name, size, fine-tune and version."""
    parts = [metadata.get(f"general.{key}") for key in ("basename", "size_label", "finetune", "version")]
    joined = "-".join(part for part in parts if isinstance(part, str) and part)
    return tuple(name for name in (metadata.get("general.name"), joined) if isinstance(name, str) and name)


def _find_tensors(path: Path, header: GgufHeader, config: GgufConfig) -> dict[str, StoredTensor]:
    """Return all tensors of the model under their Hugging Face names; refuse other tensors and wrong shapes."""
    num_layers = config.values["num_hidden_layers"]
    if num_layers > len(header.tensors):  # before anything is sized by it
        raise _lacks(path, f"most of {config.architecture}.block_count = {num_layers} layers")
    left = dict(header.tensors)
    if config.architecture == "llama":
        left.pop(_ROPE_FACTORS, None)
    found: dict[str, StoredTensor] = {}
    for stem, module, shape in _modules(config):
        weight, bias = left.pop(f"{stem}.weight", None), None
        if weight is None and module != "lm_head":
            raise _lacks(path, f"{stem}.weight")
        if stem.rpartition(".")[2] in _BIASES.get(config.model_type, ()):
            bias = left.pop(f"{stem}.bias", None)
        for suffix, tensor, expected in (("weight", weight, shape), ("bias", bias, shape[:1])):
            if tensor is not None:
                _check_shape(path, tensor, expected)
                stored = found[f"{module}.{suffix}"] = _stored(path, tensor, config, module)
                stored.check()
    for name in left:
        raise CheckpointError(
            f"{path} has the tensor {name}",
            expected=f"those of a plain {config.model_type} model",
            hint=foreign_hint(name.rpartition(".")[0]) if name.startswith("cls") else UNCLEAR,
        )
    return found


def _modules(config: GgufConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Every module of the model: its GGUF name, its Hugging Face name, and the shape of its weight."""
    values = config.values
    hidden, inner, vocab = values["hidden_size"], values["intermediate_size"], values["vocab_size"]
    head = values["head_dim"]
    queries, keys = values["num_attention_heads"] * head, values["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
        "attn_q_norm": (head,),
        "attn_k_norm": (head,),
    }
    names = _ATTENTION | _MLP | (_POST_NORMS if config.model_type in ("gemma2", "gemma3_text") else _NORMS)
    if config.model_type in ("qwen3", "gemma3_text"):
        names |= _QK_NORMS
    yield "token_embd", "model.embed_tokens", (vocab, hidden)
    yield "output_norm", "model.norm", (hidden,)
    yield "output", "lm_head", (vocab, hidden)
    for layer in range(values["num_hidden_layers"]):
        for stem, module in names.items():
            yield f"blk.{layer}.{stem}", f"model.layers.{layer}.{module}", shapes.get(stem, (hidden,))


def _check_shape(path: Path, tensor: GgufTensor, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise CheckpointError(
            f"{path} has {tensor.name} of the shape {tensor.shape}",
            expected=f"{expected}, as its metadata say",
            hint=UNCLEAR,
        )


def _stored(path: Path, tensor: GgufTensor, config: GgufConfig, module: str) -> StoredTensor:
    """A tensor with the changes that the converter made to it; only llama's rotary rows are interleaved."""
    heads = 0
    if config.architecture == "llama" and module.endswith("q_proj"):
        heads = config.values["num_attention_heads"]
    elif config.architecture == "llama" and module.endswith("k_proj"):
        heads = config.values["num_key_value_heads"]
    gemma_norm = config.architecture.startswith("gemma") and module.endswith("norm")
    return StoredTensor(path, tensor, num_heads=heads, norm_offset=1.0 if gemma_norm else 0.0)


def _lacks(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} lacks {what}", expected="a whole GGUF file", hint="download it again")
