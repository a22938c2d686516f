"""How many bytes of weights a graph has, and how many one step reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pad_runtime.bundle.onnx_file import OnnxFile

_LOOKUPS = {"Gather", "GatherBlockQuantized", "GroupQueryAttention"}  # read a row of their table, not all of it


@dataclass(frozen=True)
class GraphWeights:
    """Bytes of weights in a graph's external files; what two tensors share is counted once.

    Attributes:
        stored: all of them.
        read: those that a step reads whole: all but tables in which rows are looked up.
    """

    stored: int
    read: int

    @classmethod
    def of(cls, path: Path) -> GraphWeights:
        """Of one ONNX file.

        Raises:
            BundleError: it is not one.
        """
        graph = OnnxFile.read(path)
        whole = {name for node in graph.nodes if node.op_type not in _LOOKUPS for name in node.inputs}
        stored = {(tensor.file, tensor.offset): tensor.length for tensor in graph.tensors}
        read = {(tensor.file, tensor.offset): tensor.length for tensor in graph.tensors if tensor.name in whole}
        return cls(sum(stored.values()), sum(read.values()))
