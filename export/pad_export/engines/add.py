"""Engines added to a bundle: built from its graphs, listed in its manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pad_export.engines.build import EngineBuilder
from pad_export.engines.profile import check_capacity
from pad_export.output.staging import changed
from pad_runtime.bundle import contract
from pad_runtime.bundle.file_info import describe_file
from pad_runtime.bundle.manifest import Manifest, write_manifest
from pad_runtime.command import Report, silent
from pad_runtime.errors import OptionError


def add_engines(bundle: Path, manifest: Manifest, builder: EngineBuilder, report: Report = silent) -> Manifest:
    """Build an engine of each graph, in place of those of the same library that a bundle had.

    The bundle is replaced in one step once all engines are built.

    Returns:
        The new manifest.

    Raises:
        OptionError: the graphs are in the ort dialect, the bundle cannot be written, or its max_length does not fit.
        CheckpointError: the disk is full or fails.
        EngineError: see `EngineBuilder.build`.
    """
    if manifest.dialect != "standard":
        raise OptionError(
            f"{bundle} is in the {manifest.dialect} dialect",
            expected="the standard one",
            hint=f"export it again with --target {builder.target}",
        )
    with changed(bundle) as folder:
        return build_engines(bundle, manifest, builder, report, into=folder)


def build_engines(bundle: Path, manifest: Manifest, builder: EngineBuilder, report: Report, *, into: Path) -> Manifest:
    """Build an engine of each graph of a standard bundle in `into`, which is that folder or a copy of it.

    Returns:
        The new manifest, which is written to `into`.

    Raises:
        OptionError: rows of the KV caches are of a size that TensorRT does not take.
        EngineError: as `add_engines`.
    """
    check_capacity(manifest)
    engines = [engine for engine in manifest.engines if engine.target != builder.target]
    old = {engine.file for engine in manifest.engines} - {engine.file for engine in engines}
    for name in old:
        (into / name).unlink(missing_ok=True)
    files = {name: info for name, info in manifest.files.items() if name not in old}
    for graph in contract.ENGINE_GRAPHS:
        built = into / f"{graph}.{builder.target}.engine"
        report(f"building the {graph} engine for {', '.join(builder.compute_capabilities)}")
        info, made = builder.build(bundle, manifest, graph, built)
        kernels = " and ".join(str(sum(counts.values())) for counts in made.kernels)
        report(
            f"{built.name}: {made.size / 2**20:,.1f} MiB in {made.seconds:.0f} s"
            + (f", {kernels} kernels ({' and '.join(info.profiles)})" if kernels else "")
            + f", {len(made.updates)} caches in place"
        )
        if made.note:
            report(f"note: {made.note}")
        engines.append(info)
        files[info.file] = describe_file(built)
    manifest = replace(manifest, engines=engines, files=dict(sorted(files.items())))
    write_manifest(into, manifest)
    return manifest
