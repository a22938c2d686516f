"""What is done to graphs for an engine changes nothing that they compute or store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from pad_export.engines.build import run_in_turn
from pad_export.plan import make_plan
from pad_export.verify.verify import verify_bundle
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.errors import VerificationError
from tests.support import tiny_bundles
from tests.support.engine_models import LIMITS
from tests.support.error_checks import edit_manifest


def test_trunks_in_turn_compute_the_same(models: tuple[Path, Path], tmp_path: Path) -> None:
    """On ONNX Runtime against torch, as the graph itself; the control adds all of the trunk before."""
    base, adapter = models
    bundle = tiny_bundles.export(
        tmp_path / "bundle", base, [adapter], topology="pair", reference="backbone", dialect="standard", **LIMITS
    )
    manifest, plan = read_manifest(bundle), make_plan(base, [adapter], topology="pair", reference="backbone")
    model = onnx.load(bundle / "step.onnx", load_external_data=False)
    run_in_turn(model, manifest)
    assert sum(node.name.endswith("in_turn") for node in model.graph.node) == len(manifest.trunks) - 1 > 0
    onnx.save_model(model, bundle / "step.onnx")
    edit_manifest(bundle, rehash=True)
    verify_bundle(bundle, plan)
    nothing = next(tensor for tensor in model.graph.initializer if tensor.name == "in_turn/nothing")
    nothing.CopyFrom(onnx.numpy_helper.from_array(np.ones((), np.float32), nothing.name))
    onnx.save_model(model, bundle / "step.onnx")
    edit_manifest(bundle, rehash=True)
    with pytest.raises(VerificationError):
        verify_bundle(bundle, plan)


def test_int4_numbers_are_those_of_the_blocks(models: tuple[Path, Path], tmp_path: Path) -> None:
    """The file's nibbles, read by hand, are the signed codes: element i of a row in the low half when i is even."""
    bundle = tiny_bundles.export(tmp_path / "bundle", models[0], [], precision="int4", dialect="standard", **LIMITS)
    model = onnx.load(bundle / "base.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "base/layers.0.o.weight.int4")
    place = {entry.key: entry.value for entry in tensor.external_data}
    raw = np.fromfile(bundle / place["location"], np.uint8, int(place["length"]), offset=int(place["offset"]))
    nibbles = np.stack([raw & 15, raw >> 4], -1).reshape(tuple(tensor.dims)).astype(np.int8)
    signed = np.where(nibbles > 7, nibbles - 16, nibbles)
    onnx.external_data_helper.load_external_data_for_tensor(tensor, str(bundle))
    assert np.array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), signed)
    assert signed.min() < 0 < signed.max()
    assert {node.op_type for node in model.graph.node} >= {"DequantizeLinear", "MatMul", "Gemm", "Gather"}
    assert not {tensor.name for tensor in model.graph.initializer} & {"base/embed.int4", "base/embed.codes"}
