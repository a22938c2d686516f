"""How far a graph may be from the torch models, relative to a tensor's largest value.

The tolerances are for verification only. There torch computes in float32, on weights rounded as the bundle's are, and
the graph of a bfloat16 bundle computes in float32, too (`float32_twin.py`). At int8 and int4, verification multiplies
by the stored weights in floating point. The kernels that decode round the activations to 8 bits as well:
`INT8_ARITHMETIC` is the error that this adds in a typical model (up to 2.7 times as much in tiny random ones).
"""

from __future__ import annotations

import torch

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-4}  # by the type of what is not in blocks
INT8_ARITHMETIC = 5e-2
OWN_ERRORS = 4  # times torch's own error: the graph rounds in other places, and one sample is not the largest error
LARGEST = 5e-2  # with a larger tolerance a wrong graph might pass


def allowance(tolerance: float, own_error: float) -> float:
    """How far a graph may be from torch in float64, if torch in float32 is `own_error` away from that."""
    return max(tolerance, min(LARGEST, tolerance + OWN_ERRORS * own_error))


def difference(value: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor | None = None) -> float:
    """Largest |value - expected|, divided by the largest magnitude of `scale` (or else of the expected) if above 1.

    Infinite if a value is NaN.
    """
    worst = float((value - expected).abs().max())
    largest = float((expected if scale is None else scale).abs().max())
    return worst / max(1.0, largest) if worst == worst else float("inf")  # noqa: PLR0124
