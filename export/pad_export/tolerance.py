"""How far a graph may be from the torch models, in one table, relative to a tensor's largest value.

At int8 and int4 this is said of verification, which multiplies the stored weights in floats. When ONNX Runtime packs
them for its kernels, it rounds what they are multiplied by to 8 bits as well: `INT8_ARITHMETIC` is for that.
"""

from __future__ import annotations

import torch

from pad_runtime.manifest import Manifest

TOLERANCE = {
    "fp32": 1e-4,
    "fp16": 2e-2,
    "int8": 1e-4,
    "int4": 1e-4,
}
INT8_ARITHMETIC = 5e-2


def tolerance_of(manifest: Manifest) -> float:
    """What verification grants a bundle: weights in blocks are compared as they are, so its float type decides."""
    return TOLERANCE["fp16"] if manifest.float_type == "float16" else TOLERANCE[manifest.precision]


def difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest |value - reference|, over the reference's largest magnitude where that exceeds 1; infinite for NaN."""
    worst = float((value - reference).abs().max())
    return worst / max(1.0, float(reference.abs().max())) if worst == worst else float("inf")  # noqa: PLR0124
