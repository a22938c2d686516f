"""`make fuzz`: altered bundles and inputs, full disks and kills, counted: every case must be refused or be right.

Prints a table and writes benchmarks/results/fuzz.json. A row is right if its control, the unaltered input, gives
tokens, and no case gave other tokens (where the row promises that), an exception that is no `PadError`, or no end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from benchmarks.common.process import Child
from benchmarks.common.records import RESULTS, ROOT, markdown, versions, write_record
from pad_export.output.stages import Progress, Stages

OUTCOMES = ("refused", "same", "other", "raw", "hang")
_PATIENCE = 60  # seconds for an answer; the process that tries has an alarm of its own
_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
_START = 600  # seconds for its libraries on a busy machine
_SHOWN = 5  # faults of a row that are kept
_MORE = 4  # times as many cases of what can be counted: every place in a document, with every value


@dataclass
class TargetCounts:
    """The counts of one target."""

    target: str
    strict: bool
    tried: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    control: str = ""
    faults: list[dict[str, Any]] = field(default_factory=list)

    def count(self, answer: dict[str, Any], index: int) -> None:
        """Add a case, and keep it if it is a fault."""
        if index < 0:
            self.control = answer["outcome"]
        else:
            self.tried += 1
            self.counts[answer["outcome"]] += 1
        if self._is_fault(answer["outcome"], index) and len(self.faults) < _SHOWN:
            self.faults.append({"index": index, **answer})

    def _is_fault(self, outcome: str, index: int) -> bool:
        return outcome in ("raw", "hang") or (outcome == "other" and self.strict) or (index < 0 and outcome != "same")

    @property
    def is_right(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def cells(self) -> list[str]:
        """The row of the table."""
        other = f"{self.counts['other']}" if self.strict else f"({self.counts['other']})"
        counts = [f"{self.counts[name]}" for name in OUTCOMES]
        counts[OUTCOMES.index("other")] = other
        return [self.target, self.control, str(self.tried), *counts, "" if self.is_right else "FAULT"]


class Worker:
    """A process that tries cases, begun again when it had to be ended."""

    def __init__(self, inputs: Path, kind: str) -> None:
        self._arguments = ["-m", f"{__package__}.worker", str(inputs), kind]
        self._controlled: set[str] = set()
        self.start()

    def start(self) -> None:
        """Begin the process, which says what its targets are."""
        self._child: Child | None = Child(self._arguments, environment=_ENVIRONMENT)
        self._controlled.clear()
        self.targets: list[tuple[str, bool, int | None]] = [tuple(target) for target in self._child.read(_START)]

    def ask(self, target: str, seed: int, index: int) -> dict[str, Any]:
        """What a case gives; the first of a target in this process is its control."""
        if index >= 0 and target not in self._controlled:
            self.ask(target, seed, -1)
        try:
            if self._child is None:
                self.start()
                return self.ask(target, seed, index)
            answer: dict[str, Any] = self._child.ask([target, seed, index], _PATIENCE)
            self._controlled.add(target)
            if answer["outcome"] in ("raw", "hang"):
                self.stop()  # what it left in memory must not be the next case's fault
            return answer
        except TimeoutError:
            self.stop()
            return {"outcome": "hang", "case": f"case {index}", "detail": f"more than {_PATIENCE} s"}
        except (EOFError, BrokenPipeError):
            return {"outcome": "raw", "case": f"case {index}", "detail": f"the process ended with {self.stop()}"}

    def stop(self) -> int:
        """End the process and give its code."""
        child, self._child = self._child, None
        return child.end() if child else 0


def fuzz(root: Path, *, num_cases: int, seed: int, jobs: int, only: Sequence[str] = ()) -> list[TargetCounts]:
    """Make the inputs below `root` and try `num_cases` of each target; of those that can be counted, more or all."""
    command = [sys.executable, "-m", f"{__package__}.inputs", str(root)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, cwd=ROOT, env={**os.environ, **_ENVIRONMENT})
    rows: list[TargetCounts] = []
    for kind in ("files", "disk"):
        workers = [Worker(root, kind) for _ in range(jobs)]
        tasks: SimpleQueue[tuple[TargetCounts, int]] = SimpleQueue()
        for name, strict, counted in workers[0].targets:
            if not only or any(part in name for part in only):
                row = TargetCounts(name, strict)
                rows.append(row)
                for index in range(-1, min(_MORE * num_cases, counted) if counted else num_cases):
                    tasks.put((row, index))
        with Stages(lambda line: print(line, file=sys.stderr, flush=True)).count(
            f"fuzzing {kind}", "cases"
        ) as progress:
            progress.begin(tasks.qsize())
            arguments = (tasks, seed, threading.Lock(), progress)
            threads = [threading.Thread(target=_work, args=(worker, *arguments)) for worker in workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return rows


def _work(
    worker: Worker, tasks: SimpleQueue[tuple[TargetCounts, int]], seed: int, lock: threading.Lock, progress: Progress
) -> None:
    for row, index in _drained(tasks):
        answer = worker.ask(row.target, seed, index)
        with lock:
            row.count(answer, index)
            progress()
    worker.stop()


def _drained(tasks: SimpleQueue[tuple[TargetCounts, int]]) -> Iterator[tuple[TargetCounts, int]]:
    while True:
        try:
            yield tasks.get_nowait()
        except Empty:
            return


def table(rows: Sequence[TargetCounts]) -> str:
    """The counts, a row a target, and their sum; other tokens that a row does not exclude stand in brackets."""
    head = ["target", "control", "tried", *OUTCOMES, ""]
    total = TargetCounts("all", True, sum(row.tried for row in rows))
    for row in rows:
        for name, count in row.counts.items():
            total.counts[name] += count if row.strict or name != "other" else 0
    return markdown(head, [*(row.cells() for row in rows), total.cells()])


def main() -> int:
    """Run, print, and keep the record; 1 if a row has a fault."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=30, help="cases of each target (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="targets whose names hold one of these")
    parser.add_argument("--json", type=Path, default=RESULTS / "fuzz.json", help="where the record goes")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        rows = fuzz(Path(root), num_cases=options.cases, seed=options.seed, jobs=options.jobs, only=options.only)
    print(table(rows))
    for row in rows:
        for fault in row.faults:
            print(f"{row.target}, case {fault['index']}: {fault['outcome']}: {fault['case']}: {fault['detail']}")
    record = {
        "versions": versions("pad-rt", "onnxruntime", "torch", "tokenizers", "safetensors"),
        "seed": options.seed,
        "cases": options.cases,
        "seconds": round(time.monotonic() - start),
        "rows": [asdict(row) for row in rows],
    }
    write_record(options.json, record)
    return 0 if all(row.is_right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
