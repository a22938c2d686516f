"""How far a batch is, on stderr."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

SHOW_EVERY_S = 0.5  # a terminal's line is written anew
_LOG_EVERY_S = 10.0  # elsewhere, each state is a line of its own
_WIDTH = 30


class Progress:
    """Counts results, from any thread, and shows how many there are.

    On a terminal as a bar, elsewhere as a line now and then.

    Args:
        total: lines of the input.
        done: of these, the ones that an earlier run has answered.
        is_quiet: show nothing.
    """

    def __init__(self, total: int, done: int, *, is_quiet: bool = False) -> None:
        self._total, self._done, self._refused, self._tokens = total, done, 0, 0
        self._is_quiet, self._is_terminal = is_quiet, sys.stderr.isatty()
        self._width = 0  # of the line on the terminal
        self._began = self._shown = time.monotonic()
        self._lock = threading.Lock()

    def count(self, result: dict[str, Any]) -> None:
        """A line got this result."""
        response = result["response"]
        is_reply = response is not None and response["status_code"] == 200
        with self._lock:
            self._done += 1
            self._refused += not is_reply
            self._tokens += response["body"]["usage"]["completion_tokens"] if is_reply else 0

    def show(self) -> None:
        """Show the state, if it is time to."""
        now = time.monotonic()
        if not self._is_quiet and now - self._shown >= (SHOW_EVERY_S if self._is_terminal else _LOG_EVERY_S):
            self._shown = now
            self._print("\r" if self._is_terminal else "\n")

    def close(self) -> None:
        """Show the last state."""
        if not self._is_quiet:
            self._print("\n")

    def _print(self, end: str) -> None:
        filled = _WIDTH * self._done // self._total
        bar = f"[{'#' * filled}{' ' * (_WIDTH - filled)}] " if self._is_terminal else ""
        refused = f", {self._refused} of them refused" if self._refused else ""
        rate = self._tokens / max(time.monotonic() - self._began, 1e-9)
        state = f"{self._done} of {self._total} lines done{refused}, {rate:.0f} tokens/s"
        line = f"pad: {bar}{state}"
        rest = " " * (self._width - len(line))  # of a longer line that this one is written over
        self._width = len(line) if self._is_terminal else 0
        print(line + rest, end=end, file=sys.stderr, flush=True)
