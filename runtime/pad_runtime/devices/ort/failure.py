"""What ONNX Runtime's exceptions mean: it has no type for a lack of memory, and no base for its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pad_runtime.errors import out_of_memory

# Of its arena, of C++, of CUDA and of cuBLAS.
_NO_MEMORY = ("failed to allocate", "bad_alloc", "out of memory", "alloc_failed")
_REQUESTED = re.compile(r"requested buffer of size (\d+)")


def is_out_of_memory(error: Exception) -> bool:
    """Whether what ONNX Runtime raised is a lack of memory."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(word in words for word in _NO_MEMORY)


def telling_out_of_memory(run: Callable[..., object]) -> Callable[..., object]:
    """A run of ONNX Runtime that raises OutOfMemoryError for a lack of memory, and else what it raises."""

    def run_graph(*arguments: Any) -> None:
        try:
            run(*arguments)
        except Exception as error:  # ONNX Runtime's own exceptions have no base of their own
            if not is_out_of_memory(error):
                raise
            requested = _REQUESTED.search(str(error))
            raise out_of_memory(int(requested[1]) if requested else None) from None

    return run_graph


def first_line(error: Exception) -> str:
    """What it says, fit for a line."""
    return (str(error).splitlines() or [""])[0][:300]
