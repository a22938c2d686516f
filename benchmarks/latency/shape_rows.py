"""A row of the shapes: base alone, shared and pair of one size, precision, k and prompt, step by step in turn."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import asdict
from typing import Any

from benchmarks.common.process import RowError
from benchmarks.common.settings import Settings, pinned
from benchmarks.latency.bundles import bundle
from benchmarks.latency.shapes import SHAPES
from pad_rt.bench.graph_weights import GraphWeights
from pad_rt.bench.rounds import Spread, compare
from pad_rt.bench.steps import Workload, measure_steps, open_bundle
from pad_runtime.bundle import contract

TOPOLOGIES = ("shared", "pair")
SHAPE_ROWS = {
    f"{shape}-{precision}-k{top_k}-p{prompt}": (shape, precision, top_k, prompt)
    for shape, sizes in SHAPES.items()
    for precision, top_k, prompt in itertools.product(sizes.precisions, (5, 10, 20), (64, 512))
}


def measure_shape(name: str, settings: Settings) -> dict[str, Any]:
    """The record of one row; where pad-export refuses, its `skipped` says why."""
    shape, precision, top_k, prompt = SHAPE_ROWS[name]
    record: dict[str, Any] = {"row": name, "shape": shape, "precision": precision, "top_k": top_k, "prompt": prompt}
    try:
        folders = {topology: bundle(shape, topology=topology, precision=precision) for topology in TOPOLOGIES}
    except RowError as error:
        return record | {"skipped": str(error)}
    workload = Workload(prompt_tokens=prompt, new_tokens=settings.new_tokens, top_k=top_k, rounds=settings.rounds)
    with pinned(settings.core):
        opened = {topology: open_bundle(folder, num_threads=settings.threads) for topology, folder in folders.items()}
        shared = opened["shared"]
        sides = {"base": workload.decoding(shared, guided=False)}
        for topology, one in opened.items():
            sides[topology] = workload.decoding(one, guided=True)
        times = measure_steps(sides, workload)
    read = GraphWeights.of(folders["shared"] / shared.manifest.graphs[contract.BASE_GRAPH].file).read
    steps = {side: asdict(Spread.of(values)) for side, values in times.step.items()}
    return record | {
        "reward_prompt": workload.reward_tokens(shared.manifest),
        "step_ms": steps,
        "prefill_ms": {side: statistics.median(values) for side, values in times.prefill.items()},
        "ratio_to_base": {side: asdict(compare(times.step[side], times.step["base"])) for side in TOPOLOGIES},
        "base_read_gb_s": read / steps["base"]["p50"] / 1e6,
    }
