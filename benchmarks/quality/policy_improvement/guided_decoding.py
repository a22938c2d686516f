"""PAD in plain torch: the base's candidates, phi of every feature, and any way to score them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from benchmarks.quality.torch_decoding import Inputs, Reader
from pad_train.train.reward_model import BaseLogProbs, RewardModel

NUM_NORMALISED = 64  # tokens over which phi is normalised, the end of the turn beside them; as in training


@dataclass(frozen=True)
class GuidedStep:
    """What is known at one step, of the candidates [n, m]: the end of the turn, then the base's likeliest others.

    Attributes:
        candidates: token ids.
        log_probs: the base's, normalised over the m candidates.
        phi: [d, n, m].
        hidden: the base's last hidden states, [n, hidden].
        length: tokens of the replies so far.
    """

    candidates: torch.Tensor
    log_probs: torch.Tensor
    phi: torch.Tensor
    hidden: torch.Tensor
    length: int


class Scoring(Protocol):
    """A way to score candidates."""

    def score(self, step: GuidedStep) -> torch.Tensor:
        """Of every candidate, [n, m]."""

    def took(self, step: GuidedStep, chosen: torch.Tensor) -> None:
        """Learn which candidate was chosen, [n]."""


@dataclass(frozen=True)
class Trail:
    """What one step leaves: phi of the chosen token [n, d], the base's log-probability of it over the whole vocabulary
    [n], and the base's hidden state before it [n, hidden].
    """

    phi: torch.Tensor
    log_prob: torch.Tensor
    hidden: torch.Tensor


class Guided:
    """Chooses the candidate with the highest score among the base's top k and, where it is offered, the end.

    Args:
        model: base and PersRM.
        scoring: of the candidates.
        offer_end: whether the end of the turn is a candidate at every step, [n].
    """

    def __init__(self, model: RewardModel, scoring: Scoring, offer_end: torch.Tensor, *, top_k: int) -> None:
        self._model, self._scoring, self._offer_end, self._top_k = model, scoring, offer_end, top_k
        self._base, self._persrm = Reader(model.backbone), Reader(model.backbone)
        self.trail: list[Trail] = []

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        backbone = self._model.backbone
        with self._model.trunk.disable_adapter():
            hidden = self._base(inputs)
        logits = backbone.logits(hidden)  # [n, vocab]
        number = min(NUM_NORMALISED + 1, logits.shape[-1])
        end_first = logits.index_fill(1, torch.tensor([backbone.eos_id]), torch.inf)
        candidates = end_first.topk(number).indices  # [n, m]
        exact = backbone.candidate_logits(hidden, candidates)  # the weights' own type may round logits to ties
        log_probs = exact.log_softmax(-1)
        phi = self._model(self._persrm(inputs), BaseLogProbs(candidates, log_probs))
        step = GuidedStep(candidates, log_probs, phi, hidden.float(), len(self.trail))
        allowed = exact >= exact.topk(min(self._top_k, number)).values[:, -1:]
        allowed[:, 0] |= self._offer_end
        chosen = self._scoring.score(step).masked_fill(~allowed, -torch.inf).argmax(-1)
        self._scoring.took(step, chosen)
        column = chosen[:, None]
        taken = exact.gather(1, column)[:, 0] - logits.logsumexp(-1)
        of_chosen = phi.gather(2, column.expand(len(phi), -1, -1))[:, :, 0].T  # [n, d]
        self.trail.append(Trail(of_chosen, taken, step.hidden))
        return candidates.gather(1, column)[:, 0]
