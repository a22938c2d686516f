"""A checkpoint as a transformers model whose weights are in memory only while they are in use.

The tensors of a folder are read by safetensors, under transformers' parameter names, and not by our reader, which is
part of what is verified. GGUF files are read by our reader, because transformers loses some of what they say (head_dim,
biases, Llama 3's rotary scaling).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.initialization import no_init_weights
from transformers.utils import logging

from pad_export.read.checkpoint import Checkpoint
from pad_runtime.errors import CheckpointError


def load_model(
    checkpoint: Checkpoint,
    stored: Callable[[str], torch.Tensor | None] | None = None,
    *,
    rounding: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> Any:
    """A checkpoint as a transformers model in float32 on the CPU, its weights read only while they are in use.

    Args:
        checkpoint: gives the weights.
        stored: gives a parameter, by its name, that replaces the checkpoint's; None for the others.
        rounding: applied to the checkpoint's own parameters, with their names.

    Raises:
        CheckpointError: transformers' model has a parameter that the checkpoint lacks.
    """
    with no_init_weights():  # memory that is never written takes no space
        model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32)
    own = _GgufSource(checkpoint) if checkpoint.path.is_file() else _FolderSource(checkpoint.path)

    def source(parameter: str) -> torch.Tensor | None:
        elsewhere = stored(parameter) if stored else None
        if elsewhere is not None:
            return elsewhere
        tensor = own(parameter)
        return rounding(parameter, tensor) if rounding and tensor is not None else tensor

    for path, module in model.named_modules():
        names = {parameter: f"{path}.{name}" for name, parameter in module.named_parameters(recurse=False)}
        if names:
            _stream(module, names, source)
    return model.eval()


def unread_tensors(checkpoint: Checkpoint) -> list[str]:
    """Stored tensors of a folder that transformers does not use when it loads it; empty for a GGUF file.

    Only names and shapes are read.
    """
    if checkpoint.path.is_file():
        return []
    config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True)
    # A multimodal model is loaded whole, so that transformers uses the tensors of all towers.
    kind = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForMultimodalLM
    with _silent():  # transformers would print what is returned here
        _, loading = kind.from_pretrained(
            checkpoint.path, local_files_only=True, device_map="meta", output_loading_info=True
        )
    return sorted(loading["unexpected_keys"])


@contextmanager
def _silent() -> Iterator[None]:
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


class _FolderSource:
    """Tensors of a Hugging Face folder by parameter name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        for path in _weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))

    def __call__(self, parameter: str) -> torch.Tensor | None:
        inner = parameter.removeprefix("model.")
        wrapped = f"language_model.{parameter}", f"model.language_model.{inner}"  # as in multimodal models
        for name in (*wrapped, parameter, inner):
            if name in self._files:
                with safe_open(self._files[name], framework="pt") as file:
                    tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        return None


class _GgufSource:
    """Tensors of a GGUF file by parameter name."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __call__(self, parameter: str) -> torch.Tensor | None:
        return self._checkpoint.tensor(parameter) if parameter in self._checkpoint.names else None


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():  # saving over a sharded model leaves its old index in the folder
        return [single]
    return sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def _stream(
    module: torch.nn.Module, names: dict[torch.nn.Parameter, str], source: Callable[[str], torch.Tensor | None]
) -> None:
    """Let a module read its parameters before it runs and drop them afterwards."""

    def read(*_: Any) -> None:
        for parameter, name in names.items():
            parameter.data = _find(name, parameter.shape, source).float()

    def drop(*_: Any) -> None:
        for parameter in names:
            parameter.data = torch.zeros(1).expand(parameter.shape)  # PEFT needs the shape; the values take no memory

    module.register_forward_pre_hook(read)
    module.register_forward_hook(drop)
    drop()


def _find(name: str, shape: torch.Size, source: Callable[[str], torch.Tensor | None]) -> torch.Tensor:
    """A parameter's value. An lm_head that is not stored is the embedding, a bias that is not stored is zero."""
    tensor = source(name)
    if tensor is None and name == "lm_head.weight":
        tensor = source("model.embed_tokens.weight")
    if tensor is None and name.endswith(".bias"):
        tensor = torch.zeros(shape)
    if tensor is None:
        raise CheckpointError(f"the checkpoint has no tensor {name}", expected="every parameter of transformers' model")
    return tensor
