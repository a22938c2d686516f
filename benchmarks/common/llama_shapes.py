"""Sizes of Llama's layout by their transformers configuration, and folders with all of such a model but its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

_LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LLAMA_SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
        "max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "135m": {  # SmolLM2-135M
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True,
        "max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    },
    "1b": {  # Llama-3.2-1B
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
        "max_position_embeddings": 131072, "rope_parameters": {**_LLAMA3_ROPE, "factor": 32.0},
    },
    "8b": {  # Llama-3.1-8B
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
        "max_position_embeddings": 131072, "rope_parameters": {**_LLAMA3_ROPE, "factor": 8.0},
    },
}  # fmt: skip


def write_base(folder: Path, shape: str) -> Path:
    """Configuration and tokenizer of a shape."""
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    LlamaConfig(**LLAMA_SHAPES[shape], architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Three tokens: prompts are ids, so nothing is encoded, and what is decoded is not read."""
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.save(str(folder / "tokenizer.json"))
