"""Processes of the command: each has an end, and a folder, a log and a GPU memory of its own.

What fails or runs out of time takes its own rows with it and no others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = (".", "runtime", "export")  # what the wheel is made of
_BESIDE = ("benchmarks/gpu", "benchmarks/latency", "demo")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        records: what it printed, JSON by line.
        error: None where it ended well; else its last words.
        timed_out: it was ended from here.
    """

    records: list[dict[str, Any]]
    error: str | None
    timed_out: bool = False


def run_python(arguments: Sequence[str], folder: Path, *, timeout: float, environment: Mapping[str, str]) -> Ended:
    """Run this interpreter; `folder` takes out.txt and log.txt, and `timeout` seconds are what it has."""
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
        try:
            process.wait(max(0.0, timeout))
        except BaseException as ending:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(ending, subprocess.TimeoutExpired):
                raise
            timed_out = True
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)  # the last one may be half a record
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]
    error = None if process.returncode == 0 else f"code {process.returncode}: {_last_line(log)}"
    return Ended(records, error, timed_out)


def child_environment(work: Path) -> dict[str, str]:
    """Where processes find the code: installed, or else in this tree, with the metadata that a wheel would have."""
    paths = [ROOT / name for name in _BESIDE]
    try:
        version("pad-rt")
    except PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        metadata = work / "site" / f"pad_rt-{project['version']}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n")
        paths += [work / "site", *(ROOT / name for name in _SOURCES)]
    before = os.environ.get("PYTHONPATH")
    joined = os.pathsep.join([*map(str, paths), *([before] if before else [])])
    return {"PYTHONPATH": joined, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing said"
