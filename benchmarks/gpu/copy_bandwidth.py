"""How fast a device copies within its own memory: what a step's reading is held against."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pad_runtime.devices.cuda import find_cuda

_GPU_BUFFER = 2 * 2**30  # bytes at most, far beyond any cache
_CPU_BUFFER = 256 * 2**20
_PASSES = 10


def copy_gb_s(device: str) -> float:
    """GB/s (10^9 bytes) of a large copy, bytes read and bytes written both counted: the best of a few passes."""
    return _copy_on_cpu() if device == "cpu" else _copy_on_gpu()


def _copy_on_cpu() -> float:
    source = np.ones(_CPU_BUFFER // 8)
    target = np.zeros_like(source)
    best = float("inf")
    for _ in range(_PASSES):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best / 1e9


def _copy_on_gpu() -> float:
    from cuda.bindings import runtime

    stream = find_cuda().stream

    def call(name: str, *arguments: Any) -> Any:
        error, *values = getattr(runtime, name)(*arguments)
        if int(error):
            raise RuntimeError(f"{name}: CUDA error {int(error)}")
        return values[0] if len(values) == 1 else values

    free, _ = call("cudaMemGetInfo")
    size = min(_GPU_BUFFER, int(free) // 4)
    source, target = (call("cudaMalloc", size) for _ in range(2))
    start, end = (call("cudaEventCreate") for _ in range(2))
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    best = float("inf")
    for index in range(_PASSES + 1):
        call("cudaEventRecord", start, stream)
        call("cudaMemcpyAsync", target, source, size, kind, stream)
        call("cudaEventRecord", end, stream)
        call("cudaEventSynchronize", end)
        if index:  # the first one warms up
            best = min(best, float(call("cudaEventElapsedTime", start, end)) / 1e3)
    for event in (start, end):
        call("cudaEventDestroy", event)
    for buffer in (source, target):
        call("cudaFree", buffer)
    return 2 * size / best / 1e9
