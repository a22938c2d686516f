"""Memory that graphs read and write: on the host, or on a CUDA device. Whoever runs a graph binds its address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pad_runtime.errors import OutOfMemoryError

if TYPE_CHECKING:
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


class HostBuffer:
    """A `Buffer` in the host's memory: an array's own."""

    device = "cpu"

    def __init__(self, array: Array) -> None:
        self._array = np.asarray(array, order="C")
        self.shape, self.dtype = array.shape, array.dtype
        self.address = self._array.ctypes.data

    def write(self, array: Array) -> None:
        """Copy."""
        self._array[...] = array

    def read(self) -> Array:
        """Copy."""
        return self._array.copy()


class CudaBuffer:
    """A `Buffer` on the device, zero at first. Its memory goes back when the last reference does."""

    device = "cuda"

    def __init__(self, cuda: Cuda, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        """Allocate.

        Raises:
            OutOfMemoryError: says how much was asked for.
        """
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._cuda, self._size = cuda, int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.address = cuda.allocate(self._size)

    def write(self, array: Array) -> None:
        """Copy to the device; `array` may go when this returns."""
        source = np.ascontiguousarray(array, self.dtype)
        self._cuda.copy_in(self.address, source.ctypes.data, self._size)

    def read(self) -> Array:
        """Wait for the device, and copy from it."""
        array = np.empty(self.shape, self.dtype)
        self._cuda.copy_out(array.ctypes.data, self.address, self._size)
        return array

    def __del__(self) -> None:
        """Give the memory back."""
        if hasattr(self, "address"):
            self._cuda.free(self.address)


def out_of_memory(size: int) -> OutOfMemoryError:
    """The error for a buffer of that many bytes."""
    return OutOfMemoryError(
        f"no memory for a buffer of {size / 2**20:,.0f} MiB",
        hint="use shorter prompts, fewer new tokens or a smaller batch",
    )
