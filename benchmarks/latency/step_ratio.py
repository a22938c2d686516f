"""Step time of guided decoding over plain decoding: shared and pair topology, each against the base of its own export.

One process, steps interleaved one by one, medians and their ratio: what the machine does at large hits both sides.
Writes benchmarks/results/step_ratio.json and prints the table of the README.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pad_export.export import export_bundle
from pad_runtime.bundle import Bundle
from pad_runtime.rows import Reward, plan_rows
from pad_runtime.step import OrtStep, StepRequest
from smollm2 import DEMO_PERSRM, find_smollm2

RESULTS = Path(__file__).parent.parent / "results" / "step_ratio.json"
BASE_PROMPT, REWARD_PROMPT = 64, 96  # tokens; the reward prompt carries the preference and the template


class TimedStep:
    """A prefilled step, timed whole and inside the graph."""

    def __init__(self, step: OrtStep, request: StepRequest) -> None:
        self.total: list[float] = []
        self.graph: list[float] = []
        step.prefill(request)
        step._run = self._timed(step._run)  # type: ignore[method-assign]
        self.step = step

    def _timed(self, run: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            start = time.perf_counter()
            run(*args)
            self.graph.append(time.perf_counter() - start)

        return timed

    def __call__(self) -> None:
        start = time.perf_counter()
        self.step.step()
        self.total.append(time.perf_counter() - start)

    def figures(self, warmup: int) -> dict[str, float]:
        """p50 and p95 in milliseconds, and what the host adds to the graph's own time in microseconds."""
        total = sorted(self.total[warmup:])
        host = statistics.median(a - b for a, b in zip(self.total[warmup:], self.graph[warmup:], strict=True))
        return {
            "p50_ms": round(statistics.median(total) * 1e3, 3),
            "p95_ms": round(total[int(0.95 * len(total))] * 1e3, 3),
            "host_us": round(host * 1e6, 1),
        }


def request(bundle: Bundle, guided: bool, steps: int, top_k: int) -> StepRequest:
    """A prompt of made-up ids: the time of a step does not depend on which tokens it reads."""
    prompt, reward = tuple(range(1000, 1000 + BASE_PROMPT)), tuple(range(1000, 1000 + REWARD_PROMPT))
    rewards = [Reward(0, tuple(bundle.manifest.persrms[0].default_weights), 1.0, reward)] if guided else []
    return StepRequest(
        sequences=[plan_rows(bundle.manifest, prompt, rewards, 1.0)],
        max_new_tokens=steps + 1,
        top_k=top_k,
        temperature=0.0,
        top_p=1.0,
        seeds=(0,),
    )


def measure(bundles: dict[str, Path], *, threads: int, steps: int, warmup: int, top_k: int) -> dict[str, Any]:
    """Interleave the base's and the guided step of every bundle."""
    timed: dict[str, TimedStep] = {}
    for name, folder in bundles.items():
        bundle = Bundle(folder, num_threads=threads)
        timed[f"{name}/base"] = TimedStep(bundle.base_step(), request(bundle, False, steps, top_k))
        timed[f"{name}/pad"] = TimedStep(bundle.guided_step(), request(bundle, True, steps, top_k))
    for _ in range(steps):
        for step in timed.values():
            step()
    rows = {name: step.figures(warmup) for name, step in timed.items()}
    ratios = {name: round(rows[f"{name}/pad"]["p50_ms"] / rows[f"{name}/base"]["p50_ms"], 3) for name in bundles}
    return {"threads": threads, "top_k": top_k, "steps": steps - warmup, "rows": rows, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120, help="steps of each side, warm-up included")
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    base = find_smollm2()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {}
        for topology in ("shared", "pair"):
            bundles[topology] = Path(folder) / topology
            export_bundle(
                base,
                bundles[topology],
                persrms=[DEMO_PERSRM],
                topology=topology,
                backbone=base,
                verify=False,
            )
        runs = [
            measure(bundles, threads=threads, steps=arguments.steps, warmup=20, top_k=arguments.top_k)
            for threads in arguments.threads
        ]
    record = {
        "what": "SmolLM2-135M-Instruct, fp32, batch 1, prompts of 64 (base) and 96 (reward) tokens",
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {name: version(name) for name in ("pad-rt", "onnxruntime", "numpy")},
        "python": platform.python_version(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    lines = ["| threads | topology | base step, ms | PAD step, ms | PAD / base | host, us |", "|---" * 6 + "|"]
    for run in record["runs"]:
        for name, ratio in run["ratio"].items():
            base, pad = run["rows"][f"{name}/base"], run["rows"][f"{name}/pad"]
            lines.append(
                f"| {run['threads']} | {name} | {base['p50_ms']:.1f} | {pad['p50_ms']:.1f} | {ratio:.2f} "
                f"| {pad['host_us']:.0f} |"
            )
    return "\n".join(lines)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


if __name__ == "__main__":
    main()
