"""Replies of the base and its PersRM under any way of scoring, with what their decoding left behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.quality.policy_improvement.guided_decoding import Guided, Scoring, Trail
from benchmarks.quality.replies import JudgedReply
from benchmarks.quality.torch_decoding import decode
from pad_train.train.reward_model import RewardModel

BATCH = 144
STRIDE = 4  # tokens between two hidden states that are kept


@dataclass(frozen=True)
class Asked:
    """A reply to make.

    Attributes:
        weights: of the user; all 0 for the base.
        offer_end: whether the end of the turn is a candidate at every step.
    """

    prompt: str
    weights: tuple[float, ...]
    offer_end: bool
    max_new_tokens: int


@dataclass(frozen=True)
class GuidedReply:
    """A reply and its decoding.

    Attributes:
        reply: with its perplexity under the base, over the whole vocabulary.
        phi: of its tokens, the end included, summed, [d].
        log_probs: of its tokens under the base, [tokens].
        states: the base's hidden states before every fourth token, [tokens / 4, hidden].
    """

    reply: JudgedReply
    phi: torch.Tensor
    log_probs: torch.Tensor
    states: torch.Tensor

    def first(self, max_new_tokens: int, text: Callable[[Sequence[int]], str]) -> JudgedReply:
        """The reply as a smaller cap would have cut it."""
        ids = self.reply.token_ids[:max_new_tokens]
        if len(ids) < max_new_tokens:
            return self.reply
        perplexity = math.exp(-float(self.log_probs[: len(ids)].mean())) if ids else None
        return replace(self.reply, text=text(ids), token_ids=ids, cut=True, perplexity=perplexity)


def make_replies(
    model: RewardModel, asked: Sequence[Asked], scoring: Callable[[torch.Tensor], Scoring], *, top_k: int
) -> list[GuidedReply]:
    """Batches of like users, whose replies end at like lengths; the replies come in the order asked.

    Args:
        scoring: of the weights of a batch, [n, d].
    """
    made: dict[int, GuidedReply] = {}
    order = sorted(range(len(asked)), key=lambda index: (asked[index].max_new_tokens, asked[index].weights))
    while order:
        cap = asked[order[0]].max_new_tokens
        chosen = [index for index in order[:BATCH] if asked[index].max_new_tokens == cap]
        order = order[len(chosen) :]
        made |= dict(zip(chosen, _batch(model, [asked[index] for index in chosen], scoring, top_k), strict=True))
    return [made[index] for index in range(len(asked))]


def _batch(
    model: RewardModel, asked: Sequence[Asked], scoring: Callable[[torch.Tensor], Scoring], top_k: int
) -> list[GuidedReply]:
    backbone = model.backbone
    weights = torch.tensor([one.weights for one in asked])
    offer_end = torch.tensor([one.offer_end for one in asked])
    guided = Guided(model, scoring(weights), offer_end, top_k=top_k)
    decoded = decode(
        [backbone.encode_prompt(({"role": "user", "content": one.prompt},)) for one in asked],
        guided,
        eos_id=backbone.eos_id,
        max_new_tokens=asked[0].max_new_tokens,
    )
    replies = []
    for row, (one, reply) in enumerate(zip(asked, decoded, strict=True)):
        number = len(reply.token_ids)
        phi, log_probs, states = _trail_of(guided.trail, row, number, ended=not reply.cut)
        perplexity = math.exp(-float(log_probs.mean())) if number else None
        text = backbone.tokenizer.decode(reply.token_ids, skip_special_tokens=True)
        judged = JudgedReply(one.prompt, text, reply.token_ids, reply.cut, perplexity)
        replies.append(GuidedReply(judged, phi, log_probs, states))
    return replies


def _trail_of(
    trail: Sequence[Trail], row: int, number: int, *, ended: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    phi = torch.stack([step.phi[row] for step in trail[: number + ended]]).sum(0)
    log_probs = torch.tensor([float(step.log_prob[row]) for step in trail[:number]])
    states = torch.stack([step.hidden[row] for step in trail[: number + ended : STRIDE]])
    return phi, log_probs, states
