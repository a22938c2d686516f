"""Lines for a file descriptor, written on a thread of its own."""

from __future__ import annotations

import os
import queue
import threading
from contextlib import suppress

STDERR = 2
_MAX_WAITING = 10_000  # lines that wait for a reader


class LineWriter:
    """Takes lines at once, so that a reader who stalls (a terminal on hold, a full pipe) holds up no request.

    Lines for which there is no room are lost.

    Args:
        descriptor: of an open file.
    """

    def __init__(self, descriptor: int = STDERR) -> None:
        self._descriptor = descriptor
        self._lines = queue.Queue[bytes | None](_MAX_WAITING)
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Take a line, with its end."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pad-log", daemon=True)
            self._thread.start()
        with suppress(queue.Full):
            self._lines.put_nowait(line.encode())

    def close(self, timeout: float = 2.0) -> None:
        """Wait until the lines are written, at most so many seconds."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._lines.put(None, timeout=timeout)
            self._thread.join(timeout)
            self._thread = None

    def _run(self) -> None:
        # os.write holds no lock of Python's, on which the end of the process would wait.
        while (line := self._lines.get()) is not None:
            with suppress(OSError):
                while line:
                    line = line[os.write(self._descriptor, line) :]
