"""What runs a bundle's graphs: a provider opens a graph, and a graph turns buffers into a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.cancellation import Cancellation
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph, as ONNX Runtime describes its own.

    Attributes:
        name: its name.
        type: such as "tensor(float16)".
        shape: an axis whose size may change is None or a name.
    """

    name: str
    type: str
    shape: Sequence[int | str | None]


class Graph(Protocol):
    """A graph of a bundle, opened: the compiled seam.

    Attributes:
        inputs, outputs: what it reads and writes.
        host_inputs: inputs that are read on the host, whatever the device, by the last part of their names.
    """

    inputs: Sequence[GraphTensor]
    outputs: Sequence[GraphTensor]
    host_inputs: frozenset[str]

    def bind(
        self,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        repeated: bool,
        cancellation: Cancellation | None = None,
    ) -> Callable[[], object]:
        """A run on these buffers, which must live as long as it does; a repeated one may be captured.

        A run without memory raises OutOfMemoryError; one whose end is wanted, whatever its library does.
        """


class Provider(Protocol):
    """Opens graphs on one device.

    Attributes:
        device: its name, as `pad_runtime.devices.choice.DEVICES` has it.
        freezes_host_inputs: whether a repeated run keeps the values that its host inputs had when it was made: another
            value needs another run.
        fixes_capacity: whether its graphs take KV caches of the bundle's max_length alone.
        memory: makes the buffers that its graphs read and write.
        version: the library and its version.
    """

    device: str
    freezes_host_inputs: bool
    fixes_capacity: bool
    memory: DeviceMemory

    @property
    def version(self) -> str:
        """The library and its version."""

    def open(self, graph: GraphFile, manifest: Manifest) -> Graph:
        """Open a graph of a bundle."""
