"""The inputs a graph must have by its manifest, and what differs in the graph that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from pad_runtime import contract
from pad_runtime.manifest import Manifest, TrunkInfo

Size: TypeAlias = int | None  # None: any
Shape: TypeAlias = tuple[Size, ...]

_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}


def find_mismatches(inputs: Sequence[Any], manifest: Manifest, *, guided: bool) -> list[str]:
    """Compare a session's inputs with what the runtime will feed: KV cache, adapters and heads, by name, size and type.

    Args:
        inputs: of `InferenceSession.get_inputs()`.
        manifest: of the bundle.
        guided: whether the graph is the one with the rewards.

    Returns:
        One phrase for each difference.
    """
    real = {value.name: value for value in inputs}
    expected: dict[str, Shape] = {}
    for trunk in manifest.trunks if guided else manifest.trunks[:1]:
        at = contract.trunk_prefix(trunk.name)
        shapes = _cache_shapes(trunk) | (_reward_shapes(trunk) if guided else {})
        expected |= {at + name: shape for name, shape in shapes.items()}
    found = []
    float_type = _TYPES[manifest.float_type]
    for name, shape in expected.items():
        if name not in real:
            found.append(f"the graph has no {name}")
        elif real[name].type != float_type or not _fits(real[name].shape, shape):
            found.append(f"{name} is {real[name].type} {real[name].shape} in the graph")
    fed = {contract.trunk_prefix(trunk.name) + name for trunk in manifest.trunks for name in contract.TRUNK_INPUTS}
    found += [f"nothing feeds {name}" for name in real if name not in fed | expected.keys() | {*contract.STEP_INPUTS}]
    return found


def _cache_shapes(trunk: TrunkInfo) -> dict[str, Shape]:
    shape = (None, trunk.num_kv_heads, None, trunk.head_dim)
    return {
        name: shape
        for layer in range(trunk.num_layers)
        for name in (contract.past_key(layer), contract.past_value(layer))
    }


def _reward_shapes(trunk: TrunkInfo) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for site, (size_in, size_out) in trunk.lora_sites.items():
        shapes[contract.lora_gate(site)] = (None, 1, None)
        for layer in range(trunk.prompt_layers, trunk.num_layers):
            shapes[contract.lora_a(layer, site)] = (size_in, None)
            shapes[contract.lora_b(layer, site)] = (None, size_out)
    if trunk.has_features:
        shapes[contract.FEATURE_HEADS] = (None, trunk.hidden_size, trunk.hidden_size)
        shapes[contract.FEATURE_BIASES] = (None, 1, trunk.hidden_size)
        shapes[contract.PREFERENCE_WEIGHTS] = (None, None, None)
    return shapes


def _fits(real: Sequence[int | str | None], expected: Shape) -> bool:
    """Whether the sizes that are fixed on both sides agree."""
    return len(real) == len(expected) and all(
        size is None or not isinstance(axis, int) or axis == size for axis, size in zip(real, expected, strict=True)
    )
