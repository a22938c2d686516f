"""Published shapes by their transformers configuration, and folders with all of such a model but its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from llama_shapes import LLAMA_SHAPES

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
