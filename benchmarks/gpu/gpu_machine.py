"""What the command runs on: `python gpu_machine.py DEVICE` prints it as JSON, and lets go of the device."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gpu_devices import why_absent
from pad_rt.bench.machine import cpu_name, num_cores
from pad_runtime.devices.cuda import find_cuda

_PACKAGES = (
    "pad-rt",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-python",
    "cuda-bindings",
    "tensorrt",
    "tensorrt-rtx",
    "onnx",
    "torch",
    "transformers",
    "numpy",
    "vllm",
    "onnxruntime-genai-cuda",
)


def describe(device: str) -> dict[str, Any]:
    """The GPU, or why there is none; processor, system and versions."""
    why = why_absent(device)
    return {
        "gpu": None if why else asdict(find_cuda().gpu()),
        "no_device": why,
        "cpu": cpu_name(),
        "cores": num_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := installed(name))},
    }


def installed(name: str) -> str | None:
    """A package's version, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(describe(sys.argv[1])))
