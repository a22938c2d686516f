"""What several preferences by weights cost a step: one row reads them all, however many they are.

Steps of SmolLM2-135M at int4, of the base and with 1, 2, 4 and 8 preferences over the features of the shipped PersRM,
taking turns in one process. Writes benchmarks/results/preferences.json.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, markdown, rounded, versions, write_record
from benchmarks.latency.bundles import read_demo_workload
from pad_rt.bench.rounds import Spread, compare
from pad_rt.bench.steps import Workload, measure_steps, open_bundle
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.rows.plan import Reward, RowPlan, plan_rows

COUNTS = (1, 2, 4, 8)


def plan_preferences(manifest: Manifest, workload: Workload, count: int) -> RowPlan:
    """One sequence with that many random preferences of equal weight on the same prompt."""
    prompt = workload.prompt(manifest)
    draw = np.random.default_rng(count).uniform(-1, 1, size=(count, len(manifest.persrms[0].features)))
    rewards = [Reward(0, tuple(weights), 1 / count, tuple(prompt.reward or ())) for weights in draw.tolist()]
    return plan_rows(manifest, tuple(prompt.base), rewards, 1.0)


def measure(folder: Path, workload: Workload) -> dict[str, Any]:
    """Milliseconds a step by number of preferences, 0 being the base, and their ratios to the base's step by step."""
    bundle = open_bundle(folder, num_threads=1)
    plans = {"0": workload.plan(bundle.manifest, guided=False)}
    plans |= {str(count): plan_preferences(bundle.manifest, workload, count) for count in COUNTS}
    times = measure_steps({name: workload.decode(bundle, [plan]) for name, plan in plans.items()}, workload).step
    return {
        "rows": {name: len(plan.rows) for name, plan in plans.items()},
        "ms": {name: rounded(asdict(Spread.of(values)), 3) for name, values in times.items()},
        "ratio_to_base": {name: rounded(asdict(compare(times[name], times["0"])), 3) for name in plans},
    }


def main() -> None:
    folder, workload = read_demo_workload(__doc__)
    figures = measure(folder, workload)
    record = {
        "what": "SmolLM2-135M-Instruct, int4, batch 1, one thread, random token ids; preferences by weights",
        "workload": asdict(workload),
        "machine": describe_machine(),
        "versions": versions("pad-rt", "onnxruntime", "numpy"),
        **figures,
    }
    write_record(RESULTS / "preferences.json", record)
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    lines = [
        [
            name,
            f"{record['rows'][name]}",
            f"{record['ms'][name]['p50']:.1f}",
            f"{ratio['p50']:.2f}",
            f"{ratio['p25']:.2f} to {ratio['p75']:.2f}",
        ]
        for name, ratio in record["ratio_to_base"].items()
    ]
    return markdown(("preferences", "rows", "step, ms", "step / base", "quartiles"), lines)


if __name__ == "__main__":
    main()
