"""Weights that ONNX Runtime reads from a mapping of our own, whose pages can be given back.

A linear in 4 or 8 bits has codes, scales and zero points. On x86-64 ONNX Runtime copies all three into one packed
buffer (MatMulNBits::PrePack, onnxruntime/contrib_ops/cpu/quantization/matmul_nbits.cc). It frees the codes and keeps
scales and zero points mapped without need, a seventh of a 4-bit model. Of an embedding a step looks up a few rows;
Linux (seen with 6.18) maps the whole large page of the file cache that holds a row, up to 2 MB.

So scales, zero points and looked-up tables are mapped here. Tables are split into stripes that are smaller than such
pages, and pages are given back after use. Pages that are read again (on other processors scales may be) come back from
the file cache.
"""

from __future__ import annotations

import errno
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.held_file import HeldFile
from pad_runtime.bundle.onnx_file import ExternalTensor
from pad_runtime.errors import BundleError

_PACKED, _LOOKED_UP = "MatMulNBits", "GatherBlockQuantized"
_SCALES_AND_ZEROS = slice(2, 4)  # inputs of MatMulNBits; ONNX Runtime frees the codes by itself
_NUMPY_TYPES = {1: np.float32, 2: np.uint8, 10: np.float16}  # ONNX's number -> NumPy's
_STRIPE = 2**18  # bytes
_EVERY_S = 0.02  # between one sweep and the next


class MappedWeights:
    """The quantised tables of one graph, and the scales and zero points of its linears.

    Attributes:
        values: by name, for SessionOptions.add_initializer; they must live as long as the session.
    """

    def __init__(self, graph: GraphFile, ort: Any) -> None:
        """Map the tables. On a system that cannot give pages back, nothing is mapped here, and ONNX Runtime does it.

        Args:
            graph: the graph that has the weights.
            ort: the onnxruntime module.

        Raises:
            BundleError: a file of weights was cut or changed since the bundle was loaded.
            MemoryError: the process has no address space left to map a file.
        """
        self.values: dict[str, Any] = {}
        self._mappings: dict[str, mmap.mmap] = {}
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        nodes, files = graph.model.nodes, graph.files
        tables = {name for node in nodes if node.op_type == _LOOKED_UP for name in node.inputs}
        read_once = {name for node in nodes if node.op_type == _PACKED for name in node.inputs[_SCALES_AND_ZEROS]}
        for tensor in graph.model.tensors:
            if tensor.name in tables | read_once and tensor.element_type in _NUMPY_TYPES:
                self.values[tensor.name] = ort.OrtValue.ortvalue_from_numpy(self._map(files[tensor.file], tensor))
                if tensor.name in tables:
                    self._cut(self._mappings[tensor.file], tensor)

    @classmethod
    def of(cls, graph: GraphFile, ort: Any) -> MappedWeights | None:
        """The mapped weights of a graph; None if it has none. Arguments and errors as above."""
        weights = cls(graph, ort)
        return weights if weights.values else None

    def _map(self, file: HeldFile, tensor: ExternalTensor) -> np.ndarray[Any, Any]:
        dtype = np.dtype(_NUMPY_TYPES[tensor.element_type])
        try:
            if tensor.file not in self._mappings:
                self._mappings[tensor.file] = file.map()
            flat = np.frombuffer(self._mappings[tensor.file], dtype, tensor.length // dtype.itemsize, tensor.offset)
            return flat.reshape(tensor.shape)
        except ValueError as error:
            raise BundleError(f"{file.path} does not hold {tensor.name}: {error}", hint="export it again") from None
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise MemoryError from None
            raise BundleError(f"{file.path} cannot be read: {error}", hint="copy the bundle again") from None

    def _cut(self, mapping: mmap.mmap, table: ExternalTensor) -> None:
        """Split the mapping into 256 KiB areas (alternate ones get MADV_DONTDUMP), so that faults map no large page."""
        if hasattr(mmap, "MADV_DONTDUMP"):
            with suppress(OSError):  # the number of areas of a process is limited
                first = table.offset // (2 * _STRIPE) * (2 * _STRIPE)  # alternate stripes of the file
                for start in range(first, table.offset + table.length, 2 * _STRIPE):
                    mapping.madvise(mmap.MADV_DONTDUMP, start, min(_STRIPE, len(mapping) - start))

    def let_go(self) -> None:
        """Give the pages back; a page that is read again comes from the file cache."""
        for mapping in self._mappings.values():
            with suppress(OSError):
                mapping.madvise(mmap.MADV_DONTNEED)

    def letting_go(self, run: Callable[[], object]) -> Callable[[], object]:
        """Wrap a run of a prompt so that the pages are given back after it: steps look up few of its rows."""

        def run_and_let_go() -> None:
            run()
            self.let_go()

        return run_and_let_go

    @contextmanager
    def sweeping(self) -> Iterator[None]:
        """Give pages back again and again while a session opens, so that they are never all in memory at once.

        ONNX Runtime (1.32) lets other Python threads run while it opens a session.
        """
        done = threading.Event()

        def sweep() -> None:
            while not done.wait(_EVERY_S):
                self.let_go()

        thread = threading.Thread(target=sweep, daemon=True)
        try:
            with suppress(RuntimeError):  # the system gives no thread
                thread.start()
            yield
        finally:
            done.set()
            if thread.ident is not None:
                thread.join()
            self.let_go()
