"""LoRA factors of the PersRMs in a batch, and the gates that say which row uses which of their columns.

A trunk takes one set of factors: those of several PersRMs are their columns side by side. Another PersRM is another set
of inputs, and the base's weights stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_runtime.adapters.persrm_files import PersRMFiles
from pad_runtime.adapters.recent import Recent
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, TrunkInfo
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.rows.row import Row

_KEPT = 8  # sets of factors on the device, for batches of the same PersRMs
Array = npt.NDArray[Any]


class LoraFactors:
    """Factors on the device, by trunk and the PersRMs that they are of."""

    def __init__(self, files: PersRMFiles, manifest: Manifest, memory: DeviceMemory) -> None:
        self._files, self._manifest, self._memory = files, manifest, memory
        self._kept: Recent[tuple[str, tuple[int, ...]], dict[str, Buffer]] = Recent(_KEPT)

    def buffers(self, active: tuple[int, ...]) -> dict[str, Buffer]:
        """Factors of PersRMs (indices, ascending) by graph input name: the same buffers as long as they are kept."""
        values: dict[str, Buffer] = {}
        for trunk in self._manifest.trunks:
            if trunk.lora_sites:
                values |= self._of_trunk(trunk, tuple(self._files.with_adapter(trunk, active)))
        return values

    def gates(self, trunk: TrunkInfo, active: tuple[int, ...], rows: Sequence[Row]) -> dict[str, Array]:
        """Gates [R, 1, rank] of every site of a trunk: 1 where a row uses a column, else 0."""
        at = contract.trunk_prefix(trunk.name)
        persrms = np.array([-1 if row.persrm is None else row.persrm for row in rows])
        values = {}
        for site in trunk.lora_sites:
            name = contract.lora_a(trunk.prompt_layers, site)
            owners = self._files.with_adapter(trunk, active)
            columns = np.repeat(owners, [self._files.adapter(owner)[name].shape[1] for owner in owners])
            gate = persrms[:, None, None] == columns[None, None, :]
            values[at + contract.lora_gate(site)] = gate.astype(self._files.float_type)
        return values

    def _of_trunk(self, trunk: TrunkInfo, owners: tuple[int, ...]) -> dict[str, Buffer]:
        return self._kept.get((trunk.name, owners), lambda: self._upload(trunk, owners))

    def _upload(self, trunk: TrunkInfo, owners: tuple[int, ...]) -> dict[str, Buffer]:
        values: dict[str, Buffer] = {}
        at = contract.trunk_prefix(trunk.name)
        adapters = [self._files.adapter(owner) for owner in owners]
        for layer in range(trunk.prompt_layers, trunk.num_layers):
            for site in trunk.lora_sites:
                for name, axis in ((contract.lora_a(layer, site), 1), (contract.lora_b(layer, site), 0)):
                    parts = [adapter[name] for adapter in adapters]
                    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
                    values[at + name] = self._memory.upload(joined)
        return values
