"""ONNX Runtime. Everything that differs between its execution providers is in this file: one entry a provider."""

from __future__ import annotations

import hashlib
import importlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pad_runtime.bundle import contract
from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.held_file import HeldFile
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.devices.cuda import Cuda, find_cuda
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.devices.ort.graph import OrtGraph
from pad_runtime.devices.ort.mapped_weights import MappedWeights
from pad_runtime.devices.tensorrt.kernel_cache import cache_folder
from pad_runtime.errors import BundleError, DeviceError, OutOfMemoryError

if TYPE_CHECKING:
    import onnxruntime as ort

_CPU = "CPUExecutionProvider"
_ON_CPU = ("float32", "float16")
_ON_CUDA = ("float16", "bfloat16")  # what CUDA's attention kernels take
_EXPORT_FOR_CPU = "export it with --precision fp32, int8 or int4"
_EXPORT_FOR_CUDA = "export it with --precision fp16 or bf16, or int4 with --activations fp16"
_FREE_MEMORY = "close other programs, or take a smaller model"


@dataclass(frozen=True)
class _Entry:
    execution_provider: str  # ONNX Runtime's name for it
    install: str  # what brings it
    float_types: tuple[str, ...]  # of the bundles that it runs
    dialects: tuple[str, ...] = ("ort", "standard")
    loads: str = ""  # module whose libraries it needs in the process
    on_cuda: bool = True
    plugin: str = ""  # module of the package that it comes in, where that is not ONNX Runtime's own
    options: dict[str, str] = field(default_factory=dict)
    cached: tuple[str, ...] = ()  # options that name the folder where it keeps what it compiled
    graph_option: str = ""  # switches the capture of runs on
    graph_id: str = ""  # the run's option that tells captures apart
    reads_by_path: bool = False  # it opens the graph's weights itself, beside the file that the graph came from


