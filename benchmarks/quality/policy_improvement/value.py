"""V_j(s) as a ridge regression of a reply's final verdicts on the base's hidden state before each token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.quality.policy_improvement.guided_decoding import GuidedStep

Array = npt.NDArray[np.float64]
PENALTIES = (10.0, 100.0, 1000.0, 10_000.0, 100_000.0)
FOLDS = 8


@dataclass(frozen=True)
class Fit:
    """A linear function of (hidden state, share of the cap that is used up), and how well it does.

    Attributes:
        coefficients: [hidden + 2]; the last one is the constant.
        explained: share of the variance on questions that the function was not fitted on; 0 is the mean's.
    """

    coefficients: Array
    explained: float


def fit(states: Array, verdicts: Array, questions: npt.NDArray[np.int64]) -> Fit:
    """Ridge regression; the penalty is the best of `PENALTIES` over folds of questions.

    Args:
        states: [samples, hidden + 1].
        verdicts: of the finished reply, [samples].
        questions: what each sample's reply answers: samples of one question are in one fold.
    """
    explained = {penalty: _explained(states, verdicts, questions, penalty) for penalty in PENALTIES}
    best = max(explained, key=lambda penalty: explained[penalty])
    return Fit(_ridge(states, verdicts, best), explained[best])


def _explained(states: Array, verdicts: Array, questions: npt.NDArray[np.int64], penalty: float) -> float:
    errors, of_mean = np.zeros(len(verdicts)), np.zeros(len(verdicts))
    for fold in range(FOLDS):
        out = questions % FOLDS == fold
        kept = ~out
        if out.any() and kept.any():
            errors[out] = verdicts[out] - _with_constant(states[out]) @ _ridge(states[kept], verdicts[kept], penalty)
            of_mean[out] = verdicts[out] - verdicts[kept].mean()
    return 1 - float(np.square(errors).sum() / max(np.square(of_mean).sum(), 1e-12))


def _ridge(states: Array, verdicts: Array, penalty: float) -> Array:
    """Coefficients for states as they are; the penalty is on standardised ones, and not on the constant."""
    mean, scale = states.mean(0), states.std(0) + 1e-6
    standard = (states - mean) / scale
    gram = standard.T @ standard + penalty * np.eye(standard.shape[1])
    slopes = np.linalg.solve(gram, standard.T @ (verdicts - verdicts.mean())) / scale
    return np.append(slopes, verdicts.mean() - mean @ slopes)


def _with_constant(states: Array) -> Array:
    return np.concatenate([states, np.ones((len(states), 1))], axis=1)


class Predicted:
    """V_j(s) = sum_i w_i nats_i v_ij(s), v_ij the predicted verdict on feature i if reading j finishes the reply.

    Args:
        coefficients: of v_ij, in standard deviations of the verdict, [J, d, hidden + 2].
        nats: reward that a standard deviation of each verdict is worth, [d].
        weights: [n, d].
        cap: most tokens of the replies that the coefficients were fitted on.
    """

    def __init__(self, coefficients: torch.Tensor, nats: torch.Tensor, weights: torch.Tensor, *, cap: int) -> None:
        self._coefficients, self._weights, self._cap = coefficients, weights * nats, cap

    def __call__(self, step: GuidedStep) -> torch.Tensor:
        one = torch.ones_like(step.hidden[:, :1])
        states = torch.cat([step.hidden, one * (step.length / self._cap), one], dim=1)  # [n, hidden + 2]
        verdicts = torch.einsum("jdh,nh->jnd", self._coefficients, states)
        return (verdicts * self._weights).sum(-1)

    def took(self, readings: torch.Tensor, chosen: torch.Tensor) -> None:
        """The hidden state is all that is needed."""
