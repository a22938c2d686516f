"""The torch side of every comparison: transformers and PEFT run the rows of a plan.

Weights are streamed (see `pad_export.torch_model`), so that a model larger than memory can be compared; rows of one
kind therefore run together, one pass for all of them. Where a bundle keeps matrices in blocks, the models take what
those stand for: the graph is held against its own weights, and the weights against the checkpoint by their perplexity.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from pad_export.persrm.persrm import FeatureHead
from pad_export.plan import Plan
from pad_export.torch_model import load_model


@dataclass(frozen=True)
class RowInput:
    """What one row reads: its token ids, how many of the last positions to score, and its features' weights."""

    ids: tuple[int, ...]
    num_scored: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class RowOutput:
    """One row's forward pass, float32.

    Attributes:
        logits: [num_scored, vocab], after the feature head where the row has one.
        cache: of each layer the first position that is kept (a sliding window drops the oldest), and key and value from
            there on, [kv_heads, n, head_dim].
    """

    logits: torch.Tensor
    cache: list[tuple[int, torch.Tensor, torch.Tensor]]


class RowModel:
    """The torch model behind one kind of row."""

    def __init__(self, model: Any, head: FeatureHead | None) -> None:
        self._model, self._head = model, head

    @torch.no_grad()
    def forward(self, rows: Sequence[RowInput]) -> list[RowOutput]:
        """Run rows of any lengths, right-padded: attention is causal, so what follows a row changes nothing in it."""
        longest = max(len(row.ids) for row in rows)
        padded = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows])
        output = self._model.model(input_ids=padded, use_cache=True)
        hidden = [
            output.last_hidden_state[index, len(row.ids) - row.num_scored : len(row.ids)]
            for index, row in enumerate(rows)
        ]  # each [num_scored, hidden]
        sizes = [row.num_scored for row in rows]
        logits: tuple[torch.Tensor, ...]
        if self._head is None:
            logits = torch.split(self._logits(torch.cat(hidden)), sizes)
        else:
            logits = tuple(self._features(hidden, rows))
        return [
            RowOutput(
                row_logits, [_kept(layer, index, len(row.ids), longest) for layer in output.past_key_values.layers]
            )
            for index, (row, row_logits) in enumerate(zip(rows, logits, strict=True))
        ]

    def _features(self, hidden: list[torch.Tensor], rows: Sequence[RowInput]) -> list[torch.Tensor]:
        """sum_i w_i cap(lm_head(W_i h + b_i)), each row by its own weights."""
        assert self._head is not None
        sizes = [len(part) for part in hidden]
        phi = [
            torch.split(self._logits(torch.nn.functional.linear(torch.cat(hidden), matrix, bias)), sizes)
            for matrix, bias in zip(self._head.weight, self._head.bias, strict=True)
        ]
        return [
            torch.stack([weight * feature[index] for weight, feature in zip(row.weights, phi, strict=True)]).sum(0)
            for index, row in enumerate(rows)
        ]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model.lm_head(hidden)
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits


class TrunkModel:
    """A trunk's torch model, for all kinds of rows that run on it."""

    def __init__(self, plan: Plan, trunk: int, stored: Callable[[str], torch.Tensor | None] | None = None) -> None:
        """Stream a trunk's weights, those that `stored` knows (by parameter, adapter merged) from there."""
        self._plan = plan
        self._is_merged = stored is not None and plan.trunks[trunk].merged is not None
        checkpoint = plan.trunks[trunk].checkpoint
        self._model = load_model(checkpoint) if stored is None else load_model(checkpoint, stored)

    @contextmanager
    def row_model(self, persrm: int | None) -> Iterator[RowModel]:
        """The trunk's own weights, under a PersRM's adapter and head where the row wears one (index, or None)."""
        source = self._plan.sources[persrm] if persrm is not None and self._plan.sources else None
        if source is None or source.adapter is None or self._is_merged:
            yield RowModel(self._model, source.head if source else None)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PEFT's use of transformers: nothing a user could mend
            wrapped = PeftModel.from_pretrained(self._model, source.adapter.path)
        yield RowModel(wrapped.get_base_model(), source.head)
        self._model = wrapped.unload()


def _kept(layer: Any, row: int, length: int, longest: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """What the cache of one layer keeps of a row that is `length` of `longest` tokens long."""
    first = longest - layer.keys.shape[2]
    end = max(0, length - first)
    return first, layer.keys[row, :, :end], layer.values[row, :, :end]
