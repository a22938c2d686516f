"""Quantised blocks: rounding and layout, against NumPy and ONNX Runtime's own operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pad_export.weights.blocks import BLOCK_SIZE, concatenate, quantise
from pad_export.weights.gptq import quantise_for, second_moments


def random_matrix(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_matrix_on_the_grid_is_kept_exactly(bits: int) -> None:
    top = 2**bits - 1
    codes = torch.arange(BLOCK_SIZE).remainder(top + 1).float()
    codes[0], codes[1] = 0, top  # both ends, so that the whole range is in use
    matrix = (codes - 5).repeat(3, 2) * 0.25
    found = quantise(matrix, bits)
    assert torch.equal(found.dequantise(), matrix)
    assert found.codes.max() == top


@pytest.mark.parametrize("bits", [4, 8])
def test_no_weight_moves_by_more_than_its_block_allows(bits: int) -> None:
    matrix = random_matrix(7, 4 * BLOCK_SIZE)
    blocks = matrix.view(7, -1, BLOCK_SIZE)
    steps = (blocks.amax(-1) - blocks.amin(-1)) / (2**bits - 1)
    error = (quantise(matrix, bits).dequantise() - matrix).view(7, -1, BLOCK_SIZE).abs()
    assert (error.square().mean(-1) <= (0.5 * steps).square()).all()
    assert error.max() > 0


def test_narrowing_the_range_pays_at_4_bits() -> None:
    matrix = random_matrix(64, 4 * BLOCK_SIZE)
    low, high = (
        extreme.view(64, -1, 1)
        for extreme in (matrix.view(64, -1, BLOCK_SIZE).amin(-1), matrix.view(64, -1, BLOCK_SIZE).amax(-1))
    )
    step = (high - low) / 15
    zero = (-low / step).round()
    plain = (((matrix.view(64, -1, BLOCK_SIZE) / step).round() + zero).clamp(0, 15) - zero) * step
    ours = quantise(matrix, 4).dequantise()
    assert (ours - matrix).square().sum() < 0.95 * (plain.view_as(matrix) - matrix).square().sum()


def test_symmetric_blocks_keep_their_zero_in_the_middle() -> None:
    matrix = random_matrix(9, 4 * BLOCK_SIZE)
    moments = second_moments(matrix)
    for found in (quantise(matrix, 4, symmetric=True), quantise_for(matrix, 4, moments, symmetric=True)):
        assert found.is_symmetric
        assert (found.zero_points == 8).all()
        assert float((found.dequantise() - matrix).norm() / matrix.norm()) < 0.2
    assert not quantise(matrix, 4).is_symmetric
    on_grid = (torch.arange(BLOCK_SIZE).remainder(16).float() - 8).repeat(3, 2) * 0.25  # -8 to 7: both ends in use
    assert torch.equal(quantise(on_grid, 4, symmetric=True).dequantise(), on_grid)


def test_signed_numbers_lie_transposed() -> None:
    blocks = quantise(random_matrix(6, 2 * BLOCK_SIZE), 4, symmetric=True)
    packed = blocks.packed_signed()  # [in, out / 2]
    nibbles = torch.stack([packed & 15, packed >> 4], -1).view(2 * BLOCK_SIZE, 6).to(torch.int16)
    signed = torch.where(nibbles > 7, nibbles - 16, nibbles)
    assert torch.equal(signed.T, blocks.codes.to(torch.int16) - 8)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zero(bits: int) -> None:
    assert not quantise(torch.zeros(2, BLOCK_SIZE), bits).dequantise().any()


@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_runtime_reads_the_layout(bits: int) -> None:
    first, second = (quantise(random_matrix(rows, 3 * BLOCK_SIZE, seed=rows), bits) for rows in (5, 6))
    blocks = concatenate([first, second])
    dense = torch.cat([first.dequantise(), second.dequantise()])
    x = random_matrix(2, 3 * BLOCK_SIZE, seed=9)
    ids = np.array([[10, 0, 3]], np.int64)
    data, zeros = blocks.packed_codes().numpy(), blocks.packed_zero_points().numpy()
    weights = {"codes": data, "rows": data.reshape(11, -1), "scales": blocks.scales.numpy(), "zeros": zeros}
    shape = {"bits": bits, "block_size": BLOCK_SIZE, "domain": "com.microsoft"}
    nodes = [
        helper.make_node("MatMulNBits", ["x", "codes", "scales", "zeros"], ["y"], K=3 * BLOCK_SIZE, N=11, **shape),
        helper.make_node(
            "GatherBlockQuantized", ["rows", "ids", "scales", "zeros"], ["z"], gather_axis=0, quantize_axis=1, **shape
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "layout",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3 * BLOCK_SIZE]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 3]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yz"],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )
    assert isinstance(model, onnx.ModelProto)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    product, rows = session.run(None, {"x": x.numpy(), "ids": ids})
    np.testing.assert_allclose(product, (x @ dense.T).numpy(), atol=1e-4)
    np.testing.assert_allclose(rows[0], dense[ids[0]].numpy(), atol=1e-6)