_ENTRIES = {
    "cuda": _Entry(
        "CUDAExecutionProvider",
        "pip install 'pad-rt[cuda]'",
        _ON_CUDA,
        # The standard one has arithmetic on shapes that ONNX Runtime puts on the host, and then captures nothing.
        dialects=("ort",),
        options={"device_id": "0", "arena_extend_strategy": "kSameAsRequested"},
        graph_option="enable_cuda_graph",
        graph_id="gpu_graph_id",
    ),
    # It captures one run a session, and two bindings take turns here: no capture.
    "ort-tensorrt": _Entry(
        "TensorrtExecutionProvider",
        "pip install 'pad-rt[ort-tensorrt]'",
        _ON_CUDA,
        dialects=("standard",),
        loads="tensorrt",
        options={"device_id": "0", "trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"},
        cached=("trt_engine_cache_path", "trt_timing_cache_path"),
        reads_by_path=True,
    ),
    "ort-tensorrt-rtx": _Entry(
        "NvTensorRTRTXExecutionProvider",
        "pip install 'pad-rt[ort-tensorrt-rtx]'",
        _ON_CUDA,
        dialects=("standard",),
        plugin="onnxruntime_ep_nv_tensorrt_rtx",
        options={"has_user_compute_stream": "1"},
        cached=("nv_runtime_cache_path",),
        reads_by_path=True,
        graph_option="enable_cuda_graph",
        graph_id="cuda_graph_annotation_id",
    ),
    "cpu": _Entry(_CPU, "pip install 'pad-rt[cpu]'", _ON_CPU, on_cuda=False),
}
ORT_DEVICES = tuple(_ENTRIES)
_graph_ids = itertools.count(1)  # of the process: no two captures are taken for each other
# A model of one node, y = Identity(x) at opset 17: whether a provider starts is seen when a session does.
_PROBE = (
    b'\x08\x08:;\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x05probeZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_NEVER_CAPTURED = -1  # ONNX Runtime's graph id for a run that is neither captured nor replayed


class OrtProvider:
    """Runs graphs by one of ONNX Runtime's execution providers.

    Attributes:
        device: one of `ORT_DEVICES`.
        num_threads: as given.
        freezes_host_inputs: whether repeated runs are captured: a replay reads no host input anew.
        memory: makes the buffers of its graphs.
    """

    def __init__(
        self,
        device: str,
        *,
        manifest: Manifest | None = None,
        num_threads: int | None = None,
        low_memory: bool = False,
        capture: bool = True,
    ) -> None:
        """Load what the device needs.

        Args:
            device: one of `ORT_DEVICES`.
            manifest: of the bundle that is to run, if there is one already.
            num_threads: threads inside one operator on a CPU; None takes ONNX Runtime's default, the physical cores.
            low_memory: run on the weights as they lie mapped in their file: no copy in the layout of ONNX Runtime's
                kernels, no fp16 weights unfolded to fp32. Half the memory, and slower steps.
            capture: record repeated runs as a graph of the device, where it can.

        Raises:
            DeviceError: the device is not available here, or does not run that bundle.
        """
        entry = _ENTRIES[device]
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise DeviceError("onnxruntime is not installed", hint=entry.install) from None
        self._ort: Any = onnxruntime
        self.device, self._entry = device, entry
        self.num_threads, self._low_memory = num_threads, low_memory
        self.freezes_host_inputs = self._captures = capture and bool(entry.graph_option)
        if not entry.plugin and not self.is_built_in(device):
            built_in = ", ".join(onnxruntime.get_available_providers()) or "none"
            raise DeviceError(
                f"device '{device}' is not available in this onnxruntime, which has {built_in}", hint=entry.install
            )
        if manifest is not None:
            self._check_runs(manifest)
        self._cuda: Cuda | None = None
        if entry.on_cuda:
            self._cuda = find_cuda()
            self._load_libraries()
        self.memory = DeviceMemory(self._cuda)
        self._plugin_devices = self._register_plugin() if entry.plugin else []
        if entry.on_cuda:
            self._probe()  # now, and not when "auto" has made its choice

    @property
    def version(self) -> str:
        """What runs the graphs."""
        return f"onnxruntime {self._ort.__version__}"

    @staticmethod
    def is_built_in(device: str) -> bool:
        """Whether the onnxruntime here comes with what runs on a device."""
        try:
            import onnxruntime
        except ModuleNotFoundError:
            return False
        return _ENTRIES[device].execution_provider in onnxruntime.get_available_providers()

    def _check_runs(self, manifest: Manifest) -> None:
        entry = self._entry
        if manifest.float_type not in entry.float_types:
            raise DeviceError(
                f"a bundle of {manifest.float_type} on device '{self.device}'",
                expected=f"one of {', '.join(entry.float_types)}",
                hint=_EXPORT_FOR_CUDA if entry.on_cuda else _EXPORT_FOR_CPU,
            )
        if manifest.dialect not in entry.dialects:
            raise DeviceError(
                f"a bundle in the {manifest.dialect} dialect on device '{self.device}'",
                expected=f"the {' or '.join(entry.dialects)} dialect",
                hint=f"export it with --dialect {entry.dialects[0]}",
            )

    def _load_libraries(self) -> None:
        """Bring what the provider finds by name alone into the process."""
        if hasattr(self._ort, "preload_dlls"):
            with redirect_stdout(StringIO()):  # it prints what it does not find; whether that matters, the probe says
                self._ort.preload_dlls()  # CUDA's libraries, where pip put them
        if self._entry.loads:
            try:
                importlib.import_module(self._entry.loads)
            except ImportError as error:
                raise DeviceError(f"{self._entry.loads} cannot be loaded: {error}", hint=self._entry.install) from None

    def _register_plugin(self) -> list[Any]:
        """The devices of an execution provider that comes in a package of its own."""
        entry = self._entry
        try:
            plugin = importlib.import_module(entry.plugin)
        except ImportError:
            raise DeviceError(f"{entry.plugin} is not installed", hint=entry.install) from None

        def devices() -> list[Any]:
            return [each for each in self._ort.get_ep_devices() if each.ep_name == entry.execution_provider]

        if not devices():
            try:
                self._ort.register_execution_provider_library(entry.execution_provider, plugin.get_library_path())
            except Exception as error:  # ONNX Runtime's own exceptions have no base of their own
                raise DeviceError(
                    f"{entry.plugin} cannot be loaded: {_first_line(error)}", hint=entry.install
                ) from None
        if not (found := devices()):
            raise DeviceError(f"{entry.plugin} finds no device that it runs on", hint="pass --device cuda or cpu")
        return found

    def _probe(self) -> None:
        try:
            self._start(_PROBE)
        except DeviceError:
            raise
        except Exception as error:
            reason = f"{self._entry.execution_provider} does not start: {_first_line(error)}"
            raise DeviceError(reason, hint=self._entry.install) from None

    # -- graphs -------------------------------------------------------------------------------------------------------

    def open(self, graph: GraphFile, manifest: Manifest) -> OrtGraph:
        """Open a graph of a bundle.

        Raises:
            BundleError: ONNX Runtime refuses the file, or the weights are not what they were when it was loaded.
            OutOfMemoryError: the weights do not fit.
        """
        path = graph.path
        capacity = manifest.max_length if self._entry.cached else None
        model, folder, by_name = self._place(graph)
        try:
            weights = MappedWeights.of(graph, self._ort) if self._packs else None
            values = weights.values if weights else _NOTHING
            _check_paths(by_name)
            with weights.sweeping() if weights else nullcontext():
                session = self._start(model, folder=folder, capacity=capacity, own=self._caches(graph), values=values)
            _check_paths(by_name)
        except MemoryError:
            raise OutOfMemoryError(f"no memory for {path}", hint=_FREE_MEMORY) from None
        except (BundleError, DeviceError):
            raise
        except Exception as error:
            reason = _first_line(error)
            if "alloc" in reason.lower():
                raise OutOfMemoryError(f"no memory for {path}: {reason}", hint=_FREE_MEMORY) from None
            raise BundleError(f"ONNX Runtime cannot open {path}: {reason}", hint="export it again") from None
        in_place = () if self._cuda else graph.weights  # on a device they are copies
        opened = OrtGraph(session, self._run_options, capacity=capacity, weights=weights, read_in_place=in_place)
        if self._cuda:
            opened.check_placement()
        return opened

    def _place(self, graph: GraphFile) -> tuple[str | bytes, Path, tuple[HeldFile, ...]]:
        """The model, the folder of its weights, and the files that are opened by their names."""
        if not self._entry.reads_by_path:
            return *graph.placed(), graph.weights
        by_name = (graph.file, *graph.weights)
        for file in by_name:
            if file.real != file.path:
                raise BundleError(
                    f"{file.path} is a link to {file.real}",
                    expected=f"the file itself on device '{self.device}'",
                    hint="copy it into the bundle",
                )
        return str(graph.path), graph.path.parent, by_name

    @property
    def _packs(self) -> bool:
        """Whether weights are read from the file once, and from then on in the layout of the kernels."""
        return self._cuda is None and not self._low_memory

    def _start(
        self,
        graph: str | bytes,
        *,
        folder: Path | None = None,
        capacity: int | None = None,
        own: Mapping[str, str] = _NOTHING,
        values: Mapping[str, Any] = _NOTHING,
    ) -> ort.InferenceSession:
        """A session on this device.

        Args:
            graph: a file's path, or a model.
            folder: where a model's weights are.
            capacity: slots of its KV caches, where that is fixed.
            own: options of the execution provider for this graph.
            values: initializers, by name, that are not to be read from the graph's files.

        Raises:
            DeviceError: the provider does not start.
        """
        entry, options = self._entry, self._session_options()
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        if capacity is not None:  # TensorRT updates a cache in place only where its length is fixed
            options.add_free_dimension_override_by_name(contract.CAPACITY, capacity)
        for name, value in values.items():
            options.add_initializer(name, value)
        own = {**entry.options, **own}
        if self._cuda:
            own["user_compute_stream"] = str(self._cuda.stream)
        if self._captures and graph is not _PROBE:
            own[entry.graph_option] = "1"
        arguments: dict[str, Any] = {"disabled_optimizers": ["ConstantFolding"] if self._low_memory else []}
        if self._plugin_devices:
            options.add_provider_for_devices(self._plugin_devices[:1], own)
        else:  # the CPU stands second for the arithmetic on shapes alone
            names = list(dict.fromkeys([entry.execution_provider, _CPU]))
            arguments |= {"providers": names, "provider_options": [own, {}][: len(names)]}
        session: ort.InferenceSession = self._ort.InferenceSession(graph, options, **arguments)
        if session.get_providers()[0] != entry.execution_provider:  # it falls back in silence
            raise DeviceError(
                f"ONNX Runtime could not start {entry.execution_provider}",
                hint=f"its libraries are missing or of another version: {entry.install}; or pass --device cpu",
            )
        return session

    def _session_options(self) -> ort.SessionOptions:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, and told once
        # Spinning workers fight with each other and with the rest of a busy small machine for its few cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_prepacking", "1" if self._low_memory else "0")
        options.enable_mem_pattern = self._cuda is not None  # a plan of memory for each length of a prompt, never freed
        options.inter_op_num_threads = 1
        if self.num_threads is not None:
            options.intra_op_num_threads = self.num_threads
        return options

    def _caches(self, graph: GraphFile) -> dict[str, str]:
        """Options that keep compiled engines for the next process, in a folder of this graph and these weights.

        Models of one shape differ in nothing but their weights.
        """
        if not self._entry.cached:
            return {}
        hashes = "".join(file.info.sha256 for file in (graph.file, *graph.weights))
        path = cache_folder(self.device) / hashlib.sha256(hashes.encode()).hexdigest()[:16]
        path.mkdir(parents=True, exist_ok=True)
        return dict.fromkeys(self._entry.cached, str(path))

    def _run_options(self, repeated: bool) -> tuple[ort.RunOptions, int | None]:
        """Options of a run, and the id of its capture, which belongs to one set of buffers and is new for every set."""
        options, graph_id = self._ort.RunOptions(), None
        if self._captures:
            graph_id = next(_graph_ids) if repeated else None
            options.add_run_config_entry(self._entry.graph_id, str(graph_id or _NEVER_CAPTURED))
        if self._cuda:  # nobody waits for the run, only for the ids, which are copied on the same stream
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options, graph_id


def _check_paths(files: Sequence[HeldFile]) -> None:
    for file in files:
        file.check_path()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
