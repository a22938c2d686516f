"""Optimisation profiles: between which sizes the axes of a graph's inputs move in an engine, and which it is tuned for.

A profile for prompts and one for single steps. Limits come from the manifest; KV caches have one size, the whole
`max_length`, because TensorRT updates a cache in place only where its length is fixed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from safetensors import safe_open

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, TrunkInfo

Range: TypeAlias = tuple[int, int, int]  # least, tuned for, most

_MAX_ROWS = 8  # of one sequence on one trunk: the base and seven rewards or references
_TYPICAL_PROMPT = 128
_TYPICAL_K = 10
_SPARE_RANK = 4  # times the rank of the bundle's own adapters: room for a PersRM that is swapped in


def make_profiles(folder: Path, manifest: Manifest, graph: str) -> dict[str, dict[str, Range]]:
    """Ranges of every named axis of a graph, by profile. A guided step has at least one reward row."""
    guided = graph == contract.STEP_GRAPH
    return {
        name: _Axes(folder, manifest).of(manifest.trunks if guided else manifest.trunks[:1], guided, name == "prefill")
        for name in contract.ENGINE_PROFILES
    }


class _Axes:
    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest

    def of(self, trunks: list[TrunkInfo], guided: bool, prefill: bool) -> dict[str, Range]:
        manifest = self._manifest
        longest = manifest.max_length
        batch = (1, 1, manifest.max_batch)
        axes = {
            "batch": batch,
            "k": (1, min(_TYPICAL_K, manifest.max_top_k), manifest.max_top_k),
            "noise_steps": (1, 1, longest),
            contract.CAPACITY: (longest, longest, longest),
        }
        total = (0, 0, 0)
        for trunk in trunks:
            at = contract.trunk_prefix(trunk.name)
            rows = self._rows(trunk, alone=len(trunks) == 1) if guided else (1, 1, 1)
            total = _add(total, rows)
            axes[f"{at}prompts"] = (batch[0], batch[1], batch[2] * rows[2])
            if guided:
                axes[f"{at}rows"] = (batch[0] * rows[0], batch[1] * rows[1], batch[2] * rows[2])
            axes[f"{at}s"] = (1, min(_TYPICAL_PROMPT, longest), longest) if prefill else (1, 1, 1)
            if guided:
                axes |= {f"{at}rank.{site}": self._rank(trunk, site) for site in trunk.lora_sites}
                if trunk.has_features:
                    is_base = trunk.name == contract.BASE_TRUNK
                    axes[f"{at}reward_rows"] = _add(rows, (-1, -1, -1)) if is_base else rows
                    axes[f"{at}features"] = self._features(trunk)
                    axes[f"{at}weights"] = _add(self._features(trunk), (1, 1, 1))
        if guided:
            axes["total_rows"] = total
        return axes

    def _rows(self, trunk: TrunkInfo, *, alone: bool) -> Range:
        """Rows of one sequence on a trunk: with trunks of their own for the rewards, the base's has the base alone."""
        is_base = trunk.name == contract.BASE_TRUNK
        if is_base and not alone:
            return (1, 1, 1)
        rewards = any(persrm.trunk == trunk.name for persrm in self._manifest.persrms)
        references = any(persrm.reference_trunk == trunk.name for persrm in self._manifest.persrms)
        return (1 + is_base, is_base + rewards + references, _MAX_ROWS)

    def _rank(self, trunk: TrunkInfo, site: str) -> Range:
        """Columns of the adapters at a site, tuned for one of them; at most all at once, or one with room to spare."""
        ranks = []
        for persrm in self._manifest.persrms:
            if persrm.adapter and persrm.trunk == trunk.name:
                with safe_open(self._folder / persrm.adapter, "numpy") as file:
                    ranks.append(int(file.get_slice(contract.lora_a(trunk.prompt_layers, site)).get_shape()[1]))
        return (1, max(ranks), max(sum(ranks), _SPARE_RANK * max(ranks)))

    def _features(self, trunk: TrunkInfo) -> Range:
        """Feature heads on a trunk: one, where those of a request are mixed beforehand."""
        counts = [len(p.features) for p in self._manifest.persrms if p.trunk == trunk.name and p.head]
        return (1, 1 if trunk.mixes_heads else max(counts), sum(counts))


def _add(one: Range, other: Range) -> Range:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])
