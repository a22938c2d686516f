"""The inputs and tables that a graph must have by its manifest, compared with those that it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, TrunkInfo
from pad_runtime.bundle.onnx_file import ExternalTensor

Size: TypeAlias = int | str | None  # a number, the name of an axis, or any
Shape: TypeAlias = tuple[Size, ...]

_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}


def find_mismatches(inputs: Sequence[Any], manifest: Manifest, graph: str) -> list[str]:
    """Compare a session's inputs with what the runtime will feed: KV cache, adapters and heads, by name, size and type.

    Args:
        inputs: of `InferenceSession.get_inputs()`.
        manifest: of the bundle.
        graph: which one it is.

    Returns:
        One phrase for each difference.
    """
    real = {value.name: value for value in inputs}
    expected: dict[str, Shape] = {}
    for trunk in _trunks(manifest, graph):
        at = contract.trunk_prefix(trunk.name)
        expected |= {at + name: shape for name, shape in _shapes(trunk, graph).items()}
    found = []
    float_type = _TYPES[manifest.float_type]
    for name, shape in expected.items():
        if name not in real:
            found.append(f"the graph has no {name}")
        elif real[name].type != float_type or not _fits(real[name].shape, shape):
            found.append(f"{name} is {real[name].type} {real[name].shape} in the graph")
    scores = graph == contract.SCORE_GRAPH
    by_trunk = contract.SCORE_TRUNK_INPUTS if scores else contract.TRUNK_INPUTS
    fed = {contract.trunk_prefix(trunk.name) + name for trunk in manifest.trunks for name in by_trunk}
    fed |= {*(contract.SCORE_INPUTS if scores else contract.STEP_INPUTS)}
    found += [f"nothing feeds {name}" for name in real if name not in fed | expected.keys()]
    return found


def find_table_mismatches(tensors: Iterable[ExternalTensor], manifest: Manifest, graph: str) -> list[str]:
    """Compare a graph's tables with the numbers of the manifest that are of them: vocabulary, hidden size, max_length.

    Args:
        tensors: of the graph's ONNX file.
        manifest, graph: as above.

    Returns:
        One phrase for each difference.
    """
    shapes = {tensor.name: tensor.shape or (0,) for tensor in tensors}
    found = []
    for trunk in _trunks(manifest, graph):
        at, is_base = f"{trunk.name}/", trunk is manifest.trunks[0]
        rows, columns = _table_sizes(shapes, at + contract.EMBEDDING)
        positions = min((shape[0] for name, shape in shapes.items() if name.startswith(at + contract.ROPE)), default=0)
        for what, listed, real, may_have_more in (
            ("vocab_size", manifest.vocab_size, rows, not is_base),  # a reward's may have rows to spare
            ("hidden_size", trunk.hidden_size, columns, False),
            ("max_length", manifest.max_length, positions, True),
        ):
            if listed != real and not (may_have_more and listed < real):
                found.append(f"{what} is {listed}, and {real} in the tables of trunk '{trunk.name}'")
    return found


def _table_sizes(shapes: Mapping[str, Sequence[int]], name: str) -> tuple[int, int]:
    """Rows and columns of a table, whole or in blocks (codes may be two in a byte); zeros where it is not there."""
    if name in shapes:
        return shapes[name][0], shapes[name][-1]
    scales = shapes.get(f"{name}.scales", (0,))
    return scales[0], scales[-1] * contract.BLOCK_SIZE


def _trunks(manifest: Manifest, graph: str) -> list[TrunkInfo]:
    """Those that a graph has."""
    return manifest.trunks[:1] if graph == contract.BASE_GRAPH else manifest.trunks


def _shapes(trunk: TrunkInfo, graph: str) -> dict[str, Shape]:
    """Inputs of a trunk that have the bundle's element type."""
    if graph == contract.BASE_GRAPH:
        return _cache_shapes(trunk, guided=False)
    shapes = _reward_shapes(trunk)
    if graph == contract.SCORE_GRAPH:  # every feature counts there by itself
        shapes.pop(contract.READING_WEIGHTS, None)
        return shapes
    return _cache_shapes(trunk, guided=True) | shapes


def _cache_shapes(trunk: TrunkInfo, *, guided: bool) -> dict[str, Shape]:
    """KV inputs: below the first adapter they are by prompt, above it by row; in the base's own graph all by prompt."""
    at = contract.trunk_prefix(trunk.name)
    shapes: dict[str, Shape] = {}
    for layer in range(trunk.num_layers):
        axis = contract.ROWS if guided and layer >= trunk.prompt_layers else contract.PROMPTS
        for name in (contract.past_key(layer), contract.past_value(layer)):
            shapes[name] = (at + axis, trunk.num_kv_heads, contract.CAPACITY, trunk.head_dim)
    return shapes


def _reward_shapes(trunk: TrunkInfo) -> dict[str, Shape]:
    """Inputs of adapters and heads: the former by row, the latter by reading."""
    at = contract.trunk_prefix(trunk.name)
    shapes: dict[str, Shape] = {}
    for site, (size_in, size_out) in trunk.lora_sites.items():
        rank = at + contract.rank_axis(site)
        shapes[contract.lora_gate(site)] = (at + contract.ROWS, 1, rank)
        for layer in range(trunk.prompt_layers, trunk.num_layers):
            shapes[contract.lora_a(layer, site)] = (size_in, rank)
            shapes[contract.lora_b(layer, site)] = (rank, size_out)
    if trunk.has_features:
        features = at + contract.FEATURES
        shapes[contract.FEATURE_HEADS] = (features, trunk.hidden_size, trunk.hidden_size)
        shapes[contract.FEATURE_BIASES] = (features, 1, trunk.hidden_size)
        shapes[contract.READING_WEIGHTS] = (at + contract.READINGS, at + contract.WEIGHT_COLUMNS)
    return shapes


def _fits(real: Sequence[int | str | None], expected: Shape) -> bool:
    """Whether the sizes that are fixed on both sides agree, and the names that axes have on both."""
    return len(real) == len(expected) and all(
        type(size) is not type(axis) or axis == size for axis, size in zip(real, expected, strict=True)
    )
