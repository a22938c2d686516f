"""ONNX Runtime's execution providers. Everything that differs between them is in this table: one entry a device."""

from __future__ import annotations

import importlib
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from pad_runtime.bundle.manifest import Manifest
from pad_runtime.devices.ort.failure import first_line
from pad_runtime.errors import DeviceError

CPU = "CPUExecutionProvider"
_ON_CPU = ("float32", "float16")
_ON_CUDA = ("float16", "bfloat16")  # what CUDA's attention kernels take
_EXPORT_FOR_CPU = "export it with --precision fp32, int8 or int4"
_EXPORT_FOR_CUDA = "export it with --precision fp16 or bf16, or int4 with --activations fp16"


@dataclass(frozen=True)
class ExecutionProvider:
    """What ONNX Runtime needs to run on a device.

    Attributes:
        name: ONNX Runtime's.
        install: the command that brings it.
        float_types, dialects: of the bundles that it runs.
        on_cuda: whether its graphs read and write the memory of a CUDA device.
        loads: a module whose libraries it needs in the process.
        plugin: the module of the package that it comes in, where that is not ONNX Runtime's own.
        options: of its sessions.
        cached: options that name the folder where it keeps what it compiled.
        graph_option: the option that switches the capture of runs on; empty: it captures none.
        graph_id: the run's option that tells captures apart.
        reads_by_path: it opens a graph's weights itself, beside the file that the graph came from.
    """

    name: str
    install: str
    float_types: tuple[str, ...]
    dialects: tuple[str, ...] = ("ort", "standard")
    on_cuda: bool = True
    loads: str = ""
    plugin: str = ""
    options: dict[str, str] = field(default_factory=dict)
    cached: tuple[str, ...] = ()
    graph_option: str = ""
    graph_id: str = ""
    reads_by_path: bool = False

    def check_runs(self, manifest: Manifest, device: str) -> None:
        """Whether it runs a bundle.

        Raises:
            DeviceError: the bundle's float type or dialect is none of its own.
        """
        if manifest.float_type not in self.float_types:
            raise DeviceError(
                f"a bundle of {manifest.float_type} on device '{device}'",
                expected=f"one of {', '.join(self.float_types)}",
                hint=_EXPORT_FOR_CUDA if self.on_cuda else _EXPORT_FOR_CPU,
            )
        if manifest.dialect not in self.dialects:
            raise DeviceError(
                f"a bundle in the {manifest.dialect} dialect on device '{device}'",
                expected=f"the {' or '.join(self.dialects)} dialect",
                hint=f"export it with --dialect {self.dialects[0]}",
            )

    def load_libraries(self, ort: Any) -> None:
        """Bring what it finds by name alone into the process.

        Args:
            ort: the onnxruntime module.

        Raises:
            DeviceError: a library cannot be loaded.
        """
        if hasattr(ort, "preload_dlls"):
            with redirect_stdout(StringIO()):  # it prints what it does not find; whether that matters, a session says
                ort.preload_dlls()  # CUDA's libraries, where pip put them
        if self.loads:
            try:
                importlib.import_module(self.loads)
            except ImportError as error:
                raise DeviceError(f"{self.loads} cannot be loaded: {error}", hint=self.install) from None

    def plugin_devices(self, ort: Any) -> list[Any]:
        """ONNX Runtime's devices of a plugin, which is registered first; none of a provider that is built in.

        Args:
            ort: the onnxruntime module.

        Raises:
            DeviceError: the plugin is not installed, cannot be loaded, or finds no device.
        """
        if not self.plugin:
            return []
        try:
            plugin = importlib.import_module(self.plugin)
        except ImportError:
            raise DeviceError(f"{self.plugin} is not installed", hint=self.install) from None

        def devices() -> list[Any]:
            return [each for each in ort.get_ep_devices() if each.ep_name == self.name]

        if not devices():
            try:
                ort.register_execution_provider_library(self.name, plugin.get_library_path())
            except Exception as error:  # ONNX Runtime's own exceptions have no base of their own
                raise DeviceError(f"{self.plugin} cannot be loaded: {first_line(error)}", hint=self.install) from None
        if not (found := devices()):
            raise DeviceError(f"{self.plugin} finds no device that it runs on", hint="pass --device cuda or cpu")
        return found


EXECUTION_PROVIDERS = {
    "cuda": ExecutionProvider(
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
    "ort-tensorrt": ExecutionProvider(
        "TensorrtExecutionProvider",
        "pip install 'pad-rt[ort-tensorrt]'",
        _ON_CUDA,
        dialects=("standard",),
        loads="tensorrt",
        options={"device_id": "0", "trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"},
        cached=("trt_engine_cache_path", "trt_timing_cache_path"),
        reads_by_path=True,
    ),
    "ort-tensorrt-rtx": ExecutionProvider(
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
    "cpu": ExecutionProvider(CPU, "pip install 'pad-rt[cpu]'", _ON_CPU, on_cuda=False),
}
ORT_DEVICES = tuple(EXECUTION_PROVIDERS)
