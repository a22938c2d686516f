"""TensorRT, simulated: its Python interface over ONNX Runtime and the simulated device's memory.

An engine is a file that names a graph of the standard dialect and the profiles that it was built with. What TensorRT
asks for is asked for: shapes within the profile, an address for every tensor, memory to work in, and host inputs that
are read when a run is enqueued, so that a captured one keeps them.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pad_export.engines.profile import make_profiles
from pad_runtime.bundle import contract
from pad_runtime.bundle.file_info import describe_file
from pad_runtime.bundle.manifest import EngineInfo, read_manifest, write_manifest
from pad_runtime.devices.tensorrt.engine_choice import this_platform
from tests.support.fake_cuda import STREAM, FakeRuntime

VERSION = "10.13.3"
GPU = "sm89"
SCRATCH = {0: 4096, 1: 256}  # bytes that a run of a profile works in
_KINDS = {
    "tensor(float)": "FLOAT",
    "tensor(float16)": "HALF",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8}
_NUMBERS = {"FLOAT": 1, "HALF": 10, "INT32": 6, "INT64": 7, "UINT8": 2}  # onnx.TensorProto


def add_engines(bundle: Path, target: str = "tensorrt", *, gpu: str = GPU) -> Path:
    """Stamp a bundle with engines of its graphs, as the builder would."""
    manifest = read_manifest(bundle)
    for graph, info in manifest.graphs.items():
        profiles = {
            name: {axis: list(sizes) for axis, sizes in axes.items()}
            for name, axes in make_profiles(bundle, manifest, graph).items()
        }
        engine = bundle / f"{graph}.{target}.engine"
        engine.write_text(json.dumps({"path": str(bundle / info.file), "profiles": profiles}))
        manifest.engines.append(
            EngineInfo(engine.name, graph, target, VERSION, this_platform(), [gpu], profiles)  # type: ignore[arg-type]
        )
        manifest.files[engine.name] = describe_file(engine)
    write_manifest(bundle, manifest)
    return bundle


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class TensorLocation(enum.Enum):
    DEVICE, HOST = 0, 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = 0, 1


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class RuntimeCache:
    """Kernels that were compiled: as many bytes as contexts that ran with it, here."""

    def __init__(self) -> None:
        self.kernels = b""

    def serialize(self) -> bytes:
        return self.kernels

    def deserialize(self, content: bytes) -> bool:
        self.kernels = content
        return True


@dataclass
class RuntimeConfig:
    """What a context of TensorRT-RTX is to do."""

    cuda_graph_strategy: CudaGraphStrategy = CudaGraphStrategy.DISABLED
    allocation: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        cache.kernels += b"k"
        return True

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.allocation = strategy


class Context:
    """An execution context."""

    def __init__(self, engine: Engine, config: RuntimeConfig | ExecutionContextAllocationStrategy) -> None:
        self._engine, self.config = engine, config
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._profile, self._scratch = 0, 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        axes = list(self._engine.profiles.values())[self._profile]
        dims = self._engine.inputs[name].shape
        assert len(dims) == len(shape), name
        for dim, size in zip(dims, shape, strict=True):
            least, _, most = axes[dim] if isinstance(dim, str) else (dim, dim, dim)
            if not least <= size <= most:
                self._engine.log.log(ILogger.ERROR, f"{dim} of {name} is {size}, outside of [{least}, {most}]")
                return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self._engine.inputs or name in self._engine.outputs
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine.inputs if name not in self._shapes or name not in self._addresses]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of the outputs that may be left out: the trace, and the counts of what is written."""
        if name == contract.NEXT_WRITTEN:
            return self._shapes[contract.WRITTEN]
        sequences, readings = self._shapes[contract.COEFFICIENTS]
        (k,) = self._engine.at(self._addresses[contract.MAX_TOP_K], "INT64", (1,))
        return (readings if name == contract.READING_LOGITS else sequences, k)

    def update_device_memory_size_for_shapes(self) -> int:
        return SCRATCH[self._profile]

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= SCRATCH[self._profile]
        self._scratch = memory

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        engine, addresses, shapes = self._engine, dict(self._addresses), dict(self._shapes)
        missing = [name for name in (*engine.inputs, *engine.outputs) if name not in addresses]
        assert not missing, missing
        scratch, size = self._scratch, SCRATCH[self._profile]
        assert engine.runtime.holds(scratch, size), "memory to work in, and not given back"
        (k,) = engine.at(addresses[contract.MAX_TOP_K], "INT64", (1,))
        addresses[contract.MAX_TOP_K] = engine.keep(np.array([k]))

        def work() -> None:
            ctypes.memset(scratch, 0xAB, size)
            engine.run(addresses, shapes)

        engine.enqueued += 1
        engine.runtime.enqueue(work)
        return True


