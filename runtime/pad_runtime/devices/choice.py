"""What runs a bundle's graphs, and which of them is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pad_runtime.bundle import contract
from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.cancellation import Cancellation
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.devices.ort.provider import ORT_DEVICES, OrtProvider
from pad_runtime.devices.tensorrt.provider import TensorRtProvider
from pad_runtime.devices.threads import check_threads
from pad_runtime.errors import DeviceError, EngineError

DEVICES = ("auto", *contract.ENGINE_TARGETS, *ORT_DEVICES)
_LAST = "cpu"  # of those that "auto" tries; it tries none that builds for minutes at first


class Graph(Protocol):
    """A graph of a bundle, opened: the compiled seam.

    Attributes:
        inputs, outputs: each with .name, .type ("tensor(float16)") and .shape.
        host_inputs: inputs that are read on the host, whatever the device, by the last part of their names.
        capacity: slots that its KV caches must have; None: any number.
    """

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    host_inputs: frozenset[str]
    capacity: int | None

    def bind(
        self,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        repeated: bool,
        cancellation: Cancellation | None = None,
    ) -> Callable[[], object]:
        """A run on these buffers, which must live as long as it does; a repeated one may be captured.

        Where the end of a run is wanted that takes long, it raises whatever its library does.
        """


class Provider(Protocol):
    """Opens graphs on one device.

    Attributes:
        device: one of `DEVICES`.
        captures: whether a repeated run has read its host inputs for good.
        memory: makes the buffers that its graphs read and write.
        version: the library and its version.
    """

    device: str
    captures: bool
    memory: DeviceMemory

    @property
    def version(self) -> str:
        """The library and its version."""

    def open(self, graph: GraphFile, manifest: Manifest) -> Graph:
        """Open one of a bundle's graphs."""


@dataclass(frozen=True)
class Finding:
    """One device, looked at.

    Attributes:
        device: one of `DEVICES` but "auto".
        usable: whether it would run the bundle.
        detail: what would run it, or why it cannot.
    """

    device: str
    usable: bool
    detail: str


def find_provider(
    device: str,
    folder: Path,
    manifest: Manifest,
    *,
    num_threads: int | None = None,
    low_memory: bool = False,
    capture: bool = True,
) -> tuple[Provider, tuple[str, ...]]:
    """What is to run a bundle.

    Args:
        device: one of `DEVICES`; "auto" takes the first of TensorRT, CUDA and CPU that can run it here.
        folder, manifest: the bundle.
        num_threads, low_memory: see `OrtProvider`; a GPU has no use for them.
        capture: replay decode steps as a CUDA graph, where the device can.

    Returns:
        The provider, and why "auto" passed over others that bundle and machine seem to be made for, a line each.

    Raises:
        DeviceError, EngineError: the device is unknown, not available here, or does not run that bundle.
    """
    if device not in DEVICES:
        raise DeviceError(f"device '{device}'", expected=f"one of {', '.join(DEVICES)}")
    check_threads(num_threads)

    def take(name: str) -> Provider:
        return _make(name, folder, manifest, num_threads=num_threads, low_memory=low_memory, capture=capture)

    if device != "auto":
        return take(device), ()
    notes: list[str] = []
    for name in (*contract.ENGINE_TARGETS, "cuda"):
        if not _is_meant(name, manifest):
            continue
        try:
            return take(name), () if name in contract.ENGINE_TARGETS else tuple(notes)
        except (DeviceError, EngineError) as error:
            notes.append(f"not on {name}: {error}")
    return take(_LAST), tuple(notes)


def survey(folder: Path, manifest: Manifest) -> list[Finding]:
    """Every device: what would run the bundle there, or why it cannot."""
    findings = []
    for name in DEVICES[1:]:
        try:
            findings.append(Finding(name, True, _make(name, folder, manifest).version))
        except (DeviceError, EngineError) as error:
            findings.append(Finding(name, False, str(error)))
    return findings


def _make(name: str, folder: Path, manifest: Manifest, **settings: Any) -> Provider:
    if name in ORT_DEVICES:
        return OrtProvider(name, manifest=manifest, **settings)
    provider = TensorRtProvider(name, capture=settings.get("capture", True))
    provider.check(folder, manifest)
    return provider


def _is_meant(name: str, manifest: Manifest) -> bool:
    """Whether the bundle or the installed package was made for a device."""
    if name in contract.ENGINE_TARGETS:
        return any(engine.target == name for engine in manifest.engines)
    return OrtProvider.is_built_in(name)
