"""Step time of guided decoding over plain decoding: shared and pair topology against one base.

One process; in every round each side takes one step, in an order that turns; the ratio is the median over rounds, with
its quartiles, so what the machine does at large hits both sides. The host's part is the gap between one run of the
graph and the next, in a real stream of text. Writes benchmarks/results/step_ratio.json and prints the README's table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pad_export.export import export_bundle
from pad_rt import GenerationConfig, Generator
from pad_runtime.bundle import Bundle
from pad_runtime.rows import Reward, plan_rows
from pad_runtime.step import OrtStep, StepRequest
from smollm2 import DEMO_PERSRM, find_smollm2

RESULTS = Path(__file__).parent.parent / "results" / "step_ratio.json"
BASE_PROMPT, REWARD_PROMPT = 64, 96  # tokens; the reward prompt carries the preference and the template
WARMUP = 20
TOPOLOGIES = ("shared", "pair")


def make_request(bundle: Bundle, *, guided: bool, steps: int, top_k: int) -> StepRequest:
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


def measure_steps(bundles: dict[str, Path], *, threads: int, steps: int, top_k: int) -> dict[str, Any]:
    """Milliseconds a step of the base and of each topology, and their ratios round by round."""
    opened = {name: Bundle(folder, num_threads=threads) for name, folder in bundles.items()}
    sides: dict[str, OrtStep] = {"base": opened["shared"].base_step()}
    sides |= {name: bundle.guided_step() for name, bundle in opened.items()}
    for name, step in sides.items():
        bundle = opened.get(name, opened["shared"])
        step.prefill(make_request(bundle, guided=name != "base", steps=steps, top_k=top_k))
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for round_ in range(steps):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            start = time.perf_counter()
            sides[name].step()
            times[name].append((time.perf_counter() - start) * 1e3)
    kept = {name: values[WARMUP:] for name, values in times.items()}
    ratios = {name: [own / base for own, base in zip(kept[name], kept["base"], strict=True)] for name in TOPOLOGIES}
    return {
        "ms": {name: _spread(values) for name, values in kept.items()},
        "ratio_to_base": {name: _spread(values) for name, values in ratios.items()},
    }


def measure_host(folder: Path, *, threads: int, tokens: int) -> dict[str, float]:
    """Microseconds between one run of the graph and the next while text is streamed."""
    generator = Generator(Bundle(folder, num_threads=threads))
    generator.open(guided=True)
    step = generator._idle[True][0]
    assert isinstance(step, OrtStep)
    marks: list[tuple[float, float]] = []
    step._run = _timed(step._run, marks)  # type: ignore[method-assign]
    config = GenerationConfig(max_new_tokens=tokens)
    for _ in generator.stream("Tell me a long story.", preference="Be cheerful and positive.", config=config):
        pass
    gaps = [(start - end) * 1e6 for (_, end), (start, _) in itertools.pairwise(marks)]
    return _spread(gaps)


def _timed(run: Callable[..., None], marks: list[tuple[float, float]]) -> Callable[..., None]:
    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        run(*arguments)
        marks.append((start, time.perf_counter()))

    return timed


def _spread(values: list[float]) -> dict[str, float]:
    """Quartiles and the 95th percentile."""
    low, middle, high = statistics.quantiles(values, n=4)
    top = sorted(values)[int(0.95 * len(values))]
    return {name: round(value, 3) for name, value in (("p25", low), ("p50", middle), ("p75", high), ("p95", top))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=220, help="steps of each side, warm-up included")
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    base = find_smollm2()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {name: Path(folder) / name for name in TOPOLOGIES}
        for name, path in bundles.items():
            options: dict[str, Any] = {"topology": name, "backbone": base, "verify": False}
            export_bundle(base, path, persrms=[DEMO_PERSRM], **options)
        runs = []
        for threads in arguments.threads:
            run = measure_steps(bundles, threads=threads, steps=arguments.steps, top_k=arguments.top_k)
            host = measure_host(bundles["shared"], threads=threads, tokens=100)
            runs.append({"threads": threads, **run, "host_us": host})
    record = {
        "what": "SmolLM2-135M-Instruct, fp32, batch 1, prompts of 64 (base) and 96 (reward) tokens",
        "steps": arguments.steps - WARMUP,
        "top_k": arguments.top_k,
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("pad-rt", "onnxruntime", "numpy")},
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    head = "| threads | topology | base step, ms | PAD step, ms | PAD / base (quartiles) | host, us |"
    lines = [head, "|---" * 6 + "|"]
    for run in record["runs"]:
        for name, ratio in run["ratio_to_base"].items():
            lines.append(
                f"| {run['threads']} | {name} | {run['ms']['base']['p50']:.1f} | {run['ms'][name]['p50']:.1f} "
                f"| **{ratio['p50']:.2f}** ({ratio['p25']:.2f} to {ratio['p75']:.2f}) | {run['host_us']['p50']:.0f} |"
            )
    return "\n".join(lines)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


if __name__ == "__main__":
    main()
