"""TensorRT and TensorRT-RTX: a bundle's engines, run with no ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from pad_runtime.bundle import contract
from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.devices.cuda import find_cuda
from pad_runtime.devices.kernel_cache import cache_folder
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.devices.tensorrt.engine_choice import EngineHost, find_engine, this_platform
from pad_runtime.devices.tensorrt.graph import TensorRtGraph
from pad_runtime.devices.tensorrt.library import Library
from pad_runtime.errors import DeviceError, EngineError


class TensorRtProvider:
    """Runs the engines of a bundle.

    Attributes:
        device: "tensorrt" or "tensorrt-rtx".
        freezes_host_inputs: a run's host inputs are read as it is bound, for the shapes that they give: always so.
        fixes_capacity: KV caches have the bundle's max_length: always so, for its engines were built for that.
        memory: makes the buffers of its graphs.
        host: what engines must have been built for.
    """

    freezes_host_inputs = True
    fixes_capacity = True

    def __init__(self, device: str, *, capture: bool = True) -> None:
        """Load the library and find the GPU.

        Args:
            device: one of `contract.ENGINE_TARGETS`.
            capture: record repeated runs as a CUDA graph.

        Raises:
            EngineError: the library is not installed, or cannot be loaded.
            DeviceError: there is no GPU.
        """
        self.device, self._capture = device, capture
        self._library = Library.load(device)
        self._cuda = find_cuda()
        self.memory = DeviceMemory(self._cuda)
        self.host = EngineHost(device, self._library.version, self._cuda.gpu().compute_capability, this_platform())
        self._runtime = self._library.module.Runtime(self._library.log)

    @property
    def version(self) -> str:
        """What runs the graphs."""
        return str(self._library)

    def check(self, folder: Path, manifest: Manifest) -> None:
        """Whether every graph of a bundle that engines are built of has one for what is here.

        Raises:
            EngineError: one has none; says the command that builds it.
        """
        for graph in contract.ENGINE_GRAPHS:
            find_engine(folder, manifest, graph, self.host)

    def open(self, graph: GraphFile, manifest: Manifest) -> TensorRtGraph:
        """Load the engine of a graph.

        Raises:
            EngineError: the bundle has none for what is here, or the library refuses it.
            DeviceError: no engines are built of that graph.
            BundleError: the engine is not what it was when the bundle was loaded.
        """
        if graph.name not in contract.ENGINE_GRAPHS:
            raise DeviceError(
                f"the {graph.name} graph on device '{self.device}'",
                expected=f"one of {', '.join(contract.ENGINE_GRAPHS)}, which engines are built of",
                hint="pass --device cpu",
            )
        info = find_engine(graph.files.folder, manifest, graph.name, self.host)
        file = graph.files[info.file]
        with file.map() as content:
            engine = self._runtime.deserialize_cuda_engine(memoryview(content))
            file.check()
        if engine is None:
            raise EngineError(
                f"{self._library} cannot load {file.path}: {self._library.log.take()}",
                hint="build it again: pad-export engines",
            )
        return TensorRtGraph(
            self._library,
            self._cuda,
            engine,
            info,
            cache_file=cache_folder(self.device) / f"{manifest.files[info.file].sha256[:16]}.kernels",
            capture=self._capture,
        )
