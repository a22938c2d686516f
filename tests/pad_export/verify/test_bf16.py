"""bf16 bundles: verified as their float32 twin, refused where nothing runs them, and read as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file

from pad_export.plan import make_plan
from pad_export.read.checkpoint import Checkpoint
from pad_export.verify import row_model as reference
from pad_export.verify.float32_twin import float32_twin
from pad_export.verify.verify import verify_bundle
from pad_rt import Generator
from pad_rt.cli.main import main as pad
from pad_runtime.adapters.factors import LoraFactors
from pad_runtime.adapters.heads import FeatureHeads
from pad_runtime.adapters.persrm_files import PersRMFiles
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import open_bundle, read_manifest
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.errors import DeviceError, VerificationError
from pad_runtime.rows.batch import ReadingPart
from pad_runtime.rows.row import Reading, Row
from tests.support import tiny_bundles, tiny_models, whole_export
from tests.support.error_checks import edit_manifest, error_line, refused, snapshot

BF16 = TensorProto.BFLOAT16


@pytest.fixture(scope="module")
def bundle(tiny: tiny_models.TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not verified; the tests leave it as it is."""
    return tiny_bundles.export(tmp_path_factory.mktemp("bf16") / "bundle", tiny.base, [tiny.adapter], precision="bf16")


def export(base: Path, adapter: Path, folder: Path, **options: Any) -> str:
    """Export with verification: the line that says how it went."""
    return whole_export.run(base, folder, adapter, precision="bf16", **options)[-1]


@pytest.mark.parametrize(
    ("family", "dialect", "topology", "measured_against"),
    [
        ("llama", "ort", "shared", "backbone"),
        ("qwen2", "ort", "pair", "base"),
        ("qwen3", "standard", "shared", "backbone"),
        ("gemma", "ort", "shared", "backbone"),
        ("gemma2", "standard", "pair", "base"),
        ("gemma3_text", "ort", "pair", "base"),
    ],
)
def test_its_twin_agrees_with_torch_on_the_rounded_weights(
    family: str, dialect: str, topology: str, measured_against: str, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny_models.make_base(base, family, seed=3)
    tiny_models.make_adapter(adapter, base, seed=4, rank=3, lora_alpha=5)  # a scale that bfloat16 does not hold
    tiny_models.make_head(adapter, 84, d=2, seed=5)
    said = export(base, adapter, tmp_path / "bundle", dialect=dialect, topology=topology, reference=measured_against)
    assert said.startswith("verified in float32 arithmetic on the bf16 weights against torch: 2 batches x 9 tokens")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "bundle"}


