"""Time to the first guided token and memory, measured in a new process: `python -m pad_rt.bench.fresh_start JSON`.

`pad bench` starts it. In a new process only the disk cache is warm, and the peak of memory is due to this bundle alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pad_rt.bench.machine import peak_rss_mib, private_mib
from pad_rt.bench.steps import Workload, open_bundle
from pad_rt.generator import Generator
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.command import run_command
from pad_runtime.errors import PadError


@dataclass(frozen=True)
class FreshStart:
    """Times and memory of a new process; memory in MiB, None if the operating system does not tell.

    Attributes:
        first_token_ms: from Generator.load to the first guided token; libraries are imported, the disk is warm.
        from_start_ms: from the start of the process to the same token.
        before_load_mib: peak before Generator.load: the interpreter and its libraries.
        before_load_private_mib: memory of the process without pages of files, at that time.
        peak_rss_mib: peak after a whole reply.
        private_mib: memory of the process without pages of files, after the reply.
    """

    first_token_ms: float
    from_start_ms: float
    before_load_mib: float | None
    before_load_private_mib: float | None
    peak_rss_mib: float | None
    private_mib: float | None


def measure_fresh_start(
    folder: Path, manifest: Manifest, workload: Workload, *, device: str = "auto", num_threads: int | None = None
) -> FreshStart:
    """Start a process, let it load the bundle and reply once.

    Raises:
        PadError: the new process failed; its error is quoted.
    """
    for name in manifest.files:
        with (folder / name).open("rb") as file:
            while file.read(2**20):
                pass  # into the disk cache
    task = {"folder": str(folder), "device": device, "num_threads": num_threads, "workload": asdict(workload)}
    command = [sys.executable, "-m", "pad_rt.bench.fresh_start", json.dumps(task)]
    start = time.time()
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PadError(lines[-1].removeprefix("pad: error: "), hint="this happened in a fresh process")
    fields = json.loads(done.stdout)
    return FreshStart(from_start_ms=(fields.pop("first_token_at") - start) * 1e3, **fields)


def _start(task: str) -> None:
    """Measure in this process what `measure_fresh_start` asks for, and print it as JSON."""
    import onnxruntime  # noqa: F401 - its memory and import time do not count as the bundle's

    fields = json.loads(task)
    workload = Workload(**fields["workload"])
    before = {"before_load_mib": peak_rss_mib(), "before_load_private_mib": private_mib()}
    start = time.perf_counter()
    # As Generator.load does, but with a bundle in which no token ends a reply.
    generator = Generator(
        open_bundle(Path(fields["folder"]), device=fields["device"], num_threads=fields["num_threads"])
    )
    generator.open(guided=True)
    prompt = workload.prompt(generator.manifest)
    generator.generate(prompt, config=Workload(**{**fields["workload"], "new_tokens": 1}).config)
    first_token_ms = (time.perf_counter() - start) * 1e3
    first_token_at = time.time()
    generator.generate(prompt, config=workload.config)
    record = {
        "first_token_ms": first_token_ms,
        "first_token_at": first_token_at,
        **before,
        "peak_rss_mib": peak_rss_mib(),
        "private_mib": private_mib(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(run_command("pad", lambda: _start(sys.argv[1])))
