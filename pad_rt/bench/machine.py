"""Properties of this machine for records of measurements: name, cores, memory, bandwidth; None if unknown."""

from __future__ import annotations

import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_BUFFER = 256 * 2**20  # bytes, several times the last-level cache of common machines
_PASSES = 5


def cpu_name() -> str:
    """The processor's name as the operating system gives it; its architecture where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.processor() or platform.machine())


def num_cores() -> int:
    """Logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss_mib() -> float | None:
    """Most MiB of memory that this process has held at once, mapped files included."""
    # On Linux a process inherits ru_maxrss from its parent, so VmHWM is preferred.
    if (peak := _status_mib("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def private_mib() -> float | None:
    """MiB of memory of this process now, without pages of files, which the system can read again."""
    return _status_mib("RssAnon")


def _status_mib(field: str) -> float | None:
    """A field of Linux's /proc/self/status (proc_pid_status(5))."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{field}:")), None)


def read_bandwidth(threads: int) -> float | None:
    """GB/s (10^9 bytes) at which NumPy reads a buffer far larger than the caches: the best of a few passes.

    Args:
        threads: number of threads, each of which reads another part.
    """
    try:
        words = np.ones(_BUFFER // 8, np.uint64)
    except MemoryError:
        return None
    parts = np.array_split(words, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_PASSES):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))  # NumPy releases the GIL
            best = min(best, time.perf_counter() - start)
    return words.nbytes / best / 1e9
