"""Rows and readings: what a step computes, and how that becomes scores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What is computed: one trunk reads one prompt, with the adapter of one PersRM.

    Attributes:
        trunk: index into the manifest's trunks.
        prompt: index into the prompts of the row's sequence.
        persrm: index into the manifest's PersRMs; None runs the trunk without an adapter.
    """

    trunk: int
    prompt: int
    persrm: int | None = None


@dataclass(frozen=True)
class Reading:
    """How a row's hidden state becomes scores: coefficient * sum_i weights_i * logits_i.

    Attributes:
        row: index into the rows of the reading's sequence.
        weights: over the features of the row's PersRM; empty reads the row's own logits, with no feature head.
        coefficient: factor of those logits in the scores.
    """

    row: int
    weights: tuple[float, ...]
    coefficient: float

    @property
    def strength(self) -> float:
        """The largest factor of any logits."""
        return abs(self.coefficient) * max(map(abs, self.weights), default=1.0)
