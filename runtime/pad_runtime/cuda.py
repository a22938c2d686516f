"""The little of CUDA's runtime that decoding needs beside ONNX Runtime: a stream, pinned memory, one small copy.

Through NVIDIA's `cuda-python` (https://nvidia.github.io/cuda-python/), which loads the driver's library by itself.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from pad_runtime.errors import DeviceError

_INSTALL = "pip install 'pad-rt[cuda]'"
_CPU = "pass --device cpu"


@dataclass(frozen=True)
class Gpu:
    """What a device says of itself.

    Attributes:
        name: NVIDIA's name of it.
        compute_capability: such as "sm89".
        memory: bytes.
        driver, runtime: CUDA versions, such as "13.0".
    """

    name: str
    compute_capability: str
    memory: int
    driver: str
    runtime: str


class Cuda:
    """Device 0 and one stream of it, on which the graph runs and the chosen ids come back."""

    def __init__(self) -> None:
        """Find the device.

        Raises:
            DeviceError: cuda-python is not installed, or there is no driver or no device.
        """
        try:
            from cuda.bindings import runtime
        except ImportError:
            raise DeviceError("cuda-python is not installed", hint=_INSTALL) from None
        self._runtime: Any = runtime
        if self._call("cudaGetDeviceCount") < 1:
            raise DeviceError("this machine has no CUDA device", hint=_CPU)
        self._call("cudaSetDevice", 0)
        self.stream = int(self._call("cudaStreamCreate"))

    def gpu(self) -> Gpu:
        """The device that is used."""
        properties = self._call("cudaGetDeviceProperties", 0)
        name = properties.name
        return Gpu(
            name=name.decode() if isinstance(name, bytes) else str(name),
            compute_capability=f"sm{properties.major}{properties.minor}",
            memory=int(properties.totalGlobalMem),
            driver=_version(self._call("cudaDriverGetVersion")),
            runtime=_version(self._call("cudaRuntimeGetVersion")),
        )

    def pinned_ids(self, count: int) -> PinnedIds:
        """Host memory for int64 ids that a device can write to directly."""
        return PinnedIds(self, count)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A call of the runtime; its value, if it has one."""
        error, *values = getattr(self._runtime, name)(*arguments)
        if int(error):
            reason = self._runtime.cudaGetErrorString(error)[1]
            text = reason.decode() if isinstance(reason, bytes) else str(reason)
            raise DeviceError(f"CUDA cannot be used: {text} ({name})", hint=_CPU)
        return values[0] if values else None


class PinnedIds:
    """Page-locked int64 ids. `view` is what was last fetched."""

    def __init__(self, cuda: Cuda, count: int) -> None:
        self._cuda, self._size = cuda, count * ctypes.sizeof(ctypes.c_int64)
        self._address = int(cuda._call("cudaMallocHost", self._size))
        self.view = (ctypes.c_int64 * count).from_address(self._address)
        runtime = cuda._runtime
        self._copy, self._wait = runtime.cudaMemcpyAsync, runtime.cudaStreamSynchronize
        self._kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost

    def fetch(self, address: int) -> None:
        """Wait for what the stream has to do, then for the copy of the ids at a device address."""
        self._copy(self._address, address, self._size, self._kind, self._cuda.stream)
        (error,) = self._wait(self._cuda.stream)
        if int(error):
            raise DeviceError(
                f"the device failed while it decoded (CUDA error {int(error)})", hint="load the bundle again"
            )

    def __del__(self) -> None:
        """Give the memory back."""
        if hasattr(self, "view"):
            self._cuda._runtime.cudaFreeHost(self._address)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
