"""What runs a bundle's graphs: a provider opens a graph, and a graph turns buffers into a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.cancellation import Cancellation
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory


class Graph(Protocol):
    """A graph of a bundle, opened: the compiled seam.

    Attributes:
        inputs, outputs: each with .name, .type ("tensor(float16)") and .shape.
        host_inputs: inputs that are read on the host, whatever the device, by the last part of their names.
        capacity: slots that its KV caches must have; None: any number.
    """

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    host_inputs: frozenset[str]
    capacity: int | None

    def bind(
        self,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        repeated: bool,
        cancellation: Cancellation | None = None,
    ) -> Callable[[], object]:
        """A run on these buffers, which must live as long as it does; a repeated one may be captured.

        Where the end of a run is wanted that takes long, it raises whatever its library does.
        """


class Provider(Protocol):
    """Opens graphs on one device.

    Attributes:
        device: its name, as `pad_runtime.devices.choice.DEVICES` has it.
        freezes_host_inputs: whether a repeated run keeps the values that its host inputs had when it was made: another
            value needs another run.
        memory: makes the buffers that its graphs read and write.
        version: the library and its version.
    """

    device: str
    freezes_host_inputs: bool
    memory: DeviceMemory

    @property
    def version(self) -> str:
        """The library and its version."""

    def open(self, graph: GraphFile, manifest: Manifest) -> Graph:
        """Open one of a bundle's graphs."""
