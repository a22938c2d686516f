"""How far a graph may be from the torch models, in one table, relative to a tensor's largest value."""

from __future__ import annotations

import torch

TOLERANCE = {
    "fp32": 1e-4,
    "fp16": 2e-2,
}


def difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest |value - reference|, over the reference's largest magnitude where that exceeds 1; infinite for NaN."""
    worst = float((value - reference).abs().max())
    return worst / max(1.0, float(reference.abs().max())) if worst == worst else float("inf")  # noqa: PLR0124
