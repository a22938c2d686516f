"""What replies are worth, in plain torch: every text alone, no batch, no cache, logits over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests.support.torch_oracle import TorchModel


@dataclass(frozen=True)
class OracleReward:
    """A PersRM, what it reads before the reply, and its reference: a model on the same prompt, or None for the base."""

    model: TorchModel
    prompt: tuple[int, ...]
    reference: TorchModel | None = None


def predictions(model: TorchModel, prompt: Sequence[int], reply: Sequence[int]) -> torch.Tensor:
    """Logits before each token of the reply: [d, n, vocab]."""
    return model.all_logits([*prompt, *reply[:-1]])[:, len(prompt) - 1 :]


def log_probs(base: TorchModel, prompt: Sequence[int], reply: Sequence[int]) -> torch.Tensor:
    """log p_base of each token over the vocabulary: [n]."""
    logits = predictions(base, prompt, reply)[0]
    return logits.log_softmax(-1)[range(len(reply)), list(reply)]


def candidates(base: TorchModel, prompt: Sequence[int], reply: Sequence[int], top_k: int) -> list[list[int]]:
    """T at each token: itself, and the base's likeliest others, k together."""
    logits = predictions(base, prompt, reply)[0]
    ranked = logits.argsort(-1, descending=True).tolist()
    return [
        [token, *[other for other in order if other != token][: top_k - 1]]
        for token, order in zip(reply, ranked, strict=True)
    ]


def phi(
    base: TorchModel, prompt: Sequence[int], reply: Sequence[int], reward: OracleReward, top_k: int
) -> torch.Tensor:
    """log p_i - log p_reference of each token and feature, over T: [n, d]."""
    among = torch.tensor(candidates(base, prompt, reply, top_k))
    own = predictions(reward.model, reward.prompt, reply)
    reference = (
        predictions(base, prompt, reply)
        if reward.reference is None
        else predictions(reward.reference, reward.prompt, reply)
    )
    return (_first(own, among) - _first(reference, among)).T


def _first(logits: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Log-probability of the first of some tokens: [d, n]."""
    return logits.gather(-1, among.expand(len(logits), *among.shape)).log_softmax(-1)[..., 0]
