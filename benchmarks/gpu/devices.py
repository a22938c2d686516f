"""The devices of tests and benchmark: whether one is here, what it runs, and how a bundle for it is exported."""

from __future__ import annotations

from typing import Any

from pad_runtime.bundle import contract
from pad_runtime.devices.cuda import find_cuda
from pad_runtime.devices.ort.provider import OrtProvider
from pad_runtime.devices.tensorrt.provider import TensorRtProvider
from pad_runtime.errors import DeviceError, EngineError

_TARGETS = {
    "tensorrt": {"target": "tensorrt"},
    "tensorrt-rtx": {"target": "tensorrt-rtx"},
    "ort-tensorrt": {"dialect": "standard"},
    "ort-tensorrt-rtx": {"dialect": "standard"},
}


def why_absent(device: str) -> str | None:
    """Why a device cannot be used here; None where it can."""
    try:
        TensorRtProvider(device) if device in contract.ENGINE_TARGETS else OrtProvider(device)
    except (DeviceError, EngineError) as error:
        return str(error)
    return None


def export_options(device: str, precision: str) -> dict[str, Any]:
    """Keyword arguments of `export_bundle`; engines of TensorRT-RTX are built for the GPU that is here."""
    options: dict[str, Any] = {"precision": precision, **_TARGETS.get(device, {})}
    if device == "cuda" and precision == "int4":
        options["activations"] = "fp16"  # CUDA's attention takes no float32
    if device == "tensorrt-rtx":
        options["compute_capabilities"] = [find_cuda().gpu().compute_capability]
    return options
