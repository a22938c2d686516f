"""The limit on numbers of threads."""

from __future__ import annotations

import os

from pad_runtime.errors import DeviceError

_ALWAYS_ALLOWED = 64  # even with fewer processors; ONNX Runtime takes a minute to start a thousand


def check_threads(count: object, *, name: str = "num_threads") -> None:
    """Refuse a number of threads that no machine like this one can use.

    Args:
        count: threads of one operator; None leaves the choice to the library.
        name: of the option, for the error.

    Raises:
        DeviceError: no whole number, below 1, or beyond 64 and beyond the processors here.
    """
    limit = max(_ALWAYS_ALLOWED, os.cpu_count() or 1)
    if count is None or (isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= limit):
        return
    raise DeviceError(f"{name} {count!r}", expected=f"a whole number, at least 1 and at most {limit}")
