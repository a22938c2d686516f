"""Where a graph runs. Everything that differs between execution providers is in this file: one entry a provider."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from pad_runtime.cuda import Cuda
from pad_runtime.errors import BundleError, DeviceError, OutOfMemoryError

if TYPE_CHECKING:
    import onnxruntime as ort

_HALF_ONLY = ("float16", "bfloat16")  # what CUDA's attention kernels take
_FREE_MEMORY = "close other programs, or take a smaller model"


@dataclass(frozen=True)
class _Entry:
    execution_provider: str  # ONNX Runtime's name for it
    memory: str  # device type of its buffers
    extra: str  # what brings it: pip install 'pad-rt[...]'
    float_types: tuple[str, ...] = ()  # of the bundles that it runs; none given: all
    options: dict[str, str] = field(default_factory=dict)
    captures: bool = False  # decode steps are captured as a graph of the device and replayed


# In the order in which "auto" tries them.
_PROVIDERS = {
    "cuda": _Entry(
        "CUDAExecutionProvider",
        "cuda",
        "cuda",
        float_types=_HALF_ONLY,
        options={"device_id": "0", "enable_cuda_graph": "1", "arena_extend_strategy": "kSameAsRequested"},
        captures=True,
    ),
    "cpu": _Entry("CPUExecutionProvider", "cpu", "cpu", float_types=("float32", "float16")),
}
DEVICES = ("auto", *_PROVIDERS)
_graph_ids = itertools.count(1)  # of the process: no two captures are taken for each other
_NEVER_CAPTURED = -1  # ONNX Runtime's graph id for a run that is neither captured nor replayed


class Provider:
    """Creates sessions and buffers on one device.

    Attributes:
        device: the one picked.
        notes: why "auto" passed over a device that this onnxruntime was built for, a line each.
    """

    def __init__(
        self,
        device: str = "auto",
        *,
        float_type: str | None = None,
        num_threads: int | None = None,
        low_memory: bool = False,
    ) -> None:
        """Pick a device.

        Args:
            device: one of `DEVICES`; "auto" takes the first that can be used.
            float_type: NumPy's name of the bundle's activations, where it is known.
            num_threads: threads inside one operator on a CPU; None takes ONNX Runtime's default, the physical cores.
            low_memory: run on the weights as they lie mapped in their file: no copy in the layout of ONNX Runtime's
                kernels, no fp16 weights unfolded to fp32. Half the memory, and slower steps.

        Raises:
            DeviceError: the device is unknown or not available here.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise DeviceError("onnxruntime is not installed", hint="pip install 'pad-rt[cpu]'") from None
        if device not in DEVICES:
            raise DeviceError(f"device '{device}'", expected=f"one of {', '.join(DEVICES)}")
        if num_threads is not None and not (isinstance(num_threads, int) and num_threads >= 1):
            raise DeviceError(f"num_threads {num_threads!r}", expected="a whole number, at least 1")
        self._ort: Any = onnxruntime
        self.num_threads = num_threads
        self._low_memory = low_memory
        self._cuda: Cuda | None = None
        notes = []
        for name in _PROVIDERS if device == "auto" else [device]:
            try:
                self._use(name, float_type)
                break
            except DeviceError as error:
                if device != "auto":
                    raise
                if _PROVIDERS[name].execution_provider in onnxruntime.get_available_providers():
                    notes.append(f"not on {name}: {error}")
        else:
            raise DeviceError("no device can be used", hint="; ".join(notes) or "pip install 'pad-rt[cpu]'")
        self.notes = tuple(notes)

    def _use(self, name: str, float_type: str | None) -> None:
        """Take one device.

        Raises:
            DeviceError: why it cannot be used.
        """
        entry = _PROVIDERS[name]
        built_in = self._ort.get_available_providers()
        if entry.execution_provider not in built_in:
            raise DeviceError(
                f"device '{name}' is not available in this onnxruntime, which has {', '.join(built_in) or 'none'}",
                hint=f"pip install 'pad-rt[{entry.extra}]'",
            )
        if float_type is not None and entry.float_types and float_type not in entry.float_types:
            raise DeviceError(
                f"a bundle of {float_type} on device '{name}'",
                expected=f"one of {', '.join(entry.float_types)}",
                hint="export it with --precision fp16",
            )
        if entry.memory == "cuda":
            if hasattr(self._ort, "preload_dlls"):
                self._ort.preload_dlls()  # CUDA's libraries, where pip put them
            self._cuda = Cuda()
        self.device, self._entry = name, entry

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
        own = dict(self._entry.options)
        if self._cuda:
            own["user_compute_stream"] = str(self._cuda.stream)
        # The CPU stands second for the arithmetic on shapes alone.
        providers = list(dict.fromkeys([self._entry.execution_provider, "CPUExecutionProvider"]))
        try:
            session: ort.InferenceSession = self._ort.InferenceSession(
                str(graph),
                options,
                providers=providers,
                provider_options=[own, {}][: len(providers)],
                disabled_optimizers=skipped,
            )
        except MemoryError:
            raise OutOfMemoryError(f"no memory for {graph}", hint=_FREE_MEMORY) from None
        except Exception as error:
            reason = str(error).splitlines()[0][:300]
            if "alloc" in reason.lower():
                raise OutOfMemoryError(f"no memory for {graph}: {reason}", hint=_FREE_MEMORY) from None
            raise BundleError(f"ONNX Runtime cannot open {graph}: {reason}", hint="export it again") from None
        if session.get_providers()[0] != self._entry.execution_provider:  # it falls back in silence
            raise DeviceError(
                f"ONNX Runtime could not start {self._entry.execution_provider}",
                hint="its libraries are missing or of another version: `pad info` lists them; or pass --device cpu",
            )
        return session

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

    def upload(self, array: npt.NDArray[Any], *, host: bool = False) -> ort.OrtValue:
        """A buffer holding `array`, on the device or, for inputs that operators read there, the host.

        On a CPU it is the array's own memory.
        """
        memory = "cpu" if host else self._entry.memory
        return self._ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), memory, 0)

    def ids(self, count: int) -> IdsBuffer:
        """A place for int64 ids that a graph chooses."""
        array = np.zeros(count, np.int64)
        if self._cuda is None:
            value = self._ort.OrtValue.ortvalue_from_numpy(array, "cpu", 0)  # the array's own memory
            view = (ctypes.c_int64 * count).from_buffer(array.data)  # keeps it
            return IdsBuffer(value, cast(Sequence[int], view), None)
        value, pinned = self.upload(array), self._cuda.pinned_ids(count)
        address = value.data_ptr()
        return IdsBuffer(value, cast(Sequence[int], pinned.view), lambda: pinned.fetch(address))

    @property
    def captures(self) -> bool:
        """Whether steps are captured: then a replay reads no host input anew, and no buffer may move."""
        return self._entry.captures

    def run_options(self, *, captured: bool = False) -> ort.RunOptions:
        """Options of a run; those of a captured one belong to one set of buffers, and are new for every set."""
        options = self._ort.RunOptions()
        if self._entry.captures:
            graph_id = next(_graph_ids) if captured else _NEVER_CAPTURED
            options.add_run_config_entry("gpu_graph_id", str(graph_id))
            # Nobody waits for the run, only for the ids, which are copied on the same stream.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options


@dataclass(frozen=True)
class IdsBuffer:
    """Where chosen ids land: bound as an output, read by the host with no NumPy.

    Attributes:
        value: what a graph writes to.
        view: what the host reads; the memory itself on a CPU.
        fetch: brings the view up to date, where it is not the memory itself.
    """

    value: ort.OrtValue
    view: Sequence[int]
    fetch: Callable[[], None] | None

    def reading(self, run: Callable[..., None]) -> Callable[..., None]:
        """`run`, and then the ids are there to be read."""
        fetch = self.fetch
        if fetch is None:
            return run

        def run_and_fetch(*arguments: Any) -> None:
            run(*arguments)
            fetch()

        return run_and_fetch