def test_the_control_without_rounding(
    tiny: tiny_models.TinyModels, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bf16 cost is seen where torch does not round: the tolerance is of the arithmetic alone."""
    plan = make_plan(tiny.base, [tiny.adapter])
    verify_bundle(bundle, plan)
    monkeypatch.setattr(reference._Rounding, "_round", lambda self, value: value.float())
    with pytest.raises(VerificationError, match="differences from torch"):
        verify_bundle(bundle, plan)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"]
)
def test_a_weight_read_wrongly_is_caught(
    tiny: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    read = Checkpoint.tensor

    def wrong(self: Checkpoint, wanted: str) -> torch.Tensor:
        return read(self, wanted) * (1.01 if wanted == name else 1.0)

    monkeypatch.setattr(Checkpoint, "tensor", wrong)
    with pytest.raises(VerificationError, match="differences from torch"):
        export(tiny.base, tiny.adapter, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_wrong_weight_in_the_graph_is_caught(tiny: tiny_models.TinyModels, tmp_path: Path) -> None:
    bundle = tiny_bundles.export(tmp_path / "bundle", tiny.base, [tiny.adapter], precision="bf16")
    model = onnx.load(bundle / "step.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.name == "layers.1/o")
    node.input[1] = node.input[1].replace("layers.1", "layers.0")
    onnx.save_model(model, bundle / "step.onnx")
    edit_manifest(bundle, rehash=True)
    with pytest.raises(VerificationError, match="differences from torch"):
        verify_bundle(bundle, make_plan(tiny.base, [tiny.adapter]))


def test_a_twin_is_the_same_graph_and_leaves_the_bundle_alone(bundle: Path) -> None:
    before, manifest = snapshot(bundle), read_manifest(bundle)
    with float32_twin(bundle, manifest) as twin:
        other = read_manifest(twin)
        assert other.float_type == "float32"
        for graph in manifest.graphs.values():
            ours, theirs = (onnx.load(folder / graph.file, load_external_data=False).graph for folder in (bundle, twin))
            assert ours.initializer == theirs.initializer
            assert len({tensor.name for tensor in ours.initializer if tensor.data_type == BF16}) > 10
            values = [value.type.tensor_type.elem_type for value in (*theirs.input, *theirs.output)]
            assert BF16 not in values
            kept = [node for node in theirs.node if not node.name.endswith("/float32")]
            assert [(node.name, node.op_type) for node in kept] == [(node.name, node.op_type) for node in ours.node]
            assert [node.output for node in kept] == [node.output for node in ours.node]
    assert not twin.exists()
    assert snapshot(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_everything_is_in_bfloat16_up_to_the_logits(tiny: tiny_models.TinyModels, dialect: str, tmp_path: Path) -> None:
    bundle = tiny_bundles.export(tmp_path / "bundle", tiny.base, [tiny.adapter], precision="bf16", dialect=dialect)
    graph = onnx.load(bundle / "step.onnx", load_external_data=False).graph
    external = {tensor.data_type for tensor in graph.initializer if tensor.external_data}
    assert external == {BF16}
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    ours = ("past_key_values.", "present.", "lora")
    assert {kind for name, kind in types.items() if name.startswith(ours)} == {BF16}
    weighed = (contract.BASE_LOGITS, contract.READING_LOGITS, contract.SCORES, contract.COEFFICIENTS)
    assert {types[name] for name in weighed} == {TensorProto.FLOAT}
    assert {tensor.dtype for tensor in load_file(bundle / "adapters/cheerful.safetensors").values()} == {torch.bfloat16}


def test_a_cpu_refuses_it_in_a_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with refused(
        DeviceError, given="a bundle of bfloat16 on device 'cpu'", expected="float16", hint="--precision fp32"
    ):
        Generator.load(bundle, device="cpu")
    assert pad(["generate", str(bundle), "hello"]) == 2
    assert "a bundle of bfloat16 on device 'cpu'" in error_line(capsys.readouterr().err, "pad")
    assert pad(["info", str(bundle)]) == 0
    assert "bf16 weights, bfloat16 activations" in capsys.readouterr().out


def test_adapters_and_heads_are_handed_over_in_bfloat16(tiny: tiny_models.TinyModels, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    tiny_models.make_adapter(adapter, tiny.base, seed=2)
    tiny_models.make_head(adapter, 84, d=2, seed=6)
    bundle = tiny_bundles.export(tmp_path / "bundle", tiny.base, [adapter], precision="bf16")
    manifest, files = open_bundle(bundle)
    persrms, (trunk,) = PersRMFiles(files, manifest), manifest.trunks
    adapters = LoraFactors(persrms, manifest, DeviceMemory(cuda=None))
    factors = adapters.buffers((0,))
    parts = [ReadingPart(0, 0, None, Reading(0, (), 1.0)), ReadingPart(1, 0, 0, Reading(1, (0.5, 0.25), 1.0))]
    feature_heads = FeatureHeads(persrms, manifest, DeviceMemory(cuda=None))
    columns = feature_heads.columns(trunk, parts)
    values = feature_heads.arrays(trunk, columns) | {"weights": feature_heads.weights(columns, parts)}
    values |= adapters.gates(trunk, (0,), [Row(0, 0), Row(0, 0, 0)])
    assert {array.dtype.name for array in (*factors.values(), *values.values())} == {"bfloat16"}
    stored = load_file(bundle / "adapters/adapter.safetensors")
    for name in (contract.lora_a(1, "qkv"), contract.lora_b(0, "down")):
        np.testing.assert_array_equal(factors[name].read().astype(np.float32), stored[name].float().numpy())
    heads = load_file(bundle / "heads/adapter.safetensors")["heads"].float()
    mixed = (0.5 * heads[0] + 0.25 * heads[1]).numpy()
    np.testing.assert_allclose(np.asarray(values[contract.FEATURE_HEADS], np.float32)[0], mixed, atol=0.01)
