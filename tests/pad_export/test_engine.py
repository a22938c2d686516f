"""TensorRT-RTX engines of tiny models, built with no GPU and looked into through what the builder says of them."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import tiny_bundles
import tiny_models
from error_checks import edit_manifest, error_line, refused
from pad_export.cli import main
from pad_export.engine import EngineBuilder, cache_pairs, run_in_turn
from pad_export.engine_report import EngineReport
from pad_export.engines import add_engines
from pad_export.plan import make_plan
from pad_export.trunk import SITE_MODULES
from pad_export.verify import verify_bundle
from pad_rt.cli import main as pad
from pad_runtime import contract
from pad_runtime.engine import EngineHost, find_engine
from pad_runtime.errors import EngineError, OptionError, PadError, VerificationError
from pad_runtime.manifest import EngineInfo, Manifest, read_manifest, verify_files

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx: pip install 'pad-rt[tensorrt-rtx]'"
)
SIZES = {"hidden_size": 96, "intermediate_size": 128, "num_attention_heads": 6, "num_hidden_layers": 2}
GPUS = ["sm86", "sm89", "sm120"]
LIMITS = {"max_length": 48, "max_batch": 3, "max_top_k": 20}
TYPES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    base, adapter = folder / "base", folder / "adapter"
    tiny_models.make_base(base, "llama", seed=4, tied=True, **SIZES)
    linears = [module.rpartition(".")[2] for modules in SITE_MODULES.values() for module in modules]
    tiny_models.make_adapter(adapter, base, seed=5, layers_to_transform=[1], target_modules=linears)
    tiny_models.make_head(adapter, SIZES["hidden_size"], d=2, seed=6)
    return base, adapter


@pytest.fixture(scope="module")
def contrast(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base against itself, in graphs alone."""
    output = tmp_path_factory.mktemp("contrast") / "bundle"
    return tiny_bundles.export(output, models[0], [], precision="fp16", dialect="standard", **LIMITS)


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
    assert [name for name, tensor in report.tensors.items() if tensor.on_host] == [contract.TOP_K]


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
    assert report.tensors[contract.NOISE].profiles[1] == ((1, 1, 1), (1, 1, 10), (48, 3, 20))
    adapters = [name for name in report.tensors if name.startswith("lora")]
    if topology == "pair":
        assert not adapters
        assert report.tensors["reward.input_ids"].profiles[0][-1] == (3 * 8, 48)
        return
    # The first layer runs once for each prompt, the second for each row.
    assert manifest.trunks[0].prompt_layers == 1
    assert [report.tensors[contract.past_key(layer)].profiles[1][0][0] for layer in (0, 1)] == [1, 2]
    assert len(adapters) == len(contract.LORA_SITES) * (1 + 2)
    down = report.tensors[contract.lora_a(1, "down")]
    assert down.shape == (SIZES["intermediate_size"], -1)
    assert down.profiles[1] == ((128, 1), (128, 4), (128, 16))  # room for a PersRM of four times the rank
    assert set(adapters) <= report.read | {contract.lora_gate(site) for site in contract.LORA_SITES}
    assert report.tensors[contract.PREFERENCE_WEIGHTS].profiles[1] == ((1, 1, 2), (1, 1, 2), (3, 7, 3))


@needs_library
def test_a_cache_that_moves_is_refused(contrast: Path, tmp_path: Path) -> None:
    """The same base graph as it is, and with one cache copied behind its update."""
    manifest, info, report = build(contrast, contract.BASE_GRAPH, tmp_path, ["sm89"])
    check_tensors(manifest, contract.BASE_GRAPH, report)
    assert info.profiles["decode"]["prompts"] == [1, 1, 3]
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


@needs_library
@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        (["--target", "tensorrt-rtx"], "no --compute-capability", "sm86"),
        (["--target", "tensorrt-rtx", "--compute-capability", "sm90"], "--compute-capability sm90", "sm89, sm120"),
        (["--target", "tensorrt-rtx", "--compute-capability", "CURRENT"], "--compute-capability CURRENT", "sm89"),
        (
            ["--target", "tensorrt-rtx", "--compute-capability", "sm89", "--timing-cache", "x"],
            "--timing-cache",
            "leave it out",
        ),
    ],
)
def test_options_that_do_not_go_with_the_library(
    models: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    given: str,
    expected: str,
) -> None:
    check_refused(models[0], tmp_path, capsys, options, given, expected)


