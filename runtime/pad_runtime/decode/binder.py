"""What a graph is bound to: windows of the KV arena, LoRA factors and feature heads, and the arrays of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy.typing as npt

from pad_runtime.adapters.factors import LoraFactors
from pad_runtime.adapters.heads import FeatureHeads, HeadColumns
from pad_runtime.adapters.persrm_files import PersRMFiles
from pad_runtime.bundle import contract
from pad_runtime.bundle.held_file import BundleFiles
from pad_runtime.bundle.manifest import Manifest, TrunkInfo
from pad_runtime.decode.arena import KvArena
from pad_runtime.decode.inputs import InputBuilder
from pad_runtime.decode.kv_group import Window
from pad_runtime.decode.slot import Slot
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.devices.provider import Graph
from pad_runtime.rows.batch import Batch

Array = npt.NDArray[Any]
Windows = tuple[tuple[Window, Window] | None, ...]  # by trunk: below and above the first adapter


class Binder:
    """Inputs and outputs of a bundle's graphs over one KV arena.

    Args:
        graph: opens a graph of the bundle by its name.
        manifest, files: the bundle's.
        memory: makes the buffers.
        arena: where the KV caches are.
        captures: whether steps are captured: feature heads are then copied into buffers of each run, so that another
            preference needs no other capture. Elsewhere all runs are bound to one set of them.
    """

    def __init__(
        self,
        graph: Callable[[str], Graph],
        manifest: Manifest,
        files: BundleFiles,
        memory: DeviceMemory,
        arena: KvArena,
        *,
        captures: bool,
    ) -> None:
        self.graph, self.memory, self._copies_heads = graph, memory, captures
        self._manifest, self._arena = manifest, arena
        persrms = PersRMFiles(files, manifest)
        self._factors = LoraFactors(persrms, manifest, memory)
        self._heads = FeatureHeads(persrms, manifest, memory)
        self._builder = InputBuilder(manifest, self._factors, self._heads)

    @property
    def capacity(self) -> int:
        """Positions of the KV caches."""
        return self._arena.capacity

    def trunks(self, name: str) -> list[TrunkInfo]:
        """Trunks of a graph."""
        return self._manifest.trunks[: 1 if name == contract.BASE_GRAPH else None]

    def windows(self, name: str, slots: Iterable[Slot], *, rows: Sequence[int] | None = None) -> Windows:
        """Windows over slots that lie side by side; or over one row of each trunk of one slot, -1 for none."""
        trunks, leases = range(len(self.trunks(name))), [slot.lease for slot in slots]
        if rows is None:
            return tuple(self._arena.window(leases, trunk) for trunk in trunks)
        (slot,), (lease,) = slots, leases
        return tuple(
            None if row < 0 else self._arena.row_window(lease, trunk, slot.sequence.rows_on(trunk).index(row))
            for trunk, row in zip(trunks, rows, strict=False)
        )

    def caches(self, windows: Windows) -> tuple[dict[str, Buffer], dict[str, Buffer]]:
        """KV inputs and outputs, by name."""
        inputs, outputs = dict[str, Buffer](), dict[str, Buffer]()
        for trunk, window in enumerate(windows):
            of_trunk = self._arena.buffers(trunk, window)
            inputs |= of_trunk[0]
            outputs |= of_trunk[1]
        return inputs, outputs

    def adapters(self, name: str, batch: Batch) -> dict[str, Buffer]:
        """LoRA factors, and feature heads where they are not copied, by input name; the base's own graph takes none.

        They are the same buffers for the same ones, as long as they are kept.
        """
        if name == contract.BASE_GRAPH:
            return {}
        values = dict(self._factors.buffers(batch.active))
        if not self._copies_heads:
            for trunk, columns in self._columns(name, batch):
                values |= self._heads.buffers(trunk, columns)
        return values

    def arrays(self, name: str, batch: Batch, *, capacity: int | None = None) -> dict[str, Array]:
        """All other inputs, by name; `capacity` as in `InputBuilder.arrays`."""
        values = self._builder.arrays(batch, {value.name for value in self.graph(name).inputs}, capacity=capacity)
        if self._copies_heads and name == contract.STEP_GRAPH:
            for trunk, columns in self._columns(name, batch):
                values |= self._heads.arrays(trunk, columns)
        return values

    def _columns(self, name: str, batch: Batch) -> Iterator[tuple[TrunkInfo, HeadColumns]]:
        """The heads of each trunk that has any."""
        for index, trunk in enumerate(self.trunks(name)):
            if trunk.has_features and batch.reads(index):
                yield trunk, self._heads.columns(trunk, batch.readings(index))

    def state(self, name: str) -> dict[str, str]:
        """The output that becomes an input of the next step, by input name."""
        state = {contract.STEP: contract.NEXT_STEP, contract.WRITTEN: contract.NEXT_WRITTEN}
        for trunk in self.trunks(name):
            at = contract.trunk_prefix(trunk.name)
            state[at + contract.INPUT_IDS] = at + contract.NEXT_INPUT_IDS
            state[at + contract.SEQLENS_K] = at + contract.NEXT_SEQLENS_K
        return state
