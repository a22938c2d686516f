"""Time, memory and perplexity of an int4 export, alone and beside processes that keep a core busy each.

SmolLM2-135M-Instruct with the demo's PersRM, and Llama-3.2-1B's shape with random bf16 weights and a random adapter,
each exported and verified in a process of its own. Writes benchmarks/results/export_time.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common.records import RESULTS, versions, write_record
from benchmarks.latency.shapes import SMOLLM2, checkpoint
from demo.smollm2 import WEIGHTS_PERSRM

SHAPES = (SMOLLM2, "llama-3.2-1b")


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute without end."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def export(base: str, persrm: str, threads: int) -> dict[str, Any]:
    """Export in this process: seconds from start to plan, to what is written, to what is verified."""
    import torch

    from pad_export.export import export_bundle
    from pad_export.options import ExportOptions

    if threads:
        torch.set_num_threads(threads)
    times, lines = [time.perf_counter()], list[str]()

    def report(text: str) -> None:
        if text.startswith(("topology", "verifying")):
            times.append(time.perf_counter())
        lines.extend(text.splitlines())

    with tempfile.TemporaryDirectory() as scratch:
        export_bundle(
            Path(base),
            Path(scratch) / "bundle",
            persrms=[Path(persrm)],
            report=report,
            options=ExportOptions(topology="shared", precision="int4"),
        )
    times.append(time.perf_counter())
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = [after - before for before, after in itertools.pairwise(times)]
    cost = re.search(r"perplexity .*\((.*)\)", "\n".join(lines))
    return {
        "seconds": round(times[-1] - times[0], 1),
        **{f"{stage}_s": round(value, 1) for stage, value in zip(("read", "write", "verify"), seconds, strict=True)},
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": used.ru_maxrss >> 10,
        "perplexity": cost.group(1) if cost else None,
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--busy", nargs="+", type=int, default=(0, 1), help="processes beside the export")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads, by default as many as it takes")
    parser.add_argument("--out", type=Path, default=RESULTS / "export_time.json")
    parser.add_argument("--one", nargs=2, metavar=("BASE", "PERSRM"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        base, persrm = options.one
        print(json.dumps(export(base, persrm, options.threads)))
        return
    rows = []
    for shape in options.shapes:
        base, adapter = checkpoint(shape)
        persrm = WEIGHTS_PERSRM if shape == SMOLLM2 else adapter
        for beside in options.busy:
            command = [sys.executable, "-m", __spec__.name, "--threads", str(options.threads)]
            command += ["--one", str(base), str(persrm)]
            with busy(beside):
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"shape": shape, "busy_processes": beside, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], flush=True)
    record = {
        "what": "pad-export --precision int4, verified",
        "cores": os.cpu_count(),
        "versions": versions("pad-rt", "onnxruntime", "torch", "transformers"),
        "rows": rows,
    }
    write_record(options.out, record)


if __name__ == "__main__":
    main(sys.argv[1:])
