"""The terms that a PersRM is trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def reply_margins(rewards: torch.Tensor, signs: torch.Tensor, owners: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """Sum over the tokens of chosen minus sum over those of rejected, for each pair.

    Args:
        rewards: of each reply token, [n].
        signs: +1 for a token of the chosen reply, -1 for one of the rejected, [n].
        owners: the pair that a token belongs to, [n].

    Returns:
        [num_pairs].
    """
    return torch.zeros(num_pairs, dtype=rewards.dtype).index_add(0, owners, rewards * signs)


def bradley_terry(margins: torch.Tensor, beta: float) -> torch.Tensor:
    """-log sigmoid(beta * (R(chosen) - R(rejected))), mean over the pairs; R is token-summed, in nats.

    Source: PAD, arXiv 2410.04070, section 3; beta there scales the log-ratio as in DPO.
    """
    return -F.logsigmoid(beta * margins).mean()


def spread(rewards: torch.Tensor, reference_log_probs: torch.Tensor) -> torch.Tensor:
    """Half the variance of R(a) over a ~ base, mean over the positions; in nats.

    To second order this is KL(base || base tilted by R), for R and for -R alike. It keeps the reward quiet where a
    token says nothing about the preference, and so the guided text likely under the base. Not in the paper.

    Args:
        rewards: R of each candidate, [n, k].
        reference_log_probs: of the base over the same candidates, [n, k].
    """
    probs = reference_log_probs.exp()
    mean = (probs * rewards).sum(-1, keepdim=True)
    return 0.5 * (probs * (rewards - mean).square()).sum(-1).mean()


def imitation(
    rewards: torch.Tensor, reference_log_probs: torch.Tensor, signs: torch.Tensor, imitated: torch.Tensor
) -> torch.Tensor:
    """-log p(a) of the replies' own tokens under the base tilted by R (chosen) or -R (rejected), mean; in nats.

    The base tilted by R is what PAD decodes from at its beta of 1: so this asks that each person's decoding would write
    the reply that the person prefers. Ranking alone is content to make both replies unlikely, which shows as broken
    text. Source: the same term beside DPO's, RPO, arXiv 2404.19733; there of chosen replies only, for R has one sign.

    Args:
        rewards: R of each candidate, [n, k], the reply's own token first.
        reference_log_probs: of the base over the same candidates, [n, k].
        signs: +1 for a token of a chosen reply, -1 for one of a rejected, [n].
        imitated: which tokens count, [n]; if none does, the term is 0.
    """
    tilted = (reference_log_probs + signs[:, None] * rewards).log_softmax(-1)
    return -(tilted[:, 0] * imitated).sum() / imitated.sum().clamp(min=1)
