"""`export_bundle`: from checkpoints on disk to a verified bundle, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx

from pad_export.describe import describe_bundle
from pad_export.engines.add import build_engines
from pad_export.engines.build import EngineBuilder
from pad_export.graph.matrix import Storage, choose_storage
from pad_export.graph.score import build_score_graph
from pad_export.graph.step import build_base_graph, build_step_graph
from pad_export.graph.writer import GraphWriter
from pad_export.limits import check_storage, choose_limits
from pad_export.options import DEFAULT_OPTIONS, ExportOptions
from pad_export.output.stages import Stages
from pad_export.output.staging import staged
from pad_export.plan import Plan, make_plan
from pad_export.read.checkpoint import Checkpoint, OpenWeights
from pad_export.read.safetensors_file import open_safetensors
from pad_export.read.tokenizer.check import check_tokenizer
from pad_export.trunk import Trunk
from pad_export.verify.verify import verify_bundle
from pad_export.weights.adapter_file import write_adapter, write_feature_head
from pad_export.weights.blocks import Blocks
from pad_export.weights.calibrate import calibrate_trunk
from pad_export.weights.file import WeightsFile
from pad_export.weights.stream import write_weights
from pad_runtime.bundle.manifest import DialectName, GraphInfo, Manifest, write_manifest
from pad_runtime.command import Report, silent
from pad_runtime.devices.ort.provider import OrtProvider
from pad_runtime.errors import OptionError

WEIGHTS_FILE = "weights.bin"


def export_bundle(
    base: Path,
    output: Path,
    *,
    persrms: Sequence[Path] = (),
    options: ExportOptions = DEFAULT_OPTIONS,
    open_weights: OpenWeights = open_safetensors,
    create_file: Callable[[Path], WeightsFile] = WeightsFile,
    report: Report = silent,
) -> Manifest:
    """Write a bundle folder that `pad_rt.Generator.load` opens.

    Everything is written and verified in a temporary folder beside `output`, which it replaces at the very end: a
    failed or interrupted export leaves nothing, and leaves an old bundle as it was.

    Args:
        base: Hugging Face folder or GGUF file of the base model.
        output: bundle folder to create, or to replace if it is a bundle.
        persrms: LoRA adapter folders, or one merged checkpoint; none gives the contrast preset.
        options: how.
        open_weights: gives the weights of a Hugging Face folder.
        create_file: gives the file that weights are written to.
        report: told one line about each stage, and its progress, which is a bar instead where stderr is a terminal.

    Raises:
        PadError: any of its kinds; nothing was written.
    """
    if options.verify:
        OrtProvider("cpu")  # raises now, before the work, if the runtime is missing
    builder = _make_builder(options)
    dialect = options.dialect or ("standard" if builder else "ort")
    storage = choose_storage(options.precision, dialect, options.activations, all_4_bits=options.all_4_bits)
    plan = make_plan(
        base,
        persrms,
        topology=options.topology,
        reference=options.reference,
        backbone=options.backbone,
        open_weights=open_weights,
    )
    check_storage(plan, storage)
    limits = choose_limits(plan, options)
    checkpoint = plan.base.checkpoint
    with staged(output) as folder:
        for line in (_summary(plan, storage), *(f"note: {note}" for note in (*plan.notes, *_end_notes(checkpoint)))):
            report(line)
        if options.verify:
            for line in check_tokenizer(checkpoint.tokenizer, checkpoint.path, plan.base.spec.vocab_size):
                report(line)
        stages = Stages(report)
        calibrated = [_calibrate(trunk, storage, stages) if options.calibrate else {} for trunk in plan.trunks]
        with create_file(folder / WEIGHTS_FILE) as weights:
            _write_weights(weights, plan, storage, limits.max_length, calibrated, stages)
        built = (
            build_step_graph(plan.trunks, weights, storage),
            build_base_graph(plan.base, weights, storage),
            build_score_graph(plan.trunks, weights, storage),
        )
        graphs = {graph.name: _save_graph(folder, graph, storage.dialect) for graph in built}
        for info, source in zip(plan.persrms, plan.sources, strict=False):
            if info.adapter and source.adapter:
                write_adapter(folder / info.adapter, source.adapter, plan.trunk(info.trunk), storage.float_type)
            if info.feature_head and source.feature_head:
                write_feature_head(folder / info.feature_head, source.feature_head, storage.float_type)
        checkpoint.save_tokenizer(folder)
        manifest = describe_bundle(folder, plan, storage, limits, graphs)
        write_manifest(folder, manifest)
        if options.verify:
            report("verifying against the torch models")
            report(verify_bundle(folder, plan))
        if builder:
            manifest = build_engines(folder, manifest, builder, report, into=folder)
    return manifest


def _make_builder(options: ExportOptions) -> EngineBuilder | None:
    """The builder of engines, None if none are asked for; refuses options for engines without engines."""
    if options.target != "onnx":
        if options.dialect == "ort":
            raise OptionError(f"--dialect ort with --target {options.target}", expected="--dialect standard")
        return EngineBuilder(options.target, options.compute_capabilities, timing_cache=options.timing_cache)
    given = [f"--compute-capability {name}" for name in options.compute_capabilities]
    for option in given + ["--timing-cache"] * bool(options.timing_cache):
        raise OptionError(f"{option} without engines", expected="--target tensorrt or tensorrt-rtx beside it")
    return None


def _calibrate(trunk: Trunk, storage: Storage, stages: Stages) -> dict[str, Blocks]:
    """Fit linears to the calibration text before weights are written."""
    with stages.count("calibrating", "linears") as progress:
        return calibrate_trunk(trunk, storage, progress)


def _write_weights(
    file: WeightsFile,
    plan: Plan,
    storage: Storage,
    max_length: int,
    calibrated: Sequence[dict[str, Blocks]],
    stages: Stages,
) -> None:
    """Stream all trunks' weights."""
    with stages.count("writing weights", "layers") as progress:
        progress.begin(sum(trunk.spec.num_layers for trunk in plan.trunks))
        for trunk, blocks in zip(plan.trunks, calibrated, strict=True):
            write_weights(trunk, file, storage=storage, max_length=max_length, progress=progress, calibrated=blocks)


def _save_graph(folder: Path, graph: GraphWriter, dialect: DialectName) -> GraphInfo:
    file = f"{graph.name}.onnx"
    onnx.save_model(graph.model(version("pad-rt")), folder / file)
    if dialect == "standard":  # the checker does not know ONNX Runtime's operators; opening the graph checks those
        onnx.checker.check_model(str(folder / file))
    return GraphInfo(file, list(graph.input_names), list(graph.output_names))


def _summary(plan: Plan, storage: Storage) -> str:
    rewards = ", ".join(info.name for info in plan.persrms)
    numbers = f"{storage.precision} weights, {storage.float_type} activations, dialect {storage.dialect}"
    return f"topology {plan.topology}, reference {plan.reference}, {numbers}, rewards: {rewards}"


def _end_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What ends a reply though no configuration says so."""
    if checkpoint.unnamed_eos is None:
        return ()
    token = checkpoint.tokenizer.backend.id_to_token(checkpoint.unnamed_eos)
    return (
        f"the chat template closes a reply with {token!r} ({checkpoint.unnamed_eos}), which no configuration names as "
        "an end: added to the tokens that end a reply",
    )
