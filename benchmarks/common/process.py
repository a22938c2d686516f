"""Processes that answer in lines of JSON. Standard library alone: some run where nothing of ours is installed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.records import ROOT


class RowError(Exception):
    """A row that cannot be measured here; says why in one line."""


class Child:
    """A process at the repository's root that answers each line of JSON with another, until its stdin ends.

    Args:
        arguments: of Python's command line.
        python: the interpreter.
        log: takes its stderr.
        environment: over this process's own.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        python: str = sys.executable,
        log: Path = Path(os.devnull),
        environment: Mapping[str, str],
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                [python, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                cwd=ROOT,
                env={**os.environ, **environment},
            )

    def ask(self, request: Any, patience: float | None = None) -> Any:
        """Write a line, read a line.

        Raises:
            BrokenPipeError, EOFError: the process has ended.
            TimeoutError: no answer within so many seconds.
        """
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        return self.read(patience)

    def read(self, patience: float | None = None) -> Any:
        """Read a line; raises as `ask`."""
        assert self._process.stdout
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], patience)[0]:
                raise TimeoutError
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                raise EOFError
            line += piece
        return json.loads(line)

    def end(self, patience: float = 0.0) -> int:
        """End its stdin, and after so many seconds the process itself; its exit code."""
        assert self._process.stdin
        with self._process as process:  # closes its pipes
            self._process.stdin.close()
            try:
                return process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()


def answers() -> Callable[[Any], None]:
    """What prints a record as a line of this process's stdout; whatever libraries print there goes to stderr."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lambda record: print(json.dumps(record), file=stream, flush=True)


def last_line(log: Path) -> str:
    """What a log ends with, in one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing said"
