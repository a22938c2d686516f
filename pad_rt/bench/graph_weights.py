"""Bytes of weights that a graph has, and that a step reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pad_runtime.bundle.onnx_file import OnnxFile

_LOOKUPS = {"Gather", "GatherBlockQuantized", "GroupQueryAttention"}  # operators that read rows of a table


@dataclass(frozen=True)
class GraphWeights:
    """Bytes of weights in a graph's external files; bytes that two tensors share are counted once.

    Attributes:
        stored: bytes of all weights.
        read: bytes of the weights that a step reads whole, without the tables in which it looks up rows.
    """

    stored: int
    read: int

    @classmethod
    def of(cls, path: Path) -> GraphWeights:
        """Count the weights of an ONNX file's graph.

        Raises:
            BundleError: the file is no ONNX file.
        """
        graph = OnnxFile.read(path)
        whole = {name for node in graph.nodes if node.op_type not in _LOOKUPS for name in node.inputs}
        stored = {(tensor.file, tensor.offset): tensor.length for tensor in graph.tensors}
        read = {(tensor.file, tensor.offset): tensor.length for tensor in graph.tensors if tensor.name in whole}
        return cls(sum(stored.values()), sum(read.values()))
