"""Rounding for known inputs, against a slow reading of what it should be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pad_export.weights import gptq
from pad_export.weights.blocks import BLOCK_SIZE, Blocks, quantise
from pad_export.weights.gptq import quantise_for, second_moments

Matrix = npt.NDArray[np.float64]
COLUMNS = 4 * BLOCK_SIZE
SHRINKS = (1.06, 1.03, 1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76)


def random_matrix(rows: int, columns: int = COLUMNS, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(*, seed: int = 3) -> torch.Tensor:
    """Columns that go together, and some far larger than others, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) / 8
    sizes = torch.randn(COLUMNS, generator=generator).exp()
    return torch.randn(600, COLUMNS, generator=generator) @ mixing * sizes


def important_first(moments: Matrix) -> list[int]:
    """Blocks by their mean moment, and the columns of a block by their own."""
    diagonal = moments.diagonal()
    blocks = sorted(range(COLUMNS // BLOCK_SIZE), key=lambda block: -diagonal[block * BLOCK_SIZE :][:BLOCK_SIZE].mean())
    return [
        column
        for block in blocks
        for column in sorted(
            range(block * BLOCK_SIZE, block * BLOCK_SIZE + BLOCK_SIZE), key=lambda column: -diagonal[column]
        )
    ]


def fit_row(values: Matrix, importance: Matrix, symmetric: bool) -> tuple[float, float]:
    low, high = min(0.0, values.min()), max(0.0, values.max())
    whole = max(-low / 8, high / 7) if symmetric else (high - low) / 15
    found = []
    for shrink in SHRINKS:
        scale = float(np.float32(whole * shrink))
        zero = 8.0 if symmetric else float(np.clip(np.round(-low / scale), 0, 15))
        rounded = (np.clip(np.round(values / scale) + zero, 0, 15) - zero) * scale
        found.append((float((importance * (rounded - values) ** 2).sum()), scale, zero))
    _, scale, zero = min(found, key=lambda item: item[0])
    return scale, zero


def plain_gptq(weight: torch.Tensor, moments: torch.Tensor, order: list[int], *, symmetric: bool = False) -> Matrix:
    """What GPTQ is, solved anew at every column: those not yet rounded take what makes up best for those that are."""
    h = moments.double().numpy()[np.ix_(order, order)]
    h = h + np.eye(len(h)) * 0.01 * h.diagonal().mean()
    wanted = weight.double().numpy()[:, order]
    result = np.zeros_like(wanted)

    def left(column: int) -> Matrix:
        """Best values of the columns from this one on: [rows, columns left]."""
        lost = wanted[:, :column] - result[:, :column]
        return wanted[:, column:] + np.linalg.solve(h[column:, column:], h[column:, :column] @ lost.T).T

    for start in range(0, len(h), BLOCK_SIZE):
        part = slice(start, start + BLOCK_SIZE)
        block = left(start)[:, :BLOCK_SIZE]
        importance = np.array(
            [1 / np.linalg.inv(h[column:, column:])[0, 0] for column in range(start, start + BLOCK_SIZE)]
        )
        fits = np.array([fit_row(values, importance, symmetric) for values in block])  # [rows, 2]
        scale, zero = fits.T
        codes = np.empty_like(block)
        for column in range(BLOCK_SIZE):
            codes[:, column] = np.clip(np.round(left(start + column)[:, 0] / scale) + zero, 0, 15) - zero
            result[:, start + column] = codes[:, column] * scale
        costs = np.linalg.inv(np.linalg.inv(h[start:, start:])[:BLOCK_SIZE, :BLOCK_SIZE])  # columns behind made up
        refitted = np.einsum("rc,cd,rd->r", codes, costs, block) / np.einsum("rc,cd,rd->r", codes, costs, codes)
        result[:, part] = codes * refitted[:, None]
    return result[:, np.argsort(order)]


def loss(rounded: torch.Tensor, weight: torch.Tensor, inputs: torch.Tensor) -> float:
    return float((inputs @ (rounded - weight).T).square().sum())


@pytest.mark.parametrize("symmetric", [False, True])
def test_solving_anew_at_every_column_gives_the_same_numbers(symmetric: bool) -> None:
    weight, moments = random_matrix(21), second_moments(correlated_inputs())
    ours = quantise_for(weight, 4, moments, symmetric=symmetric).dequantise().double().numpy()
    order = important_first(moments.numpy())
    np.testing.assert_allclose(ours, plain_gptq(weight, moments, order, symmetric=symmetric), atol=1e-6)
    other = plain_gptq(weight, moments, list(range(COLUMNS)), symmetric=symmetric)  # the control: columns as they come
    assert (np.abs(ours - other) > 1e-3).mean() > 0.2


def test_important_columns_first_lose_less_than_columns_as_they_come() -> None:
    weight, inputs = random_matrix(48), correlated_inputs()
    moments = second_moments(inputs)
    ours = loss(quantise_for(weight, 4, moments).dequantise(), weight, inputs)
    in_turn = torch.from_numpy(plain_gptq(weight, moments, list(range(COLUMNS)))).float()
    assert ours < 0.9 * loss(in_turn, weight, inputs)


def test_the_inputs_that_count_are_kept_better_than_by_rounding_each_weight() -> None:
    weight, inputs = random_matrix(48), correlated_inputs()
    fitted = loss(quantise_for(weight, 4, second_moments(inputs)).dequantise(), weight, inputs)
    assert fitted < 0.5 * loss(quantise(weight, 4).dequantise(), weight, inputs)
    others = correlated_inputs(seed=4)  # the control: moments of other inputs are no help
    assert loss(quantise_for(weight, 4, second_moments(others)).dequantise(), weight, inputs) > 1.2 * fitted


def same(one: Blocks, other: Blocks) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("codes", "scales", "zero_points"))


def test_rows_do_not_depend_on_those_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on how many threads take their parts, and torch keeps as many as it had, after a failure too."""
    weight, moments = random_matrix(50), second_moments(correlated_inputs())
    threads = torch.get_num_threads()
    whole = quantise_for(weight, 4, moments)
    monkeypatch.setattr(gptq, "_ROWS", 16)
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            assert same(quantise_for(weight, 4, moments), whole)
            with pytest.raises(IndexError):
                quantise_for(weight[:, :BLOCK_SIZE], 4, moments)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert not same(quantise_for(weight.flip(0), 4, moments), whole)


def test_moments_are_summed_in_float64() -> None:
    """Many tokens over a mean that is not zero: float32 loses what tells the columns apart."""
    inputs = torch.randn(20_000, 40, generator=torch.Generator().manual_seed(1)) + 30
    exact = inputs.double().T @ inputs.double()
    found = second_moments(inputs.view(4, -1, 40))
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    error = float((found - exact).abs().max() / exact.max())
    assert error < 1e-6
    assert float(((inputs.T @ inputs) - exact).abs().max() / exact.max()) > error  # the control: one float32 product


def test_columns_of_many_tiles_are_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_matrix(70)
    whole = second_moments(inputs)
    monkeypatch.setattr(gptq, "_COLUMNS", 48)
    torch.testing.assert_close(second_moments(inputs), whole)
    torch.testing.assert_close(whole, inputs.double().T @ inputs.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zero(bits: int) -> None:
    moments = torch.zeros(BLOCK_SIZE, BLOCK_SIZE, dtype=torch.float64)
    assert not quantise_for(torch.zeros(2, BLOCK_SIZE), bits, moments).dequantise().any()
