"""An engine, and its runs on buffers.

An engine holds two optimisation profiles, for prompts and for single steps. Each binding of a step has an execution
context of its own, so that a step sets no address and no shape: it starts a captured graph, or enqueues.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pad_runtime.bundle.manifest import EngineInfo
from pad_runtime.cancellation import Cancellation
from pad_runtime.devices.buffers import Buffer, CudaBuffer
from pad_runtime.devices.cuda import Cuda
from pad_runtime.devices.kernel_cache import load_cache, save_cache
from pad_runtime.devices.provider import GraphTensor
from pad_runtime.devices.tensorrt.engine_run import EngineRun
from pad_runtime.devices.tensorrt.library import Library
from pad_runtime.errors import EngineError

_TYPES = {
    "FLOAT": ("tensor(float)", "float32"),
    "HALF": ("tensor(float16)", "float16"),
    "BF16": ("tensor(bfloat16)", "bfloat16"),
    "UINT8": ("tensor(uint8)", "uint8"),
    "INT32": ("tensor(int32)", "int32"),
    "INT64": ("tensor(int64)", "int64"),
}  # TensorRT's name of an element type -> ONNX Runtime's, NumPy's


class TensorRtGraph:
    """An engine.

    Attributes:
        inputs, outputs: what it reads and writes.
        host_inputs: inputs that are read on the host, by the last part of their names.
    """

    def __init__(
        self,
        library: Library,
        cuda: Cuda,
        engine: Any,
        info: EngineInfo,
        *,
        cache_file: Path,
        capture: bool,
    ) -> None:
        """An engine as it was loaded.

        Args:
            library, cuda: what runs it.
            engine: the library's.
            info: the manifest's.
            cache_file: where TensorRT-RTX keeps what it compiled for the engine.
            capture: steps are to be replayed as a CUDA graph.
        """
        self._library, self._cuda, self._engine, self._info = library, cuda, engine, info
        self._trt, self._capture = library.module, capture
        self.inputs: Sequence[GraphTensor] = self._tensors(self._trt.TensorIOMode.INPUT)
        self.outputs: Sequence[GraphTensor] = self._tensors(self._trt.TensorIOMode.OUTPUT)
        on_host = self._trt.TensorLocation.HOST
        self.host_inputs = frozenset(
            tensor.name.rpartition(".")[2]
            for tensor in self.inputs
            if engine.get_tensor_location(tensor.name) == on_host
        )
        self._compiled: Any = None  # by TensorRT-RTX, for the shapes that it met
        self._cache_file, self._num_prompts = cache_file, 0
        if library.is_rtx:
            self._compiled = engine.create_runtime_config().create_runtime_cache()
            load_cache(self._compiled, cache_file)
            weakref.finalize(self, save_cache, self._compiled, cache_file)
        # Decode steps share what they need beside their buffers: on one stream, one runs at a time.
        self._scratch = self._make_scratch(self._profile_memory("decode"))

    def _tensors(self, side: Any) -> list[GraphTensor]:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return [
            GraphTensor(
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
                # One reply was given: kept now, for a process that is killed keeps nothing.
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
        captures = repeated and self._capture and not self._library.is_rtx
        kept = [scratch, *unread.values()]
        return EngineRun(context, self._library, self._cuda, kept, captures=captures)

    def _make_context(self, profile: str) -> Any:
        """An execution context at a profile, its memory to be given.

        TensorRT-RTX compiles kernels for the shapes that it meets, and captures a step by itself once they are ready;
        a capture from outside would keep the kernels that it starts with (TensorRT for RTX: Working with CUDA graphs).
        """
        library, user_managed = self._library, self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        library.log.errors.clear()  # of what went wrong before
        if library.is_rtx:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(user_managed)
            config.set_runtime_cache(self._compiled)
            if self._capture and profile == "decode":
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(user_managed)
        if context is None or not context.set_optimization_profile_async(self._index(profile), self._cuda.stream):
            raise EngineError(f"{library} cannot start {self._info.file}: {library.log.take()}", hint="free GPU memory")
        self._cuda.synchronize()
        return context

    def _set_address(self, context: Any, name: str, buffer: Buffer) -> None:
        if not context.set_tensor_address(name, buffer.address):
            raise EngineError(
                f"{self._library} refuses the buffer of {name}: {self._library.log.take()}",
                hint="build the engine again: pad-export engines",
            )

    def _infer_shapes(self, context: Any, inputs: Mapping[str, Buffer], profile: str) -> None:
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:  # shapes or values that do not go together
            raise EngineError(
                f"shapes for {self._info.file}: {self._library.log.take()} ({error})",
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
            f"{name} of shape {list(shape)} for {self._info.file}: {self._library.log.take()}",
            expected=f"sizes of its {profile} profile",
            hint="export the bundle with larger limits",
        )
