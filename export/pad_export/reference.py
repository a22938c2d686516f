"""The torch side of every comparison: transformers and PEFT run the rows of a plan, one forward pass a row."""

from __future__ import annotations

from collections.abc import Sequence
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
        """Run all of `ids` at once; `weights` mix the features of a head: logits of lm_head(sum_i w_i (W_i h + b_i))."""
        output = self._model.model(input_ids=torch.tensor([list(ids)]), use_cache=True)
        hidden = output.last_hidden_state[0]  # [s, hidden]
        if self._head is not None:
            phi = [
                weight * torch.nn.functional.linear(hidden, matrix, bias)
                for weight, matrix, bias in zip(weights, self._head.weight, self._head.bias, strict=True)
            ]
            hidden = torch.stack(phi).sum(0)
        logits = self._model.lm_head(hidden)
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        if cap:
            logits = torch.tanh(logits / cap) * cap
        cache = [(layer.keys[0], layer.values[0]) for layer in output.past_key_values.layers]
        return RowOutput(logits, cache)


def load_model(checkpoint: Checkpoint) -> Any:
    """A checkpoint as a transformers model in float32, on the CPU."""
    from transformers import AutoModelForCausalLM

    path = checkpoint.path
    where: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if path.is_file():
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"transformers cannot load {path} to verify against: {error}") from None
    return model.eval()


def load_row_model(plan: Plan, trunk: int, persrm: int | None) -> RowModel:
    """The model of a row on a trunk: the trunk's own weights, under a PersRM's adapter and head where it wears one."""
    model = load_model(plan.trunks[trunk].checkpoint)
    if persrm is None or not plan.sources:
        return RowModel(model, None)
    source = plan.sources[persrm]
    if source.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, source.adapter.path).get_base_model()
    return RowModel(model, source.head)
