"""A thin ONNX graph writer: nodes in order, names that are paths, weights by reference to an external file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

IR_VERSION = 11
OPSET = 24
MICROSOFT = "com.microsoft"

Shape = Sequence[int | str]


class GraphWriter:
    """Collects nodes, inputs, outputs and initialisers of one model. Values are plain strings: their names."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._node_names: set[str] = set()

    def input(self, name: str, element_type: int, shape: Shape) -> str:
        """Declare a graph input; names on the shape are symbolic axes."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type, list(shape)))
        return name

    def output(self, value: str, element_type: int, shape: Shape) -> None:
        """Declare `value` as a graph output."""
        self._outputs.append(helper.make_tensor_value_info(value, element_type, list(shape)))

    def weight(self, tensor: onnx.TensorProto) -> str:
        """Use an external tensor (see `pad_export.weights.file`); the same one twice is one initialiser."""
        self._initializers.setdefault(tensor.name, tensor)
        return str(tensor.name)

    def constant(self, array: npt.ArrayLike, dtype: npt.DTypeLike, *, name: str = "") -> str:
        """An inline constant: a small one is named after its value, so that equal ones are one, a table by `name`."""
        value = np.asarray(array, dtype=dtype)
        if not name:
            text = "x".join(str(item) for item in value.reshape(-1).tolist()) or "empty"
            shape = "scalar" if value.ndim == 0 else "x".join(str(n) for n in value.shape)
            name = f"const/{value.dtype}/{shape}/{text}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(value, name)
        return name

    def op(self, op_type: str, *inputs: str, name: str, domain: str = "", output: str = "", **attributes: Any) -> str:
        """Append a node with one output (called `output`, or else after the node) and return that output."""
        return self.ops(op_type, *inputs, name=name, domain=domain, outputs=[output or name], **attributes)[0]

    def ops(
        self, op_type: str, *inputs: str, name: str, outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> Sequence[str]:
        """Append a node with several outputs; an empty output name leaves that output out."""
        if name in self._node_names:
            raise ValueError(f"two nodes are called {name}")
        self._node_names.add(name)
        self._nodes.append(
            helper.make_node(op_type, list(inputs), list(outputs), name=name, domain=domain, **attributes)
        )
        return outputs

    def model(self, producer_version: str) -> onnx.ModelProto:
        """The finished model: opset 24, plus the Microsoft domain where a node needs it."""
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values())
        )
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=IR_VERSION,
            producer_name="pad-export",
            producer_version=producer_version,
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        """Input names in order of declaration."""
        return tuple(value.name for value in self._inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Output names in order of declaration."""
        return tuple(value.name for value in self._outputs)


def element_type(float_type: str) -> int:
    """ONNX element type of a NumPy type by name."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(float_type)))


def torch_type(float_type: str) -> torch.dtype:
    """Torch's element type by name."""
    dtype: torch.dtype = getattr(torch, float_type)
    return dtype
