"""What the builder says of an engine that it made, and what must be true of it.

TensorRT-RTX lists the finished engine's kernels and tensors in its log, so that an engine can be looked into on a
machine that cannot load it. A cache is updated in place when its output is an update of its input, and no kernel reads
the input by its own name: the output stands for both.
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
_ONE_LAYER = re.compile(r"Metadata: (\[ONNX Layer: \S+\])$")  # of a kernel that does no other layer's work
_REGION = re.compile(r"_myl(\d+)_\d+$")  # a piece of the graph that was compiled as one
_TENSOR = re.compile(
    r"^ Name: (?P<name>\S+), IOMode: (?P<mode>\w+), DataType: (?P<type>\w+), Dimensions: \[(?P<sizes>[-\d,]*)\], "
    r"Location: (?P<place>\w+),.*?ProfileInfo: \[(?P<profiles>.*)\]"
)
_SHAPES = re.compile(r"MinShape: \[([\d,]*)\], OptShape: \[([\d,]*)\], MaxShape: \[([\d,]*)\]")
_SPLITTING = ("PLUGIN", "LOOP", "TRIP_LIMIT", "RECURRENCE", "ITERATOR", "CONDITION", "NON_ZERO", "NMS")
_MAX_REPORTED = 3
# Kernels of one layer's attention at most, where one of them is dedicated: beside it, a prompt's keys and values are
# copied for the heads that share them. benchmarks/attention_kernels.py holds this against what the library refuses.
_DEDICATED = {"prefill": 3, "decode": 1}


@dataclass(frozen=True)
class EngineTensor:
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
    """An engine from inside.

    Attributes:
        layers: the network's layers by type.
        updates: cache outputs, and the inputs that they update.
        kernels: the finished engine's kernels by kind, of each profile; empty where the builder lists none.
        attention: kernels that do nothing but the attention of one layer, of each attention layer and profile.
        outside: layers of the finished engine that are in no profile's one piece, by kind.
        read: tensors that those kernels read.
        tensors: the finished engine's inputs and outputs; empty where the builder lists none.
        size: bytes.
        seconds: what building took.
    """

    layers: dict[str, int]
    updates: dict[str, str]
    kernels: tuple[dict[str, int], ...]
    attention: dict[str, tuple[int, ...]]
    outside: dict[str, int]
    read: frozenset[str]
    tensors: dict[str, EngineTensor]
    size: int
    seconds: float

    @classmethod
    def of(cls, network: Any, log: str, *, size: int, seconds: float) -> EngineReport:
        """Read a network and what the builder logged of the engine that came of it."""
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        attention = [layer.metadata for layer in layers if layer.type.name == "ATTENTION_OUTPUT"]
        kernels: dict[str, Counter[str]] = {}
        alone: Counter[tuple[str, str]] = Counter()  # kernels by the one layer that they do, and profile
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
                tensors[tensor["name"]] = EngineTensor(
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
        """What is slower than it could be: attention that the library has no dedicated kernel for."""
        written_out = [counts for counts in self.attention.values() if _is_written_out(counts)]
        if not written_out:
            return None
        most = [max(counts) for counts in zip(*written_out, strict=True)]
        return (
            f"no dedicated kernel for the attention of {len(written_out)} of {len(self.attention)} layers, which is "
            f"written out: {' and '.join(map(str, most))} kernels a layer ({' and '.join(contract.ENGINE_PROFILES)})"
        )

    def check(self, caches: dict[str, str]) -> None:
        """Hold the engine to being one piece, with every cache updated in place.

        Args:
            caches: outputs and the inputs that they must share memory with.

        Raises:
            EngineError: says which are not.
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
    """Whether attention takes more kernels in one of the profiles than with a dedicated one."""
    return any(count > _DEDICATED[profile] for profile, count in zip(contract.ENGINE_PROFILES, counts, strict=True))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)
