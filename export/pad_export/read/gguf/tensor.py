"""One tensor of a GGUF file, read as Hugging Face has it: dequantised, its rotary rows and norm weights put back."""

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
from pad_export.weights.blocks import BLOCK, Blocks
from pad_runtime.errors import CheckpointError

_T = TypeVar("_T", bound=np.generic)

_SLICE = 1 << 20  # numbers that are dequantised at once: gguf's arithmetic holds several copies of what it works on
# (stored as, bits wanted) -> the zero point that says the same
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
        tensor: where it lies, and how it is stored.
        num_heads: heads whose rotary rows were interleaved, 0 for none.
        norm_offset: what was added to every number.
    """

    path: Path
    tensor: GgufTensor
    num_heads: int = 0
    norm_offset: float = 0.0

    def check(self) -> None:
        """Raise CheckpointError where the gguf package cannot undo how the tensor is stored: nothing is read."""
        self._dequantise(np.zeros((1, gguf.GGML_QUANT_SIZES[self.tensor.kind][1]), np.uint8))

    def read(self) -> npt.NDArray[np.float32]:
        """Return the tensor, dequantised a slice of rows at a time.

        Raises:
            CheckpointError: a quantisation that the gguf package cannot undo, or a file that is gone or became shorter.
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
        """Return a matrix as it is stored, or None where `bits` bits with an integer zero point cannot say the same.

        Q4_0 and Q8_0 can be said; Q4_1, whose blocks have a minimum that is no multiple of their scale, cannot. Each
        block is a float16 scale, then its codes. Q4_0 keeps the codes of a block's first half in the low four bits of
        its bytes, and those of the second in the high.
        """
        zero = _ZERO_POINTS.get((self.tensor.kind, bits))
        if zero is None:
            return None
        with self._open() as file:
            raw = self._read_bytes(file, self.tensor.nbytes)
        rows, columns = self.tensor.shape
        stored = raw.reshape(rows, columns // BLOCK, -1)  # [out, in / 32, bytes of a block]
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
        """The file, to be read from the tensor on."""
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
