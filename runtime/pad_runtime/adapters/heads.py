"""Feature heads of the readings in a batch, and the weights by which each reading mixes them.

Where logits are linear in the head, the heads of one preference are mixed here, once, so that a step multiplies by one
matrix a preference and not by one a feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from pad_runtime.adapters.persrm_files import PersRMFiles
from pad_runtime.adapters.recent import Recent
from pad_runtime.adapters.tensor_file import BIASES, HEADS
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, TrunkInfo
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.memory import DeviceMemory
from pad_runtime.rows.batch import ReadingPart

_KEPT = 8  # sets of heads on the device, for batches with the same
Array = npt.NDArray[Any]
HeadColumns: TypeAlias = tuple[tuple[int, int | tuple[float, ...]], ...]
"""What each head of a set is: of a PersRM, one feature by its number, or all of them mixed by weights."""


class FeatureHeads:
    """Heads and biases on the device, by what they are, and weights over them."""

    def __init__(self, files: PersRMFiles, manifest: Manifest, memory: DeviceMemory) -> None:
        self._files, self._manifest, self._memory = files, manifest, memory
        self._kept: Recent[tuple[str, HeadColumns], dict[str, Buffer]] = Recent(_KEPT)

    def buffers(self, trunk: TrunkInfo, columns: HeadColumns) -> dict[str, Buffer]:
        """Heads [P, hidden, hidden] and biases [P, 1, hidden], by graph input name.

        They are the same buffers for the same heads, as long as they are kept.
        """
        return self._kept.get((trunk.name, columns), lambda: self._upload(trunk, columns))

    def arrays(self, trunk: TrunkInfo, columns: HeadColumns) -> dict[str, Array]:
        """The same as arrays."""
        at = contract.trunk_prefix(trunk.name)
        return {
            at + name: np.stack([self._head(key, *column) for column in columns])
            for name, key in ((contract.FEATURE_HEADS, HEADS), (contract.FEATURE_BIASES, BIASES))
        }

    def features(self, trunk: TrunkInfo, owners: Iterable[int]) -> HeadColumns:
        """Every feature of some PersRMs of a trunk."""
        return tuple(
            (owner, number)
            for owner in self._files.with_head(trunk, owners)
            for number in range(len(self._manifest.persrms[owner].features))
        )

    def columns(self, trunk: TrunkInfo, readings: Sequence[ReadingPart]) -> HeadColumns:
        """The fewest heads that readings of a trunk can be mixed of.

        With more mixes than features that is the features' own; where the family caps its logits, it always is.
        """
        mixes = dict.fromkeys(_mix(part) for part in readings if part.reading.weights)
        features = self.features(trunk, {owner for owner, _ in mixes})
        if not mixes:
            return features[:1]  # an input is never empty, and none of them counts
        return tuple(mixes) if trunk.mixes_heads and len(mixes) <= len(features) else features

    def weights(self, columns: HeadColumns, readings: Sequence[ReadingPart]) -> Array:
        """Weights [L, 1 + P] of the readings; column 0 is the hidden state itself, of a reading without weights."""
        places = {column: place for place, column in enumerate(columns, 1)}
        values = np.zeros((len(readings), 1 + len(columns)), self._files.float_type)
        for part, value in zip(readings, values, strict=True):
            owner, weights = _mix(part)
            if not weights:
                value[0] = 1
            elif (owner, weights) in places:
                value[places[owner, weights]] = 1
            else:
                value[[places[owner, number] for number in range(len(weights))]] = weights
        return values

    def _upload(self, trunk: TrunkInfo, columns: HeadColumns) -> dict[str, Buffer]:
        return {name: self._memory.upload(array) for name, array in self.arrays(trunk, columns).items()}

    def _head(self, key: str, owner: int, which: int | tuple[float, ...]) -> Array:
        values = self._files.head(owner)[key]
        head: Array = (
            values[which]
            if isinstance(which, int)
            else np.tensordot(np.asarray(which, self._files.float_type), values, 1)
        )
        return head


def _mix(part: ReadingPart) -> tuple[int, tuple[float, ...]]:
    return cast(int, part.persrm), part.reading.weights  # with weights, it is of a PersRM
