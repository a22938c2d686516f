"""The terms of the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def reply_margins(rewards: torch.Tensor, signs: torch.Tensor, owners: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """R(chosen) - R(rejected) of each pair, with R summed over a reply's tokens.

    Args:
        rewards: reward of each reply token, [n].
        signs: +1 for a token of the chosen reply, -1 for one of the rejected reply, [n].
        owners: index of the token's pair, [n].

    Returns:
        [num_pairs].
    """
    return torch.zeros(num_pairs, dtype=rewards.dtype).index_add(0, owners, rewards * signs)


def bradley_terry(margins: torch.Tensor, beta: float) -> torch.Tensor:
    """-log sigmoid(beta * (R(chosen) - R(rejected))), mean over the pairs; R is token-summed, in nats.

    Source: PAD, arXiv 2410.04070, section 3; beta there scales the log-ratio as in DPO.
    """
    return -F.logsigmoid(beta * margins).mean()


def spread(rewards: torch.Tensor, base_log_probs: torch.Tensor) -> torch.Tensor:
    """Half the variance of R(a) over a ~ base, mean over the positions; in nats.

    To second order this is KL(base || base tilted by R), for R and for -R alike. It keeps rewards small where a token
    says nothing about the preference, so that guided text stays likely under the base. Not in the paper.

    Args:
        rewards: R of each candidate, [n, k].
        base_log_probs: the base's log-probabilities of the same candidates, [n, k].
    """
    probs = base_log_probs.exp()
    mean = (probs * rewards).sum(-1, keepdim=True)
    return 0.5 * (probs * (rewards - mean).square()).sum(-1).mean()


def imitation(
    rewards: torch.Tensor, base_log_probs: torch.Tensor, signs: torch.Tensor, imitated: torch.Tensor
) -> torch.Tensor:
    """Mean -log p(a) of the reply tokens, p being the base tilted by R (chosen) or by -R (rejected); in nats.

    PAD with beta 1 decodes from the base tilted by R, so this term makes the replies that a person prefers likely in
    that person's decoding. The ranking term alone can be small while both replies become unlikely, and then decoding
    gives broken text. Source: RPO (arXiv 2404.19733), which adds the same term to DPO's, for chosen replies only.

    Args:
        rewards: R of each candidate, [n, k], the reply's own token first.
        base_log_probs: the base's log-probabilities of the same candidates, [n, k].
        signs: +1 for a token of a chosen reply, -1 for one of a rejected reply, [n].
        imitated: whether a token counts, [n]; the term is 0 if none does.
    """
    tilted = (base_log_probs + signs[:, None] * rewards).log_softmax(-1)
    return -(tilted[:, 0] * imitated).sum() / imitated.sum().clamp(min=1)
