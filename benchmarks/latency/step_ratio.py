"""Step time of guided decoding over plain decoding: shared and pair topology against one base.

What `pad bench` measures of one bundle, with both topologies and the base taking turns in one process. Writes
benchmarks/results/step_ratio.json and prints the README's table.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, markdown, rounded, versions, write_record
from demo.smollm2 import WEIGHTS_PERSRM, find_smollm2
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_rt import Generator
from pad_rt.bench.rounds import Spread, compare
from pad_rt.bench.steps import Workload, measure_replies, measure_steps, open_bundle

TOPOLOGIES = ("shared", "pair")


def measure(bundles: dict[str, Path], workload: Workload, *, threads: int) -> dict[str, Any]:
    """Milliseconds a step of the base and of each topology, their ratios step by step, and the host's part."""
    opened = {name: open_bundle(folder, num_threads=threads) for name, folder in bundles.items()}
    base = opened["shared"]
    sides = {"base": workload.decoding(base, guided=False)}
    for name, bundle in opened.items():
        sides[name] = workload.decoding(bundle, guided=True)
    times = measure_steps(sides, workload).step
    replies = measure_replies(Generator(base), workload)
    return {
        "threads": threads,
        "ms": {name: rounded(asdict(Spread.of(values)), 3) for name, values in times.items()},
        "ratio_to_base": {name: rounded(asdict(compare(times[name], times["base"])), 3) for name in TOPOLOGIES},
        "host_us": rounded(asdict(Spread.of(replies.host_us)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new-tokens", type=int, default=100, help="steps of each side after a prefill")
    parser.add_argument("--rounds", type=int, default=2, help="prefills of each side")
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    workload = Workload(new_tokens=options.new_tokens, rounds=options.rounds, top_k=options.top_k)
    base = find_smollm2()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {name: Path(folder) / name for name in TOPOLOGIES}
        for name, path in bundles.items():
            settings: dict[str, Any] = {"topology": name, "backbone": base, "verify": False}
            export_bundle(base, path, persrms=[WEIGHTS_PERSRM], options=ExportOptions(**settings))
        runs = [measure(bundles, workload, threads=threads) for threads in options.threads]
    record = {
        "what": "SmolLM2-135M-Instruct, fp32, batch 1, random token ids",
        "workload": asdict(workload),
        "machine": describe_machine(),
        "python": platform.python_version(),
        "versions": versions("pad-rt", "onnxruntime", "numpy"),
        "runs": runs,
    }
    write_record(RESULTS / "step_ratio.json", record)
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    head = ("threads", "topology", "base step, ms", "PAD step, ms", "PAD / base (quartiles)", "host, us")
    lines = []
    for run in record["runs"]:
        for name, ratio in run["ratio_to_base"].items():
            times = [f"{run['ms'][side]['p50']:.1f}" for side in ("base", name)]
            spread = f"**{ratio['p50']:.2f}** ({ratio['p25']:.2f} to {ratio['p75']:.2f})"
            lines.append([f"{run['threads']}", name, *times, spread, f"{run['host_us']['p50']:.0f}"])
    return markdown(head, lines)


if __name__ == "__main__":
    main()
