"""Models of the sizes that people run: SmolLM2 itself, and published shapes with random weights and a random adapter.

The time of a step does not depend on the values of the weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.kept import made
from benchmarks.common.llama_shapes import LLAMA_SHAPES
from benchmarks.common.random_adapter import ask_by_weights, write_adapter
from benchmarks.common.records import ROOT
from demo.smollm2 import WEIGHTS_PERSRM, find_smollm2
from pad_export.read.checkpoint import open_checkpoint

BUILD = ROOT / "build" / "latency"  # what the latency benchmark makes for itself, and keeps
MODELS = BUILD / "models"


@dataclass(frozen=True)
class Shape:
    """A model by the fields of its published transformers configuration, and the precisions that it is measured in."""

    config_class: str
    config: Mapping[str, Any]
    precisions: tuple[str, ...]


SMOLLM2 = "smollm2-135m"
SHAPES = {
    SMOLLM2: Shape("", {}, ("fp32", "int4")),
    "qwen2.5-0.5b": Shape(
        "Qwen2Config",
        {
            "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
            "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        ("fp32", "int4"),
    ),
    "llama-3.2-1b": Shape("LlamaConfig", LLAMA_SHAPES["1b"], ("int4",)),
}  # fmt: skip


def checkpoint(name: str) -> tuple[Path, Path]:
    """Base and adapter of a shape; random ones are made on first use."""
    if name == SMOLLM2:
        return find_smollm2(), made(MODELS / "adapter", _copy_adapter)
    base = made(MODELS / name, lambda folder: _save_base(folder, SHAPES[name]))
    return base, made(MODELS / f"{name}-adapter", lambda folder: _save_adapter(folder, base))


def _save_base(folder: Path, shape: Shape) -> None:
    import torch
    import transformers

    config = getattr(transformers, shape.config_class)(**shape.config)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def _save_adapter(folder: Path, base: Path) -> None:
    from safetensors import safe_open

    with safe_open(base / "model.safetensors", "pt") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118 - no dict
    write_adapter(folder, base, shapes)


def _copy_adapter(folder: Path) -> None:
    """The shipped PersRM's adapter as PEFT saved it, without its head."""
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(WEIGHTS_PERSRM / name, folder / name)
    ask_by_weights(folder)


def save_tokenizer(folder: Path) -> None:
    """SmolLM2's tokenizer as transformers saves it, old releases included."""
    from transformers import PreTrainedTokenizerFast

    info = open_checkpoint(find_smollm2()).save_tokenizer(folder)
    special: dict[str, Any] = {"bos_token": info.bos_token, "eos_token": info.eos_token}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    tokenizer.chat_template = info.chat_template
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=1), encoding="utf-8")
