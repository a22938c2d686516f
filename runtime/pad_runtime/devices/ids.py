"""Copies of the chosen ids to the host: all that comes back from a step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import numpy as np

from pad_runtime.devices.buffers import Buffer, CudaBuffer, HostBuffer
from pad_runtime.devices.cuda import Cuda

BYTES_PER_ID = ctypes.sizeof(ctypes.c_int64)


class Ids(Protocol):
    """Ids of a batch, int64.

    Attributes:
        buffer: the graph's output for the ids.
        ahead: whether a further step may be started before the ids of the last one are taken: True on a device.
    """

    buffer: Buffer
    ahead: bool

    def bind(self, run: Callable[[], object]) -> Callable[[], object]:
        """Wrap `run`: each call also starts a copy of the chosen ids to the host, and does not wait for it."""

    def take(self) -> Sequence[int]:
        """Wait for the oldest run whose ids were not taken; a view of them, until the run after the next one."""

    def forget(self) -> None:
        """Discard what was not taken."""


class HostIds:
    """`Ids` of graphs that run on the host: the view is the memory itself."""

    ahead = False

    def __init__(self, count: int) -> None:
        array = np.zeros(count, np.int64)
        self.buffer: Buffer = HostBuffer(array)
        self._view = cast(Sequence[int], (ctypes.c_int64 * count).from_buffer(array.data))  # keeps it

    def bind(self, run: Callable[[], object]) -> Callable[[], object]:
        """`run` itself."""
        return run

    def take(self) -> Sequence[int]:
        """What the last run wrote."""
        return self._view

    def forget(self) -> None:
        """Nothing is ever pending."""


class CudaIds:
    """`Ids` of graphs that run on a device: 8 bytes an id are copied to one of two pinned places, which take turns."""

    ahead = True

    def __init__(self, cuda: Cuda, count: int) -> None:
        self.buffer: Buffer = CudaBuffer(cuda, (count,), np.int64)
        self._cuda = cuda
        self._places = [cuda.pin(count * BYTES_PER_ID) for _ in range(2)]
        self._views = [
            cast(Sequence[int], (ctypes.c_int64 * count).from_address(place.address)) for place in self._places
        ]
        self._next = self._oldest = 0  # index of the place that is copied to next, and of the place that is taken next

    def bind(self, run: Callable[[], object]) -> Callable[[], object]:
        """Wrap `run`: each call puts it and a copy of the ids to pinned memory on the stream, and does not wait."""
        lock, places, source = self._cuda.lock, self._places, self.buffer.address

        def run_and_copy() -> None:
            with lock:
                run()
                places[self._next].start_copy(source)
            self._next ^= 1

        return run_and_copy

    def take(self) -> Sequence[int]:
        """Wait for the oldest copy, but not for a step that was started after it."""
        oldest = self._oldest
        self._oldest ^= 1
        self._places[oldest].wait()
        return self._views[oldest]

    def forget(self) -> None:
        """Wait for the pending copy before its buffers are freed."""
        if self._oldest != self._next:
            self.take()
