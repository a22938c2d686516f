"""An ONNX Runtime that was built with CUDA, simulated: the CPU computes in the simulated device's memory.

A binding takes the device's addresses and no others. A run with a graph id is captured at its first time, and holds for
good what it was captured with: names, addresses, and the values of host inputs.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import onnxruntime

from pad_runtime.bundle import contract
from tests.support.fake_cuda import STREAM, FakeRuntime

PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
_NO_GRAPH = -1
_SIZES = {1: 4, 2: 1, 6: 4, 7: 8, 10: 2, 16: 2}  # bytes of an element, by ONNX's number of its type


@dataclass
class Log:
    """What was asked of the simulated device.

    Attributes:
        runs: graph ids, in order; None for a run without one.
        captured: what each of them was captured with: names, addresses, and the values of host inputs.
        released: graph ids that were given back.
    """

    runs: list[int | None] = field(default_factory=list)
    captured: dict[int, list[Any]] = field(default_factory=dict)
    released: list[int] = field(default_factory=list)


def install(replace: Callable[[Any, str, Any], object], runtime: FakeRuntime) -> Log:
    """Let `import onnxruntime` find it; `replace` sets an attribute, for a test or for good."""
    log = Log()
    real = onnxruntime.InferenceSession

    class Binding:
        """An IO binding whose device memory is the simulated one's."""

        def __init__(self, session: Any) -> None:
            self.real = real.io_binding(session)
            self.bound: list[tuple[str, int, Callable[[], bytes]]] = []

        def bind_input(
            self, name: str, device: str, number: int, kind: int, shape: Sequence[int], address: int
        ) -> None:
            on_host = name.rpartition(".")[2] in contract.HOST_INPUTS
            assert device == ("cpu" if on_host else "cuda"), name
            size = math.prod(shape) * _SIZES[kind]
            assert on_host or runtime.holds(address, size), f"{name} is not on the device"
            size = size if on_host else 0
            self.bound.append((name, address, lambda: ctypes.string_at(address, size)))
            self.real.bind_input(name, "cpu", number, kind, shape, address)

        def bind_output(
            self, name: str, device: str, number: int, kind: int, shape: Sequence[int], address: int
        ) -> None:
            assert device == "cuda", name
            assert runtime.holds(address, math.prod(shape) * _SIZES[kind]), f"{name} is not on the device"
            self.bound.append((name, address, lambda: b""))
            self.real.bind_output(name, "cpu", number, kind, shape, address)

    class Session(real):  # type: ignore[misc]
        """A session of the CUDA provider."""

        def __init__(self, graph: Any, options: Any, **arguments: Any) -> None:
            self._given = list(arguments.get("providers", ()))
            if self._given[:1] == PROVIDERS[:1]:
                self._own = arguments.pop("provider_options")[0]
                assert self._own["user_compute_stream"] == str(STREAM)
                arguments["providers"] = PROVIDERS[1:]
            super().__init__(graph, options, **arguments)

        @property
        def _on_cuda(self) -> bool:
            return self._given[:1] == PROVIDERS[:1]

        def get_providers(self) -> list[str]:
            return PROVIDERS if self._on_cuda else list(super().get_providers())

        def get_input_memory_infos(self) -> list[Any]:
            if not self._on_cuda:
                return list(super().get_input_memory_infos())
            names = [value.name.rpartition(".")[2] for value in self.get_inputs()]
            return [SimpleNamespace(name="Cpu" if name in contract.HOST_INPUTS else "Cuda") for name in names]

        def io_binding(self) -> Any:
            return Binding(self) if self._on_cuda else super().io_binding()

        def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
            if not self._on_cuda:
                super().run_with_iobinding(binding, options)
                return
            assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
            graph_id = _graph_id(options)
            log.runs.append(graph_id)
            if graph_id is not None and graph_id != _NO_GRAPH:
                assert self._own["enable_cuda_graph"] == "1"
                now = [(name, address, value()) for name, address, value in binding.bound]
                assert log.captured.setdefault(graph_id, now) == now, "a replay would have read something else"
                super().run_with_iobinding(binding.real, options)  # capture runs a graph more often than asked to
            super().run_with_iobinding(binding.real, options)

        def release_captured_graph(self, graph_id: int) -> None:
            log.released.append(graph_id)

    replace(onnxruntime, "InferenceSession", Session)
    replace(onnxruntime, "get_available_providers", lambda: list(PROVIDERS))
    replace(onnxruntime, "preload_dlls", lambda: None)
    return log


def _graph_id(options: Any) -> int | None:
    try:
        return int(options.get_run_config_entry("gpu_graph_id"))
    except Exception:  # ONNX Runtime's own exceptions have no base of their own
        return None
