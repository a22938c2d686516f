"""The weights file of a bundle: tensors streamed to disk one by one, referred to by every graph of the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import onnx
import torch
from onnx import TensorProto

_ALIGNMENT = 4096  # a page: ONNX Runtime maps external tensors into memory only at page-aligned offsets
_ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.uint8: TensorProto.UINT8,
}


class WeightsFile:
    """Writes tensors one after the other and hands back external ONNX tensors that point at them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._tensors: dict[str, onnx.TensorProto] = {}

    def __enter__(self) -> WeightsFile:
        """Return the open file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def write(self, name: str, tensor: torch.Tensor) -> onnx.TensorProto:
        """Append `tensor` in its own dtype and shape. Nothing of it is kept in memory."""
        return self._write(name, tensor, _ELEMENT_TYPES[tensor.dtype], tensor.shape)

    def write_int4(self, name: str, packed: torch.Tensor, shape: Sequence[int]) -> onnx.TensorProto:
        """Append signed 4-bit numbers of that shape; `packed` has two in a byte, the first in the low half."""
        return self._write(name, packed, TensorProto.INT4, shape)

    def _write(self, name: str, tensor: torch.Tensor, element_type: int, shape: Sequence[int]) -> onnx.TensorProto:
        if name in self._tensors:
            raise ValueError(f"two weights are called {name}")
        tensor = tensor.detach().contiguous()
        self._file.seek(-self._file.tell() % _ALIGNMENT, 1)
        offset = self._file.tell()
        self._file.write(tensor.view(torch.uint8).numpy().data)
        proto = TensorProto(
            name=name,
            data_type=element_type,
            dims=list(shape),
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", self.path.name),
            ("offset", str(offset)),
            ("length", str(self._file.tell() - offset)),
        ):
            proto.external_data.add(key=key, value=value)
        self._tensors[name] = proto
        return proto

    def write_again(self, name: str, of: str, shape: Sequence[int]) -> None:
        """Give the bytes of the tensor `of` a second name and another shape of the same size."""
        proto = TensorProto()
        proto.CopyFrom(self._tensors[of])
        proto.name = name
        proto.dims[:] = shape
        self._tensors[name] = proto

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors that were written."""
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of that name was written."""
        return name in self._tensors

    def __getitem__(self, name: str) -> onnx.TensorProto:
        """The external tensor of that name."""
        return self._tensors[name]
