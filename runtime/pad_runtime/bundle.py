"""An opened bundle: its manifest, its adapters, and a session for each graph, opened when first asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pad_runtime import contract
from pad_runtime.adapters import AdapterBank
from pad_runtime.errors import BundleError
from pad_runtime.manifest import GraphInfo, read_manifest
from pad_runtime.providers import Provider
from pad_runtime.signature import find_mismatches
from pad_runtime.step import OrtStep

if TYPE_CHECKING:
    import onnxruntime as ort


class Bundle:
    """A bundle on one device. Sessions are shared by any number of steps; each step has its own KV cache."""

    def __init__(
        self, folder: Path, *, device: str = "auto", num_threads: int | None = None, low_memory: bool = False
    ) -> None:
        """Read and check the manifest; the graphs are opened when the first step asks for them.

        Args:
            folder: the bundle.
            device, num_threads, low_memory: see `Provider`.

        Raises:
            BundleError: the bundle is missing, truncated, altered or inconsistent.
            DeviceError: the device is unknown or not available.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        float_type = self.manifest.float_type
        self.provider = Provider(device, float_type=float_type, num_threads=num_threads, low_memory=low_memory)
        self._bank = AdapterBank(folder, self.manifest, self.provider)

    def guided_step(self) -> OrtStep:
        """A step over all rows of a request."""
        return OrtStep(*self._step_graph, self.manifest, self._bank, self.provider)

    def base_step(self) -> OrtStep:
        """A step of the base alone, at the base's own cost."""
        return OrtStep(*self._base_graph, self.manifest, self._bank, self.provider)

    @cached_property
    def _step_graph(self) -> tuple[ort.InferenceSession, GraphInfo]:
        return self._open(contract.STEP_GRAPH)

    @cached_property
    def _base_graph(self) -> tuple[ort.InferenceSession, GraphInfo]:
        return self._open(contract.BASE_GRAPH)

    def _open(self, name: str) -> tuple[ort.InferenceSession, GraphInfo]:
        """Open a graph and hold its real inputs and outputs against the manifest's."""
        info = self.manifest.graphs[name]
        path = self.folder / info.file
        session = self.provider.session(path)
        for what, real, listed in (
            ("inputs", [value.name for value in session.get_inputs()], info.inputs),
            ("outputs", [value.name for value in session.get_outputs()], info.outputs),
        ):
            if set(real) != set(listed):
                odd = sorted(set(real) ^ set(listed))
                raise BundleError(
                    f"{path} and the manifest differ in {len(odd)} {what}: {', '.join(odd[:3])}", hint="export it again"
                )
        mismatches = find_mismatches(session.get_inputs(), self.manifest, guided=name == contract.STEP_GRAPH)
        if mismatches:
            raise BundleError(
                f"{path} and the manifest differ in {len(mismatches)} inputs: {'; '.join(mismatches[:3])}",
                hint="export it again",
            )
        return session, info