def check_refused(
    base: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    given: str,
    expected: str,
) -> None:
    assert main(["--base", str(base), "-o", str(folder / "bundle"), "--quiet", *options]) == 2
    line = error_line(capsys.readouterr().err, "pad-export")
    assert given in line
    assert expected in line
    assert not any(folder.iterdir())


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        (["--compute-capability", "sm89"], "--compute-capability sm89 without engines", "--target"),
        (["--timing-cache", "x"], "--timing-cache without engines", "--target"),
        (["--target", "tensorrt", "--dialect", "ort"], "--dialect ort with --target tensorrt", "--dialect standard"),
    ],
)
def test_options_that_do_not_go_together(
    models: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    given: str,
    expected: str,
) -> None:
    check_refused(models[0], tmp_path, capsys, options, given, expected)


@pytest.mark.parametrize("target", contract.ENGINE_TARGETS)
def test_a_library_that_is_missing_is_told_before_any_work(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = target.replace("-", "_")
    monkeypatch.setitem(sys.modules, module, None)
    with refused(EngineError, given=f"{module} is not installed", hint=f"pip install 'pad-rt[{target}]'"):
        tiny_bundles.export(tmp_path / "bundle", tmp_path / "no base", [], target=target, compute_capabilities=["sm89"])


def test_a_library_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise OSError('libnvinfer is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    with refused(EngineError, given="cannot be loaded: libnvinfer is missing", hint="pip install"):
        EngineBuilder("tensorrt-rtx", ["sm89"])


def test_engines_of_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", str(tmp_path), "--target", "tensorrt-rtx", "--compute-capability", "sm89"]) == 2
    assert "has no pad.json" in error_line(capsys.readouterr().err, "pad-export engines")


# -- what a bundle says of its engines ------------------------------------------------------------------------------


@pytest.fixture
def bundle(contrast: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(contrast, tmp_path / "bundle"))


def stamp(bundle: Path, **fields: object) -> Manifest:
    """Write a bundle's manifest with one engine in it."""
    engine = {
        "file": "step.onnx",
        "graph": "step",
        "target": "tensorrt-rtx",
        "version": "1.7",
        "platform": "linux-x86_64",
        "compute_capabilities": ["sm86", "sm89"],
        "profiles": {"decode": {"s": [1, 1, 1]}},
    }
    edit_manifest(bundle, engines=[engine | fields])
    return read_manifest(bundle)


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"compute_capability": "sm120"}, "sm120, only step.onnx for tensorrt-rtx 1.7 on linux-x86_64, sm86 and sm89"),
        ({"version": "1.8"}, "tensorrt-rtx 1.8 on"),
        ({"platform": "windows-amd64"}, "windows-amd64"),
    ],
)
def test_an_engine_for_something_else(bundle: Path, change: dict[str, str], given: str) -> None:
    manifest = stamp(bundle)
    host = EngineHost("tensorrt-rtx", "1.7", "sm89", "linux-x86_64")
    assert find_engine(bundle, manifest, "step", host).version == "1.7"
    other = replace(host, **change)
    gpus = dict.fromkeys(["sm86", "sm89", other.compute_capability])
    command = f"pad-export engines {bundle} --target tensorrt-rtx" + "".join(f" --compute-capability {g}" for g in gpus)
    with refused(EngineError, given=given, hint=f"run: {command}"):
        find_engine(bundle, manifest, "step", other)
    with refused(EngineError, given="has no engine of its base graph", hint="--compute-capability sm89"):
        find_engine(bundle, manifest, "base", host)
    with refused(EngineError, given="tensorrt 10.13", hint=f"run: pad-export engines {bundle} --target tensorrt"):
        find_engine(bundle, manifest, "step", EngineHost("tensorrt", "10.13", "sm87", "linux-aarch64"))


def test_a_bundle_of_the_other_dialect_is_to_be_exported_again(bundle: Path) -> None:
    manifest = replace(stamp(bundle), dialect="ort", engines=[])
    host = EngineHost("tensorrt-rtx", "1.7", "sm89", "linux-x86_64")
    with refused(EngineError, given="ort dialect", expected=str(host), hint="export it again with --target"):
        find_engine(bundle, manifest, "step", host)


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"file": "absent.engine"}, "'absent.engine' is used and not listed"),
        ({"graph": "other"}, "no graph 'other'"),
        ({"target": "tensorflow"}, "target is"),
    ],
)
def test_a_manifest_with_an_engine_that_cannot_be(bundle: Path, fields: dict[str, str], given: str) -> None:
    with pytest.raises(PadError, match=given):
        stamp(bundle, **fields)


def test_a_bundle_that_knows_of_no_engines_is_read(bundle: Path) -> None:
    stamp(bundle)
    path = bundle / "pad.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    del fields["engines"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    assert read_manifest(bundle).engines == []


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
