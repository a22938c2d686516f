"""What the command runs on: `python -m benchmarks.gpu.machine DEVICE` prints it as JSON, and lets go of the device."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import versions
from benchmarks.gpu.devices import why_absent
from pad_runtime.devices.cuda import find_cuda

_PACKAGES = (
    "pad-rt", "onnxruntime", "onnxruntime-gpu", "cuda-python", "cuda-bindings", "tensorrt", "tensorrt-rtx", "onnx",
    "torch", "transformers", "numpy",
)  # fmt: skip


def describe(device: str) -> dict[str, Any]:
    """The GPU, or why there is none; processor, system and versions."""
    why = why_absent(device)
    return {
        "gpu": None if why else asdict(find_cuda().gpu()),
        "no_device": why,
        **describe_machine(),
        "python": platform.python_version(),
        "versions": versions(*_PACKAGES),
    }


if __name__ == "__main__":
    print(json.dumps(describe(sys.argv[1])))
