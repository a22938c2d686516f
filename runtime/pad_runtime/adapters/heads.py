"""Feature heads of the readings in a batch, and the weights by which each reading mixes them.

Where logits are linear in the head, the heads of one preference are mixed here, once, so that a step multiplies by one
matrix a preference and not by one a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pad_runtime.adapters.files import BIASES, HEADS
from pad_runtime.adapters.persrm_files import PersrmFiles
from pad_runtime.adapters.recent import Recent
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, TrunkInfo

_KEPT = 8  # sets of heads, for further batches with the same
Array = npt.NDArray[Any]
_Mix: TypeAlias = tuple[int, tuple[float, ...]]  # a PersRM, and weights of its features


@dataclass(frozen=True)
class HeadUse:
    """What one reading takes from the heads.

    Attributes:
        persrm: whose heads; None where the reading has no weights.
        weights: over its features.
    """

    persrm: int | None
    weights: tuple[float, ...]


class FeatureHeads:
    """Heads, biases and weights of the readings on a trunk."""

    def __init__(self, files: PersrmFiles, manifest: Manifest) -> None:
        self._files, self._manifest = files, manifest
        self._kept: Recent[tuple[str, tuple[object, ...]], dict[str, Array]] = Recent(_KEPT)

    def inputs(self, trunk: TrunkInfo, active: tuple[int, ...], uses: Sequence[HeadUse]) -> dict[str, Array]:
        """Heads [P, hidden, hidden], biases [P, 1, hidden] and reading weights [L, 1 + P], by graph input name.

        Heads and biases are the same arrays for the same heads, as long as they are kept.
        """
        mixes = self._mixes(trunk, uses)
        heads = self._kept.get((trunk.name, mixes or active), lambda: self._heads(trunk, active, mixes))
        weights = self._mixed_weights(mixes, uses) if mixes else self._weights(trunk, active, uses)
        return {**heads, contract.trunk_prefix(trunk.name) + contract.READING_WEIGHTS: weights}

    def each(self, trunk: TrunkInfo, active: tuple[int, ...]) -> dict[str, Array]:
        """Heads [P, hidden, hidden] and biases [P, 1, hidden] of every feature of the active PersRMs, by input name."""
        return self._kept.get((trunk.name, active), lambda: self._heads(trunk, active, ()))

    def columns(self, trunk: TrunkInfo, active: tuple[int, ...]) -> dict[int, slice]:
        """Where each PersRM's features stand beside the hidden state itself, which is column 0."""
        places, start = {}, 1
        for owner in self._files.with_head(trunk, active):
            end = start + len(self._manifest.persrms[owner].features)
            places[owner], start = slice(start, end), end
        return places

    def _mixes(self, trunk: TrunkInfo, uses: Sequence[HeadUse]) -> tuple[_Mix, ...]:
        """Distinct mixes of features in the batch.

        Empty where the heads themselves are used: with more mixes than features that is cheaper, and where the family
        caps its logits it is necessary.
        """
        mixes = dict.fromkeys((use.persrm, use.weights) for use in uses if use.persrm is not None)
        num_features = sum(len(self._manifest.persrms[persrm].features) for persrm in {persrm for persrm, _ in mixes})
        return tuple(mixes) if trunk.mixes_heads and len(mixes) <= num_features else ()

    def _heads(self, trunk: TrunkInfo, active: tuple[int, ...], mixes: tuple[_Mix, ...]) -> dict[str, Array]:
        at = contract.trunk_prefix(trunk.name)
        values = {}
        for name, key in ((contract.FEATURE_HEADS, HEADS), (contract.FEATURE_BIASES, BIASES)):
            if mixes:
                parts = [
                    np.tensordot(np.asarray(weights, self._files.float_type), self._files.head(persrm)[key], 1)[None]
                    for persrm, weights in mixes
                ]
            else:
                parts = [self._files.head(owner)[key] for owner in self._files.with_head(trunk, active)]
            values[at + name] = np.concatenate(parts)
        return values

    def _mixed_weights(self, mixes: tuple[_Mix, ...], uses: Sequence[HeadUse]) -> Array:
        """Column 0 weighs the hidden state itself, for a reading without weights."""
        columns = [0 if use.persrm is None else 1 + mixes.index((use.persrm, use.weights)) for use in uses]
        return np.eye(1 + len(mixes), dtype=self._files.float_type)[columns]

    def _weights(self, trunk: TrunkInfo, active: tuple[int, ...], uses: Sequence[HeadUse]) -> Array:
        columns = self.columns(trunk, active)
        values = np.zeros((len(uses), max(each.stop for each in columns.values())), self._files.float_type)
        for use, value in zip(uses, values, strict=True):
            if use.persrm is None:
                value[0] = 1
            else:
                value[columns[use.persrm]] = use.weights
        return values
