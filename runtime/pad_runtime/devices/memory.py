"""The memory that a provider's graphs read and write: the host's, or a CUDA device's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pad_runtime.devices.buffers import Array, Buffer, CudaBuffer, HostBuffer
from pad_runtime.devices.cuda import Cuda
from pad_runtime.devices.ids import CudaIds, HostIds, Ids
from pad_runtime.errors import out_of_memory


class DeviceMemory:
    """Makes buffers, and copies from one to another.

    Args:
        cuda: the device; None is the host.
    """

    def __init__(self, cuda: Cuda | None) -> None:
        self._cuda = cuda

    @property
    def runs_ahead(self) -> bool:
        """Whether a run may be started before the ids of the one before are taken."""
        return self._cuda is not None

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
            raise out_of_memory(math.prod(shape) * np.dtype(dtype).itemsize) from None

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

    def copy(self, source: Buffer, target: Buffer, length: int) -> None:
        """Copy the first `length` positions of every row and head of a KV cache; the target's other positions stay.

        A device does so on its stream, after what was started before: nobody waits.

        Args:
            source, target: [rows, heads, capacity, head_dim] of one type, made by this memory. They may differ in
                capacity, and be windows of one buffer: the same rows, or rows of which none is in both.
            length: positions, at most either capacity.

        Raises:
            ValueError: they do not go together, or overlap.
        """
        _check_fit(source, target, length)
        slot, num_heads = source.shape[3] * source.dtype.itemsize, math.prod(source.shape[:2])  # bytes; of all rows
        if source.address == target.address or not (length and num_heads):
            return
        pitch, target_pitch = source.shape[2] * slot, target.shape[2] * slot
        ends = source.address + num_heads * pitch, target.address + num_heads * target_pitch
        if max(source.address, target.address) < min(ends):
            raise ValueError(f"rows of {list(source.shape)} and {list(target.shape)} that overlap")
        if isinstance(source, HostBuffer) and isinstance(target, HostBuffer):
            target.array[:, :, :length] = source.array[:, :, :length]
        elif self._cuda:
            self._cuda.copy_rows(target.address, target_pitch, source.address, pitch, length * slot, num_heads)

    def synchronize(self) -> None:
        """Wait for all that the device has to do."""
        if self._cuda:
            self._cuda.synchronize()


def _check_fit(source: Buffer, target: Buffer, length: int) -> None:
    """Whether two caches differ in nothing but their capacities, and both have that many positions."""
    (*sizes, capacity, width), (*target_sizes, target_capacity, target_width) = source.shape, target.shape
    alike = (sizes, width, source.dtype) == (target_sizes, target_width, target.dtype)
    if not alike or not 0 <= length <= min(capacity, target_capacity):
        described = [f"{list(each.shape)} {each.dtype}" for each in (source, target)]
        raise ValueError(f"{length} positions of {described[0]} to {described[1]}")
