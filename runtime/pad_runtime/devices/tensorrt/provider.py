"""TensorRT and TensorRT-RTX: a bundle's engines, run with no ONNX Runtime.

An engine holds two optimisation profiles, for prompts and for single steps. Each binding of a step has an execution
context of its own, so that a step sets no address and no shape: it starts a captured graph, or enqueues.
"""

from __future__ import annotations

import importlib
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.manifest import EngineInfo, Manifest
from pad_runtime.cancellation import Cancellation
from pad_runtime.devices.buffers import Buffer, CudaBuffer
from pad_runtime.devices.cuda import find_cuda
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.devices.tensorrt.engine_choice import EngineHost, find_engine, this_platform
from pad_runtime.devices.tensorrt.kernel_cache import cache_folder, load_cache, save_cache
from pad_runtime.errors import DeviceError, EngineError

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # target -> Python module
_TYPES = {
    "FLOAT": ("tensor(float)", "float32"),
    "HALF": ("tensor(float16)", "float16"),
    "BF16": ("tensor(bfloat16)", "bfloat16"),
    "UINT8": ("tensor(uint8)", "uint8"),
    "INT32": ("tensor(int32)", "int32"),
    "INT64": ("tensor(int64)", "int64"),
}  # TensorRT's name of an element type -> ONNX Runtime's, NumPy's


def load_tensorrt(target: str) -> Any:
    """The library's Python module.

    Raises:
        EngineError: it is not installed, or cannot be loaded.
    """
    module = _MODULES[target]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise EngineError(f"{module} is not installed", hint=f"pip install 'pad-rt[{target}]'") from None
    except (ImportError, OSError) as error:  # the package is there, and one of NVIDIA's libraries is not
        raise EngineError(f"{module} cannot be loaded: {error}", hint=f"pip install 'pad-rt[{target}]' again") from None


def make_log(trt: Any, listen: Callable[[str], None] | None = None) -> Any:
    """A logger for the library that keeps what went wrong; `take` says it once.

    Args:
        trt: the library's module.
        listen: also called with every message that is no error.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                if "cudaError" not in message:  # of a machine with no GPU, where engines can be built all the same
                    self.errors.append(message)
            elif listen is not None:
                listen(message)

        def take(self) -> str:
            errors, self.errors = self.errors, []
            return errors[0] if errors else "it gives no reason"

    return Log()


class TensorRtProvider:
    """Runs the engines of a bundle.

    Attributes:
        device: "tensorrt" or "tensorrt-rtx".
        capture: whether steps are to be replayed as a CUDA graph.
        freezes_host_inputs: a run's host inputs are read as it is bound, for the shapes that they give: always so.
        memory: makes the buffers of its graphs.
        log: what the library says.
        host: what engines must have been built for.
    """

    freezes_host_inputs = True

    def __init__(self, device: str, *, capture: bool = True) -> None:
        """Load the library and find the GPU.

        Args:
            device: one of `contract.ENGINE_TARGETS`.
            capture: record repeated runs as a CUDA graph.

        Raises:
            EngineError: the library is not installed, or cannot be loaded.
            DeviceError: there is no GPU.
        """
        self.device, self.capture = device, capture
        self._trt = load_tensorrt(device)
        self._cuda = find_cuda()
        self.memory = DeviceMemory(self._cuda)
        self.host = EngineHost(device, str(self._trt.__version__), self._cuda.gpu().compute_capability, this_platform())
        self.log = make_log(self._trt)
        self._runtime = self._trt.Runtime(self.log)

    @property
    def is_rtx(self) -> bool:
        """Whether it is the library that compiles kernels as it runs."""
        return self.device == "tensorrt-rtx"

    @property
    def captures_itself(self) -> bool:
        """Whether runs are captured here, and not by the library."""
        return self.capture and not self.is_rtx

    @property
    def version(self) -> str:
        """What runs the graphs."""
        return f"{self.device} {self._trt.__version__}"

    def check(self, folder: Path, manifest: Manifest) -> None:
        """Whether every graph of a bundle has an engine for what is here.

        Raises:
            EngineError: one has none; says the command that builds it.
        """
        for graph in manifest.graphs:
            find_engine(folder, manifest, graph, self.host)

    def open(self, graph: GraphFile, manifest: Manifest) -> TensorRtGraph:
        """Load the engine of a graph.

        Raises:
            EngineError: the bundle has none for what is here, or the library refuses it.
            BundleError: the engine is not what it was when the bundle was loaded.
        """
        info = find_engine(graph.files.folder, manifest, graph.name, self.host)
        file = graph.files[info.file]
        with file.map() as content:
            engine = self._runtime.deserialize_cuda_engine(memoryview(content))
            file.check()
        if engine is None:
            raise EngineError(
                f"{self.version} cannot load {file.path}: {self.log.take()}", hint="build it again: pad-export engines"
            )
        cache = cache_folder(self.device) / f"{manifest.files[info.file].sha256[:16]}.kernels"
        return TensorRtGraph(self, engine, info, manifest.max_length, cache)


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine, as ONNX Runtime describes its own.

    Attributes:
        name: its name.
        type: such as "tensor(float16)".
        shape: None where a size may change.
    """

    name: str
    type: str
    shape: list[int | None]


