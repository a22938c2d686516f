"""`export_bundle`: from checkpoints on disk to a verified bundle, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import onnx

from pad_export.engines.add import build_engines
from pad_export.engines.build import EngineBuilder
from pad_export.graph.matrix import Storage, choose_storage
from pad_export.graph.score import build_score_graph
from pad_export.graph.step import build_base_graph, build_step_graph
from pad_export.graph.writer import Graph
from pad_export.output.stages import Stages
from pad_export.output.staging import staged
from pad_export.plan import Plan, make_plan
from pad_export.read.spec import SITE_MODULES
from pad_export.read.tokenizer.check import check_tokenizer
from pad_export.trunk import Trunk
from pad_export.verify.verify import verify_bundle
from pad_export.weights.adapter_file import write_adapter, write_head
from pad_export.weights.blocks import BLOCK, Blocks
from pad_export.weights.calibrate import calibrate_trunk
from pad_export.weights.file import WeightsFile
from pad_export.weights.stream import write_weights
from pad_runtime.bundle import contract
from pad_runtime.bundle.file_info import FileInfo, describe_file
from pad_runtime.bundle.manifest import (
    Activations,
    DialectName,
    GraphInfo,
    Manifest,
    Precision,
    Reference,
    TokenizerInfo,
    TrunkInfo,
    write_manifest,
)
from pad_runtime.devices.ort.provider import OrtProvider
from pad_runtime.errors import CheckpointError, OptionError

WEIGHTS_FILE = "weights.bin"
DEFAULT_MAX_LENGTH = 4096  # or the model's own limit, where that is less: the rotary tables grow with it
_PACKAGES = ("pad-rt", "onnx", "torch", "transformers", "peft")


def export_bundle(
    base: Path,
    output: Path,
    *,
    persrms: Sequence[Path] = (),
    topology: Literal["auto", "shared", "pair"] = "auto",
    reference: Reference = "base",
    backbone: Path | None = None,
    precision: Precision = "fp32",
    activations: Activations | None = None,
    dialect: DialectName | None = None,
    target: Literal["onnx", "tensorrt", "tensorrt-rtx"] = "onnx",
    compute_capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
    max_length: int | None = None,
    max_batch: int = 8,
    max_top_k: int = 128,
    verify: bool = True,
    quiet: bool = False,
    report: Callable[[str], object] = lambda _: None,
) -> Manifest:
    """Write a bundle folder that `pad_rt.Generator.load` opens.

    Everything is written and verified in a temporary folder beside `output`, which it replaces at the very end: a
    failed or interrupted export leaves nothing, and leaves an old bundle as it was.

    Args:
        base: Hugging Face folder or GGUF file of the base model.
        output: bundle folder to create, or to replace if it is a bundle.
        persrms, topology, reference, backbone: see `pad_export.plan.make_plan`.
        precision: element type of weights, activations and KV cache; int8 and int4 are of the weights alone, and the
            standard dialect has int4 only.
        activations: element type of activations, KV cache and adapters beside weights of int8 or int4: by default
            float32 in the ort dialect and float16 in the standard one.
        dialect: "ort" for ONNX Runtime's fused operators, "standard" for opset 24 alone; by default what the target
            takes, and that is "ort" for "onnx".
        target: "onnx" for the graphs alone, or a library to build engines of them with.
        compute_capabilities, timing_cache: see `pad_export.engines.build.EngineBuilder`.
        max_length: most tokens of prompt and reply together; by default the model's limit, at most 4096.
        max_batch: most sequences at once.
        max_top_k: most candidates a step.
        verify: compare the graphs with the torch models before the bundle is put in place.
        quiet: no progress of stages.
        report: told one line about each stage, and its progress where stderr is no terminal.

    Raises:
        PadError: any of its kinds; nothing was written.
    """
    if verify:
        OrtProvider("cpu")  # a runtime that is missing is told before the work and not after it
    builder = _make_builder(target, dialect, compute_capabilities, timing_cache)
    dialect = dialect or ("standard" if builder else "ort")
    plan = make_plan(base, persrms, topology=topology, reference=reference, backbone=backbone)
    _check_dialect(plan, dialect)
    storage = choose_storage(precision, dialect, activations)
    _check_precision(plan, storage)
    max_length, max_top_k = _check_limits(plan, max_length, max_batch, max_top_k)
    with staged(output) as folder:
        report(_summary(plan, storage))
        for note in plan.notes:
            report(f"note: {note}")
        checkpoint = plan.base.checkpoint
        if checkpoint.unnamed_eos is not None:
            token = checkpoint.tokenizer.backend.id_to_token(checkpoint.unnamed_eos)
            report(
                f"note: the chat template closes a reply with {token!r} ({checkpoint.unnamed_eos}), which no "
                "configuration names as an end: added to the tokens that end a reply"
            )
        if verify:
            for line in check_tokenizer(checkpoint.tokenizer, checkpoint.path, plan.base.spec.vocab_size):
                report(line)
        graphs = _write_graphs(folder, plan, storage, max_length, Stages(report, quiet=quiet))
        for info, source in zip(plan.persrms, plan.sources, strict=False):
            if info.adapter and source.adapter:
                write_adapter(folder / info.adapter, source.adapter, _trunk(plan, info.trunk), storage.float_type)
            if info.head and source.head:
                write_head(folder / info.head, source.head, storage.float_type)
        tokenizer = plan.base.checkpoint.save_tokenizer(folder)
        manifest = Manifest(
            format=contract.FORMAT,
            format_version=contract.FORMAT_VERSION,
            versions={name: version(name) for name in _PACKAGES},
            base=plan.base.checkpoint.path.resolve().name,
            topology=plan.topology,
            reference=plan.reference,
            precision=precision,
            float_type=storage.float_type,
            dialect=dialect,
            vocab_size=plan.base.spec.vocab_size,
            max_length=max_length,
            max_batch=max_batch,
            max_top_k=max_top_k,
            eos_token_ids=list(plan.base.checkpoint.eos_token_ids),
            trunks=[_describe_trunk(trunk) for trunk in plan.trunks],
            persrms=list(plan.persrms),
            graphs=graphs,
            tokenizer=TokenizerInfo(
                file="tokenizer.json",
                chat_template="chat_template.jinja" if tokenizer.chat_template else None,
                bos_token=None if tokenizer.bos_id is None else tokenizer.bos_token,
                eos_token=None if tokenizer.eos_id is None else tokenizer.eos_token,
            ),
            files=_describe_files(folder),
        )
        write_manifest(folder, manifest)
        if verify:
            report("verifying against the torch models")
            report(verify_bundle(folder, plan))
        if builder:
            manifest = build_engines(folder, manifest, builder, report, into=folder)
    return manifest


def _make_builder(
    target: str, dialect: str | None, compute_capabilities: Sequence[str], timing_cache: Path | None
) -> EngineBuilder | None:
    """What builds engines, if any are to be built; the options that are for engines need some."""
    if target != "onnx":
        if dialect == "ort":
            raise OptionError(f"--dialect ort with --target {target}", expected="--dialect standard")
        return EngineBuilder(target, compute_capabilities, timing_cache=timing_cache)
    for option in [f"--compute-capability {name}" for name in compute_capabilities] + ["--timing-cache"] * bool(
        timing_cache
    ):
        raise OptionError(f"{option} without engines", expected="--target tensorrt or tensorrt-rtx beside it")
    return None


def _write_graphs(folder: Path, plan: Plan, storage: Storage, max_length: int, stages: Stages) -> dict[str, GraphInfo]:
    """Stream the weights, then write the graphs that refer to them."""
    calibrated = [_calibrate(trunk, storage, stages) for trunk in plan.trunks]
    with WeightsFile(folder / WEIGHTS_FILE) as weights, stages.count("writing weights", "layers") as progress:
        progress.begin(sum(trunk.spec.num_layers for trunk in plan.trunks))
        for trunk, blocks in zip(plan.trunks, calibrated, strict=True):
            write_weights(trunk, weights, storage=storage, max_length=max_length, progress=progress, calibrated=blocks)
    graphs = (
        build_step_graph(plan.trunks, weights, storage),
        build_base_graph(plan.base, weights, storage),
        build_score_graph(plan.trunks, weights, storage),
    )
    return {graph.name: _save_graph(folder, graph, storage.dialect) for graph in graphs}


def _calibrate(trunk: Trunk, storage: Storage, stages: Stages) -> dict[str, Blocks]:
    """What is fitted to the calibration text before weights are written."""
    with stages.count("calibrating", "linears") as progress:
        return calibrate_trunk(trunk, storage, progress)


def _save_graph(folder: Path, graph: Graph, dialect: DialectName) -> GraphInfo:
    file = f"{graph.name}.onnx"
    onnx.save_model(graph.model(version("pad-rt")), folder / file)
    if dialect == "standard":  # the checker knows no operator of ONNX Runtime's own; those are checked by opening it
        onnx.checker.check_model(str(folder / file))
    return GraphInfo(file, list(graph.input_names), list(graph.output_names))


def _check_dialect(plan: Plan, dialect: DialectName) -> None:
    """ONNX Runtime's GroupQueryAttention rotates 16 numbers at a time, and refuses other heads only when it runs."""
    for trunk in plan.trunks:
        if dialect == "ort" and trunk.spec.head_dim % 16:
            raise CheckpointError(
                f"{trunk.checkpoint.path} has head_dim {trunk.spec.head_dim}",
                expected="a multiple of 16 in the ort dialect",
                hint="pass --dialect standard",
            )


