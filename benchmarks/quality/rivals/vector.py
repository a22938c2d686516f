"""An activation vector: what replies with more of a feature have in a layer's hidden states, added while decoding.

Source: contrastive activation addition (Rimsky et al. 2024, arXiv 2312.06681).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pad_train.pairs.pair import Pair
from pad_train.train.backbone import Backbone

BATCH = 16


def middle_layer(backbone: Backbone) -> int:
    """The layer whose output is changed: the one in the middle."""
    return int(backbone.model.config.num_hidden_layers) // 2 - 1


@torch.inference_mode()
def mean_difference(backbone: Backbone, pairs: Sequence[Pair], feature: str, layer: int) -> torch.Tensor:
    """Mean over pairs of (mean over the reply's tokens, of the one with more of the feature less the other), [hidden].

    The hidden states are those that a layer gives.
    """
    total = torch.zeros(backbone.model.config.hidden_size)
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        more = [pair.chosen if pair.weights[feature] > 0 else pair.rejected for pair in some]
        less = [pair.rejected if pair.weights[feature] > 0 else pair.chosen for pair in some]
        total += (_means(backbone, some, more, layer) - _means(backbone, some, less, layer)).sum(0)
    return total / len(pairs)


def _means(backbone: Backbone, pairs: Sequence[Pair], replies: Sequence[str], layer: int) -> torch.Tensor:
    """Mean hidden states over the tokens of each reply behind its prompt, [pairs, hidden]."""
    prompts = [backbone.encode_prompt(pair.messages) for pair in pairs]
    both = [
        prompt + backbone.encode_reply(reply, finished=False) for prompt, reply in zip(prompts, replies, strict=True)
    ]
    width = max(map(len, both))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in both])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in both])
    of_reply = mask.clone()
    for row, prompt in enumerate(prompts):
        of_reply[row, : len(prompt)] = 0
    kept: list[torch.Tensor] = []
    with _hooked(backbone, layer, lambda states: kept.append(states.float())):
        backbone.model.model(ids, attention_mask=mask)
    weights = of_reply / of_reply.sum(-1, keepdim=True).clamp(min=1)  # [pairs, width]
    return torch.einsum("bs,bsh->bh", weights, kept[0])


@contextmanager
def steered(
    backbone: Backbone,
    vectors: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    *,
    strength: float,
    layer: int,
) -> Iterator[None]:
    """strength * sum_i w_i v_i is added to the layer's last hidden state of every step: that of the prompt's end, and
    that of each token of the reply.
    """
    added = strength * torch.stack([weight * vectors[name] for name, weight in weights.items()]).sum(0)

    def add(states: torch.Tensor) -> None:
        states[:, -1] += added.to(states.dtype)

    with _hooked(backbone, layer, add):
        yield


@contextmanager
def _hooked(backbone: Backbone, layer: int, act: Any) -> Iterator[None]:
    """Let `act` see, or change in place, the hidden states [n, s, hidden] that a layer gives."""

    def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        act(output[0] if isinstance(output, tuple) else output)

    handle = backbone.model.model.layers[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