class TensorRtGraph:
    """An engine.

    Attributes:
        inputs, outputs: what it reads and writes.
        host_inputs: inputs that are read on the host, by the last part of their names.
        capacity: slots that its KV caches must have.
    """

    def __init__(
        self, provider: TensorRtProvider, engine: Any, info: EngineInfo, capacity: int, cache_file: Path
    ) -> None:
        self._provider, self._engine, self._info = provider, engine, info
        self._trt, self._cuda = provider._trt, provider._cuda
        self.capacity: int | None = capacity
        self.inputs: Sequence[Any] = self._tensors(self._trt.TensorIOMode.INPUT)
        self.outputs: Sequence[Any] = self._tensors(self._trt.TensorIOMode.OUTPUT)
        on_host = self._trt.TensorLocation.HOST
        self.host_inputs = frozenset(
            tensor.name.rpartition(".")[2]
            for tensor in self.inputs
            if engine.get_tensor_location(tensor.name) == on_host
        )
        self._compiled: Any = None  # by TensorRT-RTX, for the shapes that it met
        self._cache_file, self._num_prompts = cache_file, 0
        if provider.is_rtx:
            self._compiled = engine.create_runtime_config().create_runtime_cache()
            load_cache(self._compiled, cache_file)
            weakref.finalize(self, save_cache, self._compiled, cache_file)
        # Decode steps share what they need beside their buffers: on one stream, one runs at a time.
        self._scratch = self._make_scratch(self._profile_memory("decode"))

    def _tensors(self, side: Any) -> list[EngineTensor]:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return [
            EngineTensor(
                name,
                _TYPES[engine.get_tensor_dtype(name).name][0],
                [None if size < 0 else int(size) for size in engine.get_tensor_shape(name)],
            )
            for name in names
            if engine.get_tensor_mode(name) == side
        ]

    def bind(
        self,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        repeated: bool,
        cancellation: Cancellation | None = None,
    ) -> Callable[[], object]:
        """A run of the engine on these buffers, which must live as long as it does.

        Args:
            inputs, outputs: by name; outputs that are left out are thrown away.
            repeated: the run is a single step that is used again and again, and may be captured.
            cancellation: not needed: a run is put on the stream and returns at once.

        Raises:
            EngineError: a shape lies outside of what the engine was built for.
        """
        del cancellation
        with self._cuda.lock:
            profile = "decode" if repeated else "prefill"
            self._num_prompts += not repeated
            if self._compiled is not None and not repeated and self._num_prompts == 2:
                # One reply was given: who ends the process may not let it clean up.
                save_cache(self._compiled, self._cache_file)
            context = self._make_context(profile)
            for name, buffer in inputs.items():
                if not context.set_input_shape(name, buffer.shape):
                    raise self._out_of_range(name, buffer.shape, profile)
                self._set_address(context, name, buffer)
            self._infer_shapes(context, inputs, profile)
            # An engine writes every output.
            unread = {
                each.name: self._make_unread(each.name, context) for each in self.outputs if each.name not in outputs
            }
            for name, buffer in {**outputs, **unread}.items():
                self._set_address(context, name, buffer)
            scratch = self._scratch
            if not repeated:  # as much as these prompts need, and for as long
                size = context.update_device_memory_size_for_shapes()
                # Nothing is what the library says where it fails, too: then the whole profile's is safe.
                scratch = self._make_scratch(size or self._profile_memory(profile))
            context.set_device_memory(scratch.address, scratch.shape[0])
        captures = repeated and self._provider.captures_itself
        return _EngineRun(context, self._provider, [scratch, *unread.values()], captures=captures)

    def _make_context(self, profile: str) -> Any:
        """An execution context at a profile, its memory to be given.

        TensorRT-RTX compiles kernels for the shapes that it meets, and captures a step by itself once they are ready;
        a capture from outside would keep the kernels that it starts with (TensorRT for RTX: Working with CUDA graphs).
        """
        provider, user_managed = self._provider, self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        provider.log.errors.clear()  # of what went wrong before
        if provider.is_rtx:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(user_managed)
            config.set_runtime_cache(self._compiled)
            if provider.capture and profile == "decode":
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(user_managed)
        if context is None or not context.set_optimization_profile_async(self._index(profile), self._cuda.stream):
            raise EngineError(
                f"{provider.version} cannot start {self._info.file}: {provider.log.take()}", hint="free GPU memory"
            )
        self._cuda.synchronize()
        return context

    def _set_address(self, context: Any, name: str, buffer: Buffer) -> None:
        if not context.set_tensor_address(name, buffer.address):
            raise EngineError(
                f"{self._provider.version} refuses the buffer of {name}: {self._provider.log.take()}",
                hint="build the engine again: pad-export engines",
            )

    def _infer_shapes(self, context: Any, inputs: Mapping[str, Buffer], profile: str) -> None:
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:  # shapes or values that do not go together
            raise EngineError(
                f"shapes for {self._info.file}: {self._provider.log.take()} ({error})",
                hint="build the engine again: pad-export engines",
            ) from None
        if missing:
            raise self._out_of_range(missing[0], inputs[missing[0]].shape, profile)

    def _profile_memory(self, profile: str) -> int:
        return int(self._engine.get_device_memory_size_for_profile_v2(self._index(profile)))

    def _index(self, profile: str) -> int:
        return list(self._info.profiles).index(profile)

    def _make_scratch(self, size: int) -> CudaBuffer:
        return CudaBuffer(self._cuda, (max(1, int(size)),), np.uint8)

    def _make_unread(self, name: str, context: Any) -> CudaBuffer:
        kind = _TYPES[self._engine.get_tensor_dtype(name).name][1]
        return CudaBuffer(self._cuda, tuple(context.get_tensor_shape(name)), kind)

    def _out_of_range(self, name: str, shape: tuple[int, ...], profile: str) -> EngineError:
        return EngineError(
            f"{name} of shape {list(shape)} for {self._info.file}: {self._provider.log.take()}",
            expected=f"sizes of its {profile} profile",
            hint="export the bundle with larger limits",
        )


class _EngineRun:
    """A run with everything set: started anew each time, or captured at the first and replayed."""

    def __init__(self, context: Any, provider: TensorRtProvider, kept: list[CudaBuffer], *, captures: bool) -> None:
        self._context, self._provider = context, provider
        self._enqueue, self._stream = context.execute_async_v3, provider._cuda.stream
        self._kept, self._captures = kept, captures
        self._launch: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Put it on the stream."""
        if self._launch is not None:
            self._launch()
            return
        self._start()
        if self._captures:  # the library asks for a run with the same buffers and shapes before a capture
            self._captures = False
            try:
                self._launch = self._provider._cuda.capture(self._start).launch
            except DeviceError as error:
                warnings.warn(f"steps run without a CUDA graph: {error}", RuntimeWarning, stacklevel=2)

    def _start(self) -> None:
        if not self._enqueue(self._stream):
            provider = self._provider
            raise DeviceError(
                f"{provider.version} failed while it decoded: {provider.log.take()}", hint="start the process again"
            )
