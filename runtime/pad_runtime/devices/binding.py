"""Arrays and buffers by name, bound to a graph that takes them in an order of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from pad_runtime.cancellation import Cancellation
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.devices.provider import Graph

Array = npt.NDArray[Any]


def is_on_host(graph: Graph, name: str) -> bool:
    """Whether a graph reads an input on the host, whatever its device."""
    return name.rpartition(".")[2] in graph.host_inputs


def upload(graph: Graph, memory: DeviceMemory, arrays: Mapping[str, Array]) -> dict[str, Buffer]:
    """Buffers of inputs, each where the graph reads it. On a host a buffer is the array's own memory."""
    return {name: memory.upload(array, host=is_on_host(graph, name)) for name, array in arrays.items()}


def bind(
    graph: Graph,
    inputs: Mapping[str, Buffer],
    outputs: Mapping[str, Buffer],
    *,
    repeated: bool,
    cancellation: Cancellation | None = None,
) -> Callable[[], object]:
    """A run of a graph on buffers, which must live as long as it does; see `Graph.bind`.

    Args:
        graph: what runs.
        inputs: all that it takes, and maybe others, which are left out.
        outputs: as `inputs`; what is not given is thrown away.
        repeated, cancellation: as for `Graph.bind`.
    """
    return graph.bind(
        {value.name: inputs[value.name] for value in graph.inputs},
        {value.name: outputs[value.name] for value in graph.outputs if value.name in outputs},
        repeated=repeated,
        cancellation=cancellation,
    )
