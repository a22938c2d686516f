"""A graph in a session of ONNX Runtime, and its runs on buffers."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pad_runtime.bundle import contract
from pad_runtime.bundle.held_file import HeldFile, watching
from pad_runtime.cancellation import Cancellation
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.ort.failure import telling_out_of_memory
from pad_runtime.devices.ort.mapped_weights import MappedWeights
from pad_runtime.devices.provider import GraphTensor
from pad_runtime.errors import DeviceError

if TYPE_CHECKING:
    import onnxruntime as ort

_ELEMENT_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int32": 6,
    "int64": 7,
    "float16": 10,
    "bfloat16": 16,
}  # NumPy's name -> ONNX's number


class OrtGraph:
    """A graph in a session of ONNX Runtime.

    Attributes:
        inputs, outputs: what it reads and writes.
        host_inputs: inputs that are read on the host, whatever the device, by the last part of their names.
    """

    host_inputs = frozenset(contract.HOST_INPUTS)

    def __init__(
        self,
        session: ort.InferenceSession,
        options: Callable[[bool], tuple[ort.RunOptions, int | None]],
        *,
        weights: MappedWeights | None = None,
        read_in_place: Sequence[HeldFile] = (),
    ) -> None:
        """A session as it was opened.

        Args:
            session: runs the graph.
            options: of a run, repeated or not, and the id of its capture.
            weights: weights that are mapped by us.
            read_in_place: mapped files that the runs read; a run fails if one of them was changed.
        """
        self._read_in_place = tuple(read_in_place)
        self._session, self._options, self._weights = session, options, weights
        self.inputs: Sequence[GraphTensor] = session.get_inputs()
        self.outputs: Sequence[GraphTensor] = session.get_outputs()

    def bind(
        self,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        repeated: bool,
        cancellation: Cancellation | None = None,
    ) -> Callable[[], object]:
        """A run of the graph on these buffers, which must live as long as it does.

        It raises OutOfMemoryError where memory is what it lacks, and else whatever ONNX Runtime does.

        Args:
            inputs, outputs: buffers by name; outputs without a buffer are discarded.
            repeated: the run is used again and again, and may be captured.
            cancellation: ends the run before its next operator.
        """
        binding = self._session.io_binding()
        binding.weights = self._weights  # keeps them alive: a run may outlive its graph
        for name, buffer in inputs.items():
            binding.bind_input(name, *_describe(buffer))
        for name, buffer in outputs.items():
            binding.bind_output(name, *_describe(buffer))
        options, graph_id = self._options(repeated)
        if cancellation:
            cancellation.on_want(functools.partial(setattr, options, "terminate", True))
        run_binding = watching(self._read_in_place, telling_out_of_memory(self._session.run_with_iobinding))
        run = functools.partial(run_binding, binding, options)
        if self._weights and not repeated:
            return self._weights.letting_go(run)
        if graph_id is not None:  # without this the session would keep the capture for ever
            weakref.finalize(run, self._session.release_captured_graph, graph_id).atexit = False
        return run

    def check_placement(self) -> None:
        """Check that the device's inputs are read on the device: a binding would copy them to the host only once.

        Raises:
            DeviceError: an input is read on the host.
        """
        for value, memory in zip(self.inputs, self._session.get_input_memory_infos(), strict=True):
            on_host = value.name.rpartition(".")[2] in self.host_inputs
            if not on_host and memory.name.lower().startswith("cpu"):
                raise DeviceError(
                    f"ONNX Runtime reads {value.name} on the host: it does not run all of the graph on the device",
                    hint="pass another --device",
                )


def _describe(buffer: Buffer) -> tuple[str, int, int, tuple[int, ...], int]:
    """Device type and number, element type, shape and address, as a binding takes them."""
    return buffer.device, 0, _ELEMENT_TYPES[buffer.dtype.name], buffer.shape, buffer.address
