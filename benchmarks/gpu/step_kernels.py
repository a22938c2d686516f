"""How many kernels a step launches, and for how long the device works on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pad_rt.bench.decoding import Side

_STEPS = 8
PROFILER = "torch.profiler"
NODES = "nodes of the ONNX graph"


@dataclass(frozen=True)
class Kernels:
    """Of one step.

    Attributes:
        count: kernels; copies are none.
        source: `PROFILER`, which saw them run, or `NODES`, which is what ONNX Runtime was given.
        busy_us: microseconds in which the device ran a kernel or a copy; None where nobody saw.
    """

    count: float
    source: str
    busy_us: float | None


def count_kernels(side: Side, graph: Path, *, device: str) -> Kernels:
    """Profile a few steps with CUPTI; without it, count the graph's nodes.

    Args:
        side: what decodes; it is prefilled anew.
        graph: its ONNX file.
        device: where it runs.
    """
    seen = None if device == "cpu" else _profile(side)
    return seen or Kernels(_num_nodes(graph), NODES, None)


def _profile(side: Side) -> Kernels | None:
    """None where torch has no CUDA, or its profiler saw nothing."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()  # torch's context, before anything is timed
    side.prefill()
    side.step()
    side.step()  # both bindings are captured
    torch.cuda.synchronize()  # the device may be a step ahead: what it has begun is no part of what follows
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(_STEPS):
            side.step()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() or [] if event.device_type.name == "CUDA"]
    if not events:
        return None
    kernels = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    spans = [(event.time_range.start, event.time_range.end) for event in events]
    return Kernels(len(kernels) / _STEPS, PROFILER, covered(spans) / _STEPS)


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of (start, end) spans: what runs at the same time counts once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _num_nodes(graph: Path) -> int:
    import onnx

    return len(onnx.load(graph, load_external_data=False).graph.node)
