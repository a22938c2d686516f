"""Matrices that a bundle keeps in blocks, read back and dequantised, by their parameter names in transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import external_data_helper, numpy_helper

from pad_export.read.spec import SITE_MODULES
from pad_export.trunk import Trunk
from pad_export.weights.blocks import BLOCK_SIZE
from pad_export.weights.stream import lm_head_weight
from pad_runtime.bundle import contract


class StoredWeights:
    """Gives a trunk's parameters as the bundle's blocks have them, and None for those that it keeps whole."""

    def __init__(self, folder: Path, graph_file: str, trunk: Trunk) -> None:
        """Read the graph; weights are read when asked for.

        Args:
            folder: the bundle.
            graph_file: name of a graph that has the trunk.
            trunk: the trunk.
        """
        model = onnx.load(folder / graph_file, load_external_data=False)
        self._folder = folder
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._places: dict[str, tuple[str, int, int | None]] = {
            "model.embed_tokens.weight": (trunk.weight(contract.EMBEDDING), 0, None),
            "lm_head.weight": (lm_head_weight(trunk, self._tensors), 0, None),
        }  # parameter -> the bundle's tensor, and its first and last rows there
        for layer in range(trunk.spec.num_layers):
            for site, modules in SITE_MODULES.items():
                first = 0
                for module in modules:
                    name = f"model.layers.{layer}.{module}.weight"
                    end = first + trunk.checkpoint.shape(name)[0]
                    self._places[name] = (trunk.linear(layer, site), first, end)
                    first = end

    def __bool__(self) -> bool:
        """Whether anything is kept in blocks."""
        return any(name.endswith((".codes", ".int4")) for name in self._tensors)

    def __call__(self, parameter: str) -> torch.Tensor | None:
        """The parameter [out, in] in float32, or None."""
        name, first, end = self._places.get(parameter, ("", 0, None))
        if f"{name}.int4" in self._tensors:
            return self._read_signed(name)[first:end]
        if f"{name}.codes" not in self._tensors and f"{name}.rows" not in self._tensors:
            return None
        scales = self._read(f"{name}.scales")[first:end]  # [out, in / 32]
        rows, num_blocks = scales.shape
        codes = "codes" if f"{name}.codes" in self._tensors else "rows"
        packed = self._read(f"{name}.{codes}")[first:end].reshape(rows, -1)
        columns = num_blocks * BLOCK_SIZE
        offsets = _unpack(packed, columns).reshape(rows, num_blocks, BLOCK_SIZE).astype(np.float32)
        offsets -= _unpack(self._read(f"{name}.zero_points")[first:end], num_blocks)[..., None]
        return torch.from_numpy((offsets * scales[..., None]).reshape(rows, columns))

    def _read_signed(self, name: str) -> torch.Tensor:
        """A matrix [out, in] that is stored transposed, in symmetric blocks."""
        scales = self._read(f"{name}.scales").astype(np.float32)  # [in / 32, out]
        values = self._read(f"{name}.int4").astype(np.float32) * scales.repeat(BLOCK_SIZE, axis=0)
        return torch.from_numpy(values.T.copy())

    def _read(self, name: str) -> np.ndarray:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(self._tensors[name])
        external_data_helper.load_external_data_for_tensor(tensor, str(self._folder))
        array: np.ndarray = numpy_helper.to_array(tensor)
        return array


def _unpack(packed: np.ndarray, count: int) -> np.ndarray:
    """Codes of `count` columns from bytes that hold one code each, or two, the first in the low half."""
    if packed.shape[1] == count:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :count]
