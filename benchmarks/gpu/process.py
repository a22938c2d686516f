"""Processes of the command: each has an end, and a folder, a log and a GPU memory of its own.

What fails or runs out of time takes its own rows with it and no others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.common.process import last_line
from benchmarks.common.records import ROOT

_SOURCES = (".", "runtime", "export")  # what the wheel is made of
_LOOK = 0.5  # seconds between two looks at what a process has printed

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        records: what it printed, JSON by line.
        error: None where it ended well; else its last words.
        timed_out: it was ended from here.
    """

    records: list[Record]
    error: str | None
    timed_out: bool = False


def run_python(
    arguments: Sequence[str],
    folder: Path,
    *,
    timeout: float,
    environment: Mapping[str, str],
    listen: Callable[[list[Record]], object] = lambda _: None,
) -> Ended:
    """Run this interpreter at the repository's root.

    Args:
        arguments: of its command line.
        folder: takes out.txt and log.txt.
        timeout: seconds that it has.
        environment: over this process's own.
        listen: called with all records so far, whenever there are more of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, log = folder / "out.txt", folder / "log.txt"
    timed_out = False
    with out.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=stdout,
            stderr=stderr,
            cwd=ROOT,
            env={**os.environ, **environment},
            start_new_session=True,  # so that what it starts (compilers) can be ended with it
        )
        end, heard = time.monotonic() + timeout, 0
        try:
            while not timed_out and process.poll() is None:
                left = end - time.monotonic()
                timed_out = left <= 0
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(_LOOK, max(0.0, left)))
                if len(records := _read_records(out)) > heard:
                    heard = len(records)
                    listen(records)
        finally:  # also when this process is to end
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    error = None if process.returncode == 0 else f"code {process.returncode}: {last_line(log)}"
    return Ended(_read_records(out), error, timed_out)


def child_environment(work: Path) -> dict[str, str]:
    """Where processes find the code: installed, or else in this tree, with the metadata that a wheel would have."""
    paths: list[Path] = []
    try:
        version("pad-rt")
    except PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        metadata = work / "site" / f"pad_rt-{project['version']}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n")
        paths = [work / "site", *(ROOT / name for name in _SOURCES)]
    before = [path for path in [os.environ.get("PYTHONPATH")] if path]
    joined = os.pathsep.join([*map(str, paths), *before])
    return {"PYTHONPATH": joined, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _read_records(out: Path) -> list[Record]:
    lines = out.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]  # no half ones
