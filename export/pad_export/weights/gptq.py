"""GPTQ: a matrix is rounded column by column, and the later columns make up for the error of those before.

With H = R R^T the inputs' second moments and R upper triangular, rounding a row w to q changes its outputs by
sum_c (R_cc (v_c - q_c))^2, where v_c is column c plus the errors that the columns before it left:

    v_c = w_c + sum_{k < c} (w_k - q_k) R_kc / R_cc

Each q_c is the number nearest to v_c (arXiv 2210.17323; in this form, without an inverse of H, Babai's nearest plane:
2507.18553). Columns that the inputs use most are rounded first, in whole blocks, so that many columns are left to make
up for their errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from pad_export.weights.blocks import BLOCK_SIZE, Blocks, concatenate, fit_blocks
from pad_runtime.errors import CheckpointError

_ROWS = 1024  # rounded at once by a thread: a block of their columns fits into the cache
_TOKENS = 512  # their products are summed in float32, before the sums are added in float64
_COLUMNS = 128  # columns of the moments' upper triangle that a thread computes; the lower triangle mirrors it
_DAMPING = 0.01  # share of the mean moment that is added to each: columns that the text hardly uses change little


def second_moments(inputs: torch.Tensor) -> torch.Tensor:
    """The sum of x x^T over inputs [.., in]: [in, in] float64."""
    columns = inputs.shape[-1]
    moments = torch.zeros(columns, columns, dtype=torch.float64)
    parts = torch.split(inputs.reshape(-1, columns), _TOKENS)

    def add(start: int) -> None:
        strip = slice(start, start + _COLUMNS)
        for part in parts:
            moments[strip, start:] += part[:, strip].T @ part[:, start:]

    with _single_threads() as pool:
        list(pool.map(add, range(0, columns, _COLUMNS)))
    return moments.triu_() + moments.triu(1).T


def quantise_for(weight: torch.Tensor, bits: int, moments: torch.Tensor, *, symmetric: bool = False) -> Blocks:
    """Round a matrix for inputs of known second moments.

    All arithmetic is in float64, so that equal moments give equal codes on every machine.

    Args:
        weight: [out, in], `in` a multiple of 32.
        bits: 4 or 8.
        moments: [in, in] float64, the sum of x x^T over the inputs.
        symmetric: keep every zero point at the middle code.
    """
    order = _order(moments.diag())
    root = _root(moments, order)
    with _single_threads() as pool:
        parts = pool.map(lambda rows: _round_columns(rows, bits, order, root, symmetric), torch.split(weight, _ROWS))
        return concatenate(list(parts))


def _order(importance: torch.Tensor) -> torch.Tensor:
    """The columns in the order of rounding, [in]: blocks by mean importance, columns in a block by importance."""
    blocks = importance.view(-1, BLOCK_SIZE)
    first = blocks.mean(1).argsort(dim=0, descending=True, stable=True)
    inside = blocks.argsort(dim=1, descending=True, stable=True)
    return (first[:, None] * BLOCK_SIZE + inside[first]).view(-1)


def _root(moments: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """R, upper triangular, of the damped moments in the order of rounding: [in, in]."""
    if not moments.isfinite().all():
        raise CheckpointError(
            "the model's activations on the calibration text are not finite",
            expected="a model that computes numbers in float32",
            hint="check the checkpoint, or pass --precision fp32",
        )
    back = order.flip(0)
    damped = moments[back][:, back]
    damped.diagonal().add_(_DAMPING * moments.diag().mean().clamp(min=1e-8))
    root: torch.Tensor = torch.linalg.cholesky(damped).flip(0, 1)
    return root


def _round_columns(weight: torch.Tensor, bits: int, order: torch.Tensor, root: torch.Tensor, symmetric: bool) -> Blocks:
    """Round rows [out, in]. They are transposed meanwhile, so that a column is contiguous in memory."""
    rows, columns = weight.shape
    importance = root.diag().square()
    lost = weight.T[order].double()  # [in, out]: w, and w - q for the blocks that are rounded
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    scales = torch.empty(columns // BLOCK_SIZE, rows)
    zeros = torch.empty(columns // BLOCK_SIZE, rows, dtype=torch.uint8)
    for start in range(0, columns, BLOCK_SIZE):
        part = slice(start, start + BLOCK_SIZE)
        own = root[part, part]
        carried = torch.linalg.solve_triangular(own.T, root[:start, part].T, upper=False)
        wanted = lost[part].addmm(carried, lost[:start])  # [32, out]: with the errors of the blocks before
        scale, zero = fit_blocks(wanted, bits, importance[part], symmetric)
        left, rounded = wanted.clone(), torch.empty_like(wanted)  # errors so far; codes minus zero points
        lowest, highest, shares = -zero, 2**bits - 1 - zero, own / own.diag()
        for column in range(BLOCK_SIZE):
            torch.addmv(left[column], left[:column].T, shares[:column, column], out=rounded[column])
            rounded[column].div_(scale).round_().clamp_(lowest, highest)
            left[column].addcmul_(rounded[column], scale, value=-1)
        scale = _refit(wanted, rounded, own, scale)
        lost[part].addcmul_(rounded, scale, value=-1)
        codes[order[part]] = rounded.add_(zero).to(torch.uint8)
        block = int(order[start]) // BLOCK_SIZE
        scales[block], zeros[block] = scale, zero
    return Blocks(bits, *(columns.T.contiguous() for columns in (codes, scales, zeros)))


def _refit(wanted: torch.Tensor, rounded: torch.Tensor, root: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scales [n], in float32's precision, with the least error for a block's codes [32, n]; `root` is [32, 32]."""
    targets, steps = root.T @ wanted, root.T @ rounded
    squares = steps.square().sum(0)
    best = ((targets * steps).sum(0) / squares).float().to(scale.dtype)
    return torch.where(best > 0, best, scale)  # of codes that are all zero, the scale does not matter


@contextmanager
def _single_threads() -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as torch has, while torch itself uses one thread for each operation.

    Torch would split every operation among its threads and let them wait for one another. For small operations, beside
    a busy process, that waiting would take most of the time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
