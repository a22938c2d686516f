"""Optimisation profiles: between which sizes the axes of a graph's inputs move in an engine, and which it is tuned for.

A profile for prompts and one for single steps. Limits come from the manifest; KV caches have one size, the whole
`max_length`, because TensorRT updates a cache in place only where its length is fixed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeAlias

from safetensors import safe_open

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, TrunkInfo
from pad_runtime.errors import OptionError

Range: TypeAlias = tuple[int, int, int]  # least, tuned for, most

_MAX_ROWS = _MAX_READINGS = 8  # on one trunk, times the most sequences: what one has too few of, another may use
_ALIGNMENT = 256  # bytes: where a tensor of TensorRT may begin (IExecutionContext::setTensorAddress)
_TYPICAL_PROMPT = 128
_TYPICAL_K = 10
_SPARE_RANK = 4  # times the rank of the bundle's own adapters: room for a PersRM that is swapped in


def make_profiles(folder: Path, manifest: Manifest, graph: str) -> dict[str, dict[str, Range]]:
    """Ranges of every named axis of a graph, by profile. A guided step has a reading on each trunk that is read."""
    guided = graph == contract.STEP_GRAPH
    return {
        name: _Axes(folder, manifest).of(manifest.trunks if guided else manifest.trunks[:1], guided, name == "prefill")
        for name in contract.ENGINE_PROFILES
    }


def check_capacity(manifest: Manifest) -> None:
    """Whether every row of a KV cache begins where TensorRT takes a tensor: a run reads a window of some rows.

    Raises:
        OptionError: max_length gives rows that are no multiple of 256 bytes.
    """
    slots = [trunk.num_kv_heads * trunk.head_dim * manifest.dtype.itemsize for trunk in manifest.trunks]
    unit = math.lcm(*(_ALIGNMENT // math.gcd(_ALIGNMENT, slot) for slot in slots))
    if manifest.max_length % unit:
        raise OptionError(
            f"engines of a bundle with a max_length of {manifest.max_length}",
            expected=f"a multiple of {unit}: rows of its KV caches begin at every {_ALIGNMENT} bytes",
            hint=f"export it again with --max-length {manifest.max_length // unit * unit or unit}",
        )


class _Axes:
    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest

    def of(self, trunks: list[TrunkInfo], guided: bool, prefill: bool) -> dict[str, Range]:
        manifest = self._manifest
        longest, vocab, batch = manifest.max_length, manifest.vocab_size, manifest.max_batch
        axes = {
            contract.SEQUENCES: (1, 1, batch),
            contract.K: (1, min(_TYPICAL_K, manifest.max_top_k), manifest.max_top_k),
            contract.NOISE_STEPS: (1, 1, longest),
            contract.CAPACITY: (longest, longest, longest),
            contract.BIAS_SEQUENCES: (1, 1, batch),
            contract.BIAS_WIDTH: (1, 1, vocab),
            contract.ALLOWED_SEQUENCES: (1, 1, batch),
            contract.ALLOWED_WIDTH: (1, 1, -(-vocab // 8)),
            contract.WRITTEN_WIDTH: (1, 1, vocab),
        }
        total = (0, 0, 0)
        for index, trunk in enumerate(trunks):
            at = contract.trunk_prefix(trunk.name)
            is_read = guided and contract.takes_readings(index, len(trunks))
            axes[at + contract.PROMPTS] = (1, 1, batch * (_MAX_ROWS if is_read else 1))
            axes[at + contract.NEW_TOKENS] = (1, min(_TYPICAL_PROMPT, longest), longest) if prefill else (1, 1, 1)
            if guided:
                axes[at + contract.ROWS] = self._rows(trunk, is_read=is_read)
                axes |= {at + contract.rank_axis(site): self._rank(trunk, site) for site in trunk.lora_sites}
            if is_read:
                readings = self._readings(trunk)
                axes[at + contract.READINGS], total = readings, _add(total, readings)
                if trunk.has_features:
                    axes[at + contract.FEATURES] = self._features(trunk)
                    axes[at + contract.WEIGHT_COLUMNS] = _add(self._features(trunk), (1, 1, 1))
        if guided:
            axes[contract.TOTAL_READINGS] = total
        return axes

    def _rows(self, trunk: TrunkInfo, *, is_read: bool) -> Range:
        """Rows on a trunk: with trunks of their own for the rewards, the base's has one for each sequence."""
        if not is_read:
            return (1, 1, self._manifest.max_batch)
        typical = (trunk.name == contract.BASE_TRUNK) + self._readings(trunk)[1]
        return (1, typical, self._manifest.max_batch * _MAX_ROWS)

    def _readings(self, trunk: TrunkInfo) -> Range:
        """Readings on a trunk that is read, tuned for those of one preference."""
        rewards = any(persrm.trunk == trunk.name for persrm in self._manifest.persrms)
        references = any(persrm.reference_trunk == trunk.name for persrm in self._manifest.persrms)
        return (1, rewards + references, self._manifest.max_batch * _MAX_READINGS)

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
        counts = [len(p.features) for p in self._manifest.persrms if p.trunk == trunk.name and p.feature_head]
        return (1, 1 if trunk.mixes_heads else max(counts), sum(counts))


def _add(one: Range, other: Range) -> Range:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])
