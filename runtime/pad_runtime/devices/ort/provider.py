"""ONNX Runtime: opens a bundle's graphs on one of its execution providers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.held_file import HeldFile
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.devices.cuda import Cuda, find_cuda
from pad_runtime.devices.kernel_cache import cache_folder
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.devices.ort.execution_provider import EXECUTION_PROVIDERS
from pad_runtime.devices.ort.failure import first_line, is_out_of_memory
from pad_runtime.devices.ort.graph import OrtGraph
from pad_runtime.devices.ort.mapped_weights import MappedWeights
from pad_runtime.devices.ort.sessions import NOTHING, Sessions
from pad_runtime.errors import BundleError, DeviceError, OutOfMemoryError

_FREE_MEMORY = "close other programs, or take a smaller model"


class OrtProvider:
    """Runs graphs by one of ONNX Runtime's execution providers.

    Attributes:
        device: one of `ORT_DEVICES`.
        freezes_host_inputs: whether repeated runs are captured: a replay reads no host input anew.
        fixes_capacity: whether KV caches have the bundle's max_length: TensorRT updates one in place only where its
            length is fixed.
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
        self._execution = execution = EXECUTION_PROVIDERS[device]
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise DeviceError("onnxruntime is not installed", hint=execution.install) from None
        self.device, self._ort, self._low_memory = device, onnxruntime, low_memory
        self.freezes_host_inputs = capture and bool(execution.graph_option)
        self.fixes_capacity = bool(execution.cached)
        if not execution.plugin and not self.is_built_in(device):
            built_in = ", ".join(onnxruntime.get_available_providers()) or "none"
            raise DeviceError(
                f"device '{device}' is not available in this onnxruntime, which has {built_in}", hint=execution.install
            )
        if manifest is not None:
            execution.check_runs(manifest, device)
        self._cuda: Cuda | None = None
        if execution.on_cuda:
            self._cuda = find_cuda()
            execution.load_libraries(onnxruntime)
        self.memory = DeviceMemory(self._cuda)
        self._sessions = Sessions(
            onnxruntime,
            execution,
            cuda=self._cuda,
            num_threads=num_threads,
            low_memory=low_memory,
            capture=self.freezes_host_inputs,
        )
        if execution.on_cuda:
            self._sessions.probe()  # now, and not when "auto" has made its choice

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
        return EXECUTION_PROVIDERS[device].name in onnxruntime.get_available_providers()

    def open(self, graph: GraphFile, manifest: Manifest) -> OrtGraph:
        """Open a graph of a bundle.

        Raises:
            BundleError: ONNX Runtime refuses the file, or the weights are not what they were when it was loaded.
            OutOfMemoryError: the weights do not fit.
        """
        path = graph.path
        capacity = manifest.max_length if self.fixes_capacity else None
        model, folder, by_name = self._place(graph)
        try:
            weights = MappedWeights.of(graph, self._ort) if self._packs else None
            values = weights.values if weights else NOTHING
            _check_paths(by_name)
            with weights.sweeping() if weights else nullcontext():
                session = self._sessions.start(
                    model, folder=folder, capacity=capacity, own=self._caches(graph), values=values
                )
            _check_paths(by_name)
        except (BundleError, DeviceError):
            raise
        except Exception as error:
            reason = first_line(error)
            if is_out_of_memory(error):
                given = f"no memory for {path}" + (f": {reason}" if reason else "")
                raise OutOfMemoryError(given, hint=_FREE_MEMORY) from None
            raise BundleError(f"ONNX Runtime cannot open {path}: {reason}", hint="export it again") from None
        in_place = () if self._cuda else graph.weights  # on a device they are copies
        opened = OrtGraph(session, self._sessions.run_options, weights=weights, read_in_place=in_place)
        if self._cuda:
            opened.check_placement()
        return opened

    def _place(self, graph: GraphFile) -> tuple[str | bytes, Path, tuple[HeldFile, ...]]:
        """The model, the folder of its weights, and the files that are opened by their names."""
        if not self._execution.reads_by_path:
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

    def _caches(self, graph: GraphFile) -> dict[str, str]:
        """Options that keep compiled engines for the next process, in a folder of this graph and these weights.

        Models of one shape differ in nothing but their weights.
        """
        if not self._execution.cached:
            return {}
        hashes = "".join(file.info.sha256 for file in (graph.file, *graph.weights))
        path = cache_folder(self.device) / hashlib.sha256(hashes.encode()).hexdigest()[:16]
        path.mkdir(parents=True, exist_ok=True)
        return dict.fromkeys(self._execution.cached, str(path))


def _check_paths(files: Sequence[HeldFile]) -> None:
    for file in files:
        file.check_path()
