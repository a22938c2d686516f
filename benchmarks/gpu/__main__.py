"""One command that measures a GPU machine: tests first, then steps of 8B, 1B and 135M shapes, then peers.

Where there is no GPU the same command runs the CPU's rows and marks the others. Needs no network. Writes
benchmarks/results/gpu.json and prints the table that is drawn from it.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.common.records import RESULTS, ROOT, write_record
from benchmarks.common.settings import Settings
from benchmarks.gpu.correctness import run_tests
from benchmarks.gpu.process import Record, child_environment, run_python
from benchmarks.gpu.rows import OURS, PRECISIONS, TRANSFORMERS, Group, cpu_groups, gpu_groups
from benchmarks.gpu.table import table
from benchmarks.gpu.task import GpuTask

_MODULES = {OURS: f"{__package__}.group", TRANSFORMERS: f"{__package__}.static_cache"}
_MAX_START_S = 120.0  # libraries of a machine that was just started are read from its disk
_MAX_TESTS_S = 150.0
_NO_DEVICE = "no device"
_BUDGET = "budget"
_ENDED = "the command ended before"


@dataclass(frozen=True)
class _Run:
    """What all groups share."""

    settings: Settings
    work: Path
    environment: Mapping[str, str]
    deadline: float  # of time.monotonic()
    group_limit: float  # seconds: what hangs or compiles for too long must not take the time of what comes after it
    has_gpu: bool

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    """Measure, keep the record as it grows, print the table; 1 where a test or a row failed, or it was ended."""
    options = _parse(arguments)
    started = time.monotonic()
    options.work.mkdir(parents=True, exist_ok=True)
    environment = child_environment(options.work)
    machine = _machine(options.device, options.work, environment)
    run = _Run(
        settings=Settings(options.rounds, options.new_tokens, options.threads),
        work=options.work,
        environment=environment,
        deadline=started + options.budget,
        group_limit=options.group_limit,
        has_gpu=machine["gpu"] is not None,
    )
    groups = [group for group in _groups(options) if any(fnmatch(group.name, pattern) for pattern in options.only)]
    tests: Record = {"device": options.device if run.has_gpu else "cpu", "error": "not asked for"}
    rows = {group.name: _describe(group, [], {"skipped": _ENDED}) for group in groups}

    def keep() -> Record:
        record: Record = {
            "what": "steps of base and PAD in turn, greedy, k 10, random weights; a transformers peer round by round",
            "settings": {**asdict(run.settings), "budget_s": options.budget},
            "machine": machine,
            "correctness": tests,
            "rows": [row for group in groups for row in rows[group.name]],
            "seconds": round(time.monotonic() - started, 1),
        }
        write_record(options.out, record)
        return record

    if not run.has_gpu:
        print(f"no {options.device}: {machine['no_device']}", flush=True)
    ended = False
    try:
        keep()
        if options.tests:
            print(f"tests on {tests['device']}", flush=True)
            tests = {"device": tests["device"], "error": _ENDED}
            tests = run_tests(
                tests["device"], run.work / "tests", timeout=min(_MAX_TESTS_S, run.left), environment=environment
            )
            keep()
        for group in groups:

            def take(records: list[Record], name: str = group.name) -> None:
                rows[name] = records
                keep()

            take(_measure(group, run, take))
    except KeyboardInterrupt:
        ended = True
    record = keep()
    print(table(record))
    return int(ended or bool(tests.get("failed")) or any("failed" in row for row in record["rows"]))


def _groups(options: argparse.Namespace) -> list[Group]:
    if not options.rehearse:
        return [
            *gpu_groups(options.device, options.batches, options.prompts),
            *cpu_groups(options.cpu_batches, options.cpu_prompts),
        ]
    groups = gpu_groups(options.device, (1, 2), (5,))
    return list(dict.fromkeys(replace(group, shape="tiny") for group in groups))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    devices = [device for device in PRECISIONS if device != "cpu"]
    parser.add_argument("--device", choices=devices, default="cuda", help="of our rows on the GPU")
    parser.add_argument(
        "--budget", type=float, default=500, metavar="SECONDS", help="rows that do not fit are left out"
    )
    parser.add_argument("--group-limit", type=float, default=180, metavar="SECONDS", help="of rows that share weights")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GROUP", help="names or patterns: 'cuda-8b-*'")
    parser.add_argument(
        "--rehearse", action="store_true", help="every kind of row of the GPU on the tiny shape: a minute"
    )
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="measure without testing first")
    parser.add_argument("--rounds", type=int, default=3, help="prefills of each side")
    parser.add_argument("--new-tokens", type=int, default=64, help="steps of each side after a prefill")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU's rows, inside one operator")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 2048])
    parser.add_argument("--cpu-batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--cpu-prompts", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu", help="takes up to 33 GB at a time")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    return parser.parse_args(arguments)


def _machine(device: str, work: Path, environment: Mapping[str, str]) -> Record:
    """What the process `machine` says.

    Raises:
        SystemExit: a package that everything needs is missing.
    """
    arguments = ["-m", f"{__package__}.machine", device]
    ended = run_python(arguments, work / "machine", timeout=_MAX_START_S, environment=environment)
    if not ended.records:
        why = f"{_MAX_START_S:.0f} s are over" if ended.timed_out else ended.error
        raise SystemExit(f"gpu-bench cannot start: {why}")
    return ended.records[0]


def _measure(group: Group, run: _Run, listen: Callable[[list[Record]], object]) -> list[Record]:
    """The records of a group's rows: what was measured, or why not. `listen` is told whenever one is there."""
    reason = _skipped(group, run)
    if reason is not None:
        return _describe(group, [], {"skipped": reason})
    print(f"{group.name}, {run.left:.0f} s left", flush=True)
    folder = run.work / group.name
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended from outside
    task = GpuTask(group, run.settings, str(folder / "files"))
    try:
        ended = run_python(
            ["-m", _MODULES[group.system], task.text()],
            folder,
            timeout=min(run.left, run.group_limit),
            environment=run.environment,
            listen=lambda records: listen(_describe(group, records, {"skipped": _ENDED})),
        )
    finally:
        shutil.rmtree(folder / "files", ignore_errors=True)
    why: Record = {}
    if ended.timed_out:
        why = {"skipped": _BUDGET if run.left <= 0 else f"took more than {run.group_limit:.0f} s"}
    elif ended.error:
        why = {"failed": ended.error}
    rows = _describe(group, ended.records, why)
    for row in rows:
        if "failed" in row:
            print(f"   {row['row']}: {row['failed']}", flush=True)
    return rows


def _describe(group: Group, records: list[Record], why: Record) -> list[Record]:
    """A group's rows as far as there are records of them, and `why` for the others."""
    found = {record["row"]: record for record in records}
    common = {name: getattr(group, name) for name in ("system", "device", "shape", "precision", "topology")}
    return [
        {"row": row.name, "group": group.name, **common, "batch": row.batch, "prompt": row.prompt}
        | found.get(row.name, why)
        for row in group.rows
    ]


def _skipped(group: Group, run: _Run) -> str | None:
    """Why a group is not even started."""
    if group.device != "cpu" and not run.has_gpu:
        return _NO_DEVICE
    return None if run.left > 0 else _BUDGET


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill unwinds as Ctrl-C does
    sys.exit(main())
