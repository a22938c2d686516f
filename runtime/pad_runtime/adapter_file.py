"""Adapters and heads of a bundle, read from their files and held against the trunk that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pad_runtime import contract
from pad_runtime.errors import BundleError
from pad_runtime.held_file import HeldFile
from pad_runtime.manifest import TrunkInfo

HEADS, BIASES = "heads", "biases"  # tensors of a head's file
_FLOATS = ("float32", "float16", "bfloat16")
_HINT = "export it again"
Array = npt.NDArray[Any]
_Shape: TypeAlias = tuple[int | str, ...]  # a name stands for one size, whatever it is


def read_adapter(file: HeldFile, trunk: TrunkInfo, dtype: np.dtype[Any]) -> dict[str, Array]:
    """LoRA factors by contract name: a [in, rank] and b [rank, out] of every site; a site has one rank in all layers.

    Raises:
        BundleError: the file is none, or is not for this trunk, or holds numbers that are not finite in `dtype`.
    """
    shapes: dict[str, _Shape] = {}
    for layer in range(trunk.prompt_layers, trunk.num_layers):
        for site, (size_in, size_out) in trunk.lora_sites.items():
            shapes[contract.lora_a(layer, site)] = (size_in, f"rank of {site}")
            shapes[contract.lora_b(layer, site)] = (f"rank of {site}", size_out)
    return _read(file, shapes, dtype)


def read_head(file: HeldFile, trunk: TrunkInfo, num_features: int, dtype: np.dtype[Any]) -> dict[str, Array]:
    """Feature heads [features, hidden, hidden], transposed, and their biases [features, 1, hidden].

    Raises:
        BundleError: as `read_adapter`.
    """
    hidden = trunk.hidden_size
    return _read(file, {HEADS: (num_features, hidden, hidden), BIASES: (num_features, 1, hidden)}, dtype)


def _read(file: HeldFile, shapes: Mapping[str, _Shape], dtype: np.dtype[Any]) -> dict[str, Array]:
    from safetensors.numpy import load

    try:
        tensors: dict[str, Array] = load(file.read())
    except BundleError:
        raise
    except Exception as error:  # a header can say anything
        raise BundleError(f"{file.path} cannot be read: {type(error).__name__} {error}", hint=_HINT) from None
    odd = sorted(tensors.keys() ^ shapes.keys())
    if odd:
        has = "has" if odd[0] in tensors else "lacks"
        raise BundleError(f"{file.path} {has} the tensor {ascii(odd[0])[:80]}", expected="its trunk's", hint=_HINT)
    named: dict[str, int] = {}
    read = {}
    for name, shape in shapes.items():
        array = tensors[name]
        if array.dtype.name not in _FLOATS or not _fits(array.shape, shape, named):
            raise BundleError(
                f"{name} in {file.path} is {array.dtype.name} {list(array.shape)}",
                expected=f"floats {list(shape)}",
                hint=_HINT,
            )
        with np.errstate(over="ignore"):
            read[name] = array.astype(dtype, copy=False)
        if not np.isfinite(read[name]).all():
            raise BundleError(f"{name} in {file.path} holds what is no finite {dtype.name}", hint=_HINT)
    return read


def _fits(real: tuple[int, ...], expected: _Shape, named: dict[str, int]) -> bool:
    return len(real) == len(expected) and all(
        size > 0 and size == (named.setdefault(axis, size) if isinstance(axis, str) else axis)
        for size, axis in zip(real, expected, strict=True)
    )
