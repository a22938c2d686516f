"""Which device runs a bundle's graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.devices.ort.execution_provider import ORT_DEVICES
from pad_runtime.devices.ort.provider import OrtProvider
from pad_runtime.devices.provider import Provider
from pad_runtime.devices.tensorrt.provider import TensorRtProvider
from pad_runtime.devices.threads import check_threads
from pad_runtime.errors import DeviceError, EngineError

DEVICES = ("auto", *contract.ENGINE_TARGETS, *ORT_DEVICES)
_LAST = "cpu"  # of those that "auto" tries; it tries none that builds for minutes at first


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
