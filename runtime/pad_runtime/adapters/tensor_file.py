"""Adapters and heads of a bundle, read from their files and held against the trunk that they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pad_runtime.bundle import contract
from pad_runtime.bundle.held_file import HeldFile
from pad_runtime.bundle.manifest import TrunkInfo
from pad_runtime.errors import BundleError

HEADS, BIASES = "heads", "biases"  # tensors of a head's file
_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}  # of the format -> as they lie in memory
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


def read_feature_head(file: HeldFile, trunk: TrunkInfo, num_features: int, dtype: np.dtype[Any]) -> dict[str, Array]:
    """Feature heads [features, hidden, hidden], transposed, and their biases [features, 1, hidden].

    Raises:
        BundleError: as `read_adapter`.
    """
    hidden = trunk.hidden_size
    return _read(file, {HEADS: (num_features, hidden, hidden), BIASES: (num_features, 1, hidden)}, dtype)


def _read(file: HeldFile, shapes: Mapping[str, _Shape], dtype: np.dtype[Any]) -> dict[str, Array]:
    from safetensors import SafetensorError, deserialize

    parse: Callable[[bytes], list[tuple[str, Any]]] = deserialize
    try:
        tensors = dict(parse(file.read()))
    except SafetensorError as error:
        raise BundleError(f"{file.path} cannot be read: {error}", hint=_HINT) from None
    odd = sorted(tensors.keys() ^ shapes.keys())
    if odd:
        has = "has" if odd[0] in tensors else "lacks"
        raise BundleError(f"{file.path} {has} the tensor {ascii(odd[0])[:80]}", expected="its trunk's", hint=_HINT)
    named: dict[str, int] = {}
    read = {}
    for name, shape in shapes.items():
        kind, sizes = tensors[name]["dtype"], tensors[name]["shape"]
        if kind not in _FLOATS or not _fits(sizes, shape, named):
            raise BundleError(f"{name} in {file.path} is {kind} {sizes}", expected=f"floats {list(shape)}", hint=_HINT)
        array = np.frombuffer(tensors[name]["data"], _FLOATS[kind]).reshape(sizes)
        if kind == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            read[name] = array.astype(dtype)
        if not np.isfinite(read[name]).all():
            raise BundleError(f"{name} in {file.path} holds what is no finite {dtype.name}", hint=_HINT)
    return read


def _fits(real: Sequence[int], expected: _Shape, named: dict[str, int]) -> bool:
    return len(real) == len(expected) and all(
        size > 0 and size == (named.setdefault(axis, size) if isinstance(axis, str) else axis)
        for size, axis in zip(real, expected, strict=True)
    )
