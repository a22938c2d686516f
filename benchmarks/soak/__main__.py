"""Random load at full batch for half an hour: is memory flat, and is every reply the one that the request gets alone?

Threads and asyncio tasks ask an fp32 bundle of SmolLM2 for replies of all kinds: plain, by weights, sampled, penalised,
short and long prompts, some cancelled. One reply in a hundred is computed again, alone, in a second generator. Writes
benchmarks/results/soak.json and prints it. Ends with 1 if a token was wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, versions, write_record
from benchmarks.latency.bundles import demo_bundle
from benchmarks.soak.load import Load, run
from pad_rt import Generator

_WARM_UP = 0.5  # of the time: memory grows to what the largest batch of the largest requests needs, which is rare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--bundle", type=Path, help="an fp32 bundle; exported if not given")
    parser.add_argument("--check-every", type=int, default=100, help="replies, one of which is computed again, alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    options = parser.parse_args()
    folder = options.bundle or demo_bundle("fp32")
    with Generator.load(folder) as generator, Generator.load(folder, keep_mib=0) as alone:
        num_workers = generator.manifest.max_batch + 2  # more than run at once: some wait
        load = Load(generator, alone, time.monotonic() + 60 * options.minutes, options.check_every)
        failures = run(load, num_workers, options.seed)
    record = _record(load, options, failures)
    write_record(options.out, record)
    print(json.dumps({name: value for name, value in record.items() if name != "samples"}, indent=1))
    return int(bool(load.wrong or failures))


def _record(load: Load, options: argparse.Namespace, failures: list[str]) -> dict[str, Any]:
    first = int(_WARM_UP * len(load.memory))
    rise, error = slope(load.seconds[first:], load.memory[first:])
    return {
        "what": "random requests at full batch; SmolLM2-135M-Instruct, fp32",
        "minutes": options.minutes,
        "seed": options.seed,
        "machine": describe_machine(),
        "versions": versions("pad-rt", "onnxruntime", "numpy"),
        "counts": dict(sorted(load.counts.items())),
        "wrong": load.wrong,
        "failures": failures,
        "warm_up": _WARM_UP,
        "memory_mib_per_hour": None if math.isnan(rise) else round(rise, 2),
        "standard_error": None if math.isnan(error) else round(error, 2),
        "threads": {"most": max(load.threads, default=0), "at_the_end": threading.active_count()},
        "samples": {
            "seconds": np.round(load.seconds, 1).tolist(),
            "private_mib": np.round(load.memory, 1).tolist(),
            "threads": load.threads,
        },
    }


def slope(seconds: list[float], values: list[float]) -> tuple[float, float]:
    """Least squares: the slope an hour, and its standard error; NaN of fewer than three samples.

    Samples that follow each other are not independent: the error is that of their number if the rest is noise.
    """
    if len(values) < 3:
        return math.nan, math.nan
    hours = np.array(seconds) / 3600
    hours -= hours.mean()
    off = np.array(values) - np.mean(values)
    spread = float(hours @ hours)
    rise = float(hours @ off) / spread
    rest = off - rise * hours
    return rise, math.sqrt(float(rest @ rest) / (len(values) - 2) / spread)


if __name__ == "__main__":
    sys.exit(main())
