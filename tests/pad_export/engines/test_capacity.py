"""Engines read windows of the KV caches, and TensorRT takes a tensor at every 256 bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from pad_export.engines.add import add_engines
from pad_export.engines.build import EngineBuilder
from pad_export.engines.profile import check_capacity
from pad_runtime.bundle.manifest import Manifest, read_manifest
from pad_runtime.errors import OptionError
from tests.support.error_checks import refused

HALF, WHOLE = 2, 4  # bytes


def of_sizes(bundle: Path, max_length: int, *sizes: tuple[int, int], itemsize: int = HALF) -> Manifest:
    """A manifest with trunks of so many key-value heads of such a dimension."""
    manifest = read_manifest(bundle)
    names = ("base", "reward")
    trunks = [
        replace(manifest.trunks[0], name=name, num_kv_heads=heads, head_dim=width)
        for name, (heads, width) in zip(names, sizes, strict=False)
    ]
    float_type: Any = {HALF: "float16", WHOLE: "float32"}[itemsize]
    return replace(manifest, trunks=trunks, max_length=max_length, float_type=float_type)


@pytest.mark.parametrize(
    ("max_length", "sizes", "itemsize"),
    [
        (4096, [(3, 64)], HALF),
        (47, [(8, 128)], HALF),  # a row of one slot is long enough
        (47, [(2, 64)], HALF),
        (46, [(3, 64)], HALF),
        (47, [(3, 64)], WHOLE),
        (48, [(1, 8), (3, 16)], HALF),
    ],
)
def test_rows_of_whole_steps_are_taken(
    contrast: Path, max_length: int, sizes: list[tuple[int, int]], itemsize: int
) -> None:
    manifest = of_sizes(contrast, max_length, *sizes, itemsize=itemsize)
    for heads, width in sizes:
        assert heads * max_length * width * itemsize % 256 == 0
    check_capacity(manifest)


@pytest.mark.parametrize(
    ("max_length", "sizes", "unit", "nearest"),
    [(47, [(3, 64)], 2, 46), (40, [(1, 8)], 16, 32), (24, [(3, 64), (1, 8)], 16, 16), (8, [(1, 8)], 16, 16)],
)
def test_other_rows_are_refused_before_anything_is_built(
    contrast: Path, max_length: int, sizes: list[tuple[int, int]], unit: int, nearest: int
) -> None:
    manifest = of_sizes(contrast, max_length, *sizes)
    assert any(heads * max_length * width * HALF % 256 for heads, width in sizes)
    builder = cast(EngineBuilder, None)  # is not come to
    with refused(
        OptionError,
        given=f"engines of a bundle with a max_length of {max_length}",
        expected=f"a multiple of {unit}",
        hint=f"--max-length {nearest}",
    ):
        add_engines(contrast, manifest, builder)
