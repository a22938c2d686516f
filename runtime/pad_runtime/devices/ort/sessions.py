"""What ONNX Runtime is asked for: the options of sessions and of their runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pad_runtime.bundle import contract
from pad_runtime.devices.cuda import Cuda
from pad_runtime.devices.ort.execution_provider import CPU, ExecutionProvider
from pad_runtime.devices.ort.failure import first_line
from pad_runtime.errors import DeviceError

if TYPE_CHECKING:
    import onnxruntime as ort

NOTHING: Mapping[str, Any] = MappingProxyType({})
_graph_ids = itertools.count(1)  # of the process: no two captures are taken for each other
_NEVER_CAPTURED = -1  # ONNX Runtime's graph id for a run that is neither captured nor replayed
# A model of one node, y = Identity(x) at opset 17: whether a provider starts is seen when a session does.
_PROBE = (
    b'\x08\x08:;\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x05probeZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


class Sessions:
    """Starts sessions of one execution provider, all with the same settings."""

    def __init__(
        self,
        ort: Any,
        execution_provider: ExecutionProvider,
        *,
        cuda: Cuda | None,
        num_threads: int | None,
        low_memory: bool,
        capture: bool,
    ) -> None:
        """Register the provider, where it is a plugin.

        Args:
            ort: the onnxruntime module.
            execution_provider: what runs the sessions.
            cuda: the device whose stream they run on; None: the host.
            num_threads, low_memory: see `OrtProvider`.
            capture: repeated runs are captured.

        Raises:
            DeviceError: it is a plugin that cannot be used.
        """
        self._ort, self._provider, self._cuda = ort, execution_provider, cuda
        self._num_threads, self._low_memory, self._capture = num_threads, low_memory, capture
        self._plugin_devices = execution_provider.plugin_devices(ort)

    def probe(self) -> None:
        """Start one of nothing.

        Raises:
            DeviceError: the provider does not start.
        """
        try:
            self._start(_PROBE, self._session_options(), {})
        except DeviceError:
            raise
        except Exception as error:
            reason = f"{self._provider.name} does not start: {first_line(error)}"
            raise DeviceError(reason, hint=self._provider.install) from None

    def start(
        self,
        model: str | bytes,
        *,
        folder: Path,
        capacity: int | None = None,
        own: Mapping[str, str] = NOTHING,
        values: Mapping[str, Any] = NOTHING,
    ) -> ort.InferenceSession:
        """A session of a graph.

        Args:
            model: a file's path, or what is in it.
            folder: where its weights are.
            capacity: positions of its KV caches, where that is fixed.
            own: options of the execution provider for this graph.
            values: initializers, by name, that are not to be read from the graph's files.

        Raises:
            DeviceError: the provider does not start.
        """
        options = self._session_options()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        if capacity is not None:
            options.add_free_dimension_override_by_name(contract.CAPACITY, capacity)
        for name, value in values.items():
            options.add_initializer(name, value)
        captured = {self._provider.graph_option: "1"} if self._capture else {}
        return self._start(model, options, {**own, **captured})

    def _start(self, model: str | bytes, options: ort.SessionOptions, own: Mapping[str, str]) -> ort.InferenceSession:
        provider = self._provider
        own = {**provider.options, **own}
        if self._cuda:
            own["user_compute_stream"] = str(self._cuda.stream)
        arguments: dict[str, Any] = {"disabled_optimizers": ["ConstantFolding"] if self._low_memory else []}
        if self._plugin_devices:
            options.add_provider_for_devices(self._plugin_devices[:1], own)
        else:  # the CPU stands second for the arithmetic on shapes alone
            names = list(dict.fromkeys([provider.name, CPU]))
            arguments |= {"providers": names, "provider_options": [own, {}][: len(names)]}
        session: ort.InferenceSession = self._ort.InferenceSession(model, options, **arguments)
        if session.get_providers()[0] != provider.name:  # it falls back in silence
            raise DeviceError(
                f"ONNX Runtime could not start {provider.name}",
                hint=f"its libraries are missing or of another version: {provider.install}; or pass --device cpu",
            )
        return session

    def _session_options(self) -> ort.SessionOptions:
        """Options that all sessions have."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, and told once
        # Spinning workers fight with each other and with the rest of a busy small machine for its few cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_prepacking", "1" if self._low_memory else "0")
        options.enable_mem_pattern = self._cuda is not None  # a plan of memory for each length of a prompt, never freed
        options.inter_op_num_threads = 1
        if self._num_threads is not None:
            options.intra_op_num_threads = self._num_threads
        return options

    def run_options(self, repeated: bool) -> tuple[ort.RunOptions, int | None]:
        """Options of a run, and the id of its capture, which belongs to one set of buffers and is new for every set."""
        options, graph_id = self._ort.RunOptions(), None
        if self._capture:
            graph_id = next(_graph_ids) if repeated else None
            options.add_run_config_entry(self._provider.graph_id, str(graph_id or _NEVER_CAPTURED))
        if self._cuda:  # nobody waits for the run, only for the ids, which are copied on the same stream
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options, graph_id
