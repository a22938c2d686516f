"""Names of a checkpoint's tensors: as they are stored, and as a plain causal language model has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from transformers import PretrainedConfig

from pad_export.read.model_class import foreign_hint, is_language_module
from pad_export.read.spec import FAMILIES, is_used
from pad_runtime.errors import CheckpointError

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

EMBEDDINGS = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
_BARE_MODULES = ("embed_tokens.", "layers.", "norm.")
# Stored tensors that nothing needs to read, by their names in the text model.
LEFTOVERS = (
    # Rotary frequencies, which follow from the configuration: Llama 1 and 2 and their descendants store them by layer.
    re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
)
# In a multimodal checkpoint, what reads images or sound: prompts here are text.
_TOWERS = (re.compile(r"(model\.)?(vision_tower|audio_tower|multi_modal_projector|image_newline)(\..+)?"),)
_TEXT_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)


def canonical_name(name: str) -> str:
    """Return the name of a text model's tensor or module as a plain causal language model has it.

    `layers.0.x` of a bare decoder and `model.language_model.layers.0.x` of a multimodal one are
    `model.layers.0.x`; any other name stays as it is.
    """
    for prefix, plain in _TEXT_PREFIXES:
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return f"model.{name}" if is_bare_name(name) else name


def is_bare_name(name: str) -> bool:
    """Whether a tensor or module is named as in a decoder without lm_head (transformers' AutoModel)."""
    return name.startswith(_BARE_MODULES)


def find_text_model(path: Path, config: PretrainedConfig, shapes: Shapes) -> dict[str, str]:
    """Return the stored name of each tensor of the text model; every other must be a known leftover.

    Args:
        path: the checkpoint, for errors.
        config: of the text model.
        shapes: of what is stored, by stored name.

    Raises:
        CheckpointError: names a tensor that is neither, or says that there is no decoder here.
    """
    if any(map(is_bare_name, shapes)):
        raise CheckpointError(
            f"{path} holds a decoder alone, as AutoModel saves it",
            expected="a causal language model",
            hint="give the causal language model that it was taken from",
        )
    stored = {canonical_name(name): name for name in shapes}
    twice = sorted(shapes.keys() - set(stored.values()))
    if twice:
        raise CheckpointError(
            f"{path} holds {twice[0]} and {stored[canonical_name(twice[0])]}",
            expected="one of them: to a text model they are the same",
            hint="download the checkpoint again",
        )
    if EMBEDDINGS not in stored:
        raise CheckpointError(
            f"{path} has no {EMBEDDINGS}", expected="a decoder of the Llama family", hint="choose another checkpoint"
        )
    if config.model_type in FAMILIES:  # another is refused once its spec is read
        leftovers = LEFTOVERS + (_TOWERS if any("language_model." in name for name in stored.values()) else ())
        used = {canonical: name for canonical, name in stored.items() if is_used(canonical, config)}
        unknown = [
            name
            for canonical, name in stored.items()
            if canonical not in used and not any(leftover.fullmatch(canonical) for leftover in leftovers)
        ]
        if unknown:
            raise _unused(path, config, unknown, shapes)
        return used
    return stored


def _unused(path: Path, config: PretrainedConfig, names: list[str], shapes: Shapes) -> CheckpointError:
    name, module = names[0], names[0].rpartition(".")[0]
    hint = foreign_hint(module)
    if is_language_module(module):
        hint = "download the checkpoint again, with the configuration it was published with"
    elif name.startswith("v_head.") and shapes[name][:1] != (1,):
        hint = "save the v_head.* tensors as value_head.safetensors and the others as model.safetensors"
    return CheckpointError(
        f"{path} holds {name}"
        + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
        + " that nothing reads",
        expected=f"the tensors of a {config.model_type} model of {config.num_hidden_layers} layers with its lm_head",
        hint=hint,
    )