def _check_precision(plan: Plan, storage: Storage) -> None:
    """Blocks of 8 bits are ONNX Runtime's own operators, and all blocks are 32 wide."""
    if storage.precision == "int8" and storage.dialect != "ort":
        raise OptionError("--precision int8 with --dialect standard", expected="--precision int4, or --dialect ort")
    for trunk in plan.trunks:
        widths = {trunk.spec.hidden_size, *(trunk.site_sizes(site)[0] for site in SITE_MODULES)}
        for width in sorted(widths):
            if storage.in_blocks and width % BLOCK:
                raise CheckpointError(
                    f"{trunk.checkpoint.path} has matrices {width} wide",
                    expected=f"a multiple of {BLOCK} at {storage.precision}",
                    hint="pass --precision fp32, fp16 or bf16",
                )


def _check_limits(plan: Plan, max_length: int | None, max_batch: int, max_top_k: int) -> tuple[int, int]:
    """max_length and max_top_k within what every trunk allows."""
    longest = min(trunk.spec.max_positions for trunk in plan.trunks)
    if max_length is None:
        max_length = min(longest, DEFAULT_MAX_LENGTH)
    for option, value, low, high in (
        ("--max-length", max_length, 2, longest),
        ("--max-batch", max_batch, 1, 1024),
        ("--max-top-k", max_top_k, 1, None),
    ):
        if value < low or (high is not None and value > high):
            raise OptionError(f"{option} {value}", expected=f"{low} to {high}" if high else f"at least {low}")
    return max_length, min(max_top_k, plan.base.spec.vocab_size)


def _trunk(plan: Plan, name: str) -> Trunk:
    return next(trunk for trunk in plan.trunks if trunk.name == name)


def _describe_trunk(trunk: Trunk) -> TrunkInfo:
    spec = trunk.spec
    return TrunkInfo(
        name=trunk.name,
        model_type=spec.model_type,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        prompt_layers=trunk.prompt_layers,
        lora_sites={site: list(trunk.site_sizes(site)) for site in trunk.lora_sites},
        has_features=trunk.has_features,
        mixes_heads=not spec.logit_softcap,
    )


def _describe_files(folder: Path) -> dict[str, FileInfo]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): describe_file(path) for path in files}


def _summary(plan: Plan, storage: Storage) -> str:
    rewards = ", ".join(info.name for info in plan.persrms)
    numbers = f"{storage.precision} weights, {storage.float_type} activations, dialect {storage.dialect}"
    return f"topology {plan.topology}, reference {plan.reference}, {numbers}, rewards: {rewards}"
