"""A step that is ready: a graph bound to windows of the KV arena, twice, with small state that takes turns.

What a step reads and what the next one reads (input ids, lengths, step, counts) lie in two sets of buffers. Each
binding reads one set and writes the other, so a step runs one of two ready bindings and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from pad_runtime.bundle import contract
from pad_runtime.devices.binding import bind, upload
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.devices.provider import Graph

Array = npt.NDArray[Any]


class Run:
    """Steps of one set of windows.

    Args:
        graph: what runs.
        memory: makes the buffers.
        caches: KV inputs and outputs, by name.
        adapters: LoRA factors and feature heads, by input name; other runs may be bound to them too.
        arrays: all other inputs, as they are at first.
        state: the output that becomes each input of the next step, by input name.
        trace: shapes and types of the trace's outputs, by name; empty without a trace.

    Attributes:
        ahead: whether the device runs a step while the host has the ids of the one before.
    """

    def __init__(
        self,
        graph: Graph,
        memory: DeviceMemory,
        *,
        caches: tuple[Mapping[str, Buffer], Mapping[str, Buffer]],
        adapters: Mapping[str, Buffer],
        arrays: Mapping[str, Array],
        state: Mapping[str, str],
        trace: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]],
    ) -> None:
        # Copies: on a host a buffer is the array's own memory, and these will be written to.
        self._inputs = upload(graph, memory, {name: array.copy() for name, array in arrays.items()})
        self._next = {name: memory.zeros(arrays[name].shape, arrays[name].dtype) for name in state}
        self._ids = memory.ids(len(arrays[contract.BASE_ROW]))
        self._trace = {name: memory.zeros(shape, dtype) for name, (shape, dtype) in trace.items()}
        self._adapters = adapters  # they may be forgotten elsewhere, and this goes on reading them
        kept = {**caches[0], **adapters}
        turns = (self._inputs, {**self._inputs, **self._next})
        self._turns: list[Callable[[], object]] = []
        for turn in (0, 1):
            inputs = {**turns[turn], **kept}
            outputs = {state[name]: turns[1 - turn][name] for name in state}
            outputs |= {contract.NEXT_IDS: self._ids.buffer, **self._trace, **caches[1]}
            self._turns.append(self._ids.bind(bind(graph, inputs, outputs, repeated=True)))
        self._turn, self._is_ahead = 0, False
        self.ahead = self._ids.ahead
        self._take = self._ids.take

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Take other values of the same shapes: of other sequences in the same windows, or of changed sequences."""
        self.discard()
        for name, array in arrays.items():
            self._inputs[name].write(array)
        self._turn = 0

    def put(self, name: str, array: Array) -> None:
        """Change one input between two steps."""
        self._inputs[name].write(array)

    def step(self, *, run_ahead: bool) -> Sequence[int]:
        """One token for every sequence: a run that is ready, and nothing else.

        Args:
            run_ahead: the next step may be started before the ids of this one are taken, where a device runs it.
        """
        if not self._is_ahead:
            self._turns[self._turn]()
            self._turn ^= 1
        self._is_ahead = run_ahead
        if run_ahead:
            self._turns[self._turn]()
            self._turn ^= 1
        return self._take()

    def discard(self) -> None:
        """Discard a step that was started ahead."""
        self._ids.forget()
        self._is_ahead = False

    def trace(self) -> dict[str, Array]:
        """Copies of what the last step weighed, by output name."""
        return {name: buffer.read() for name, buffer in self._trace.items()}

    def __del__(self) -> None:
        """Wait for the pending copy before its buffers are freed."""
        if hasattr(self, "_ids"):
            self._ids.forget()
