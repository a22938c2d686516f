"""How many bytes of memory a decode step reads: weights, adapters, and what the KV cache holds by then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pad_rt.bench.graph_weights import GraphWeights
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.rows.plan import RowPlan


def step_bytes(
    folder: Path, manifest: Manifest, plans: Sequence[RowPlan], *, new_tokens: int, graph: str, element_size: int
) -> int:
    """Bytes that the middle one of a batch's steps must read at least once.

    Args:
        folder, manifest: the bundle.
        plans: the rows that decode, by sequence.
        new_tokens: that each decodes.
        graph: `contract.STEP_GRAPH` or `contract.BASE_GRAPH`.
        element_size: bytes of a number in the KV cache.
    """
    total = GraphWeights.of(folder / manifest.graphs[graph].file).read
    for index, trunk in enumerate(manifest.trunks):
        if graph == contract.BASE_GRAPH and index:
            break
        filled = sum(
            plan.cached_positions(index, trunk, [len(prompt) + new_tokens / 2 for prompt in plan.prompts])
            for plan in plans
        )
        total += int(2 * filled * trunk.num_kv_heads * trunk.head_dim * element_size)  # keys and values
    if graph == contract.STEP_GRAPH:
        active = {row.persrm for plan in plans for row in plan.rows}
        adapters = {persrm.adapter for index, persrm in enumerate(manifest.persrms) if index in active}
        total += sum(manifest.files[name].size for name in adapters if name)
    return total


def element_size(manifest: Manifest) -> int:
    """Bytes of a number in a bundle's KV cache; NumPy itself has no bfloat16."""
    return 2 if manifest.float_type == "bfloat16" else np.dtype(manifest.float_type).itemsize
