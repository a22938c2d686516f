"""Environments of peers that cannot live in ours: made with venv and pip under build/peers, kept between runs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.common.kept import stamped
from benchmarks.common.process import RowError, last_line
from benchmarks.common.records import ROOT

PEERS = ROOT / "build" / "peers"
# torch is the release that the project itself pins; where pip is pointed at a CPU build of it, that is what is taken.
PACKAGES = {
    "genai": ("torch==2.13.0", "transformers==5.23.0", "onnx==1.23.2", "onnx-ir==1.1.0", "onnxruntime-genai==0.18.0"),
    "optimum": ("torch==2.13.0", "transformers<4.58", "onnx==1.23.2", "onnxruntime==1.32.0", "optimum-onnx==0.1.0"),
    "llamacpp": ("llama-cpp-python==0.3.36",),  # compiles llama.cpp: minutes, and it needs a C++ compiler
}
# For this machine's processor, without pictures. Virtual machines name AMX among its abilities and do not allow it.
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
_COMPILER = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"} | (
    {"CFLAGS": _NO_AMX, "CXXFLAGS": _NO_AMX} if platform.machine() == "x86_64" else {}
)


def ensure_environment(name: str) -> Path:
    """The environment's Python; made on first use, and again when `PACKAGES` has changed.

    Raises:
        RowError: pip could not install it; says what pip said.
    """
    folder = PEERS / name
    python = folder / "bin" / "python"

    def install() -> None:
        print(f"   {name}: installing {', '.join(PACKAGES[name])}", flush=True)
        run_logged([sys.executable, "-m", "venv", str(folder)], PEERS / f"{name}-venv.log")
        command = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]]
        run_logged(command, PEERS / f"{name}-pip.log", _COMPILER)

    stamped(folder, "\n".join(PACKAGES[name]), install)
    return python


def run_logged(command: list[str], log: Path, variables: Mapping[str, str] | None = None) -> None:
    """Run a command, its output in a log; with these environment variables beside the process's own.

    Raises:
        RowError: it failed; says the last line of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        environment = {**os.environ, **(variables or {})}
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        raise RowError(f"{log.stem} failed: {last_line(log)}")
