"""Weight-only quantisation: a matrix as blocks of 32 weights along its input axis, each with a scale and a zero point.

w = scale * (code - zero_point), codes of 4 or 8 bits without a sign: what ONNX Runtime's MatMulNBits reads. Symmetric
blocks have their zero point in the middle: then code - zero_point is a number with a sign, what DequantizeLinear reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

BLOCK = 32  # weights; also GGUF's
_SHRINK = (1.06, 1.03, 1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76)  # of the whole range, as `_fit` tries them
_FINE = 8  # bits
_ROWS = 16384  # fitted at once: an lm_head has many, and each is fitted by itself
_DAMPING = 0.01  # of the mean moment, added to each: columns that the text hardly uses stay near their own values


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
        offsets = self.codes.view(rows, -1, BLOCK).float() - self.zero_points[..., None].float()
        return (offsets * self.scales[..., None]).view(rows, columns)

    def packed_codes(self) -> torch.Tensor:
        """Codes as they lie in memory: [out, in / 32, 32 * bits / 8] uint8, of two in a byte the first below."""
        return _pack(self.codes, self.bits).view(len(self.codes), -1, BLOCK * self.bits // 8)

    def packed_signed(self) -> torch.Tensor:
        """Symmetric 4-bit codes as signed numbers, of the transposed matrix: [in, out / 2] uint8, the first below."""
        return _pack((self.codes.T ^ 8).contiguous(), self.bits)  # two's complement: the top bit turns over

    def packed_zero_points(self) -> torch.Tensor:
        """Zero points in the same way, each row filled up to whole bytes: [out, ceil(in / 32 * bits / 8)] uint8."""
        return _pack(self.zero_points, self.bits)


def quantise(weight: torch.Tensor, bits: int, *, symmetric: bool = False) -> Blocks:
    """Find the scale and zero point of each block that leave the least squared error, and round to them.

    The range from the block's least to its largest weight is tried whole and narrowed: giving up an extreme makes every
    step finer.

    Args:
        weight: [out, in], `in` a multiple of 32.
        bits: 4 or 8.
        symmetric: keep every zero point at the middle code.
    """
    blocks = weight.float().view(len(weight), -1, BLOCK)
    scale, zero = _fit(blocks, bits, torch.ones(BLOCK), symmetric)
    codes = _round(blocks, scale, zero, bits)
    return _blocks(bits, codes.view(weight.shape), scale, zero)


def quantise_for(weight: torch.Tensor, bits: int, moments: torch.Tensor, *, symmetric: bool = False) -> Blocks:
    """The same, for inputs of known second moments: what rounding one column loses, those after it make up for (GPTQ).

    Args:
        weight: [out, in].
        bits: 4 or 8.
        moments: [in, in], the sum of x x^T over the inputs.
        symmetric: keep every zero point at the middle code.
    """
    damped = moments.double() + torch.eye(len(moments)) * (_DAMPING * moments.diag().mean().clamp(min=1e-8))
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True).float()
    parts = [_compensate(rows, bits, moments.diag(), inverse, symmetric) for rows in torch.split(weight, _ROWS)]
    return parts[0] if len(parts) == 1 else concatenate(parts)


def _compensate(
    weight: torch.Tensor, bits: int, importance: torch.Tensor, inverse: torch.Tensor, symmetric: bool
) -> Blocks:
    """Round column by column; `inverse` is the upper Cholesky factor of the inverse moments, [in, in]."""
    rows, columns = weight.shape
    left = weight.float().clone()
    codes = torch.empty_like(left)
    scales, zeros = (torch.empty(rows, columns // BLOCK) for _ in range(2))
    for start in range(0, columns, BLOCK):
        block, part = left[:, start : start + BLOCK], slice(start, start + BLOCK)
        scale, zero = _fit(block[:, None], bits, importance[part], symmetric)
        scale, zero = scale[:, 0], zero[:, 0]  # [out, 1]
        errors = torch.empty_like(block)
        for column in range(BLOCK):
            value = block[:, column : column + 1]
            code = _round(value, scale, zero, bits)
            error = (value - (code - zero) * scale) / inverse[start + column, start + column]
            block[:, column + 1 :] -= error @ inverse[start + column, start + column + 1 : start + BLOCK][None]
            codes[:, start + column], errors[:, column] = code[:, 0], error[:, 0]
        left[:, start + BLOCK :] -= errors @ inverse[part, start + BLOCK :]
        scales[:, start // BLOCK], zeros[:, start // BLOCK] = scale[:, 0], zero[:, 0]
    return _blocks(bits, codes, scales, zeros)


def _fit(
    blocks: torch.Tensor, bits: int, importance: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point, [out, n, 1] each, of blocks [out, n, 32] that leave the least error, weighed by column."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    low = blocks.amin(-1, keepdim=True).clamp(max=0)
    high = blocks.amax(-1, keepdim=True).clamp(min=0)
    steps = torch.maximum(-low / middle, high / (top - middle)) if symmetric else (high - low) / top
    whole = steps.clamp(min=torch.finfo(torch.float32).tiny)
    best: tuple[torch.Tensor, ...] = ()
    for shrink in _SHRINK if bits < _FINE else (1.0,):  # with 8 bits there is nothing to win
        scale = whole * shrink
        zero = torch.full_like(scale, middle) if symmetric else (-low / scale).round().clamp(0, top)
        rounded = (_round(blocks, scale, zero, bits) - zero) * scale
        error = ((rounded - blocks).square_() * importance).sum(-1, keepdim=True)
        if not best:
            best = (error, scale, zero)
        else:
            better = error < best[0]
            best = tuple(torch.where(better, new, old) for new, old in zip((error, scale, zero), best, strict=True))
    return best[1], best[2]


def _round(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest codes, in the values' own element type."""
    return ((values / scale).round_() + zero).clamp_(0, 2**bits - 1)


def _blocks(bits: int, codes: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor) -> Blocks:
    rows = len(codes)
    return Blocks(
        bits,
        codes.to(torch.uint8),
        scales.reshape(rows, -1).contiguous(),
        zero_points.reshape(rows, -1).to(torch.uint8),
    )


def concatenate(parts: Sequence[Blocks]) -> Blocks:
    """Matrices of the same width, one below the other."""
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
