"""A process that measures the rows of one group: `python -m benchmarks.gpu.group TASK`; a JSON line for each row."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.llama_shapes import write_base
from benchmarks.common.random_adapter import ask_by_weights, write_adapter
from benchmarks.gpu.copy_bandwidth import copy_gb_s
from benchmarks.gpu.devices import export_options
from benchmarks.gpu.random_weights import RandomFile, RandomWeights, parameter_shapes
from benchmarks.gpu.rows import Job
from benchmarks.gpu.step_bytes import element_size, step_bytes
from benchmarks.gpu.step_kernels import count_kernels
from benchmarks.gpu.task import GpuTask, measured, serve_rows
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_rt import Generator
from pad_rt.bench.rounds import Spread, compare
from pad_rt.bench.steps import Workload, measure_replies, measure_steps, open_bundle, settling
from pad_runtime.bundle import contract
from pad_runtime.loaded_bundle import Bundle

_BASE = "base"  # the side without guidance; the other is called by its topology


def measure_group(task: GpuTask) -> Iterator[dict[str, Any]]:
    """Export, open, and measure row by row."""
    group = task.group
    bandwidth = copy_gb_s(group.device)
    bundle = open_bundle(_export(task), device=group.device, num_threads=task.settings.threads)
    generator = Generator(bundle)
    for row in group.rows:
        yield measured(row.name, partial(_measure, row, task, bundle, generator, bandwidth))


def _export(task: GpuTask) -> Path:
    """A bundle of the group's shape. A pair is of two checkpoints, so that nothing has to be merged."""
    group, settings = task.group, task.settings
    folder = Path(task.folder)
    base = write_base(folder / "base", group.shape)
    paired = group.topology == "pair"
    if paired:
        persrm = write_base(folder / "persrm", group.shape)
        ask_by_weights(persrm)
    else:
        persrm = write_adapter(folder / "persrm", base, parameter_shapes(base))
    longest = max(group.prompts) + settings.new_tokens + 2
    options = ExportOptions(
        topology="pair" if paired else "shared",
        max_length=longest,
        max_batch=max(group.batches),
        calibrate=False,
        verify=False,
        **export_options(group.device, group.precision),
    )
    bundle = folder / "bundle"
    export_bundle(base, bundle, persrms=[persrm], options=options, open_weights=RandomWeights, create_file=RandomFile)
    return bundle


def _measure(row: Job, task: GpuTask, bundle: Bundle, generator: Generator, bandwidth: float) -> dict[str, Any]:
    group, settings = task.group, task.settings
    workload = Workload(prompt_tokens=row.prompt, new_tokens=settings.new_tokens, rounds=settings.rounds)
    decoded = {
        side: workload.decoding(bundle, guided=side != _BASE, batch=row.batch) for side in (_BASE, group.topology)
    }
    times = measure_steps(decoded, workload, settle=settling(bundle))
    replies = measure_replies(generator, workload, batch=row.batch)
    graphs = {side: contract.BASE_GRAPH if side == _BASE else contract.STEP_GRAPH for side in decoded}
    sides = {}
    for side, decoding in decoded.items():
        graph, spread = graphs[side], Spread.of(times.step[side])
        plans = [workload.plan(bundle.manifest, guided=side != _BASE)] * row.batch
        read = step_bytes(
            bundle.folder,
            bundle.manifest,
            plans,
            new_tokens=workload.new_tokens + 1,
            graph=graph,
            element_size=element_size(bundle.manifest),
        )
        file = bundle.folder / bundle.manifest.graphs[graph].file
        kernels = count_kernels(decoding, file, device=group.device)
        sides[side] = {
            "step_ms": asdict(spread),
            "prefill_ms": statistics.median(times.prefill[side]),
            "bytes": read,
            "copy_fraction": read / spread.p50 / 1e6 / bandwidth,
            "kernels": kernels.count,
            "kernels_from": kernels.source,
            "idle_us": None if kernels.busy_us is None else spread.p50 * 1e3 - kernels.busy_us,
        }
    return {
        "sides": sides,
        "ratio": asdict(compare(times.step[group.topology], times.step[_BASE])),
        "copy_gb_s": bandwidth,
        "host_us": asdict(Spread.of(replies.host_us)),
        "bytes_to_host": replies.bytes_to_host_per_token,
    }


if __name__ == "__main__":
    serve_rows(measure_group)
