"""Calibration: weights are rounded to 4 bits so that the linears' outputs on a sample text change little.

The model reads a sample text once, with its whole weights, and each 4-bit linear is fitted to the inputs that it gets
(GPTQ, arXiv 2210.17323). Fitting it to the inputs behind rounded linears would gain nothing, and a difference between
two machines' arithmetic in one layer would then change the codes of all later layers.

The packaged texts are instructions and answers of self-instruct (Apache-2.0); the calibration text has also questions
of self-instruct and Amulet (MIT) and replies of SmolLM2-135M-Instruct. The held-out text has nothing in common with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources

import torch

from pad_export.graph.matrix import Storage
from pad_export.output.stages import Progress
from pad_export.read.checkpoint import Checkpoint
from pad_export.read.spec import SITE_MODULES
from pad_export.trunk import Trunk
from pad_export.verify.torch_model import load_model
from pad_export.weights.blocks import Blocks
from pad_export.weights.gptq import quantise_for, second_moments
from pad_export.weights.stream import (
    LM_HEAD,
    linear_weight,
    lm_head_bits,
    lm_head_parameter,
    merged_weight,
    stored_blocks,
)

_SEQUENCE = 256  # tokens read at once
_MAX_TOKENS = 16384


def calibrate_trunk(trunk: Trunk, storage: Storage, progress: Progress) -> dict[str, Blocks]:
    """Fit the 4-bit linears of a trunk that the checkpoint does not store in 4-bit blocks already; by module name."""
    sites = []
    for layer in range(trunk.spec.num_layers):
        for site, names in SITE_MODULES.items():
            modules = [f"model.layers.{layer}.{name}" for name in names]
            if storage.bits(site, layer, trunk.spec.num_layers) == 4:
                sites.append([module for module in modules if not stored_blocks(trunk, module, 4, storage)])
    sites = [modules for modules in sites if modules]
    own_lm_head = lm_head_bits(trunk, storage) == 4 and not trunk.checkpoint.blocks(lm_head_parameter(trunk), 4)
    progress.begin(sum(len(modules) for modules in sites) + own_lm_head)
    return _calibrate(trunk, sites, own_lm_head, storage.symmetric, progress) if sites or own_lm_head else {}


def _calibrate(
    trunk: Trunk, sites: Sequence[Sequence[str]], own_lm_head: bool, symmetric: bool, progress: Progress
) -> dict[str, Blocks]:
    """Fit the modules of each site, which have the same inputs, just before the first of them runs."""
    found: dict[str, Blocks] = {}

    def hook(modules: Sequence[str]) -> Callable[..., None]:
        def fit(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            moments = second_moments(inputs[0])
            for module in modules:
                found[module] = quantise_for(linear_weight(trunk, module), 4, moments, symmetric=symmetric)
                progress()

        return fit

    model = load_model(trunk.checkpoint, partial(_merged, trunk))
    for modules in sites:
        model.get_submodule(modules[0]).register_forward_pre_hook(hook(modules))
    with torch.no_grad():
        hidden = model.model(input_ids=_sample_ids(trunk.checkpoint, "calibration")).last_hidden_state
    if own_lm_head:
        weights = trunk.checkpoint.tensor(lm_head_parameter(trunk))
        found[LM_HEAD] = quantise_for(weights, 4, second_moments(hidden), symmetric=symmetric)
        progress()
    return found


def perplexity(trunk: Trunk, stored: Callable[[str], torch.Tensor | None] | None = None) -> float:
    """Perplexity of a trunk on the held-out text; parameters that `stored` gives replace the checkpoint's."""
    model = load_model(trunk.checkpoint, stored or partial(_merged, trunk))
    ids = _sample_ids(trunk.checkpoint, "held_out")
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state
        losses = [
            torch.nn.functional.cross_entropy(model.lm_head(row[:-1]), targets[1:])
            for row, targets in zip(hidden, ids, strict=True)
        ]
    return float(torch.stack(losses).mean().exp())


def _merged(trunk: Trunk, parameter: str) -> torch.Tensor | None:
    """A parameter with the merged adapter in it; None if none is merged into it."""
    return merged_weight(trunk, parameter.removesuffix(".weight"))


def _sample_ids(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A packaged text in the checkpoint's tokens, [sequences, length] of at most 16,384 altogether.

    Each sequence begins with BOS if the tokenizer begins texts with it: without BOS, Gemma's predictions are useless.
    """
    text = resources.files("pad_export").joinpath(f"text/{name}.txt").read_text(encoding="utf-8")
    backend, bos = checkpoint.tokenizer.backend, checkpoint.tokenizer.info.bos_id
    first = [bos] if bos is not None and backend.encode("", add_special_tokens=True).ids[:1] == [bos] else []
    ids = backend.encode(text, add_special_tokens=False).ids[:_MAX_TOKENS]
    length = min(_SEQUENCE - len(first), len(ids), checkpoint.config.max_position_embeddings - len(first))
    rows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return torch.cat([torch.tensor(first, dtype=rows.dtype).expand(len(rows), -1), rows], dim=1)
