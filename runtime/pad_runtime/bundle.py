"""An opened bundle: its manifest, its adapters, and a session for each graph, opened when first asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pad_runtime import contract
from pad_runtime.adapters import AdapterBank
from pad_runtime.errors import BundleError
from pad_runtime.manifest import read_manifest
from pad_runtime.providers import Graph, find_provider
from pad_runtime.signature import find_mismatches
from pad_runtime.step import GraphStep


class Bundle:
    """A bundle on one device. Its graphs are shared by any number of steps; each step has its own KV cache.

    Attributes:
        folder, manifest: what it is.
        provider: what runs it.
        notes: why "auto" passed over other devices, a line each.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "auto",
        num_threads: int | None = None,
        low_memory: bool = False,
        capture: bool = True,
    ) -> None:
        """Read and check the manifest; the graphs are opened when the first step asks for them.

        Args:
            folder: the bundle.
            device, num_threads, low_memory, capture: see `find_provider`.

        Raises:
            BundleError: the bundle is missing, truncated, altered or inconsistent.
            DeviceError, EngineError: the device is unknown, not available, or does not run this bundle.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.provider, self.notes = find_provider(
            device, folder, self.manifest, num_threads=num_threads, low_memory=low_memory, capture=capture
        )
        self._bank = AdapterBank(folder, self.manifest, self.provider)

    def guided_step(self) -> GraphStep:
        """A step over all rows of a request."""
        return GraphStep(self._step_graph, self.manifest, self._bank, self.provider)

    def base_step(self) -> GraphStep:
        """A step of the base alone, at the base's own cost."""
        return GraphStep(self._base_graph, self.manifest, self._bank, self.provider)

    @cached_property
    def _step_graph(self) -> Graph:
        return self._open(contract.STEP_GRAPH)

    @cached_property
    def _base_graph(self) -> Graph:
        return self._open(contract.BASE_GRAPH)

    def _open(self, name: str) -> Graph:
        """Open a graph and hold its real inputs and outputs against the manifest's."""
        info = self.manifest.graphs[name]
        path = self.folder / info.file
        graph = self.provider.open(self.folder, self.manifest, name)
        for what, real, listed in (
            ("inputs", [value.name for value in graph.inputs], info.inputs),
            ("outputs", [value.name for value in graph.outputs], info.outputs),
        ):
            if set(real) != set(listed):
                odd = sorted(set(real) ^ set(listed))
                raise BundleError(
                    f"{path} and the manifest differ in {len(odd)} {what}: {', '.join(odd[:3])}", hint="export it again"
                )
        mismatches = find_mismatches(graph.inputs, self.manifest, guided=name == contract.STEP_GRAPH)
        if mismatches:
            raise BundleError(
                f"{path} and the manifest differ in {len(mismatches)} inputs: {'; '.join(mismatches[:3])}",
                hint="export it again",
            )
        return graph
