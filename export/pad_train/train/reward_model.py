"""A PersRM in training: backbone, LoRA and feature heads, and the phi that they give each token."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from pad_runtime.errors import OptionError
from pad_train.options import ALL_LINEAR
from pad_train.train.backbone import Backbone
from pad_train.train.example import TrainingBatch


@dataclass(frozen=True)
class BaseLogProbs:
    """Candidates and the base's log-probabilities of them, at each position of a batch's replies.

    Attributes:
        candidates: [n, k] token ids: the reply's own token, then the likeliest other tokens.
        log_probs: [n, k], normalised over the k candidates.
    """

    candidates: torch.Tensor
    log_probs: torch.Tensor


def _targets(backbone: Backbone, modules: str) -> list[str]:
    """PEFT's `target_modules`, checked here because PEFT ignores an unknown name beside a known one."""
    layers = backbone.model.model.layers.named_modules()
    known = sorted({name.rpartition(".")[2] for name, module in layers if isinstance(module, torch.nn.Linear)})
    if modules == ALL_LINEAR:
        return known
    targets = modules.split(",")
    if unknown := [name for name in targets if name not in known]:
        raise OptionError(f"--modules {unknown[0]}", expected=f"{ALL_LINEAR}, or some of {', '.join(known)}")
    return targets


class RewardModel(torch.nn.Module):
    """phi_i(s, a) = log p_i(a|s) - log p_base(a|s), with p_i(a|s) = softmax over T of lm_head(h + M_i h + b_i).

    T is the base's top k at s and the reply's own token. Decoding uses no other token; there a normaliser over T
    cancels, as one over the vocabulary does. The official decoder normalises over T, too, and it makes the feature
    heads as cheap in training as they are at run time.

    Args:
        backbone: the frozen model.
        features: names of the d features.
        rank, alpha, modules, layers: parameters of the LoRA, as in `TrainingOptions`.
    """

    def __init__(
        self,
        backbone: Backbone,
        features: Sequence[str],
        *,
        rank: int,
        alpha: float,
        modules: str = ALL_LINEAR,
        layers: float = 1.0,
    ) -> None:
        super().__init__()
        hidden, num_layers = backbone.model.config.hidden_size, backbone.model.config.num_hidden_layers
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=_targets(backbone, modules),
            layers_to_transform=[*range(num_layers - max(1, round(layers * num_layers)), num_layers)],
            task_type="CAUSAL_LM",
        )
        self.features = tuple(features)
        self.backbone = backbone
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about PEFT's own use of transformers
            self.trunk: Any = get_peft_model(backbone.model, config)
        self.head_change = torch.nn.Parameter(torch.zeros(len(features), hidden, hidden))  # M
        self.bias = torch.nn.Parameter(torch.zeros(len(features), hidden))
        self.learned_weights = torch.nn.Parameter(torch.zeros(len(features)))  # of the person without given weights

    def hidden(self, batch: TrainingBatch) -> torch.Tensor:
        """Final hidden states before each reply token, [n, hidden]."""
        decoder = self.trunk.get_base_model().model
        output = decoder(batch.ids, attention_mask=self._masks(batch), position_ids=batch.positions)
        states: torch.Tensor = output.last_hidden_state
        return states[batch.rows, batch.sources]

    @torch.no_grad()
    def run_base(self, batch: TrainingBatch, k: int) -> BaseLogProbs:
        """Run the base, that is without the adapter, on a batch with the base's prompts."""
        self.eval()
        with self.trunk.disable_adapter():
            logits = self.backbone.logits(self.hidden(batch))  # [n, vocab]
        k = min(k, logits.shape[-1])
        own = batch.targets[:, None]
        candidates = logits.scatter(1, own, torch.inf).topk(k).indices  # the token itself comes first
        return BaseLogProbs(candidates, logits.gather(1, candidates).log_softmax(-1))

    def forward(self, hidden: torch.Tensor, base: BaseLogProbs) -> torch.Tensor:
        """phi of every candidate, [d, n, k]; [..., 0] is of the reply's own token."""
        hidden = hidden.float()
        changed = hidden + hidden @ self.head_change.transpose(1, 2) + self.bias[:, None]  # [d, n, hidden]
        rows = self.backbone.model.lm_head.weight.detach()[base.candidates].float()  # [n, k, hidden]
        logits = self.backbone.cap(torch.einsum("nkh,dnh->dnk", rows, changed))
        return logits.log_softmax(-1) - base.log_probs

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name: LoRA factors, feature heads, biases and learned feature weights."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if "lora_" in name or name in ("head_change", "bias", "learned_weights")
        }

    def _masks(self, batch: TrainingBatch) -> torch.Tensor | dict[str, torch.Tensor]:
        """Attention masks, [b, 1, width, width], by kind of layer if the decoder has several kinds.

        The decoder takes a given mask as it is, so that sliding windows and the form for eager attention are made here.
        """
        config = self.backbone.model.config
        window = getattr(config, "sliding_window", None) or batch.ids.shape[1]
        near = batch.positions[:, :, None] - batch.positions[:, None, :] < window
        kinds = {"full_attention": batch.sees[:, None], "sliding_attention": (batch.sees & near)[:, None]}
        if config._attn_implementation == "eager":  # adds its mask to the scores
            lowest = torch.finfo(self.backbone.model.dtype).min
            kinds = {
                kind: torch.zeros(mask.shape, dtype=self.backbone.model.dtype).masked_fill(~mask, lowest)
                for kind, mask in kinds.items()
            }
        return kinds if getattr(config, "layer_types", None) else kinds["sliding_attention"]
