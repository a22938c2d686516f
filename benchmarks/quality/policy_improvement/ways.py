"""Ways to pick among the base's candidates for a user with feature weights w: the linear mix, and the best reading.

A *reading* is a policy of the bank: the mix for a direction u_j of unit length, pi_j(a) ~ p(a) exp(u_j . phi(a)).
Its log-ratio phi_j = log pi_j - log p is normalised, so it is an advantage:

    phi_j(s, a) = Q_j(s, a) - V_j(s) = r_j(s, a) + V_j(s') - V_j(s)

with the soft values of the reward that pi_j is best for. Logits of base and PersRM give the left side alone. Any U(s)
can be added to V_j, and U(s) - U(s') to r_j, without a change of phi_j. So V_j needs an assumption or an estimate:

- *the reward is paid at the end* (a verdict on the whole reply): then V_j(s) = V_j(prompt) + the sum of phi_j so far.
  The sum is exact; V_j(prompt) is in no logits, and is taken to be the same for all readings (`Summed`);
- *an estimate from replies*: a regression of the final verdict on the base's hidden state (`Predicted`). It needs
  judged replies of every reading, and knows what a reading does to the features that it was not asked for.

The reading's part of the user's reward is w . u_j, so what is maximised over readings with w . u_j > 0 is

    Q_j(s, a) = V_j(s) + (w . u_j) phi_j(s, a)             V_j = 0: advantages alone (`NoValue`)

in nats, and the token is argmax_a z_base(a) + beta * max_j Q_j(s, a).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from benchmarks.quality.policy_improvement.guided_decoding import GuidedStep


def normalised(reward: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """log pi - log p of pi ~ p exp(reward): the reward less log sum_a p(a) exp(reward(a)), over the last axis."""
    return reward - (log_probs + reward).logsumexp(-1, keepdim=True)


@dataclass(frozen=True)
class LinearMix:
    """z_base + beta * sum_i w_i phi_i.

    Attributes:
        weights: [n, d].
    """

    weights: torch.Tensor
    beta: float

    def score(self, step: GuidedStep) -> torch.Tensor:
        return step.log_probs + self.beta * torch.einsum("nd,dnm->nm", self.weights, step.phi)

    def took(self, step: GuidedStep, chosen: torch.Tensor) -> None:
        """The mix needs no memory."""


class Value(Protocol):
    """V_j(s) for every user, in nats."""

    def __call__(self, step: GuidedStep) -> torch.Tensor | float:
        """[J, n], or one number for all."""

    def took(self, readings: torch.Tensor, chosen: torch.Tensor) -> None:
        """Learn phi_j of the candidates, [J, n, m], and which was chosen, [n]."""


class NoValue:
    """Advantages alone are compared."""

    def __call__(self, step: GuidedStep) -> float:
        del step
        return 0.0

    def took(self, readings: torch.Tensor, chosen: torch.Tensor) -> None:
        """There is nothing to remember."""


class Summed:
    """(w . u_j) times the sum of phi_j so far.

    Args:
        gains: w . u_j, [J, n].
    """

    def __init__(self, gains: torch.Tensor) -> None:
        self._gains, self._sum = gains, torch.zeros_like(gains)

    def __call__(self, step: GuidedStep) -> torch.Tensor:
        del step
        return self._gains * self._sum

    def took(self, readings: torch.Tensor, chosen: torch.Tensor) -> None:
        self._sum = self._sum + readings.gather(2, chosen.expand(len(readings), -1)[:, :, None])[:, :, 0]


class BestReading:
    """z_base + beta * max_j [V_j(s) + (w . u_j) phi_j(s, a)], over the readings on the user's side.

    Args:
        weights: [n, d].
        bank: directions of the readings, of unit length, [J, d].
    """

    def __init__(self, weights: torch.Tensor, bank: torch.Tensor, value: Value, *, beta: float) -> None:
        self._bank, self._value, self._beta = bank, value, beta
        self._gains = gains(weights, bank)

    def score(self, step: GuidedStep) -> torch.Tensor:
        value = self._value(step)
        shift = value if isinstance(value, float) else value[:, :, None]
        quality = shift + self._gains[:, :, None] * self._readings(step)  # [J, n, m]
        best = quality.masked_fill(self._gains[:, :, None] <= 0, -torch.inf).amax(0)
        return step.log_probs + self._beta * best

    def took(self, step: GuidedStep, chosen: torch.Tensor) -> None:
        self._value.took(self._readings(step), chosen)

    def _readings(self, step: GuidedStep) -> torch.Tensor:
        """phi_j, [J, n, m]."""
        return normalised(torch.einsum("jd,dnm->jnm", self._bank, step.phi), step.log_probs)


def gains(weights: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """w . u_j, [J, n]; exactly 0 where only rounding makes it differ."""
    product = bank @ weights.T
    return product.masked_fill(product.abs() < 1e-6, 0.0)
