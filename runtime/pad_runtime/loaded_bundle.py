"""An opened bundle: its manifest, its adapters, and a session for each graph, opened when first asked for."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from pad_runtime.bundle import contract
from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.manifest import open_bundle
from pad_runtime.bundle.signature import find_mismatches, find_table_mismatches
from pad_runtime.decode.decoder import Decoder
from pad_runtime.devices.choice import find_provider
from pad_runtime.devices.provider import Graph
from pad_runtime.errors import BundleError, not_copied
from pad_runtime.score.scorer import Scorer


class Bundle:
    """A bundle on one device. Its graphs are shared by any number of decoders, each with its own KV arena, and scorers.

    It is a snapshot: its files are open from now on. Whatever happens to the folder, its decoders choose the tokens of
    what was loaded, or raise a BundleError.

    Attributes:
        folder: where it is, absolute and without links.
        manifest: what it is.
        files: what it holds.
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
        check: bool = False,
    ) -> None:
        """Read and check the manifest, open and check the files; a graph's session is made when it is first used.

        Args:
            folder: the bundle.
            device, num_threads, low_memory, capture: see `find_provider`.
            check: hash every file; else those of more than 32 MiB are sampled, which tells lost stretches of 64 KiB.

        Raises:
            BundleError: the bundle is missing, truncated, altered or inconsistent.
            DeviceError, EngineError: the device is unknown, not available, or does not run this bundle.
        """
        self.manifest, self.files = open_bundle(folder, check=check)
        self.folder = self.files.folder
        self.provider, self.notes = find_provider(
            device, self.folder, self.manifest, num_threads=num_threads, low_memory=low_memory, capture=capture
        )
        self._graphs: dict[str, Graph] = {}

    def decoder(self) -> Decoder:
        """A decoder of its own KV arena over the bundle's graphs."""
        return Decoder(self.graph, self.manifest, self.files, self.provider)

    def scorer(self) -> Scorer:
        """A scorer of given replies.

        Raises:
            DeviceError: the device runs engines, and there is none of the score graph.
        """
        return Scorer(self.graph(contract.SCORE_GRAPH), self.manifest, self.files, self.provider)

    def graph(self, name: str) -> Graph:
        """One of the bundle's graphs by its name, opened when it is first asked for."""
        if name not in self._graphs:
            self._graphs[name] = self._open(name)
        return self._graphs[name]

    def _open(self, name: str) -> Graph:
        """Open a graph and hold its tables, inputs and outputs against the manifest's."""
        info = self.manifest.graphs[name]
        file = GraphFile.read(self.files, self.manifest, name)
        _refuse(file.path, find_table_mismatches(file.model.tensors, self.manifest, name), "sizes")
        graph = self.provider.open(file, self.manifest)
        for what, real, listed in (
            ("inputs", [value.name for value in graph.inputs], info.inputs),
            ("outputs", [value.name for value in graph.outputs], info.outputs),
        ):
            _refuse(file.path, sorted(set(real) ^ set(listed)), what)
        _refuse(file.path, find_mismatches(graph.inputs, self.manifest, name), "inputs")
        return graph

    def __reduce__(self) -> NoReturn:
        """Files, sessions and buffers belong to their process.

        Raises:
            PadError: always.
        """
        raise not_copied("a Bundle")


def _refuse(path: Path, differences: list[str], what: str) -> None:
    if differences:
        raise BundleError(
            f"{path} and the manifest differ in {len(differences)} {what}: {'; '.join(differences[:3])}",
            hint="export it again",
        )
