"""A CUDA device that is simulated in the host's memory, under cuda-python's own names.

What is not true of host memory is made to show: new memory holds noise until it is set, memory that was given back is
overwritten and never used again, and what a capture recorded runs only when it is launched.
"""

from __future__ import annotations

import ctypes
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

STREAM = 77
RATE = 1e12  # bytes copied in a second
_NOISE, _GONE = 0xCD, 0xEE
_ALIGNMENT = 512  # bytes


@dataclass
class Event:
    """`copied`: bytes that the device had copied by then."""

    copied: int = 0


class FakeRuntime(types.ModuleType):
    """`cuda.bindings.runtime`. Its functions are written here with underscores.

    Attributes:
        devices, driver: how many GPUs, and the driver's CUDA version (0: no driver).
        failing: what waiting for the stream returns.
        memory, copied: bytes that the device has, and that were copied so far; a copy takes its size over `RATE`.
        calls: "copy", "copy rows" and "wait", in order.
        blocks: memory that was taken and not given back, by address: device and pinned.
        launched: how often a captured graph ran.
        captured: how many captures there are.
    """

    def __init__(self, *, devices: int = 1, driver: int = 13000, memory: int = 2**40) -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices, self.driver, self.failing = devices, driver, 0
        self.memory, self.copied = memory, 0
        self.calls: list[str] = []
        self.blocks: dict[int, ctypes.Array[Any]] = {}
        self.launched = self.captured = 0
        self._gone: list[Any] = []
        self._recording: list[Callable[[], None]] | None = None
        for name in [name for name in dir(type(self)) if name.startswith("cuda_")]:
            setattr(self, re.sub("_(.)", lambda letter: letter[1].upper(), name), getattr(self, name))
        self.__dict__["cudaMemcpyKind"] = types.SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        )
        self.__dict__["cudaStreamCaptureMode"] = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        self.__dict__.update(cudaStreamNonBlocking=1, cudaEventDisableTiming=2)

    @property
    def taken(self) -> int:
        """Bytes."""
        return sum(len(block) for _, block in self._taken())

    def holds(self, address: int, size: int) -> bool:
        """Whether these bytes lie within one block that was not given back."""
        return any(start <= address and address + size <= start + len(block) for start, block in self._taken())

    def _taken(self) -> list[tuple[int, ctypes.Array[Any]]]:
        """Blocks by address. What is collected just then gives memory back in the middle of a look at them."""
        while True:
            try:
                return list(self.blocks.items())
            except RuntimeError:
                continue

    def let_go(self) -> None:
        """Memory that was given back may be used again from now on."""
        self._gone.clear()

    def enqueue(self, work: Callable[[], None]) -> None:
        """Put work on the stream: it is done at once, or recorded."""
        if self._recording is None:
            work()
        else:
            self._recording.append(work)

    # -- the device ---------------------------------------------------------------------------------------------------

    def cuda_get_device_count(self) -> tuple[int, int]:
        return (0, self.devices) if self.driver else (35, 0)

    def cuda_get_error_string(self, error: int) -> tuple[int, bytes]:
        return 0, b"CUDA driver version is insufficient for CUDA runtime version"

    def cuda_set_device(self, device: int) -> tuple[int]:
        return (0,)

    def cuda_stream_create_with_flags(self, flags: int) -> tuple[int, int]:
        assert flags == 1, "the default stream would be waited for"
        return 0, STREAM

    def cuda_stream_synchronize(self, stream: int) -> tuple[int]:
        assert self._recording is None, "nobody waits during a capture"
        self.calls.append("wait")
        return (self.failing,)

    def cuda_event_create(self) -> tuple[int, Event]:
        return 0, Event()

    def cuda_event_create_with_flags(self, flags: int) -> tuple[int, Event]:
        assert flags == 2
        return 0, Event()

    def cuda_event_record(self, event: Event, stream: int) -> tuple[int]:
        assert stream == STREAM
        event.copied = self.copied
        return (0,)

    def cuda_event_elapsed_time(self, start: Event, end: Event) -> tuple[int, float]:
        """Milliseconds."""
        return 0, (end.copied - start.copied) / RATE * 1e3

    def cuda_event_synchronize(self, event: Event) -> tuple[int]:
        self.calls.append("wait")
        return (self.failing,)

    def cuda_event_destroy(self, event: Event) -> tuple[int]:
        return (0,)

    def cuda_get_device_properties(self, device: int) -> tuple[int, Any]:
        return 0, types.SimpleNamespace(name=b"NVIDIA Thing", major=8, minor=9, totalGlobalMem=2**33)

    def cuda_driver_get_version(self) -> tuple[int, int]:
        return 0, self.driver

    def cuda_runtime_get_version(self) -> tuple[int, int]:
        return 0, 12080

    # -- memory -------------------------------------------------------------------------------------------------------

    def cuda_mem_get_info(self) -> tuple[int, int, int]:
        return 0, self.memory - self.taken, self.memory

    def cuda_malloc(self, size: int) -> tuple[int, int]:
        assert self._recording is None, "no memory is taken during a capture"
        if self.taken + size > self.memory:
            return 2, 0
        memory = ctypes.create_string_buffer(size + _ALIGNMENT)
        first = -ctypes.addressof(memory) % _ALIGNMENT
        block = (ctypes.c_char * size).from_buffer(memory, first)
        address = ctypes.addressof(block)
        ctypes.memset(address, _NOISE, size)
        self.blocks[address] = block
        return 0, address

    def cuda_free(self, address: int) -> tuple[int]:
        block = self.blocks.pop(address)
        ctypes.memset(address, _GONE, len(block))
        self._gone.append(block)
        return (0,)

    cuda_malloc_host, cuda_free_host = cuda_malloc, cuda_free

    def cuda_memset_async(self, address: int, value: int, size: int, stream: int) -> tuple[int]:
        assert stream == STREAM
        self.enqueue(lambda: ctypes.memset(address, value, size) and None)
        return (0,)

    def cuda_memcpy_async(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        assert stream == STREAM
        assert kind == 2 or self.holds(to, size), "to memory that is not the device's"
        assert kind == 1 or self.holds(source, size), "from memory that is not the device's"
        self.calls.append("copy")
        self.copied += size
        self.enqueue(lambda: ctypes.memmove(to, source, size) and None)
        return (0,)

    def cuda_memcpy2_d_async(
        self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, height: int, kind: int, stream: int
    ) -> tuple[int]:
        assert (stream, kind) == (STREAM, 3)
        assert width <= min(to_pitch, source_pitch), "a row runs into the next one"
        sizes = [(height - 1) * pitch + width for pitch in (to_pitch, source_pitch)]
        assert self.holds(to, sizes[0]), "to memory that is not the device's"
        assert self.holds(source, sizes[1]), "from memory that is not the device's"
        assert to + sizes[0] <= source or source + sizes[1] <= to, "what overlaps is copied in any order"
        self.calls.append("copy rows")
        self.copied += width * height

        def work() -> None:
            for row in range(height):
                ctypes.memmove(to + row * to_pitch, source + row * source_pitch, width)

        self.enqueue(work)
        return (0,)

    # -- capture ------------------------------------------------------------------------------------------------------

    def cuda_stream_begin_capture(self, stream: int, mode: int) -> tuple[int]:
        assert (stream, mode) == (STREAM, 1)
        assert self._recording is None
        self._recording = []
        return (0,)

    def cuda_stream_end_capture(self, stream: int) -> tuple[int, Any]:
        recorded, self._recording = self._recording, None
        return 0, recorded

    def cuda_graph_instantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[int, Any]:
        self.captured += 1
        return 0, list(graph)

    def cuda_graph_destroy(self, graph: list[Callable[[], None]]) -> tuple[int]:
        graph.clear()
        return (0,)

    def cuda_graph_launch(self, graph: list[Callable[[], None]], stream: int) -> tuple[int]:
        assert stream == STREAM
        self.launched += 1
        for work in graph:
            work()
        return (0,)

    def cuda_graph_exec_destroy(self, graph: list[Callable[[], None]]) -> tuple[int]:
        graph.clear()
        self.captured -= 1
        return (0,)


def install(monkeypatch: pytest.MonkeyPatch, **settings: int) -> FakeRuntime:
    """Let `from cuda.bindings import runtime` find a simulated device."""
    runtime = FakeRuntime(**settings)
    for name, module in make_modules(runtime).items():
        monkeypatch.setitem(sys.modules, name, module)
    return runtime


def make_modules(runtime: FakeRuntime) -> dict[str, types.ModuleType]:
    """cuda-python, by module name."""
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    bindings.runtime = runtime  # type: ignore[attr-defined]
    return {"cuda": package, "cuda.bindings": bindings, "cuda.bindings.runtime": runtime}
