"""What an export is asked for: by the command and by the object alike, down to the weights in the bundle."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest
import safetensors.torch
import torch

from pad_export import export
from pad_export.cli import main
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_export.plan import make_plan
from pad_export.weights.blocks import Blocks, quantise
from pad_export.weights.file import WeightsFile
from pad_export.weights.stored import StoredWeights
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.bundle.signature import find_table_mismatches
from pad_runtime.errors import OptionError
from tests.support import tiny_models, whole_export
from tests.support.error_checks import refused
from tests.support.graph_files import read_graph

DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices whose widths are multiples of 32, eight layers: some keep 8 bits at int4."""
    folder: Path = tmp_path_factory.mktemp("options") / "base"
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 8}
    tiny_models.make_base(folder, "llama", seed=2, tied=True, **sizes)
    return folder


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ([], {}),
        (["--topology", "pair", "--reference", "backbone"], {"topology": "pair", "reference": "backbone"}),
        (["--backbone", "model"], {"backbone": Path("model")}),
        (["--precision", "int4", "--activations", "fp16"], {"precision": "int4", "activations": "fp16"}),
        (["--dialect", "standard"], {"dialect": "standard"}),
        (
            ["--target", "tensorrt-rtx", "--compute-capability", "sm86", "--compute-capability", "sm89"],
            {"target": "tensorrt-rtx", "compute_capabilities": ["sm86", "sm89"]},
        ),
        (["--target", "tensorrt", "--timing-cache", "file"], {"target": "tensorrt", "timing_cache": Path("file")}),
        (["--max-length", "9", "--max-batch", "2"], {"max_length": 9, "max_batch": 2}),
        (["--max-top-k", "7", "--no-verify"], {"max_top_k": 7, "verify": False}),
    ],
)
def test_the_command_asks_as_the_object_does(
    words: list[str], fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ExportOptions] = []

    def ask(*_: Any, options: ExportOptions, **__: Any) -> None:
        asked.append(options if options.compute_capabilities else replace(options, compute_capabilities=()))
        raise OptionError("asked", hint="that is all")

    monkeypatch.setattr(export, "export_bundle", ask)
    assert main(["--base", "model", "-o", "bundle", *words]) == 2
    assert asked == [ExportOptions(**fields)]


def test_targets_are_named_once() -> None:
    assert contract.ENGINE_TARGETS == get_args(contract.EngineTarget) == ("tensorrt", "tensorrt-rtx")


def stored_down(bundle: Path, base: Path) -> torch.Tensor:
    weight = StoredWeights(bundle, "step.onnx", make_plan(base, []).base)(DOWN)
    assert weight is not None
    return weight


def test_without_calibration_weights_are_rounded_to_the_nearest(base: Path, tmp_path: Path) -> None:
    quick = whole_export.run(base, tmp_path / "quick", precision="int4", all_4_bits=True, calibrate=False)
    fitted = whole_export.run(base, tmp_path / "fitted", precision="int4", all_4_bits=True, verify=False)
    assert not [line for line in quick if line.startswith("calibrating")]
    assert [line for line in fitted if line.startswith("calibrating")]
    nearest = quantise(safetensors.torch.load_file(base / "model.safetensors")[DOWN], 4).dequantise()
    assert torch.equal(stored_down(tmp_path / "quick", base), nearest)
    assert not torch.equal(stored_down(tmp_path / "fitted", base), nearest)  # the control


def bits_of(bundle: Path) -> set[int]:
    """Of everything that a bundle's graphs keep in blocks."""
    return {
        attribute.i
        for file in read_manifest(bundle).graphs.values()
        for node in onnx.load(bundle / file.file, load_external_data=False).graph.node
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized")
        for attribute in node.attribute
        if attribute.name == "bits"
    }


def test_all_in_4_bits(base: Path, tmp_path: Path) -> None:
    """Verified against torch on the weights that are stored; by default some keep 8 bits."""
    lines = whole_export.run(base, tmp_path / "all", precision="int4", all_4_bits=True, calibrate=False)
    assert "verified against torch" in lines[-1]
    assert bits_of(tmp_path / "all") == {4}
    whole_export.run(base, tmp_path / "some", precision="int4", calibrate=False, verify=False)
    assert bits_of(tmp_path / "some") == {4, 8}


@pytest.mark.parametrize("options", [{}, {"precision": "int4"}, {"precision": "int4", "all_4_bits": True}])
def test_tables_are_held_against_the_manifest_in_every_storage(
    base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole_export.run(base, tmp_path / "bundle", calibrate=False, verify=False, **options)
    manifest = read_manifest(tmp_path / "bundle")
    for name in manifest.graphs:
        tensors = read_graph(tmp_path / "bundle", name).model.tensors
        assert find_table_mismatches(tensors, manifest, name) == []
        (trunk,) = manifest.trunks
        for wrong in (32, 128):
            other = replace(manifest, trunks=[replace(trunk, hidden_size=wrong)])
            (found,) = find_table_mismatches(tensors, other, name)
            assert found == f"hidden_size is {wrong}, and 64 in the tables of trunk 'base'"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_all_in_4_bits_is_of_int4(base: Path, tmp_path: Path, precision: str) -> None:
    with refused(OptionError, given=f"all_4_bits with --precision {precision}", expected="--precision int4"):
        whole_export.run(base, tmp_path / "bundle", precision=precision, all_4_bits=True)
    assert not list(tmp_path.iterdir())


class InMemory:
    """Weights that are in no file."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.nbytes = 0

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def read_blocks(self, name: str, bits: int) -> Blocks | None:
        return None


class Watched(WeightsFile):
    """A file that says what it was given."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.given: list[str] = []

    def write(self, name: str, tensor: torch.Tensor) -> onnx.TensorProto:
        self.given.append(name)
        return super().write(name, tensor)


def test_weights_come_and_go_where_the_caller_says(base: Path, tmp_path: Path) -> None:
    """A folder without weights gives the bundle of the folder with them, byte by byte; other numbers give another."""
    empty = Path(shutil.copytree(base, tmp_path / "empty" / "base", ignore=shutil.ignore_patterns("*.safetensors")))
    tensors = safetensors.torch.load_file(base / "model.safetensors")
    files: list[Watched] = []

    def create(path: Path) -> Watched:
        files.append(Watched(path))
        return files[-1]

    options = ExportOptions(verify=False)
    expected = export_bundle(base, tmp_path / "expected", options=options)
    found = export_bundle(
        empty, tmp_path / "found", options=options, open_weights=lambda _: InMemory(tensors), create_file=create
    )
    assert found == expected
    (file,) = files
    assert file.given == list(file)
    other = {**tensors, "model.norm.weight": tensors["model.norm.weight"] * 2}
    changed = export_bundle(empty, tmp_path / "changed", options=options, open_weights=lambda _: InMemory(other))
    assert changed.files["weights.bin"] != expected.files["weights.bin"]
