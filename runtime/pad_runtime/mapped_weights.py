"""Weights that lie mapped beside what ONNX Runtime packed for its kernels, and the pages of them that can go back.

A linear in 4 or 8 bits has codes, scales and zero points. ONNX Runtime copies all three into one packed buffer
(MatMulNBits::PrePack, onnxruntime/contrib_ops/cpu/quantization/matmul_nbits.cc), lets go of the codes, and keeps the
others mapped for nothing, a seventh of a 4-bit model. Of an embedding, a step looks up a row or two; Linux (seen with
6.18) maps all of the large page that holds one in the file cache, up to 2 MB, unless it reaches beyond the mapping.

So both are given to ONNX Runtime from a mapping of our own: in stripes that are smaller than such pages, and let go of
when they have served. What is read again after all, as on a processor where nothing is packed, comes back from the
file cache.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pad_runtime.errors import BundleError
from pad_runtime.onnx_file import ExternalTensor, OnnxFile

_FIRST_MAPPED = {"MatMulNBits": 2, "GatherBlockQuantized": 0}  # inputs from that one on: codes go by themselves
_NUMPY_TYPES = {1: np.float32, 2: np.uint8, 10: np.float16}  # ONNX's number -> NumPy's
_STRIPE = 2**18  # bytes
_EVERY_S = 0.02  # between one sweep and the next


class MappedWeights:
    """The quantised tables, scales and zero points of one graph.

    Attributes:
        values: by name, for SessionOptions.add_initializer; they must live as long as the session.
    """

    def __init__(self, path: Path, ort: Any) -> None:
        """Map them; where the system cannot let go of pages, there are none, and ONNX Runtime maps them by itself.

        Args:
            path: the ONNX file.
            ort: the onnxruntime module.

        Raises:
            BundleError: the file is none, or a file of weights is missing or cut.
        """
        self.values: dict[str, Any] = {}
        self._mappings: dict[Path, mmap.mmap] = {}
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        graph = OnnxFile.read(path)
        names = {
            name
            for node in graph.nodes
            if node.op_type in _FIRST_MAPPED
            for name in node.inputs[_FIRST_MAPPED[node.op_type] :]
        }
        for tensor in graph.tensors:
            if tensor.name in names and tensor.element_type in _NUMPY_TYPES:
                self.values[tensor.name] = ort.OrtValue.ortvalue_from_numpy(self._map(path.parent, tensor))

    def _map(self, folder: Path, tensor: ExternalTensor) -> np.ndarray[Any, Any]:
        path, dtype = folder / tensor.file, np.dtype(_NUMPY_TYPES[tensor.element_type])
        try:
            if path not in self._mappings:
                with path.open("rb") as file:
                    self._mappings[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            flat = np.frombuffer(self._mappings[path], dtype, tensor.length // dtype.itemsize, tensor.offset)
            array = flat.reshape(tensor.shape)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} does not hold {tensor.name}: {error}", hint="export it again") from None
        self._cut(self._mappings[path], tensor)
        return array

    def _cut(self, mapping: mmap.mmap, tensor: ExternalTensor) -> None:
        """Make the kernel see stripes: neighbours differ in whether a core dump has them, which is nothing to us."""
        if hasattr(mmap, "MADV_DONTDUMP"):
            first = -(-tensor.offset // _STRIPE) * _STRIPE
            with suppress(OSError):  # a process has a limit of areas
                for start in range(first, tensor.offset + tensor.length - _STRIPE, 2 * _STRIPE):
                    mapping.madvise(mmap.MADV_DONTDUMP, start, _STRIPE)

    def let_go(self) -> None:
        """Give the pages back; the next read of one fetches it again."""
        for mapping in self._mappings.values():
            with suppress(OSError):
                mapping.madvise(mmap.MADV_DONTNEED)

    def letting_go(self, run: Callable[[], object]) -> Callable[[], object]:
        """A run after which the pages go back: those of a prompt's rows are hardly what the next step looks up."""

        def run_and_let_go() -> None:
            run()
            self.let_go()

        return run_and_let_go

    @contextmanager
    def sweeping(self) -> Iterator[None]:
        """Let go again and again while a session opens, so that not even then they all lie in memory at once."""
        done = threading.Event()

        def sweep() -> None:
            while not done.wait(_EVERY_S):
                self.let_go()

        thread = threading.Thread(target=sweep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.let_go()
