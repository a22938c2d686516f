"""The driver's side of a comparison: a peer as a process that stays alive between rounds."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from peer_loop import Task


class PeerError(Exception):
    """A peer that cannot be prepared, or that ended; says why in one line."""


class PeerProcess:
    """A running peer. Its stderr goes to a log."""

    def __init__(self, python: Path, script: Path, task: Task, log: Path) -> None:
        self._log, self._name = log, script.stem
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(task.threads))
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
        with log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                [str(python), str(script), json.dumps(asdict(task))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                encoding="utf-8",
                env={**os.environ, **threads, **offline},
            )
        try:
            self.versions: dict[str, str] = self._read()["versions"]
        except BaseException:
            self.close()
            raise

    def round(self, new_tokens: int, *, guided_first: bool) -> dict[str, Any]:
        """Decode once guided and once plain: tokens, prefill_ms and step_ms, and the same with base_ in front.

        Raises:
            PeerError: the process ended.
        """
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"new_tokens": new_tokens, "guided_first": guided_first}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        record: dict[str, Any] = json.loads(line)
        return record

    def _ended(self) -> PeerError:
        code = self._process.wait()
        return PeerError(f"{self._name} ended with code {code}: {last_line(self._log)}")


def last_line(log: Path) -> str:
    """What a log ends with, in one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing said"
