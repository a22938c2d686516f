"""Memory that graphs read and write: on the host, or on a CUDA device. A run is bound to its address."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pad_runtime.devices.cuda import Cuda

Array = npt.NDArray[Any]


class Buffer(Protocol):
    """A tensor at a fixed address.

    Attributes:
        shape: its sizes.
        dtype: its elements.
        device: "cpu" or "cuda".
        address: of its first byte, on its device.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: str
    address: int

    def write(self, array: Array) -> None:
        """Take over the values of an array of the same shape and type."""

    def read(self) -> Array:
        """A copy of the values."""

    def window(self, first: int, count: int) -> Buffer:
        """Rows `first` to `first + count` of axis 0 as a buffer in the same memory, which lives as long as it does.

        Raises:
            IndexError: there are no such rows.
        """


class HostBuffer:
    """A `Buffer` in the host's memory: an array's own.

    Attributes:
        array: that array, in C order.
    """

    device = "cpu"

    def __init__(self, array: Array) -> None:
        self.array = np.asarray(array, order="C")
        self.shape, self.dtype = array.shape, array.dtype
        self.address = self.array.ctypes.data

    def write(self, array: Array) -> None:
        """Copy."""
        self.array[...] = array

    def read(self) -> Array:
        """Copy."""
        return self.array.copy()

    def window(self, first: int, count: int) -> HostBuffer:
        """A view."""
        _check_rows(self.shape, first, count)
        return HostBuffer(self.array[first : first + count])


class CudaBuffer:
    """A `Buffer` on the device, zero at first. Its memory goes back when it and all of its windows are gone."""

    device = "cuda"

    def __init__(
        self,
        cuda: Cuda,
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        *,
        within: CudaBuffer | None = None,
        offset: int = 0,
    ) -> None:
        """Allocate, or lie within another buffer's memory, `offset` bytes after its first.

        Raises:
            OutOfMemoryError: says how much was asked for.
        """
        self.shape, self.dtype = tuple(map(int, shape)), np.dtype(dtype)
        self._cuda, self._size = cuda, math.prod(self.shape) * self.dtype.itemsize
        if within is None:
            self._memory = cuda.allocate(self._size)
            self.address = self._memory.address
        else:
            self._memory, self.address = within._memory, within.address + offset

    def write(self, array: Array) -> None:
        """Copy to the device; `array` may go when this returns."""
        source = np.ascontiguousarray(array, self.dtype)
        self._cuda.copy_in(self.address, source.ctypes.data, self._size)

    def read(self) -> Array:
        """Wait for the device, and copy from it."""
        array = np.empty(self.shape, self.dtype)
        self._cuda.copy_out(array.ctypes.data, self.address, self._size)
        return array

    def window(self, first: int, count: int) -> CudaBuffer:
        """The same memory from another address on."""
        _check_rows(self.shape, first, count)
        _, *sizes = self.shape
        offset = first * math.prod(sizes) * self.dtype.itemsize
        return CudaBuffer(self._cuda, (count, *sizes), self.dtype, within=self, offset=offset)


def _check_rows(shape: tuple[int, ...], first: int, count: int) -> None:
    """On a device nothing else notices a window that lies in other memory."""
    if not shape or not 0 <= first <= first + count <= shape[0]:
        raise IndexError(f"rows {first} to {first + count} of a buffer of shape {list(shape)}")
