"""The little of CUDA's runtime that decoding needs beside what runs a graph: one stream, memory, copies, capture.

Through NVIDIA's `cuda-python` (https://nvidia.github.io/cuda-python/), which loads the driver's library by itself.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pad_runtime.errors import DeviceError, out_of_memory

_INSTALL = "pip install 'pad-rt[cuda]'"
_CPU = "pass --device cpu"
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


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
    """Device 0 and one stream of it, on which graphs run, buffers are filled and the chosen ids come back.

    The stream does not wait for the process's default stream, so that what others do there cannot spoil a capture.

    Attributes:
        runtime: cuda-python's module; a failing call of it is noticed by `call` alone.
        stream: its handle.
        lock: held around every call: a copy of one thread must not become part of another's capture, and ONNX Runtime
            captures in CUDA's global mode, in which no thread may so much as allocate or wait.
    """

    def __init__(self, runtime: Any) -> None:
        """Use `find_cuda`: there is one of these in a process."""
        self.runtime = runtime
        self.lock = threading.RLock()
        if self.call("cudaGetDeviceCount") < 1:
            raise DeviceError("this machine has no CUDA device", hint=_CPU)
        self.call("cudaSetDevice", 0)
        self.stream = int(self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking))

    def gpu(self) -> Gpu:
        """The device that is used."""
        properties = self.call("cudaGetDeviceProperties", 0)
        name = properties.name
        return Gpu(
            name=name.decode() if isinstance(name, bytes) else str(name),
            compute_capability=f"sm{properties.major}{properties.minor}",
            memory=int(properties.totalGlobalMem),
            driver=_version(self.call("cudaDriverGetVersion")),
            runtime=_version(self.call("cudaRuntimeGetVersion")),
        )

    # -- memory -------------------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> CudaAllocation:
        """`size` zeroed bytes on the device.

        Raises:
            OutOfMemoryError: says how much was asked for.
        """
        return CudaAllocation(self, size)

    def copy_in(self, device: int, host: int, size: int) -> None:
        """Copy to the device; done when this returns."""
        self._copy(device, host, size, self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def copy_out(self, host: int, device: int, size: int) -> None:
        """Copy from the device; done when this returns."""
        self._copy(host, device, size, self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def copy_rows(self, to: int, to_pitch: int, source: int, source_pitch: int, size: int, count: int) -> None:
        """Put a copy within the device's memory on the stream: `size` bytes of each of `count` rows.

        Args:
            to, source: addresses of the first rows, which must not overlap.
            to_pitch, source_pitch: bytes from one row to the next.
            size: of a row, at most either pitch.
            count: of rows.
        """
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        with self.lock:
            self.call("cudaMemcpy2DAsync", to, to_pitch, source, source_pitch, size, count, kind, self.stream)

    def pin(self, size: int) -> PinnedMemory:
        """Bytes of the host that the device copies to by itself."""
        return PinnedMemory(self, size)

    def synchronize(self) -> None:
        """Wait for the stream."""
        with self.lock:
            self.call("cudaStreamSynchronize", self.stream)

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        with self.lock:
            self.call("cudaMemcpyAsync", to, source, size, kind, self.stream)
            self.synchronize()

    # -- capture ------------------------------------------------------------------------------------------------------

    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """What `enqueue` puts on the stream, recorded and not run."""
        thread_local = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.lock:
            self.call("cudaStreamBeginCapture", self.stream, thread_local)
            try:
                enqueue()
            finally:  # the stream takes nothing else before the capture has ended
                graph = self.call("cudaStreamEndCapture", self.stream)
            try:
                return CapturedGraph(self, self.call("cudaGraphInstantiate", graph, 0))
            finally:
                self.call("cudaGraphDestroy", graph)

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(self, name: str, *arguments: Any, size: int = 0) -> Any:
        """A call of the runtime; its value, if it has one. `size` is what it asks for, for an error that says so."""
        error, *values = getattr(self.runtime, name)(*arguments)
        if int(error) == _OUT_OF_MEMORY:
            raise out_of_memory(size)
        if int(error):
            raise DeviceError(f"CUDA cannot be used: {self.describe(error)} ({name})", hint=_CPU)
        return values[0] if values else None

    def check_run(self, error: Any) -> None:
        """What is wrong with the device once it has run something stays wrong for the process.

        Raises:
            DeviceError: `error` is one.
        """
        if int(error):
            raise DeviceError(
                f"the device failed while it decoded: {self.describe(error)} (CUDA error {int(error)})",
                hint="start the process again",
            )

    def describe(self, error: Any) -> str:
        """CUDA's words for an error."""
        reason = self.runtime.cudaGetErrorString(error)[1]
        return reason.decode() if isinstance(reason, bytes) else str(reason)


def find_cuda() -> Cuda:
    """The device of this process.

    Raises:
        DeviceError: cuda-python is not installed, or there is no driver or no device.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise DeviceError("cuda-python is not installed", hint=_INSTALL) from None
    return _find(runtime)


_find = functools.cache(Cuda)


class CudaAllocation:
    """Memory of the device, zero at first. It goes back with the last reference.

    Attributes:
        address: of its first byte.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        with cuda.lock:
            self.address = int(cuda.call("cudaMalloc", max(1, size), size=size))
            cuda.call("cudaMemsetAsync", self.address, 0, size, cuda.stream)

    def __del__(self) -> None:
        """Give it back; the device ends first what it has to do."""
        if hasattr(self, "address"):
            with self._cuda.lock:
                self._cuda.runtime.cudaFree(self.address)


class CapturedGraph:
    """Work of a stream that is started as one."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda, self._executable = cuda, executable
        self._launch, self._stream = cuda.runtime.cudaGraphLaunch, cuda.stream

    def launch(self) -> None:
        """Put it on the stream once more."""
        (error,) = self._launch(self._executable, self._stream)
        self._cuda.check_run(error)

    def __del__(self) -> None:
        """Give it back."""
        if hasattr(self, "_executable"):
            with self._cuda.lock:
                self._cuda.runtime.cudaGraphExecDestroy(self._executable)


class PinnedMemory:
    """Page-locked memory of the host that a device copies to by itself, and an event for the end of a copy.

    Attributes:
        address: of its first byte.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        runtime = cuda.runtime
        self._cuda, self._size = cuda, size
        with cuda.lock:
            self._event = cuda.call("cudaEventCreateWithFlags", runtime.cudaEventDisableTiming)
            self.address = int(cuda.call("cudaMallocHost", size, size=size))
        self._copy, self._record, self._wait = (
            runtime.cudaMemcpyAsync,
            runtime.cudaEventRecord,
            runtime.cudaEventSynchronize,
        )
        self._kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost

    def start_copy(self, address: int) -> None:
        """Put a copy from the device on the stream."""
        cuda = self._cuda
        (error,) = self._copy(self.address, address, self._size, self._kind, cuda.stream)
        cuda.check_run(error)
        (error,) = self._record(self._event, cuda.stream)
        cuda.check_run(error)

    def wait(self) -> None:
        """Wait for the last copy.

        Raises:
            DeviceError: the device failed.
        """
        with self._cuda.lock:
            (error,) = self._wait(self._event)
        self._cuda.check_run(error)

    def __del__(self) -> None:
        """Give the memory back."""
        if hasattr(self, "address"):
            with self._cuda.lock:
                self._wait(self._event)
                self._cuda.runtime.cudaFreeHost(self.address)
                self._cuda.runtime.cudaEventDestroy(self._event)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
