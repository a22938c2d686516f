"""Where a graph runs. Everything that differs between execution providers is in this file: one entry a provider."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from pad_runtime.errors import BundleError, DeviceError, OutOfMemoryError

if TYPE_CHECKING:
    import onnxruntime as ort

_INSTALL = "pip install 'pad-rt[cpu]'"
_FREE_MEMORY = "close other programs, or take a smaller model"


@dataclass(frozen=True)
class _Entry:
    execution_provider: str  # ONNX Runtime's name for it
    memory: str  # device type of its buffers


_PROVIDERS = {"cpu": _Entry("CPUExecutionProvider", "cpu")}
DEVICES = ("auto", *_PROVIDERS)


class Provider:
    """Creates sessions and buffers on one device."""

    def __init__(self, device: str = "auto", *, num_threads: int | None = None, low_memory: bool = False) -> None:
        """Pick a device.

        Args:
            device: one of `DEVICES`; "auto" takes the first that is available.
            num_threads: threads inside one operator on a CPU; None takes ONNX Runtime's default, the physical cores.
            low_memory: run on the weights as they lie mapped in their file: no copy in the layout of ONNX Runtime's
                kernels, no fp16 weights unfolded to fp32. Half the memory, and slower steps.

        Raises:
            DeviceError: the device is unknown or not available here.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise DeviceError("onnxruntime is not installed", hint=_INSTALL) from None
        if device not in DEVICES:
            raise DeviceError(f"device '{device}'", expected=f"one of {', '.join(DEVICES)}")
        if num_threads is not None and not (isinstance(num_threads, int) and num_threads >= 1):
            raise DeviceError(f"num_threads {num_threads!r}", expected="a whole number, at least 1")
        self._ort: Any = onnxruntime
        built_in = onnxruntime.get_available_providers()
        available = [name for name, entry in _PROVIDERS.items() if entry.execution_provider in built_in]
        wanted = available[:1] if device == "auto" else [device]
        if not wanted or wanted[0] not in available:
            raise DeviceError(
                f"device '{device}' is not available in this onnxruntime, which has {', '.join(built_in) or 'none'}",
                expected=f"one of {', '.join(available)}" if available else "an onnxruntime that runs on the CPU",
                hint=_INSTALL,
            )
        self.device = wanted[0]
        self._entry = _PROVIDERS[self.device]
        self.num_threads = num_threads
        self._low_memory = low_memory

    def session(self, graph: Path) -> ort.InferenceSession:
        """Open a graph.

        Raises:
            BundleError: ONNX Runtime refuses the file.
            OutOfMemoryError: the weights do not fit.
        """
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, and told once
        # Spinning workers fight with each other and with the rest of a busy small machine for its few cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_prepacking", "1" if self._low_memory else "0")
        options.inter_op_num_threads = 1
        if self.num_threads is not None:
            options.intra_op_num_threads = self.num_threads
        skipped = ["ConstantFolding"] if self._low_memory else []
        try:
            return self._ort.InferenceSession(
                str(graph), options, providers=[self._entry.execution_provider], disabled_optimizers=skipped
            )
        except MemoryError:
            raise OutOfMemoryError(f"no memory for {graph}", hint=_FREE_MEMORY) from None
        except Exception as error:
            reason = str(error).splitlines()[0][:300]
            if "alloc" in reason.lower():
                raise OutOfMemoryError(f"no memory for {graph}: {reason}", hint=_FREE_MEMORY) from None
            raise BundleError(f"ONNX Runtime cannot open {graph}: {reason}", hint="export it again") from None

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> ort.OrtValue:
        """A zeroed buffer on the device.

        Raises:
            OutOfMemoryError: says how much was asked for.
        """
        try:
            return self.upload(np.zeros(shape, dtype))
        except (MemoryError, RuntimeError):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize / 2**20
            raise OutOfMemoryError(
                f"no memory for a buffer of {size:,.0f} MiB",
                hint="use shorter prompts, fewer new tokens or a smaller batch",
            ) from None

    def upload(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        """A device buffer holding `array`; on a CPU the array's own memory."""
        return self._ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), self._entry.memory, 0)

    def host_ids(self, count: int) -> tuple[ort.OrtValue, Sequence[int]]:
        """A host buffer of int64 ids for an output to land in, and a view that reads it with no NumPy and no copy."""
        array = np.zeros(count, np.int64)
        value = self._ort.OrtValue.ortvalue_from_numpy(array, "cpu", 0)  # the array's own memory, which the view keeps
        view = (ctypes.c_int64 * count).from_buffer(array.data)
        return value, cast(Sequence[int], view)

    def run_options(self) -> ort.RunOptions:
        """Options for every run."""
        return self._ort.RunOptions()
