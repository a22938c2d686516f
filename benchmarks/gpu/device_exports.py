"""What each device is tested and measured with, and how a bundle for it is exported: one table for both."""

from __future__ import annotations

from typing import Any

# device -> the precisions of bundles that it runs
PRECISIONS = {
    "cpu": ("fp32", "fp16", "int4"),
    "cuda": ("fp16", "bf16", "int4"),
    "tensorrt": ("fp16", "int4"),
    "tensorrt-rtx": ("fp16", "int4"),
    "ort-tensorrt": ("fp16",),
    "ort-tensorrt-rtx": ("fp16",),
}
_TARGETS = {
    "tensorrt": {"target": "tensorrt"},
    "tensorrt-rtx": {"target": "tensorrt-rtx"},
    "ort-tensorrt": {"dialect": "standard"},
    "ort-tensorrt-rtx": {"dialect": "standard"},
}


def export_options(device: str, precision: str) -> dict[str, Any]:
    """Keyword arguments of `export_bundle`; engines of TensorRT-RTX are built for the GPU that is here."""
    options: dict[str, Any] = {"precision": precision, **_TARGETS.get(device, {})}
    if device == "cuda" and precision == "int4":
        options["activations"] = "fp16"  # CUDA's attention takes no float32
    if device == "tensorrt-rtx":
        from pad_runtime.cuda import Cuda

        options["compute_capabilities"] = [Cuda().gpu().compute_capability]
    return options
