"""TensorRT-RTX engines of tiny models, built with no GPU and looked into through what the builder says of them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from pad_export.cli import main
from pad_export.engines.add import add_engines
from pad_export.engines.build import EngineBuilder, cache_pairs
from pad_export.engines.report import EngineReport
from pad_rt.cli.main import main as pad
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import EngineInfo, Manifest, read_manifest, verify_files
from pad_runtime.devices.tensorrt.engine_choice import EngineHost, find_engine
from pad_runtime.errors import EngineError, OptionError
from tests.support import tiny_bundles
from tests.support.engine_models import LIMITS, SIZES, needs_library
from tests.support.error_checks import refused

GPUS = ["sm86", "sm89", "sm120"]
TYPES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16"}


def build(bundle: Path, graph: str, folder: Path, gpus: list[str]) -> tuple[Manifest, EngineInfo, EngineReport]:
    manifest = read_manifest(bundle)
    builder = EngineBuilder("tensorrt-rtx", gpus)
    return (manifest, *builder.build(bundle, manifest, graph, folder / "engine"))


def check_tensors(manifest: Manifest, graph: str, report: EngineReport) -> None:
    """Names, types and sizes by the contract."""
    listed = manifest.graphs[graph]
    assert {name for name, tensor in report.tensors.items() if tensor.is_input} == set(listed.inputs)
    assert {name for name, tensor in report.tensors.items() if not tensor.is_input} == set(listed.outputs)
    half = TYPES[manifest.float_type]
    for trunk in manifest.trunks if graph == contract.STEP_GRAPH else manifest.trunks[:1]:
        at = contract.trunk_prefix(trunk.name)
        for names in cache_pairs(manifest, graph).items():
            for name in names:
                cache = report.tensors[name]
                assert cache.shape == (-1, trunk.num_kv_heads, manifest.max_length, trunk.head_dim)
                assert cache.type == half
        assert report.tensors[at + contract.INPUT_IDS].shape == (-1, -1)
        assert report.tensors[at + contract.INPUT_IDS].type == "Int64"
        assert report.tensors[at + contract.SEQLENS_K].type == "Int32"
    assert report.tensors[contract.NEXT_IDS].shape == (-1,)
    assert [name for name, tensor in report.tensors.items() if tensor.on_host] == [contract.MAX_TOP_K]


@needs_library
@pytest.mark.parametrize(
    ("precision", "activations", "topology"),
    [
        ("fp16", None, "shared"),
        ("fp16", None, "pair"),
        ("int4", None, "shared"),
        ("int4", None, "pair"),
        ("bf16", None, "shared"),
        ("int4", "bf16", "pair"),
    ],
)
def test_a_guided_step_is_one_engine(
    models: tuple[Path, Path], precision: str, activations: str | None, topology: str, tmp_path: Path
) -> None:
    base, adapter = models
    numbers = {"precision": precision, "activations": activations}
    bundle = tiny_bundles.export(
        tmp_path / "bundle", base, [adapter], topology=topology, dialect="standard", **numbers, **LIMITS
    )
    manifest, info, report = build(bundle, contract.STEP_GRAPH, tmp_path, GPUS)
    assert (tmp_path / "engine").stat().st_size == report.size
    assert info.compute_capabilities == GPUS
    assert len(report.kernels) == len(info.profiles) == 2  # each profile is one compiled piece
    assert not report.outside
    assert report.updates == cache_pairs(manifest, contract.STEP_GRAPH)
    assert not any("past_key_values" in name for name in report.read)
    assert set(report.updates) <= report.read
    check_tensors(manifest, contract.STEP_GRAPH, report)
    num_matrices = sum(trunk.num_layers * len(contract.LORA_SITES) for trunk in manifest.trunks)
    assert report.layers.get("DEQUANTIZE", 0) == (num_matrices if precision == "int4" else 0)

    ids = report.tensors[contract.INPUT_IDS].profiles
    rows = 3 * 8 if topology == "shared" else 3  # a pair's rewards have a trunk of their own
    assert [(shape[0], shape[-1]) for shape in ids] == [((1, 1), (rows, 48)), ((1, 1), (rows, 1))]
    assert report.tensors[contract.NOISE].profiles[1] == ((1, 1, 1), (1, 1, 10), (3, 48, 20))
    # What a request controls is narrow where it is not used, and as wide as the vocabulary where it is.
    vocab = manifest.vocab_size
    for name, most in (
        (contract.BIAS, (3, vocab)),
        (contract.ALLOWED, (3, -(-vocab // 8))),
        (contract.WRITTEN, (3, vocab)),
    ):
        assert report.tensors[name].profiles[1] == ((1, 1), (1, 1), most)
    assert report.tensors[contract.ALLOWED].type == "UInt8"
    adapters = [name for name in report.tensors if name.startswith("lora")]
    if topology == "pair":
        assert not adapters
        assert report.tensors["reward.input_ids"].profiles[0][-1] == (3 * 8, 48)
        return
    # The first layer runs once for each prompt, the second for each row.
    assert manifest.trunks[0].prompt_layers == 1
    assert [report.tensors[contract.past_key(layer)].profiles[1][1][0] for layer in (0, 1)] == [1, 2]
    assert len(adapters) == len(contract.LORA_SITES) * (1 + 2)
    down = report.tensors[contract.lora_a(1, "down")]
    assert down.shape == (SIZES["intermediate_size"], -1)
    assert down.profiles[1] == ((128, 1), (128, 4), (128, 16))  # room for a PersRM of four times the rank
    assert set(adapters) <= report.read | {contract.lora_gate(site) for site in contract.LORA_SITES}
    assert report.tensors[contract.READING_WEIGHTS].profiles[1] == ((1, 2), (1, 2), (24, 3))


@needs_library
def test_a_cache_that_moves_is_refused(contrast: Path, tmp_path: Path) -> None:
    """The same base graph as it is, and with one cache copied behind its update."""
    manifest, info, report = build(contrast, contract.BASE_GRAPH, tmp_path, GPUS)
    check_tensors(manifest, contract.BASE_GRAPH, report)
    assert info.profiles["decode"][contract.PROMPTS] == [1, 1, 3]
    assert not [name for name in report.tensors if name.startswith("lora")]

    caches = cache_pairs(manifest, contract.BASE_GRAPH)
    report.check(caches)
    output, past = next(iter(caches.items()))
    for other in (replace(report, updates={}), replace(report, read=report.read | {past})):
        with refused(EngineError, given=f"{output}, which is no update of {past} in place", hint="export"):
            other.check(caches)
    with refused(EngineError, given="the layer type PLUGIN_V3", hint="export"):
        replace(report, layers={**report.layers, "PLUGIN_V3": 1}).check(caches)

    path = contrast / "base.onnx"
    whole = path.read_bytes()
    model = onnx.load(path, load_external_data=False)
    writer = next(node for node in model.graph.node if output in node.output)
    writer.output[0] = "updated"
    model.graph.node.append(onnx.helper.make_node("Identity", ["updated"], [output], name="copy"))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == output:
                node.input[index] = "updated"
    try:
        onnx.save_model(model, path)
        with refused(EngineError, given="The output tensor must be a network output", hint="--precision"):
            EngineBuilder("tensorrt-rtx", ["sm89"]).build(contrast, manifest, "base", tmp_path / "moved")
    finally:
        path.write_bytes(whole)


@needs_library
def test_operators_of_onnx_runtime_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = tiny_bundles.export(tmp_path / "bundle", models[0], [], precision="fp16", **LIMITS)
    manifest = read_manifest(bundle)
    builder = EngineBuilder("tensorrt-rtx", ["sm89"])
    with refused(OptionError, given="ort dialect", expected="standard", hint="--target tensorrt-rtx"):
        add_engines(bundle, manifest, builder)
    with refused(EngineError, given="cannot read", hint="newer"):
        builder.build(bundle, manifest, contract.BASE_GRAPH, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


@needs_library
def test_a_refused_engine_comes_from_the_command_that_the_refusal_gives(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Export for one GPU, ask for another: the hint is run as it stands, and then both are served."""
    bundle = tmp_path / "a bundle"
    options = ["--max-length", "32", "--max-batch", "1", "--max-top-k", "5", "--no-verify", "--precision", "fp16"]
    target = ["--target", "tensorrt-rtx", "--compute-capability", "sm89"]
    assert main(["--base", str(models[0]), "-o", str(bundle), *options, *target]) == 0
    assert capsys.readouterr().err.count(", 4 caches in place") == 2
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    assert [(engine.graph, engine.file) for engine in manifest.engines] == [
        ("step", "step.tensorrt-rtx.engine"),
        ("base", "base.tensorrt-rtx.engine"),
    ]
    engine = manifest.engines[0]
    here = EngineHost(engine.target, engine.version, "sm89", engine.platform)
    assert find_engine(bundle, manifest, "step", here) is engine
    other = replace(here, compute_capability="sm120")
    with pytest.raises(EngineError) as caught:
        find_engine(bundle, manifest, "step", other)
    command = shlex.split(caught.value.hint.removeprefix("run: "))
    assert command[0] == "pad-export"
    assert main(command[1:]) == 0
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    assert len(manifest.engines) == 2
    for host in (here, other):
        for graph in ("step", "base"):
            assert find_engine(bundle, manifest, graph, host).compute_capabilities == ["sm89", "sm120"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a bundle"]  # nothing half-made is left
    capsys.readouterr()
    assert pad(["info", str(bundle)]) == 0
    assert f"step: tensorrt-rtx {engine.version} for sm89, sm120 on" in capsys.readouterr().out
