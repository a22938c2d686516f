"""The torch side of every comparison: transformers and PEFT run the rows of a plan.

Weights are streamed (see `torch_model.py`), so that a model larger than memory can be compared. Rows of one kind run
together, so that the weights are read once for all of them. The models compute in float32 (in float64 under
`float64.py`), on weights rounded to the bundle's element type. Where the bundle keeps matrices in blocks, the models
use the dequantised blocks: the graph is compared on its own weights, and these with the checkpoint by perplexity.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import DynamicCache

from pad_export.plan import Plan
from pad_export.read.cache_argument import cache_argument
from pad_export.read.persrm import FeatureHead
from pad_export.trunk import Trunk
from pad_export.verify.torch_model import load_model
from pad_runtime.errors import AdapterError


@dataclass(frozen=True)
class RowInput:
    """A row to run: its token ids, the number of last positions whose logits are wanted, and its feature weights."""

    ids: tuple[int, ...]
    num_scored: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class RowOutput:
    """One row's forward pass, float32.

    Attributes:
        logits: [num_scored, vocab], after the feature heads if the row has any.
        cache: for each layer the first position that is kept (a sliding window drops the oldest), and keys and values
            from there on, [kv_heads, n, head_dim].
    """

    logits: torch.Tensor
    cache: list[tuple[int, torch.Tensor, torch.Tensor]]


class RowModel:
    """The torch model behind one kind of row."""

    def __init__(self, model: Any, head: FeatureHead | None) -> None:
        self._model, self._head = model, head

    @torch.no_grad()
    def forward(self, rows: Sequence[RowInput]) -> list[RowOutput]:
        """Run rows of any lengths, right-padded. Attention is causal, so that padding changes nothing."""
        longest = max(len(row.ids) for row in rows)
        padded = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows])
        cache = DynamicCache(config=self._model.model.config)
        output = self._model.model(input_ids=padded, use_cache=True, **cache_argument(cache))
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
            RowOutput(row_logits, [_kept(layer, index, len(row.ids), longest) for layer in cache.layers])
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

    def __init__(
        self,
        plan: Plan,
        trunk: int,
        stored: Callable[[str], torch.Tensor | None] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load a trunk's model with streamed weights.

        Args:
            plan, trunk: the plan and the index of the trunk.
            stored: gives the parameters that the bundle keeps in blocks, with a merged adapter; None for the others.
            dtype: the type in which the bundle keeps the others.
        """
        self._plan, self._rounding = plan, _Rounding(plan.trunks[trunk], dtype)
        self._is_merged = stored is not None and plan.trunks[trunk].merged is not None
        self._model = load_model(plan.trunks[trunk].checkpoint, stored, rounding=self._rounding.parameter)
        self._rounding.constants(self._model.model)

    @contextmanager
    def row_model(self, persrm: int | None) -> Iterator[RowModel]:
        """The model of rows with a PersRM (index, or None): the trunk with that PersRM's adapter and feature heads."""
        source = self._plan.sources[persrm] if persrm is not None and self._plan.sources else None
        head = self._rounding.head(source.feature_head) if source and source.feature_head else None
        if source is None or source.adapter is None or self._is_merged:
            yield RowModel(self._model, head)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers is not the user's to mend
            try:
                wrapped = PeftModel.from_pretrained(self._model, source.adapter.path)
            except Exception as error:  # the configuration may hold options that we do not read
                raise AdapterError(
                    f"PEFT cannot load {source.adapter.path} ({error})",
                    expected="an adapter that PEFT can load",
                    hint="save it again with PEFT",
                ) from error
        with self._rounding.adapter(wrapped):
            yield RowModel(wrapped.get_base_model(), head)
        self._model = wrapped.unload()


class _Rounding:
    """Rounds weights, adapters and constants of a trunk to the bundle's element type; float32 changes nothing."""

    def __init__(self, trunk: Trunk, dtype: torch.dtype) -> None:
        self._dtype, self._norm_offset = dtype, trunk.spec.norm_offset
        self._merged = trunk.merged.delta if trunk.merged else {}

    def parameter(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Round a parameter of the checkpoint; the bundle stores norms with the family's offset added."""
        if name.removesuffix(".weight") in self._merged:
            return value  # rounded after the adapter is merged
        if self._norm_offset and name.endswith("norm.weight"):
            return self._round(value.float() + self._norm_offset) - self._norm_offset
        return self._round(value)

    def constants(self, decoder: Any) -> None:
        """Round cosines and sines of the rotary embedding, and the embedding's scale if the family has one."""
        decoder.rotary_emb.register_forward_hook(lambda _, __, tables: tuple(map(self._round, tables)))
        for scale in decoder.embed_tokens.buffers():
            scale.data = self._round(scale.data)

    def head(self, head: FeatureHead) -> FeatureHead:
        """Round the feature heads."""
        return replace(head, weight=self._round(head.weight), bias=self._round(head.bias))

    @contextmanager
    def adapter(self, model: PeftModel) -> Iterator[None]:
        """Round an adapter: its factors, with the scale in B; or the merged weights, if the bundle merges it."""
        if self._merged:
            layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
            handles = [layer.get_base_layer().register_forward_pre_hook(self._merge(layer)) for layer in layers]
            with model.disable_adapter():
                yield
            for handle in handles:
                handle.remove()
            return
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                (name,) = layer.active_adapters
                a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
                a.data, b.data = self._round(a.data), self._round(b.data * scale) / scale
        yield

    def _merge(self, layer: LoraLayer) -> Callable[..., None]:
        (name,) = layer.active_adapters

        def merge(linear: torch.nn.Linear, _: Any) -> None:
            linear.weight.data = self._round(linear.weight.data + layer.get_delta_weight(name))

        return merge

    def _round(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self._dtype).float()


def _kept(layer: Any, row: int, length: int, longest: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """First position, keys and values that a layer's cache keeps of a row of `length` tokens, padded to `longest`."""
    first = longest - layer.keys.shape[2]
    end = max(0, length - first)
    return first, layer.keys[row, :, :end], layer.values[row, :, :end]
