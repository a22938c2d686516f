"""Adapters and feature heads of a bundle's PersRMs in memory, each read at its first use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pad_runtime.adapters.tensor_file import read_adapter, read_feature_head
from pad_runtime.bundle.held_file import BundleFiles, HeldFile
from pad_runtime.bundle.manifest import Manifest, PersRMInfo, TrunkInfo

Array = npt.NDArray[Any]


class PersRMFiles:
    """Tensors by PersRM.

    Attributes:
        float_type: of all of them.
    """

    def __init__(self, files: BundleFiles, manifest: Manifest) -> None:
        self._files, self._manifest = files, manifest
        self._tensors: dict[str, dict[str, Array]] = {}  # by file
        self.float_type: np.dtype[Any] = manifest.dtype

    def adapter(self, persrm: int) -> dict[str, Array]:
        """LoRA factors, by contract name.

        Raises:
            BundleError: as `read_adapter`.
        """
        info, trunk = self._info(persrm)
        return self._loaded(cast(str, info.adapter), lambda file: read_adapter(file, trunk, self.float_type))

    def head(self, persrm: int) -> dict[str, Array]:
        """Feature heads and biases.

        Raises:
            BundleError: as `read_feature_head`.
        """
        info, trunk = self._info(persrm)
        num_features = len(info.features)
        return self._loaded(
            cast(str, info.feature_head), lambda file: read_feature_head(file, trunk, num_features, self.float_type)
        )

    def with_adapter(self, trunk: TrunkInfo, active: Iterable[int]) -> list[int]:
        """PersRMs whose adapters a trunk's inputs hold: see `_present`."""
        return self._present(trunk, active, lambda info: info.adapter)

    def with_head(self, trunk: TrunkInfo, active: Iterable[int]) -> list[int]:
        """PersRMs whose feature heads a trunk's inputs hold: see `_present`."""
        return self._present(trunk, active, lambda info: info.feature_head)

    def _present(self, trunk: TrunkInfo, active: Iterable[int], file: Callable[[PersRMInfo], str | None]) -> list[int]:
        """The active PersRMs of a trunk that have such a file.

        If none is active, the first that has one: a graph's input cannot be empty, and no row or reading uses it.
        """
        fitting = [
            index for index, info in enumerate(self._manifest.persrms) if info.trunk == trunk.name and file(info)
        ]
        chosen = set(active)
        return [index for index in fitting if index in chosen] or fitting[:1]

    def _info(self, persrm: int) -> tuple[PersRMInfo, TrunkInfo]:
        info = self._manifest.persrms[persrm]
        return info, self._manifest.trunks[self._manifest.trunk_index(info.trunk)]

    def _loaded(self, name: str, read: Callable[[HeldFile], dict[str, Array]]) -> dict[str, Array]:
        if name not in self._tensors:
            self._tensors[name] = read(self._files[name])
        return self._tensors[name]
