"""Published shapes by their transformers configuration, and folders with all of such a model but its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file

from llama_shapes import LLAMA_SHAPES
from random_weights import parameter_shapes

RANK = 8  # of the adapter, on every linear of every layer
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    **LLAMA_SHAPES,
}


def write_base(folder: Path, shape: str) -> Path:
    """Configuration and tokenizer; the weights are `random_weights`'."""
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    LlamaConfig(**SHAPES[shape], architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2}  # prompts are ids: nothing is encoded, and what is decoded is not read
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_adapter(folder: Path, base: Path) -> Path:
    """LoRA as PEFT saves it, with random A and B."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name, (size_out, size_in) in _linears(parameter_shapes(base)).items():
        at = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{at}.lora_A.weight"] = 0.02 * torch.randn(RANK, size_in, generator=generator)
        tensors[f"{at}.lora_B.weight"] = 0.02 * torch.randn(size_out, RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    config |= {"target_modules": "all-linear", "base_model_name_or_path": base.name}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def _linears(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if name.endswith("_proj.weight")}
