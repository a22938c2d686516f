"""Whether a bundle's TensorRT engines run here: an engine belongs to one library version, one system and its GPUs."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass
from pathlib import Path

from pad_runtime.bundle.manifest import EngineInfo, Manifest
from pad_runtime.errors import EngineError


@dataclass(frozen=True)
class EngineHost:
    """What would run an engine.

    Attributes:
        target: the library, one of `contract.ENGINE_TARGETS`.
        version: the library's.
        compute_capability: of the GPU, such as "sm89".
        platform: see `this_platform`.
    """

    target: str
    version: str
    compute_capability: str
    platform: str

    def __str__(self) -> str:
        """One phrase."""
        return f"{self.target} {self.version} on {self.platform}, {self.compute_capability}"


def this_platform() -> str:
    """Operating system and processor, such as "linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def find_engine(folder: Path, manifest: Manifest, graph: str, host: EngineHost) -> EngineInfo:
    """The engine of a graph that runs on `host`.

    Raises:
        EngineError: there is none; says what there is, and the command that builds what is missing.
    """
    engines = [engine for engine in manifest.engines if (engine.graph, engine.target) == (graph, host.target)]
    for engine in engines:
        if (engine.version, engine.platform) == (host.version, host.platform) and (
            host.compute_capability in engine.compute_capabilities
        ):
            return engine
    if manifest.dialect != "standard":
        raise EngineError(
            f"{folder} is in the {manifest.dialect} dialect",
            expected=f"an engine for {host}",
            hint=f"export it again with --target {host.target}",
        )
    built = "; ".join(_describe(engine) for engine in engines)
    raise EngineError(
        f"{folder} has no engine of its {graph} graph for {host}" + (f", only {built}" if built else ""),
        hint=f"run: {_build_command(folder, engines, host)}",
    )


def _describe(engine: EngineInfo) -> str:
    capabilities = " and ".join(engine.compute_capabilities)
    return f"{engine.file} for {engine.target} {engine.version} on {engine.platform}, {capabilities}"


def _build_command(folder: Path, engines: list[EngineInfo], host: EngineHost) -> str:
    """Builds for this GPU, and again for those that the bundle's engines were for."""
    words = ["pad-export", "engines", str(folder), "--target", host.target]
    if host.target == "tensorrt-rtx":  # the other library builds for the GPU that it finds
        known = {name for engine in engines for name in engine.compute_capabilities}
        for name in sorted(known | {host.compute_capability}, key=lambda name: int(name.removeprefix("sm"))):
            words += ["--compute-capability", name]
    return shlex.join(words)
