"""The torch side of every comparison: transformers and PEFT run the rows of a plan, one forward pass a row."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pad_runtime.errors import CheckpointError

from pad_export.checkpoint import Checkpoint
from pad_export.persrm import FeatureHead
from pad_export.plan import Plan


@dataclass(frozen=True)
class RowOutput:
    """One row's forward pass, float32.

    Attributes:
        logits: [s, vocab], after the feature head where the row has one.
        cache: key and value of each layer, [kv_heads, n, head_dim]; n < s where a sliding window dropped the oldest.
    """

    logits: torch.Tensor
    cache: list[tuple[torch.Tensor, torch.Tensor]]


class RowModel:
    """The torch model behind one kind of row."""

    def __init__(self, model: Any, head: FeatureHead | None) -> None:
        self._model, self._head = model, head

    @torch.no_grad()
    def forward(self, ids: Sequence[int], weights: Sequence[float]) -> RowOutput:
        """Run all of `ids` at once; `weights` mix a head's features: logits = sum_i w_i cap(lm_head(W_i h + b_i))."""
        output = self._model.model(input_ids=torch.tensor([list(ids)]), use_cache=True)
        hidden = output.last_hidden_state[0]  # [s, hidden]
        logits = self._logits(hidden)
        if self._head is not None:
            phi = [
                weight * self._logits(torch.nn.functional.linear(hidden, matrix, bias))
                for weight, matrix, bias in zip(weights, self._head.weight, self._head.bias, strict=True)
            ]
            logits = torch.stack(phi).sum(0)
        cache = [(layer.keys[0], layer.values[0]) for layer in output.past_key_values.layers]
        return RowOutput(logits, cache)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model.lm_head(hidden)
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits


class TrunkModel:
    """A trunk's torch model, loaded once, for all kinds of rows that run on it."""

    def __init__(self, plan: Plan, trunk: int) -> None:
        self._plan = plan
        self._model = load_model(plan.trunks[trunk].checkpoint)

    @contextmanager
    def row_model(self, persrm: int | None) -> Iterator[RowModel]:
        """The trunk's own weights, under a PersRM's adapter and head where the row wears one (index, or None)."""
        source = self._plan.sources[persrm] if persrm is not None and self._plan.sources else None
        if source is None or source.adapter is None:
            yield RowModel(self._model, source.head if source else None)
            return
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PEFT's use of transformers: nothing a user could mend
            wrapped = PeftModel.from_pretrained(self._model, source.adapter.path)
        yield RowModel(wrapped.get_base_model(), source.head)
        self._model = wrapped.unload()


def load_model(checkpoint: Checkpoint) -> Any:
    """A checkpoint as a transformers model in float32, on the CPU."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if checkpoint.path.is_file():
        return _load_gguf(checkpoint)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"transformers cannot load {checkpoint.path} to verify against: {error}") from None
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.eval()


def _load_gguf(checkpoint: Checkpoint) -> Any:
    """A GGUF checkpoint by our own reader: transformers' loses head_dim, biases and Llama 3's rotary scaling."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32)
    state = {name: checkpoint.tensor(name).float() for name in checkpoint.names}
    model.load_state_dict(state, assign=True, strict=False)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(checkpoint.config)  # a table that is computed, not stored
    return model.eval()
