"""Calibration: what a model's linears read decides how their weights are rounded to 4 bits.

The model reads a sample text once. Each linear, as its turn comes, is quantised on the inputs that it gets, and answers
with its quantised weights, so that those behind it are fitted to what they will really see (GPTQ, arXiv 2210.17323).

The packaged texts are instructions and answers of self-instruct (Apache-2.0); the one for calibration goes on with
questions of self-instruct and Amulet (MIT) and replies of SmolLM2-135M-Instruct. The held-out one is apart from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import Any

import torch

from pad_export.blocks import Blocks, quantise_for
from pad_export.checkpoint import Checkpoint
from pad_export.matrix import Storage
from pad_export.spec import SITE_MODULES
from pad_export.torch_model import load_model
from pad_export.trunk import LM_HEAD, Trunk, head_bits, head_parameter, linear_weight, stored_blocks

_SEQUENCE = 256  # tokens read at once
_MAX_TOKENS = 16384


def calibrate_trunk(trunk: Trunk, storage: Storage, progress: Callable[[int], object]) -> dict[str, Blocks]:
    """Linears that are worth fitting to what they read: those of 4 bits that are not stored so already."""
    bits = {
        module: storage.bits(site, layer, trunk.spec.num_layers)
        for layer in range(trunk.spec.num_layers)
        for site, modules in SITE_MODULES.items()
        for module in (f"model.layers.{layer}.{name}" for name in modules)
    }
    bits = {
        module: width
        for module, width in bits.items()
        if width == 4 and not stored_blocks(trunk, module, width, storage)
    }
    own_head = head_bits(trunk, storage) == 4 and not trunk.checkpoint.blocks(head_parameter(trunk), 4)
    return _calibrate(trunk, bits, own_head, storage.symmetric, progress) if bits or own_head else {}


def _calibrate(
    trunk: Trunk, bits: Mapping[str, int], own_head: bool, symmetric: bool, progress: Callable[[int], object]
) -> dict[str, Blocks]:
    model = load_model(trunk.checkpoint)
    found: dict[str, Blocks] = {}

    def hook(name: str) -> Callable[..., torch.Tensor]:
        def quantise(_: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            matrix = linear_weight(trunk, name).float()
            read = inputs[0].reshape(-1, matrix.shape[1])
            found[name] = quantise_for(matrix, bits[name], read.T @ read, symmetric=symmetric)
            progress(1)
            return output + torch.nn.functional.linear(inputs[0], found[name].dequantise() - matrix)

        return quantise

    with _hooked(model, {name: hook(name) for name in bits}), torch.no_grad():
        hidden = model.model(input_ids=_sample_ids(trunk.checkpoint, "calibration")).last_hidden_state
    if own_head:
        read = hidden.reshape(-1, hidden.shape[-1])
        weight = trunk.checkpoint.tensor(head_parameter(trunk))
        found[LM_HEAD] = quantise_for(weight, 4, read.T @ read, symmetric=symmetric)
        progress(1)
    return found


def perplexity(checkpoint: Checkpoint, stored: Callable[[str], torch.Tensor | None] | None = None) -> float:
    """Perplexity on the held-out text of a checkpoint, or of the parameters that `stored` gives in their place."""
    model = load_model(checkpoint, stored)
    ids = _sample_ids(checkpoint, "held_out")
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state
        losses = [
            torch.nn.functional.cross_entropy(model.lm_head(row[:-1]), targets[1:])
            for row, targets in zip(hidden, ids, strict=True)
        ]
    return float(torch.stack(losses).mean().exp())


def _sample_ids(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A packaged text in the checkpoint's tokens, [sequences, length] of at most 16,384 altogether."""
    text = resources.files("pad_export").joinpath(f"text/{name}.txt").read_text(encoding="utf-8")
    ids = checkpoint.tokenizer.backend.encode(text, add_special_tokens=False).ids[:_MAX_TOKENS]
    length = min(_SEQUENCE, len(ids), checkpoint.config.max_position_embeddings)
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


@contextmanager
def _hooked(model: Any, hooks: Mapping[str, Callable[..., torch.Tensor]]) -> Iterator[None]:
    """Forward hooks on modules, by path."""
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
