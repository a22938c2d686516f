"""An engine as its builder describes it, checked for being one piece with KV caches updated in place.

TensorRT-RTX lists the finished engine's kernels and tensors in its log, so that an engine can be checked on a machine
that cannot load it. A cache is updated in place if its output is an update of its input and no kernel reads the input
by name: reads after the update use the output's name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pad_runtime.bundle import contract
from pad_runtime.errors import EngineError

_KERNEL = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], (Constants|Outputs):"
)
_ONE_LAYER = re.compile(r"Metadata: (\[ONNX Layer: \S+\])$")  # of a kernel that computes a single layer
_REGION = re.compile(r"_myl(\d+)_\d+$")  # a piece of the graph that was compiled as one
_TENSOR = re.compile(
    r"^ Name: (?P<name>\S+), IOMode: (?P<mode>\w+), DataType: (?P<type>\w+), Dimensions: \[(?P<sizes>[-\d,]*)\], "
    r"Location: (?P<place>\w+),.*?ProfileInfo: \[(?P<profiles>.*)\]"
)
_SHAPES = re.compile(r"MinShape: \[([\d,]*)\], OptShape: \[([\d,]*)\], MaxShape: \[([\d,]*)\]")
_SPLITTING = ("PLUGIN", "LOOP", "TRIP_LIMIT", "RECURRENCE", "ITERATOR", "CONDITION", "NON_ZERO", "NMS")
_MAX_REPORTED = 3
# Most kernels of a layer's attention if one of them is dedicated: in prefill, two more copy keys and values for the
# heads that share them. A benchmark (`make engines`) compares this with what the library refuses.
_DEDICATED = {"prefill": 3, "decode": 1}


@dataclass(frozen=True)
class ListedTensor:
    """An input or output of an engine.

    Attributes:
        is_input: whether the engine reads it.
        type: TensorRT's name of its element type, such as "Half".
        shape: -1 where a size may change.
        on_host: whether the engine wants it in host memory.
        profiles: an input's least, tuned and largest shape in each profile.
    """

    is_input: bool
    type: str
    shape: tuple[int, ...]
    on_host: bool
    profiles: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class EngineReport:
    """What is inside an engine.

    Attributes:
        layers: the network's layers by type.
        updates: cache outputs, and the inputs that they update.
        kernels: the finished engine's kernels by kind, of each profile; empty where the builder lists none.
        attention: for each attention layer, the kernels of each profile that compute this layer and nothing else.
        outside: layers of the finished engine outside the one compiled piece of each profile, by kind.
        read: tensors that kernels read.
        tensors: the finished engine's inputs and outputs; empty where the builder lists none.
        size: bytes of the engine.
        seconds: time that building took.
    """

    layers: dict[str, int]
    updates: dict[str, str]
    kernels: tuple[dict[str, int], ...]
    attention: dict[str, tuple[int, ...]]
    outside: dict[str, int]
    read: frozenset[str]
    tensors: dict[str, ListedTensor]
    size: int
    seconds: float

    @classmethod
    def of(cls, network: Any, log: str, *, size: int, seconds: float) -> EngineReport:
        """Read a network and the builder's log of the engine made from it."""
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        attention = [layer.metadata for layer in layers if layer.type.name == "ATTENTION_OUTPUT"]
        kernels: dict[str, Counter[str]] = {}
        alone: Counter[tuple[str, str]] = Counter()  # number of kernels that compute one layer, by layer and profile
        outside: Counter[str] = Counter()
        read = set()
        tensors = {}
        for line in log.splitlines():
            if kernel := _KERNEL.match(line):
                region = _REGION.search(kernel["name"])
                (kernels.setdefault(region[1], Counter()) if region else outside)[kernel["kind"]] += 1
                if region and (layer := _ONE_LAYER.search(line)):
                    alone[layer[1], region[1]] += 1
                read |= set(re.findall(r"\{ Name: (\S+?)(?: \[profile \d+\])?,", kernel["inputs"]))
            elif tensor := _TENSOR.match(line):
                tensors[tensor["name"]] = ListedTensor(
                    is_input=tensor["mode"] == "Input",
                    type=tensor["type"],
                    shape=_sizes(tensor["sizes"]),
                    on_host=tensor["place"] == "Host",
                    profiles=tuple(tuple(map(_sizes, shapes)) for shapes in _SHAPES.findall(tensor["profiles"])),
                )
        return cls(
            layers=dict(Counter(layer.type.name for layer in layers)),
            updates={
                layer.get_output(0).name: layer.get_input(0).name
                for layer in layers
                if layer.type.name == "KV_CACHE_UPDATE"
            },
            kernels=tuple(map(dict, kernels.values())),
            attention={name: tuple(alone[name, profile] for profile in kernels) for name in attention if kernels},
            outside=dict(outside),
            read=frozenset(read),
            tensors=tensors,
            size=size,
            seconds=seconds,
        )

    @property
    def note(self) -> str | None:
        """A note if attention is slower than it could be, because the library has no dedicated kernel for it."""
        written_out = [counts for counts in self.attention.values() if _is_written_out(counts)]
        if not written_out:
            return None
        most = [max(counts) for counts in zip(*written_out, strict=True)]
        return (
            f"no dedicated kernel for the attention of {len(written_out)} of {len(self.attention)} layers, which is "
            f"written out: {' and '.join(map(str, most))} kernels a layer ({' and '.join(contract.ENGINE_PROFILES)})"
        )

    def check(self, caches: dict[str, str]) -> None:
        """Check that the engine is one piece and updates every KV cache in place.

        Args:
            caches: KV outputs, each with the input that it must share memory with.

        Raises:
            EngineError: names the layers or caches for which that does not hold.
        """
        found = [f"the layer type {name}" for name in self.layers if name.startswith(_SPLITTING)]
        found += [
            f"{output}, which is no update of {past} in place"
            for output, past in caches.items()
            if self.updates.get(output) != past or past in self.read
        ]
        if found:
            raise EngineError(
                f"the engine has {'; '.join(found[:_MAX_REPORTED])}"
                + (f"; and {len(found) - _MAX_REPORTED} more" if len(found) > _MAX_REPORTED else ""),
                hint="export the bundle again with this version of pad-export",
            )


def _is_written_out(counts: Sequence[int]) -> bool:
    """Whether a layer's attention takes more kernels in some profile than it does with a dedicated kernel."""
    return any(count > _DEDICATED[profile] for profile, count in zip(contract.ENGINE_PROFILES, counts, strict=True))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)
