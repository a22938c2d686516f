"""Weight-only quantisation: a matrix as blocks of 32 weights along its input axis, each with a scale and a zero point.

w = scale * (code - zero_point), codes of 4 or 8 bits without a sign: what ONNX Runtime's MatMulNBits reads. Symmetric
blocks have their zero point in the middle: then code - zero_point is a number with a sign, what DequantizeLinear reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pad_runtime.bundle import contract

BLOCK_SIZE = contract.BLOCK_SIZE  # weights; also GGUF's
_SHRINK = (1.06, 1.03, 1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76)  # of the whole range, as `_fit` tries them
_FINE = 8  # bits, with which the whole range is good enough
_ROWS = 4096  # fitted at once: fitting takes several times their memory, and an embedding has many


@dataclass(frozen=True)
class Blocks:
    """One matrix [out, in], quantised.

    Attributes:
        codes: [out, in] uint8, each below 2 ** bits.
        scales: [out, in / 32] float32.
        zero_points: [out, in / 32] uint8, each below 2 ** bits.
    """

    bits: int
    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor

    @property
    def is_symmetric(self) -> bool:
        """Whether every zero point is the middle code."""
        return bool((self.zero_points == 2 ** (self.bits - 1)).all())

    def dequantise(self) -> torch.Tensor:
        """The matrix that these blocks stand for: [out, in] float32."""
        rows, columns = self.codes.shape
        offsets = self.codes.view(rows, -1, BLOCK_SIZE).float() - self.zero_points[..., None].float()
        return (offsets * self.scales[..., None]).view(rows, columns)

    def packed_codes(self) -> torch.Tensor:
        """Packed codes: [out, in / 32, 32 * bits / 8] uint8; of two codes in a byte the first is in the low half."""
        return _pack(self.codes, self.bits).view(len(self.codes), -1, BLOCK_SIZE * self.bits // 8)

    def packed_signed(self) -> torch.Tensor:
        """Symmetric 4-bit codes of the transposed matrix as signed numbers, packed alike: [in, out / 2] uint8."""
        return _pack((self.codes.T ^ 8).contiguous(), self.bits)  # two's complement: the top bit is flipped

    def packed_zero_points(self) -> torch.Tensor:
        """Zero points, packed alike, each row filled up to whole bytes: [out, ceil(in / 32 * bits / 8)] uint8."""
        return _pack(self.zero_points, self.bits)


def quantise(weight: torch.Tensor, bits: int, *, symmetric: bool = False) -> Blocks:
    """Find the scale and zero point of each block that leave the least squared error, and round to them.

    Args:
        weight: [out, in], `in` a multiple of 32.
        bits: 4 or 8.
        symmetric: keep every zero point at the middle code.
    """
    return concatenate([_quantise(rows, bits, symmetric) for rows in torch.split(weight, _ROWS)])


def _quantise(weight: torch.Tensor, bits: int, symmetric: bool) -> Blocks:
    rows, columns = weight.shape
    values = weight.float().view(-1, BLOCK_SIZE).T.contiguous()  # [32, blocks]
    scale, zero = fit_blocks(values, bits, torch.ones(BLOCK_SIZE), symmetric)
    codes = values.div_(scale).round_().add_(zero).clamp_(0, 2**bits - 1)
    return Blocks(
        bits,
        codes.T.to(torch.uint8).contiguous().view(rows, columns),
        scale.view(rows, -1),
        zero.view(rows, -1).to(torch.uint8),
    )


def fit_blocks(
    values: torch.Tensor, bits: int, importance: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points of blocks that leave the least squared error, weighted by importance.

    The range from the block's least to its largest weight is tried whole and narrowed: a narrower range clips extremes
    and makes every step finer.

    Args:
        values: [32, n], a block in each column.
        bits: 4 or 8.
        importance: [32].
        symmetric: keep every zero point at the middle code.

    Returns:
        [n] scales, of float32's precision, and [n] zero points.
    """
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = values.amin(0).clamp_(max=0), values.amax(0).clamp_(min=0)
    whole = torch.maximum(-low / middle, high / (top - middle)) if symmetric else (high - low) / top
    whole = whole.clamp_(min=torch.finfo(torch.float32).tiny)
    found: list[tuple[torch.Tensor, ...]] = []
    for shrink in _SHRINK if bits < _FINE else (1.0,):  # with 8 bits a narrower range gains nothing
        scale = (whole * shrink).float().to(values.dtype)
        zero = torch.full_like(scale, middle) if symmetric else (-low / scale).round_().clamp_(0, top)
        rounded = (values / scale).round_().clamp_(-zero, top - zero).mul_(scale)
        found.append((importance @ rounded.sub_(values).square_(), scale, zero))
    errors, scales, zeros = (torch.stack(parts) for parts in zip(*found, strict=True))  # [shrinks, n] each
    best = errors.argmin(0, keepdim=True)
    return scales.gather(0, best)[0], zeros.gather(0, best)[0]


def concatenate(parts: Sequence[Blocks]) -> Blocks:
    """Matrices of the same width as one matrix, one below the other."""
    return Blocks(
        parts[0].bits,
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales", "zero_points")),
    )


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, n] -> [rows, bytes]."""
    if bits == _FINE:
        return codes.contiguous()
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | codes[:, 1::2] << 4
