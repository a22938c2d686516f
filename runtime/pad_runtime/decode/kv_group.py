"""The KV caches of some layers of one trunk: buffers whose rows are lent out together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import TrunkInfo
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Window:
    """Rows side by side: the first and how many."""

    first: int
    count: int


@dataclass(frozen=True)
class Move:
    """The filled part of a row goes to another row.

    Attributes:
        source, target: rows.
        length: positions that are filled.
    """

    source: int
    target: int
    length: int


@dataclass(frozen=True)
class FilledRow:
    """The filled part of one row in one cache.

    Attributes:
        memory: that the cache is in.
        window: the cache's, of that row.
        length: positions that are filled.
    """

    memory: DeviceMemory
    window: Buffer
    length: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the cache."""
        return self.window.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """[kv_heads, length, head_dim]."""
        _, num_heads, _, head_dim = self.window.shape
        return (num_heads, self.length, head_dim)

    def read(self) -> Array:
        """A copy."""
        copied = self.memory.zeros((1, *self.shape), self.dtype)
        self.memory.copy(self.window, copied, self.length)
        whole = copied.read()
        return whole.reshape(self.shape)

    def write(self, array: Array) -> None:
        """Take over the values of an array of the same shape and type."""
        self.memory.copy(self.memory.upload(array[None]), self.window, self.length)


class KvGroup:
    """Keys and values of some layers, all with the same rows.

    Attributes:
        num_rows, capacity: of each buffer; 0 before the first `resize`.
    """

    def __init__(self, memory: DeviceMemory, trunk: TrunkInfo, layers: range, dtype: np.dtype[Any]) -> None:
        self._memory, self._trunk, self._dtype = memory, trunk, dtype
        self._at = at = contract.trunk_prefix(trunk.name)
        self._names = [
            (at + past(layer), at + present(layer))
            for layer in layers
            for past, present in (
                (contract.past_key, contract.present_key),
                (contract.past_value, contract.present_value),
            )
        ]
        self._buffers: dict[str, Buffer] = {}
        self.num_rows = self.capacity = 0

    @property
    def has_layers(self) -> bool:
        """Whether there is anything to cache."""
        return bool(self._names)

    @property
    def position_bytes(self) -> int:
        """Bytes of one position of a row, in all layers."""
        return len(self._names) * self._trunk.num_kv_heads * self._trunk.head_dim * self._dtype.itemsize

    def release(self) -> None:
        """Let the buffers go."""
        self._buffers, self.num_rows, self.capacity = {}, 0, 0

    def resize(self, num_rows: int, capacity: int, kept: Sequence[Move]) -> None:
        """Make the buffers anew, layer by layer; `kept` goes from rows of the old ones to rows of the new.

        Raises:
            OutOfMemoryError: they do not fit, and nothing is kept.
        """
        kept = [move for move in kept if move.length]
        old, self._buffers = self._buffers if kept else {}, {}  # where nothing is kept, the old go before the new come
        self.num_rows = self.capacity = 0
        for past, _ in self._names:
            new = self._memory.zeros(self._shape(num_rows, capacity), self._dtype)
            for move in kept:
                self._copy(old[past], new, move)
            self._buffers[past] = new
            old.pop(past, None)
        self.num_rows, self.capacity = num_rows, capacity

    def move(self, moves: Sequence[Move]) -> None:
        """Move rows to others at once, as if all were read before any is written."""
        moves = [move for move in moves if move.length and move.source != move.target]
        overlap = {move.source for move in moves} & {move.target for move in moves}
        for buffer in self._buffers.values() if moves else ():
            if not overlap:
                for move in moves:
                    self._copy(buffer, buffer, move)
                continue
            aside = self._memory.zeros(self._shape(len(moves), self.capacity), self._dtype)
            for number, move in enumerate(moves):
                self._copy(buffer, aside, Move(move.source, number, move.length))
            for number, move in enumerate(moves):
                self._copy(aside, buffer, Move(number, move.target, move.length))

    def inputs(self, window: Window) -> dict[str, Buffer]:
        """The caches of a window, by input name."""
        return {past: self._buffers[past].window(window.first, window.count) for past, _ in self._names}

    def outputs(self, window: Window) -> dict[str, Buffer]:
        """The same memory, by output name."""
        return {present: self._buffers[past].window(window.first, window.count) for past, present in self._names}

    def filled(self, row: int, length: int) -> dict[str, FilledRow]:
        """The first positions of a row in each cache, by input name."""
        memory = self._memory
        return {past: FilledRow(memory, self._buffers[past].window(row, 1), length) for past, _ in self._names}

    def _shape(self, num_rows: int, capacity: int) -> tuple[int, ...]:
        return (num_rows, self._trunk.num_kv_heads, capacity, self._trunk.head_dim)

    def _copy(self, source: Buffer, target: Buffer, move: Move) -> None:
        self._memory.copy(source.window(move.source, 1), target.window(move.target, 1), move.length)