@dataclass
class Engine:
    """A graph, and the profiles that it was built with."""

    session: Any
    profiles: dict[str, dict[str, list[int]]]
    runtime: FakeRuntime
    log: Any
    contexts: list[Context] = field(default_factory=list)
    enqueued: int = 0

    def __post_init__(self) -> None:
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self._all = {**self.inputs, **self.outputs}
        self._kept: list[Any] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self._all)

    def get_tensor_name(self, index: int) -> str:
        return list(self._all)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=_KINDS[self._all[name].type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        axes = next(iter(self.profiles.values()))
        fixed = {dim: sizes[0] for dim, sizes in axes.items() if dim == contract.CAPACITY}
        return tuple(dim if isinstance(dim, int) else fixed.get(dim, -1) for dim in self._all[name].shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == contract.MAX_TOP_K else TensorLocation.DEVICE

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH[profile_index]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: Any) -> Context:
        self.contexts.append(Context(self, config))
        return self.contexts[-1]

    def at(self, address: int, kind: str, shape: tuple[int, ...]) -> Any:
        """The values at an address."""
        size = math.prod(shape) * np.dtype(_NUMPY[kind]).itemsize
        return np.frombuffer(ctypes.string_at(address, size), _NUMPY[kind]).reshape(shape)

    def keep(self, array: Any) -> int:
        """The address of a copy."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def run(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        """What the kernels do: inputs are read, and outputs written, where the addresses say."""
        binding = self.session.io_binding()
        for name, shape in shapes.items():
            kind = _KINDS[self.inputs[name].type]
            size = math.prod(shape) * np.dtype(_NUMPY[kind]).itemsize
            is_there = name == contract.MAX_TOP_K or self.runtime.holds(addresses[name], size)
            assert is_there, f"{name} is not on the device"
            binding.bind_input(name, "cpu", 0, _NUMBERS[kind], shape, addresses[name])
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        for name, value in zip(self.outputs, binding.get_outputs(), strict=True):
            array = value.numpy()
            assert self.runtime.holds(addresses[name], array.nbytes), f"{name} is not on the device"
            ctypes.memmove(addresses[name], array.ctypes.data, array.nbytes)


def make_module(runtime: FakeRuntime, target: str = "tensorrt") -> types.ModuleType:
    """The library as a module; `module.engines` are those that were loaded."""
    module = types.ModuleType(target.replace("-", "_"))
    engines: list[Engine] = []

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
            content = bytes(serialized_engine)
            if not content.startswith(b"{"):
                self._logger.log(ILogger.ERROR, "magicTag mismatch")
                return None
            fields = json.loads(content)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(fields["path"], options, providers=["CPUExecutionProvider"])
            engines.append(Engine(session, fields["profiles"], runtime, self._logger))
            return engines[-1]

    names = {"Runtime": Runtime, "engines": engines, "__version__": VERSION}
    kinds = (TensorIOMode, TensorLocation, ExecutionContextAllocationStrategy, CudaGraphStrategy, ILogger)
    module.__dict__.update(names | {kind.__name__: kind for kind in kinds})
    return module
