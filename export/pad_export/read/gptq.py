"""GPTQ: a matrix rounded for the inputs that it will multiply: what one column loses, those after it make up for.

With H = R R^T the inputs' second moments and R upper triangular, rounding a row w to q changes its outputs by
sum_c (R_cc (v_c - q_c))^2, where v_c is column c with what the columns before it lost:

    v_c = w_c + sum_{k < c} (w_k - q_k) R_kc / R_cc

Each q_c is the number nearest to v_c (arXiv 2210.17323; in this form, with no inverse of H, Babai's nearest plane:
2507.18553). Columns that the inputs use most are rounded first, by whole blocks:
many are left to make up for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from pad_export.weights.blocks import BLOCK, Blocks, concatenate, fit_blocks
from pad_runtime.errors import CheckpointError

_ROWS = 1024  # rounded at once: a block of their columns stays in the cache, and there are parts for several threads
_TOKENS = 512  # whose products are summed in float32, before they are added in float64
_COLUMNS = 128  # of the moments' upper triangle, a strip for one thread; the lower one is its mirror
_DAMPING = 0.01  # of the mean moment, added to each: columns that the text hardly uses stay near their own values


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

    All arithmetic is in float64: the codes are the same on every machine whose moments are.

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
    """Columns as they are rounded, [in]: blocks by their mean importance, and inside a block by their own."""
    blocks = importance.view(-1, BLOCK)
    first = blocks.mean(1).argsort(dim=0, descending=True, stable=True)
    inside = blocks.argsort(dim=1, descending=True, stable=True)
    return (first[:, None] * BLOCK + inside[first]).view(-1)


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
    """Round rows [out, in], which lie as columns meanwhile, so that what is rounded at once is in one place."""
    rows, columns = weight.shape
    importance = root.diag().square()
    lost = weight.T[order].double()  # [in, out]: w, and once a block is rounded w - q
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    scales = torch.empty(columns // BLOCK, rows)
    zeros = torch.empty(columns // BLOCK, rows, dtype=torch.uint8)
    for start in range(0, columns, BLOCK):
        part = slice(start, start + BLOCK)
        own = root[part, part]
        carried = torch.linalg.solve_triangular(own.T, root[:start, part].T, upper=False)
        wanted = lost[part].addmm(carried, lost[:start])  # [32, out]: with what makes up for the blocks before
        scale, zero = fit_blocks(wanted, bits, importance[part], symmetric)
        left, rounded = wanted.clone(), torch.empty_like(wanted)  # less what is rounded; codes less their zero points
        lowest, highest, shares = -zero, 2**bits - 1 - zero, own / own.diag()
        for column in range(BLOCK):
            torch.addmv(left[column], left[:column].T, shares[:column, column], out=rounded[column])
            rounded[column].div_(scale).round_().clamp_(lowest, highest)
            left[column].addcmul_(rounded[column], scale, value=-1)
        scale = _refit(wanted, rounded, own, scale)
        lost[part].addcmul_(rounded, scale, value=-1)
        codes[order[part]] = rounded.add_(zero).to(torch.uint8)
        block = int(order[start]) // BLOCK
        scales[block], zeros[block] = scale, zero
    return Blocks(bits, *(columns.T.contiguous() for columns in (codes, scales, zeros)))


def _refit(wanted: torch.Tensor, rounded: torch.Tensor, root: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scales [n] under which a block's codes [32, n] lose least, in float32's precision; `root` is [32, 32]."""
    targets, steps = root.T @ wanted, root.T @ rounded
    squares = steps.square().sum(0)
    best = ((targets * steps).sum(0) / squares).float().to(scale.dtype)
    return torch.where(best > 0, best, scale)  # of codes that are all zero, the scale does not matter


@contextmanager
def _single_threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, for operations on one thread each.

    Torch's own share out every operation and wait for each other after it: for small ones, beside a busy process, that
    is most of the time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
