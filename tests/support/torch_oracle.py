"""PAD by the paper's formula, in torch: no cache, no batch, no rows; each model reads the whole sequence at each step.

score(a) = z_base(a) + beta * sum_j s_j * sum_i w_i * (log pi_persrm_j,i(a) - log pi_ref_j(a))    a in the base's top k
                                                                                                  or offered
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from pad_export.read.cache_argument import cache_argument
from pad_export.verify.tolerance import TOLERANCE, difference

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


class TorchModel:
    """A causal language model, an adapter and a feature head over it where they are given.

    Args:
        folder: checkpoint.
        adapter: PEFT folder.
        head: folder of a value_head.safetensors; its features take the place of the one plain output.
        config: fields changed in the checkpoint's config, for models that are wrong on purpose.
    """

    def __init__(self, folder: Path, *, adapter: Path | None = None, head: Path | None = None, **config: Any) -> None:
        settings = AutoConfig.from_pretrained(folder)
        for name, value in config.items():
            setattr(settings, name, value)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=settings, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        if adapter is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                model = PeftModel.from_pretrained(model, adapter).eval().get_base_model()
        self._model = model
        self._heads: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        if head is not None:
            tensors = safetensors.torch.load_file(head / "value_head.safetensors")
            weight = next(tensor for name, tensor in tensors.items() if name.endswith("weight"))
            bias = next(tensor for name, tensor in tensors.items() if name.endswith("bias"))
            pairs = zip(weight, bias, strict=True) if weight.dim() == 3 else [(weight, bias)]
            self._heads = list(pairs)

    @torch.inference_mode()
    def states(self, ids: Sequence[int]) -> torch.Tensor:
        """Final-norm hidden states: [s, hidden]."""
        output = self._model.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
        states: torch.Tensor = output.last_hidden_state[0]
        return states

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Next-token logits of every feature: [d, vocab]."""
        return self.all_logits(ids)[:, -1]

    @torch.inference_mode()
    def all_logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The same at every position: [d, s, vocab]."""
        hidden = self.states(ids)
        features = [hidden] if self._heads is None else [hidden @ weight.T + bias for weight, bias in self._heads]
        logits = self._model.lm_head(torch.stack(features))
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    @torch.inference_mode()
    def cache(self, ids: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Key and value of every layer, [kv_heads, s, head_dim]."""
        cache = DynamicCache()  # without the config: full length in sliding layers too
        self._model.model(input_ids=torch.tensor([list(ids)]), use_cache=True, **cache_argument(cache))
        return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


@dataclass(frozen=True)
class OracleReward:
    """s * sum_i w_i * (log pi_model,i - log pi_reference); reference None is the base on its own prompt."""

    model: TorchModel
    prompt: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    reference: TorchModel | None = None


@dataclass
class Decoded:
    """What the oracle chose and weighed.

    Attributes:
        token_ids: one a step.
        candidates: [k] ids a step: what was offered, then best base logit first.
        row_logits: [rows, k] a step: the base, the rewards (features mixed), then the references that are
            not the base, each once.
        scores: [k] a step, up to a constant.
        margin: least distance between the first and second score, and between the last candidate and the first
            token left out, over all steps: how far from a tie the tokens are.
    """

    token_ids: list[int] = field(default_factory=list)
    candidates: list[torch.Tensor] = field(default_factory=list)
    row_logits: list[torch.Tensor] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)
    margin: float = float("inf")


