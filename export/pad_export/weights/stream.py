"""A trunk's weights on their way to disk: read from the checkpoint, merged, packed and quantised one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from pad_export.graph.matrix import Storage, write_blocks
from pad_export.graph.writer import torch_type
from pad_export.read.checkpoint import Checkpoint
from pad_export.read.spec import SITE_MODULES, norm_modules
from pad_export.trunk import Trunk
from pad_export.weights.blocks import Blocks, concatenate, quantise
from pad_export.weights.file import WeightsFile
from pad_runtime.bundle import contract

LM_HEAD = "lm_head"  # what it is called in the graph, and beside fitted linears
_Named = tuple[str, torch.Tensor | Blocks]  # a weight under its name in the graph


def write_weights(
    trunk: Trunk,
    file: WeightsFile,
    *,
    storage: Storage,
    max_length: int,
    progress: Callable[[int], object],
    calibrated: Mapping[str, Blocks],
) -> None:
    """Stream a trunk's weights to `file` in the order in which a graph uses them; `progress(1)` after each layer.

    `calibrated` holds linears that are already quantised, by their path in the checkpoint.
    """

    def write(weights: Iterable[_Named]) -> None:
        for name, weight in weights:
            if isinstance(weight, Blocks):
                write_blocks(file, name, weight, storage)
            else:
                file.write(name, weight.to(torch_type(storage.float_type)))

    write(_before_layers(trunk, storage, max_length))
    for layer in range(trunk.spec.num_layers):
        write(_layer(trunk, layer, storage, calibrated))
        progress(1)
    write(_after_layers(trunk, storage, calibrated))


def _before_layers(trunk: Trunk, storage: Storage, max_length: int) -> Iterator[_Named]:
    """The embedding and the rotary tables."""
    embedding = _rows(trunk.checkpoint, "model.embed_tokens.weight", storage.embedding_bits)
    yield trunk.weight(contract.EMBEDDING), embedding
    for i, rope in enumerate(trunk.spec.ropes):
        cos, sin = rope.tables(max_length)
        yield trunk.weight(f"{contract.ROPE}{i}.cos"), cos
        yield trunk.weight(f"{contract.ROPE}{i}.sin"), sin


def _layer(trunk: Trunk, layer: int, storage: Storage, calibrated: Mapping[str, Blocks]) -> Iterator[_Named]:
    """Norms, packed linears and their biases of one layer."""
    source, spec, at = trunk.checkpoint, trunk.spec, f"model.layers.{layer}."
    for graph_name, norm in norm_modules(spec.model_type).items():
        weight = source.tensor(f"{at}{norm}.weight").float() + spec.norm_offset
        yield trunk.weight(f"layers.{layer}.{graph_name}"), weight
    for site, names in SITE_MODULES.items():
        modules = [at + name for name in names]
        bits = storage.bits(site, layer, spec.num_layers)
        if bits:
            parts = [calibrated.get(module) or _linear_blocks(trunk, module, bits, storage) for module in modules]
            yield trunk.linear(layer, site), concatenate(parts)
        else:
            yield trunk.linear(layer, site), torch.cat([linear_weight(trunk, module) for module in modules]).T
        if site_has_bias(trunk, layer, site):
            yield trunk.bias(layer, site), torch.cat([_bias(source, module) for module in modules])


def _after_layers(trunk: Trunk, storage: Storage, calibrated: Mapping[str, Blocks]) -> Iterator[_Named]:
    """The final norm, and the lm_head unless it is the embedding as that is stored."""
    source, spec, bits = trunk.checkpoint, trunk.spec, lm_head_bits(trunk, storage)
    yield trunk.weight("norm"), source.tensor("model.norm.weight").float() + spec.norm_offset
    if not spec.tied or bits != storage.embedding_bits:
        yield trunk.weight(LM_HEAD), calibrated.get(LM_HEAD) or _rows(source, lm_head_parameter(trunk), bits)


# -- linears of the checkpoint ----------------------------------------------------------------------------------------


def linear_weight(trunk: Trunk, module: str) -> torch.Tensor:
    """Weight [out, in] of one linear, with the merged adapter added in float32."""
    merged = merged_weight(trunk, module)
    return trunk.checkpoint.tensor(f"{module}.weight") if merged is None else merged


def merged_weight(trunk: Trunk, module: str) -> torch.Tensor | None:
    """The same where an adapter is merged into it, None elsewhere."""
    delta = trunk.merged.delta.get(module) if trunk.merged else None
    return None if delta is None else trunk.checkpoint.tensor(f"{module}.weight").float() + delta.b @ delta.a


def stored_blocks(trunk: Trunk, module: str, bits: int, storage: Storage) -> Blocks | None:
    """The checkpoint's own blocks of a linear, where it is stored in such and nothing is merged into them."""
    merged = trunk.merged is not None and module in trunk.merged.delta
    blocks = None if merged else trunk.checkpoint.blocks(f"{module}.weight", bits)
    return blocks if blocks and (blocks.is_symmetric or not storage.symmetric) else None


def site_has_bias(trunk: Trunk, layer: int, site: str) -> bool:
    """Whether any linear packed into the site has a bias."""
    at = f"model.layers.{layer}."
    return any(f"{at}{module}.bias" in trunk.checkpoint.names for module in SITE_MODULES[site])


def _linear_blocks(trunk: Trunk, module: str, bits: int, storage: Storage) -> Blocks:
    return stored_blocks(trunk, module, bits, storage) or quantise(
        linear_weight(trunk, module), bits, symmetric=storage.symmetric
    )


def _bias(source: Checkpoint, module: str) -> torch.Tensor:
    """The bias [out] of one linear; zeros where it has none."""
    name = f"{module}.bias"
    return source.tensor(name) if name in source.names else torch.zeros(source.shape(f"{module}.weight")[0])


# -- embedding and lm_head --------------------------------------------------------------------------------------------


def lm_head_bits(trunk: Trunk, storage: Storage) -> int:
    """Bits of a trunk's lm_head: a step streams the base's, so it may have fewer; of others it gathers k rows."""
    return storage.lm_head_bits if trunk.name == contract.BASE_TRUNK else storage.embedding_bits


def lm_head_parameter(trunk: Trunk) -> str:
    """The checkpoint's name of the lm_head's weight: the embedding's, where they are tied."""
    return "model.embed_tokens.weight" if trunk.spec.tied else "lm_head.weight"


def lm_head_weight(trunk: Trunk, stored: Iterable[str]) -> str:
    """Name of the lm_head's weight [vocab, hidden] among those that are stored: the embedding's, without its own."""
    own = trunk.weight(LM_HEAD)
    return own if any(name.startswith(own) for name in stored) else trunk.weight(contract.EMBEDDING)


def _rows(source: Checkpoint, name: str, bits: int) -> torch.Tensor | Blocks:
    """A matrix whose rows are looked up: embedding or lm_head."""
    if not bits:
        return source.tensor(name)
    return source.blocks(name, bits) or quantise(source.tensor(name), bits)
