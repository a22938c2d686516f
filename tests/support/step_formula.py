"""The step by its formulas, in torch and NumPy: no cache, no batch, no graph; one sequence, one step.

z'(a)    = penalised(z(a)) + bias(a)                                      over the allowed tokens
score(a) = c_base z(a) + sum_c c_c z_c(a) + (z'(a) - z(a))                among the top k by z' + end bonus
next     = argmax(score + temperature * Gumbel)                           inside top_p and min_p
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.hand_fed import NOISE_STEPS, Asked, AskedRow
from tests.support.torch_oracle import TorchModel

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Wearing:
    """A trunk's model with or without the adapter, and the same with feature heads where it has some."""

    plain: TorchModel
    headed: TorchModel | None = None

    def logits(self, row: AskedRow, weights: Sequence[float], reply: Sequence[int]) -> Array:
        """sum_i w_i z_i of h and the features, [V]."""
        ids = [*row.prompt, *reply]
        values = [self.plain.logits(ids).numpy()]
        if any(weights[1:]):
            assert self.headed is not None
            values.append(self.headed.logits(ids).numpy())
        stacked = np.concatenate(values).astype(np.float64)
        mixed: Array = np.asarray(weights or (1.0,))[: len(stacked)] @ stacked
        return mixed


@dataclass(frozen=True)
class Expected:
    """What a step weighs and chooses: arrays over the candidates that may win, and the id."""

    candidates: Array
    base_logits: Array
    reading_logits: Array  # [readings, candidates]
    scores: Array
    id: int


def expect_step(
    models: Sequence[dict[bool, Wearing]], asked: Asked, reply: Sequence[int], ends: Sequence[int]
) -> Expected:
    """The step after `reply`; `models` are by trunk and by whether a row is adapted."""
    base = asked.rows[0]
    z = models[base.trunk][base.is_adapted].logits(base, (), reply)
    controlled = control(z, asked, reply)
    order = controlled.copy()
    order[list(ends)] += asked.end_bonus
    candidates = np.argsort(-order, kind="stable")[: asked.top_k]
    candidates = candidates[np.isfinite(controlled[candidates])]
    readings = np.zeros((len(asked.readings), len(candidates)))
    for values, reading in zip(readings, asked.readings, strict=True):
        row = asked.rows[reading.row]
        values[:] = models[row.trunk][row.is_adapted].logits(row, reading.weights, reply)[candidates]
    scores = asked.base_coefficient * z[candidates] + (controlled - z)[candidates]
    scores = scores + np.array([reading.coefficient for reading in asked.readings]) @ readings
    chosen = candidates[choose(scores, asked, len(reply))]
    return Expected(candidates, z[candidates], readings, scores, int(chosen))


def control(z: Array, asked: Asked, reply: Sequence[int]) -> Array:
    """z', minus infinity where a token is not allowed."""
    prompt, before = asked.written
    counts = np.bincount([*before, *reply], minlength=len(z)).astype(np.float64)
    penalised = z.copy()
    for token in {*prompt, *before, *reply}:
        penalised[token] *= asked.repetition_penalty if z[token] < 0 else 1 / asked.repetition_penalty
    penalised -= asked.presence_penalty * (counts > 0) + asked.frequency_penalty * counts
    for token, value in asked.bias.items():
        penalised[token] += value
    if asked.allowed is not None:
        banned = np.ones(len(z), bool)
        banned[list(asked.allowed)] = False
        penalised[banned] = -np.inf
    return penalised


def choose(scores: Array, asked: Asked, step: int) -> int:
    """Index of the chosen candidate."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    if asked.temperature == 0.0:
        return int(order[0])
    chances = np.exp((ordered - ordered[0]) / asked.temperature)
    chances /= chances.sum()
    inside = (np.cumsum(chances) - chances < asked.top_p) & (chances >= asked.min_p * chances.max())
    noise = asked.noise[min(step, NOISE_STEPS - 1), : len(ordered)]
    shaken = np.where(inside, ordered + asked.temperature * noise, -np.inf)
    return int(order[shaken.argmax()])