def decode(
    base: TorchModel,
    prompt: Sequence[int],
    rewards: Sequence[OracleReward],
    *,
    beta: float,
    top_k: int,
    num_tokens: int,
    forced: Sequence[int] | None = None,
    offered: Sequence[int] = (),
) -> Decoded:
    """Greedy PAD. `forced` ids are taken instead of the chosen ones, to weigh another's sequence.

    `offered` ids are candidates at every step, beside the top_k of the others.
    """
    decoded = Decoded()
    ids: list[int] = []
    for index in range(num_tokens):
        z_base = base.logits([*prompt, *ids])[0]
        others = z_base.index_fill(0, torch.tensor(offered, dtype=torch.int64), -torch.inf)
        best = torch.topk(others, min(top_k + 1, len(z_base)))
        candidates = torch.cat([torch.tensor(offered, dtype=torch.int64), best.indices[:top_k]])
        score = z_base.double()
        rows, references = [z_base[candidates]], []
        seen = {(id(base), tuple(prompt))}  # what reads the same with the same weights is one row
        for reward in rewards:
            context = [*reward.prompt, *ids]
            persrm = reward.model.logits(context)[:, : len(z_base)]  # another model's head may be padded further
            if reward.reference is None:
                z_reference = z_base
            else:
                z_reference = reward.reference.logits(context)[0, : len(z_base)]
                key = (id(reward.reference), tuple(reward.prompt))
                if key not in seen:
                    references.append(z_reference[candidates])
                seen.add(key)
            log_reference = torch.log_softmax(z_reference.double(), -1)
            for weight, feature in zip(reward.weights, persrm, strict=True):
                log_ratio = torch.log_softmax(feature.double(), -1) - log_reference
                score = score + beta * reward.scale * weight * log_ratio
            if len(reward.weights) == 1 and reward.model._heads is None:
                rows.append(persrm[0, candidates])  # without a head the weight is in the coefficient
            else:
                mixed = torch.stack([w * z[candidates] for w, z in zip(reward.weights, persrm, strict=True)]).sum(0)
                rows.append(mixed)
        scores = score[candidates]
        decoded.token_ids.append(int(candidates[scores.argmax()]))
        decoded.candidates.append(candidates)
        decoded.row_logits.append(torch.stack([*rows, *references]))
        decoded.scores.append(scores)
        if len(scores) > 1:
            first, second = torch.topk(scores, 2).values.tolist()
            decoded.margin = min(decoded.margin, first - second)
        if len(best.values) > top_k:
            decoded.margin = min(decoded.margin, float(best.values[top_k - 1] - best.values[top_k]))
        ids.append(decoded.token_ids[-1] if forced is None else forced[index])
    return decoded


def trace_difference(trace: Sequence[Any], decoded: Decoded) -> float:
    """Worst difference of row logits and scores (up to a constant) over all steps; infinite for other candidates."""
    worst = 0.0
    if len(trace) != len(decoded.candidates):
        return float("inf")
    for ours, candidates, row_logits, scores in zip(
        trace, decoded.candidates, decoded.row_logits, decoded.scores, strict=True
    ):
        at, there = np.argsort(ours.candidates), np.argsort(candidates.numpy())
        if not np.array_equal(ours.candidates[at], candidates.numpy()[there]):
            return float("inf")
        if ours.row_logits.shape != tuple(row_logits.shape):
            return float("inf")
        worst = max(worst, difference(torch.tensor(ours.row_logits[:, at]), row_logits[:, there]))
        theirs = scores[there]
        mixed = torch.tensor(ours.scores[at]).double()
        # The constant that the normalisers make, taken out at the candidate where it is best known.
        worst = max(worst, difference(mixed - mixed.mean() + theirs.mean(), theirs))
    return worst


def cache_difference(
    cache: tuple[np.ndarray, np.ndarray], expected: tuple[torch.Tensor, torch.Tensor], *, shift: int = 0
) -> float:
    """Worst difference of one row's keys and values [kv_heads, length, head_dim] in one layer; infinite for another
    number of positions."""
    length = expected[0].shape[1] - shift
    if cache[0].shape[1] != expected[0].shape[1]:
        return float("inf")
    return max(
        difference(torch.tensor(ours[:, shift:]), theirs[:, :length])
        for ours, theirs in zip(cache, expected, strict=True)
    )


def tolerance(float_type: str = "float32") -> float:
    """The one table's entry."""
    return TOLERANCE[float_type]
