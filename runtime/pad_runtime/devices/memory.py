"""The memory that a provider's graphs read and write: the host's, or a CUDA device's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pad_runtime.decode.ids import CudaIds, HostIds, Ids
from pad_runtime.devices.buffers import Array, Buffer, CudaBuffer, HostBuffer, out_of_memory
from pad_runtime.devices.cuda import Cuda


class DeviceMemory:
    """Makes buffers.

    Args:
        cuda: the device; None is the host.
    """

    def __init__(self, cuda: Cuda | None) -> None:
        self._cuda = cuda

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Buffer:
        """A zeroed buffer on the device.

        Raises:
            OutOfMemoryError: says how much was asked for.
        """
        if self._cuda:
            return CudaBuffer(self._cuda, shape, dtype)
        try:
            return HostBuffer(np.zeros(shape, dtype))
        except MemoryError:
            raise out_of_memory(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize) from None

    def upload(self, array: Array, *, host: bool = False) -> Buffer:
        """A buffer holding `array`, on the device or, for inputs that are read there, the host.

        On the host it is the array's own memory.
        """
        if host or self._cuda is None:
            return HostBuffer(array)
        buffer = CudaBuffer(self._cuda, array.shape, array.dtype)
        buffer.write(array)
        return buffer

    def ids(self, count: int) -> Ids:
        """A place for int64 ids that a graph chooses."""
        return CudaIds(self._cuda, count) if self._cuda else HostIds(count)

    def synchronize(self) -> None:
        """Wait for all that the device has to do."""
        if self._cuda:
            self._cuda.synchronize()
