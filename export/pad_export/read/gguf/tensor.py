"""A tensor of a GGUF file, read as in a Hugging Face model: dequantised, with the converter's changes undone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType

from pad_export.read.gguf.header import GgufTensor
from pad_export.read.gguf.metadata import UNCLEAR
from pad_export.weights.blocks import BLOCK_SIZE, Blocks
from pad_runtime.errors import CheckpointError

_T = TypeVar("_T", bound=np.generic)

_SLICE = 1 << 20  # numbers that are dequantised at once: gguf holds several copies of them
# (stored type, wanted bits) -> zero point with which the blocks mean the same
_ZERO_POINTS = {
    (GGMLQuantizationType.Q4_0, 4): 8,
    (GGMLQuantizationType.Q4_0, 8): 128,
    (GGMLQuantizationType.Q8_0, 8): 128,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file and what the converter did to it.

    Attributes:
        path: the file.
        tensor: place and type of the tensor.
        num_heads: attention heads whose rotary rows were interleaved, 0 for none.
        norm_offset: number that was added to every element.
    """

    path: Path
    tensor: GgufTensor
    num_heads: int = 0
    norm_offset: float = 0.0

    def check(self) -> None:
        """Raise CheckpointError if the gguf package cannot dequantise the tensor's type; nothing is read."""
        self._dequantise(np.zeros((1, gguf.GGML_QUANT_SIZES[self.tensor.kind][1]), np.uint8))

    def read(self) -> npt.NDArray[np.float32]:
        """Return the tensor, dequantised a slice of rows at a time.

        Raises:
            CheckpointError: a type that the gguf package cannot dequantise, or a file that was removed or cut.
        """
        *_, columns = self.tensor.shape
        rows = int(np.prod(self.tensor.shape[:-1]))
        row_bytes = self.tensor.nbytes // rows
        values = np.empty((rows, columns), np.float32)
        step = max(1, _SLICE // columns)
        with self._open() as file:
            for first in range(0, rows, step):
                num_rows = min(step, rows - first)
                raw = self._read_bytes(file, num_rows * row_bytes).reshape(num_rows, row_bytes)
                values[first : first + num_rows] = self._dequantise(raw)
        if self.norm_offset:
            values -= np.float32(self.norm_offset)
        values = values.reshape(self.tensor.shape)
        return _split_rotary_halves(values, self.num_heads) if self.num_heads else values

    def read_blocks(self, bits: int) -> Blocks | None:
        """Return a matrix in its stored blocks, or None if `bits` bits with an integer zero point cannot hold them.

        Q4_0 and Q8_0 can be held. Q4_1 cannot: the minimum of its blocks is no multiple of their scale. Each block is a
        float16 scale, then its codes. In Q4_0, the codes of a block's first half are in the low four bits of the bytes,
        those of the second half in the high ones.
        """
        zero = _ZERO_POINTS.get((self.tensor.kind, bits))
        if zero is None:
            return None
        with self._open() as file:
            raw = self._read_bytes(file, self.tensor.nbytes)
        rows, columns = self.tensor.shape
        stored = raw.reshape(rows, columns // BLOCK_SIZE, -1)  # [out, in / 32, bytes of a block]
        scales = np.ascontiguousarray(stored[..., :2]).view(np.float16)[..., 0].astype(np.float32)
        codes = stored[..., 2:]
        if self.tensor.kind == GGMLQuantizationType.Q4_0:
            codes = np.concatenate([codes & 15, codes >> 4], axis=-1) + np.uint8(zero - 8)
        else:
            codes = codes ^ np.uint8(zero)  # from two's complement to an offset of 128
        codes = codes.reshape(rows, columns)
        if self.num_heads:
            codes = _split_rotary_halves(codes, self.num_heads)
            scales = _split_rotary_halves(scales, self.num_heads)
        zero_points = torch.full(scales.shape, zero, dtype=torch.uint8)
        return Blocks(bits, torch.from_numpy(codes), torch.from_numpy(scales), zero_points)

    def _open(self) -> BinaryIO:
        """Open the file at the start of the tensor."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be read any more ({error.strerror})", expected="the file that was opened"
            ) from error
        file.seek(self.tensor.offset)
        return file

    def _read_bytes(self, file: BinaryIO, count: int) -> npt.NDArray[np.uint8]:
        raw = np.fromfile(file, np.uint8, count)
        if len(raw) < count:
            raise CheckpointError(
                f"{self.path} ends within {self.tensor.name}", expected="a whole GGUF file", hint="download it again"
            )
        return raw

    def _dequantise(self, raw: npt.NDArray[np.uint8]) -> Any:
        try:
            return gguf.quants.dequantize(raw, self.tensor.kind)
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} stores {self.tensor.name} as {self.tensor.kind.name}, which the gguf package cannot read",
                expected="a quantisation that it can",
                hint=UNCLEAR,
            ) from error


def _split_rotary_halves(values: npt.NDArray[_T], num_heads: int) -> npt.NDArray[_T]:
    """Reorder each head's rows from llama.cpp's (0, d/2, 1, d/2 + 1, ...) back to (0, 1, ..., d - 1).

    Args:
        values: [heads * head_dim, ...], weight or bias of a query or key projection.
        num_heads: heads of that projection.
    """
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])  # [heads, head_dim / 2, half, ...]
    return pairs.swapaxes(1, 2).reshape(values.shape)
