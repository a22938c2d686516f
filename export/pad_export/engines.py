"""A bundle's engines: built beside its graphs, stamped in its manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pad_export.engine import EngineBuilder
from pad_runtime import contract
from pad_runtime.errors import OptionError
from pad_runtime.file_info import describe_file
from pad_runtime.manifest import Manifest, write_manifest


def add_engines(
    folder: Path, manifest: Manifest, builder: EngineBuilder, report: Callable[[str], object] = lambda _: None
) -> Manifest:
    """Build an engine of each graph, in place of those of the same library that the bundle had.

    The bundle stays as it was until all are built.

    Returns:
        The manifest that stands in the bundle now.

    Raises:
        OptionError: the graphs are in the ort dialect.
        EngineError: see `EngineBuilder.build`.
    """
    if manifest.dialect != "standard":
        raise OptionError(
            f"{folder} is in the {manifest.dialect} dialect",
            expected="the standard one",
            hint=f"export it again with --target {builder.target}",
        )
    engines = [engine for engine in manifest.engines if engine.target != builder.target]
    old = {engine.file for engine in manifest.engines} - {engine.file for engine in engines}
    files = {name: info for name, info in manifest.files.items() if name not in old}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".engines", dir=folder.parent) as temporary:
        for graph in (contract.STEP_GRAPH, contract.BASE_GRAPH):
            built = Path(temporary) / f"{graph}.{builder.target}.engine"
            report(f"building the {graph} engine for {', '.join(builder.compute_capabilities)}")
            info, made = builder.build(folder, manifest, graph, built)
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
        for path in sorted(Path(temporary).iterdir()):
            path.replace(folder / path.name)
    for name in old - files.keys():
        (folder / name).unlink(missing_ok=True)
    manifest = replace(manifest, engines=engines, files=dict(sorted(files.items())))
    write_manifest(folder, manifest)
    return manifest
