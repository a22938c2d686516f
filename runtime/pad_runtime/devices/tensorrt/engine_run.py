"""A run of an engine: one execution context with everything set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.cuda import Cuda
from pad_runtime.devices.tensorrt.library import Library
from pad_runtime.errors import DeviceError


class EngineRun:
    """A run with everything set: started anew each time, or captured at the first and replayed."""

    def __init__(self, context: Any, library: Library, cuda: Cuda, kept: Sequence[Buffer], *, captures: bool) -> None:
        """A context with shapes, addresses and memory set.

        Args:
            context: the library's.
            library, cuda: what runs it.
            kept: memory that it needs beside its inputs and outputs.
            captures: it is captured here, and not by the library.
        """
        self._context, self._library, self._cuda = context, library, cuda
        self._enqueue, self._stream = context.execute_async_v3, cuda.stream
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
                self._launch = self._cuda.capture(self._start).launch
            except DeviceError as error:
                warnings.warn(f"steps run without a CUDA graph: {error}", RuntimeWarning, stacklevel=2)

    def _start(self) -> None:
        if not self._enqueue(self._stream):
            raise DeviceError(
                f"{self._library} failed while it decoded: {self._library.log.take()}", hint="start the process again"
            )
