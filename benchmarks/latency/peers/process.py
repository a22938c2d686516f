"""The driver's side of a comparison: a peer as a process that stays alive between rounds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.process import Child, RowError, last_line
from benchmarks.latency.peers.loop import Task

_PATIENCE = 20.0  # seconds for its end


class PeerProcess:
    """A running peer, which reads its task from the command line. Its stderr goes to a log."""

    def __init__(self, python: Path, module: str, task: Task, log: Path) -> None:
        self._log, self._name = log, module.rpartition(".")[2]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(task.threads))
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
        arguments = ["-m", module, json.dumps(asdict(task))]
        self._child = Child(arguments, python=str(python), log=log, environment={**threads, **offline})
        try:
            self.versions: dict[str, str] = self._child.read()["versions"]
        except EOFError:
            raise self._ended() from None
        except BaseException:
            self.close()
            raise

    def round(self, new_tokens: int, *, guided_first: bool) -> dict[str, Any]:
        """Decode once guided and once plain: tokens, prefill_ms and step_ms, and the same with base_ in front.

        Raises:
            RowError: the process ended.
        """
        return self.ask({"new_tokens": new_tokens, "guided_first": guided_first})

    def ask(self, request: Any) -> dict[str, Any]:
        """What the peer answers a request; raises as `round`."""
        try:
            record: dict[str, Any] = self._child.ask(request)
        except (BrokenPipeError, EOFError):
            raise self._ended() from None
        return record

    def close(self) -> None:
        """End the process."""
        self._child.end(_PATIENCE)

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ended(self) -> RowError:
        code = self._child.end(_PATIENCE)
        return RowError(f"{self._name} ended with code {code}: {last_line(self._log)}")
