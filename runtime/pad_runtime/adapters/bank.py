"""The PersRMs of a bundle as step-graph inputs: LoRA factors, row gates, feature heads.

The graph takes one set of LoRA factors per trunk and a gate that says which row uses which of their columns. Several
PersRMs at once are their columns side by side; another PersRM is another set of inputs, and the weights stay put.

It also takes feature heads, and weights that mix their logits by row. Where logits are linear in the head, the heads of
one person are mixed here, once a request, so that a step multiplies by one matrix and not by one for each feature.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from pad_runtime.adapters.files import BIASES, HEADS, read_adapter, read_head
from pad_runtime.bundle import contract
from pad_runtime.bundle.held_file import BundleFiles, HeldFile
from pad_runtime.bundle.manifest import Manifest, TrunkInfo
from pad_runtime.devices.buffers import Buffer
from pad_runtime.devices.provider import Provider
from pad_runtime.rows.row import Row

_KEPT_SETS = 8  # device copies of adapter combinations and of heads kept for the next request
Array = npt.NDArray[Any]
_Kept = TypeVar("_Kept", Buffer, Array)
_Mix: TypeAlias = tuple[int | None, tuple[float, ...]]  # a PersRM, and its features' weights


class AdapterBank:
    """Loads adapters and heads once and hands out graph inputs for any set of active PersRMs."""

    def __init__(self, files: BundleFiles, manifest: Manifest, provider: Provider) -> None:
        self._files, self._manifest, self._memory = files, manifest, provider.memory
        self._tensors: dict[str, dict[str, Array]] = {}  # by file
        self._sets: OrderedDict[tuple[object, ...], dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()  # calls may overlap in threads, and one may drop the set that another takes
        self.float_type = manifest.dtype

    def factors(self, active: tuple[int, ...]) -> dict[str, Buffer]:
        """LoRA factors of PersRMs (indices, ascending), on the device, by graph input name."""
        return self._kept((active,), lambda: self._factors(active))

    def heads(self, active: tuple[int, ...], sequences: list[list[list[Row]]]) -> dict[str, Array]:
        """Feature heads and biases of a request: one of each mix that a row asks for, or else of each feature.

        The same arrays for the same heads, as long as they are in use.
        """
        values: dict[str, Array] = {}
        for index, trunk in enumerate(self._manifest.trunks):
            if trunk.has_features:
                mixes = self._mixes(trunk, [row for sequence in sequences for row in sequence[index]])
                make = partial(self._heads, trunk, active, mixes)
                values |= self._kept((trunk.name, mixes or active), make)
        return values

    def _kept(self, key: tuple[object, ...], make: Callable[[], dict[str, _Kept]]) -> dict[str, _Kept]:
        """What was made for that key before, if it was used lately."""
        with self._lock:
            if key not in self._sets:
                self._sets[key] = make()
            self._sets.move_to_end(key)
            if len(self._sets) > _KEPT_SETS:
                self._sets.popitem(last=False)
            return self._sets[key]

    def _factors(self, active: tuple[int, ...]) -> dict[str, Buffer]:
        """LoRA factors."""
        values: dict[str, Buffer] = {}
        for trunk in self._manifest.trunks:
            at = contract.trunk_prefix(trunk.name)
            adapters = self._adapters(trunk, active)
            for layer in range(trunk.prompt_layers, trunk.num_layers):
                for site in trunk.lora_sites:
                    for name, axis in ((contract.lora_a(layer, site), 1), (contract.lora_b(layer, site), 0)):
                        values[at + name] = self._upload([adapter[name] for adapter in adapters], axis)
        return values

    def _heads(self, trunk: TrunkInfo, active: tuple[int, ...], mixes: tuple[_Mix, ...]) -> dict[str, Array]:
        """Heads and biases of a trunk."""
        at = contract.trunk_prefix(trunk.name)
        values = {}
        for name, key in ((contract.FEATURE_HEADS, HEADS), (contract.FEATURE_BIASES, BIASES)):
            if mixes:
                parts = [
                    np.tensordot(np.asarray(weights, self.float_type), self._head(persrm)[key], 1)[None]
                    for persrm, weights in mixes
                ]
            else:
                parts = [self._head(owner)[key] for owner in self._owners(trunk, active, heads=True)]
            values[at + name] = np.concatenate(parts)
        return values

    def _mixes(self, trunk: TrunkInfo, rows: list[Row]) -> tuple[_Mix, ...]:
        """The different mixes of features that rows ask for; none where they outnumber the features, or cannot mix."""
        mixes = dict.fromkeys((row.persrm, row.weights) for row in rows if self._has_head(row))
        wearers = {persrm for persrm, _ in mixes if persrm is not None}
        num_features = sum(len(self._manifest.persrms[persrm].features) for persrm in wearers)
        return tuple(mixes) if trunk.mixes_heads and len(mixes) <= num_features else ()

    def _has_head(self, row: Row) -> bool:
        return row.persrm is not None and self._manifest.persrms[row.persrm].head is not None

    def row_inputs(self, active: tuple[int, ...], sequences: list[list[list[Row]]]) -> dict[str, Array]:
        """Gates [R, 1, rank] of every site and preference weights [batch, reward rows, 1 + P], by graph input name."""
        values: dict[str, Array] = {}
        for index, trunk in enumerate(self._manifest.trunks):
            at = contract.trunk_prefix(trunk.name)
            rows = [row for sequence in sequences for row in sequence[index]]
            for site in trunk.lora_sites:
                values[at + contract.lora_gate(site)] = self._gate(trunk, site, active, rows)
            if trunk.has_features:
                first = 1 if index == 0 else 0  # the base row has no reward
                mixes = self._mixes(trunk, rows)
                values[at + contract.PREFERENCE_WEIGHTS] = np.stack(
                    [self._weights(trunk, active, mixes, sequence[index][first:]) for sequence in sequences]
                )
        return values

    def _gate(self, trunk: TrunkInfo, site: str, active: tuple[int, ...], rows: list[Row]) -> Array:
        name = contract.lora_a(trunk.prompt_layers, site)
        owners = self._owners(trunk, active)
        ranks = [self._adapter(owner)[name].shape[1] for owner in owners]
        columns = np.repeat(owners, ranks)
        wearers = np.array([-1 if row.persrm is None else row.persrm for row in rows])
        gate: Array = (wearers[:, None, None] == columns[None, None, :]).astype(self.float_type)
        return gate

    def _weights(self, trunk: TrunkInfo, active: tuple[int, ...], mixes: tuple[_Mix, ...], rows: list[Row]) -> Array:
        """[rows, 1 + P]: a row without a head takes its hidden state as it is, by column 0."""
        if mixes:
            columns = [1 + mixes.index((row.persrm, row.weights)) if self._has_head(row) else 0 for row in rows]
            return np.eye(1 + len(mixes), dtype=self.float_type)[columns]
        owners = self._owners(trunk, active, heads=True)
        starts = np.cumsum([1] + [len(self._manifest.persrms[owner].features) for owner in owners])
        values = np.zeros((len(rows), starts[-1]), self.float_type)
        for row, value in zip(rows, values, strict=True):
            if self._has_head(row):
                start = starts[owners.index(cast(int, row.persrm))]
                value[start : start + len(row.weights)] = row.weights
            else:
                value[0] = 1
        return values

    def _owners(self, trunk: TrunkInfo, active: tuple[int, ...], *, heads: bool = False) -> list[int]:
        """PersRMs whose columns a trunk's inputs hold: the active ones, or any one where none is, its gate shut."""
        persrms = self._manifest.persrms
        fitting = [
            index
            for index, persrm in enumerate(persrms)
            if persrm.trunk == trunk.name and (persrm.head if heads else persrm.adapter)
        ]
        return [index for index in fitting if index in active] or fitting[:1]

    def _adapters(self, trunk: TrunkInfo, active: tuple[int, ...]) -> list[dict[str, Array]]:
        if not trunk.lora_sites:
            return []
        return [self._adapter(owner) for owner in self._owners(trunk, active)]

    def _adapter(self, persrm: int) -> dict[str, Array]:
        info = self._manifest.persrms[persrm]
        trunk = self._manifest.trunks[self._manifest.trunk_index(info.trunk)]
        return self._loaded(cast(str, info.adapter), lambda file: read_adapter(file, trunk, self.float_type))

    def _head(self, persrm: int | None) -> dict[str, Array]:
        info = self._manifest.persrms[cast(int, persrm)]
        trunk, num = self._manifest.trunks[self._manifest.trunk_index(info.trunk)], len(info.features)
        return self._loaded(cast(str, info.head), lambda file: read_head(file, trunk, num, self.float_type))

    def _loaded(self, name: str, read: Callable[[HeldFile], dict[str, Array]]) -> dict[str, Array]:
        """A file's tensors, read at first use."""
        if name not in self._tensors:
            self._tensors[name] = read(self._files[name])
        return self._tensors[name]

    def _upload(self, parts: list[Array], axis: int) -> Buffer:
        return self._memory.upload(parts[0] if len(parts) == 1 else np.concatenate(parts, axis))
