"""Replies in plain torch, a batch of prompts at a time: for ways of decoding that no bundle has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from pad_export.read.cache_argument import cache_argument
from pad_train.pairs.sampler import pad_left
from pad_train.train.backbone import Backbone

NEAR = 8  # tokens with the highest rounded logits, among which the highest exact one is looked for


@dataclass(frozen=True)
class Inputs:
    """What one step reads: first the prompts, padded on the left, then one token of each reply.

    Attributes:
        ids, positions: [n, s].
        mask: [n, all that was read], 0 where it is padding.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


class Reader:
    """A model that reads on, with its KV cache; inputs -> last hidden states, [n, hidden]."""

    def __init__(self, backbone: Backbone) -> None:
        self._decoder = backbone.model.model
        self._cache = DynamicCache(config=self._decoder.config)

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        output = self._decoder(
            inputs.ids,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=True,
            **cache_argument(self._cache),
        )
        last: torch.Tensor = output.last_hidden_state[:, -1]
        return last


@dataclass(frozen=True)
class Decoded:
    """A reply's ids, the end of turn left out, and whether the cap ended it."""

    token_ids: tuple[int, ...]
    cut: bool


@torch.inference_mode()
def decode(
    prompts: Sequence[Sequence[int]],
    choose: Callable[[Inputs], torch.Tensor],
    *,
    eos_id: int,
    max_new_tokens: int,
) -> list[Decoded]:
    """Let `choose` give the next token of every reply, [n], until all have ended or reached the cap."""
    ids, mask = pad_left(prompts)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    tokens = ids[:, :0]
    done = torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(max_new_tokens):
        token = choose(Inputs(ids, positions, mask)).masked_fill(done, eos_id)
        done = done | (token == eos_id)
        ids = token[:, None]
        tokens = torch.cat([tokens, ids], dim=1)
        if done.all():
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
    rows: list[list[int]] = tokens.tolist()
    ends = [row.index(eos_id) if eos_id in row else None for row in rows]
    return [Decoded(tuple(row[:end]), end is None) for row, end in zip(rows, ends, strict=True)]


class Greedy:
    """Chooses the model's likeliest token.

    Args:
        backbone: as it is when called: with changed weights or hooks, a changed model.
        frequency_penalty: see `GenerationConfig`.
    """

    def __init__(self, backbone: Backbone, frequency_penalty: float = 0.0) -> None:
        self._backbone, self._read = backbone, Reader(backbone)
        self._penalty = frequency_penalty
        self._written: torch.Tensor | None = None  # how often each token is in the reply [n, V]

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        hidden = self._read(inputs)
        logits = self._backbone.logits(hidden)
        if self._written is None:  # the prompt does not count
            self._written = torch.zeros_like(logits)
        else:
            self._written.scatter_add_(1, inputs.ids, torch.ones_like(inputs.ids, dtype=logits.dtype))
        near = (logits - self._penalty * self._written).topk(NEAR).indices
        exact = self._backbone.candidate_logits(hidden, near)  # the weights' own type may round logits to ties
        best = (exact - self._penalty * self._written.gather(1, near)).argmax(-1, keepdim=True)
        return near.gather(1, best)[:, 0]
