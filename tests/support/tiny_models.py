"""Seeded tiny models, adapters and heads as folders on disk: odd sizes, random nonzero weights, no downloads."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.support import tiny_tokenizers

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FAMILIES = {  # transformers' classes
    "llama": ("LlamaForCausalLM", "LlamaConfig"),
    "mistral": ("MistralForCausalLM", "MistralConfig"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig"),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config"),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextConfig"),
}
_POST_NORMED = ("gemma2", "gemma3_text")
_NUM_PADDED = 3  # rows of the embeddings that no token has, as real checkpoints have them
_SIZES = {
    "hidden_size": 84,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class TinyModels:
    """Folders of a base, an adapter of it, and the bundle of the two."""

    base: Path
    adapter: Path
    bundle: Path


def make_base(
    folder: Path, family: str, *, seed: int, tied: bool | None = None, **config: Any
) -> transformers.PreTrainedModel:
    """A base model with tokenizer and chat template.

    Args:
        folder: created; takes the checkpoint.
        family: one of `FAMILIES`.
        seed: of every weight.
        tied: embeddings tied to lm_head; None leaves it to the family.
        config: fields of the transformers config, over `_SIZES`.
    """
    tokenizer = tiny_tokenizers.byte_level()
    ids = {name: tokenizer.token_to_id(token) for name, token in (("bos", "<s>"), ("eos", "</s>"))}
    fields: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size() + _NUM_PADDED,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": None,
        **_SIZES,
        **({} if tied is None else {"tie_word_embeddings": tied}),
        **config,
    }
    model_class, config_class = (getattr(transformers, name) for name in FAMILIES[family])
    model = model_class(config_class(**fields)).eval()
    _fill(model, seed, family)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return model


def save_tokenizer(tokenizer: Any, folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """Write a tokenizer as transformers saves it."""
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)


def make_adapter(folder: Path, base_folder: Path, *, seed: int, rank: int = 4, **lora_config: Any) -> PeftModel:
    """A PEFT LoRA adapter of a base, on every linear layer unless told otherwise, with random A and B."""
    fields: dict[str, Any] = {"lora_alpha": 2 * rank, "target_modules": "all-linear", **lora_config}
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers is for PEFT to mend
        model = get_peft_model(base, LoraConfig(r=rank, task_type="CAUSAL_LM", **fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    return model


def make_family(folder: Path, *, seed: int = 5) -> Path:
    """A llama as folder/base, and two adapters of it, "one" and "two"."""
    make_base(folder / "base", "llama", seed=seed)
    for index, name in enumerate(("one", "two")):
        make_adapter(folder / name, folder / "base", seed=index)
    return folder


def make_merged(folder: Path, base_folder: Path, adapter_folder: Path) -> PreTrainedModel:
    """The adapter merged into its base, saved as a checkpoint with the base's tokenizer."""
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        merged = PeftModel.from_pretrained(base, adapter_folder).merge_and_unload().eval()
    merged.save_pretrained(folder)
    save_tokenizer(tiny_tokenizers.byte_level(), folder)
    return merged


def make_head(folder: Path, hidden: int, *, d: int = 1, seed: int) -> None:
    """A feature head beside an adapter or merged checkpoint that is in `folder`.

    One feature takes the official layout; more take [d, hidden, hidden] and are called after the folder, NAME-0 first.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.eye(hidden) + torch.randn(d, hidden, hidden, generator=generator) * 0.1
    bias = torch.randn(d, hidden, generator=generator) * 0.1
    if d == 1:
        tensors = {"v_head.summary.weight": weight[0], "v_head.summary.bias": bias[0]}
    else:
        tensors = {"feature_head.weight": weight, "feature_head.bias": bias}
        settings = {"features": [f"{folder.name}-{index}" for index in range(d)]}
        (folder / "pad_persrm.json").write_text(json.dumps(settings), encoding="utf-8")
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "value_head.safetensors"
    )


def _fill(model: PreTrainedModel, seed: int, family: str) -> None:
    """Random weights, large enough that no path through the model is negligible."""
    generator = torch.Generator().manual_seed(seed)
    norm_mean = 0.0 if family.startswith("gemma") else 1.0  # Gemma multiplies by 1 + weight
    # Where the layers' outputs are normed, they must outgrow the scaled embedding, or every token repeats itself.
    post_norms = ("post_attention_layernorm", "post_feedforward_layernorm") if family in _POST_NORMED else ()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 8.0 if post_norms and name.split(".")[-2] in post_norms else norm_mean
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 + mean if "norm" in name else noise * 0.25)
