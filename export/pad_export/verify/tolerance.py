"""How far a graph may be from the torch models, in one table, relative to a tensor's largest value.

This is said of verification, where torch computes in float32 on weights that are rounded as the bundle's are. At
bfloat16 so does the graph (`float32_twin.py`). At int8 and int4 the stored weights are multiplied in floats; when ONNX
Runtime packs them for its kernels, it rounds what they are multiplied by to 8 bits too: `INT8_ARITHMETIC` is what that
does to a typical model; tiny random ones were off by up to 2.7 times as much.
"""

from __future__ import annotations

import torch

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-4}  # by what is not in blocks
INT8_ARITHMETIC = 5e-2
OWN_ERRORS = 4  # a graph's float32 rounds elsewhere than torch's, and one sample of an error is not its largest
LARGEST = 5e-2  # beyond which a wrong graph might pass


def allowance(tolerance: float, own_error: float) -> float:
    """How far a graph may be from torch in float64, which torch in float32 misses by `own_error`."""
    return max(tolerance, min(LARGEST, tolerance + OWN_ERRORS * own_error))


def difference(value: torch.Tensor, reference: torch.Tensor, scale: torch.Tensor | None = None) -> float:
    """Largest |value - reference|, over the largest magnitude of `scale`, or of the reference, where that exceeds 1.

    Infinite for NaN.
    """
    worst = float((value - reference).abs().max())
    largest = float((reference if scale is None else scale).abs().max())
    return worst / max(1.0, largest) if worst == worst else float("inf")  # noqa: PLR0124
