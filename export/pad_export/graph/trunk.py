"""A trunk: one set of decoder weights in the step graph. Streams its weights to disk, then emits its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from onnx import TensorProto

from pad_export.graph.dialect import Dialect, LayerCache, TrunkInputs
from pad_export.graph.matrix import Storage, gather_rows, multiply, write_blocks
from pad_export.graph.writer import Graph, element_type, torch_type
from pad_export.read.adapter import LoraAdapter
from pad_export.read.checkpoint import Checkpoint
from pad_export.read.spec import SITE_MODULES, DecoderSpec, norm_modules
from pad_export.weights.blocks import Blocks, concatenate, quantise
from pad_export.weights.file import WeightsFile
from pad_runtime.bundle import contract

LM_HEAD = "lm_head"  # what a fitted lm_head is called beside fitted linears


@dataclass(frozen=True)
class Trunk:
    """One set of weights and how its rows may differ from them.

    `merged` is added into the weights at export; `lora_sites` take their adapter as graph inputs, per row, from layer
    `first_adapted` on; `has_features` says that reward rows pass through the PersRMs' feature heads.
    """

    name: str
    checkpoint: Checkpoint
    spec: DecoderSpec
    merged: LoraAdapter | None = None
    lora_sites: tuple[str, ...] = ()
    first_adapted: int = 0
    has_features: bool = False

    @property
    def prompt_layers(self) -> int:
        """How many layers run once for each prompt, whatever rows read it: all of them where no adapter is."""
        return self.first_adapted if self.lora_sites else self.spec.num_layers

    @property
    def prefix(self) -> str:
        """Prefix of this trunk's inputs and outputs."""
        return contract.trunk_prefix(self.name)

    def site_sizes(self, site: str) -> tuple[int, int]:
        """(in_features, out_features) of one packed linear."""
        spec = self.spec
        attended = spec.num_heads * spec.head_dim
        return {
            "qkv": (spec.hidden_size, sum(spec.qkv_sizes)),
            "o": (attended, spec.hidden_size),
            "gate_up": (spec.hidden_size, 2 * spec.intermediate_size),
            "down": (spec.intermediate_size, spec.hidden_size),
        }[site]


# -- weights --------------------------------------------------------------------------------------------------------


def write_weights(
    trunk: Trunk,
    file: WeightsFile,
    *,
    storage: Storage,
    max_length: int,
    progress: Callable[[int], object],
    calibrated: Mapping[str, Blocks],
) -> None:
    """Stream a trunk's weights to `file`, one packed tensor at a time; `progress(1)` is called after each layer.

    `calibrated` holds linears that are already quantised, by their path in the checkpoint.
    """
    dtype = torch_type(storage.float_type)
    for name, weight in _tensors(trunk, storage, max_length, calibrated):
        if isinstance(weight, Blocks):
            write_blocks(file, f"{trunk.name}/{name}", weight, storage)
        else:
            file.write(f"{trunk.name}/{name}", weight.to(dtype))
        if name.endswith(".down.weight"):
            progress(1)


def _tensors(
    trunk: Trunk, storage: Storage, max_length: int, calibrated: Mapping[str, Blocks]
) -> Iterator[tuple[str, torch.Tensor | Blocks]]:
    """Every weight of a trunk under its name in the graph, in the order in which the graph uses them."""
    source, spec = trunk.checkpoint, trunk.spec
    yield contract.EMBEDDING, _rows(source, "model.embed_tokens.weight", storage.embedding_bits)
    for i, rope in enumerate(spec.ropes):
        cos, sin = rope.tables(max_length)
        yield f"{contract.ROPE}{i}.cos", cos
        yield f"{contract.ROPE}{i}.sin", sin
    for layer in range(spec.num_layers):
        at = f"model.layers.{layer}."
        for graph_name, norm in norm_modules(spec.model_type).items():
            yield f"layers.{layer}.{graph_name}", source.tensor(f"{at}{norm}.weight").float() + spec.norm_offset
        for site, modules in SITE_MODULES.items():
            bits = storage.bits(site, layer, spec.num_layers)
            if bits:
                parts = [
                    calibrated.get(at + module) or _linear_blocks(trunk, at + module, bits, storage)
                    for module in modules
                ]
                yield f"layers.{layer}.{site}.weight", concatenate(parts)
            else:
                yield (
                    f"layers.{layer}.{site}.weight",
                    torch.cat([linear_weight(trunk, at + module) for module in modules]).T,
                )
            if site_has_bias(trunk, layer, site):
                biases = [
                    source.tensor(f"{at}{module}.bias")
                    if f"{at}{module}.bias" in source.names
                    else torch.zeros(source.shape(f"{at}{module}.weight")[0])
                    for module in modules
                ]
                yield f"layers.{layer}.{site}.bias", torch.cat(biases)
    yield "norm", source.tensor("model.norm.weight").float() + spec.norm_offset
    bits = head_bits(trunk, storage)
    if not spec.tied or bits != storage.embedding_bits:
        yield "lm_head", calibrated.get(LM_HEAD) or _rows(source, head_parameter(trunk), bits)


def linear_weight(trunk: Trunk, module: str) -> torch.Tensor:
    """Weight [out, in] of one linear, with the merged adapter added in float32."""
    merged = merged_weight(trunk, module)
    return trunk.checkpoint.tensor(f"{module}.weight") if merged is None else merged


def merged_weight(trunk: Trunk, module: str) -> torch.Tensor | None:
    """The same where an adapter is merged into it, None elsewhere."""
    delta = trunk.merged.delta.get(module) if trunk.merged else None
    return None if delta is None else trunk.checkpoint.tensor(f"{module}.weight").float() + delta.b @ delta.a


def _linear_blocks(trunk: Trunk, module: str, bits: int, storage: Storage) -> Blocks:
    return stored_blocks(trunk, module, bits, storage) or quantise(
        linear_weight(trunk, module), bits, symmetric=storage.symmetric
    )


def stored_blocks(trunk: Trunk, module: str, bits: int, storage: Storage) -> Blocks | None:
    """The checkpoint's own blocks of a linear, where it is stored in such and nothing is merged into them."""
    merged = trunk.merged is not None and module in trunk.merged.delta
    blocks = None if merged else trunk.checkpoint.blocks(f"{module}.weight", bits)
    return blocks if blocks and (blocks.is_symmetric or not storage.symmetric) else None


def _rows(source: Checkpoint, name: str, bits: int) -> torch.Tensor | Blocks:
    """A matrix whose rows are looked up: embedding or lm_head."""
    if not bits:
        return source.tensor(name)
    return source.blocks(name, bits) or quantise(source.tensor(name), bits)


def site_has_bias(trunk: Trunk, layer: int, site: str) -> bool:
    """Whether any linear packed into the site has a bias."""
    at = f"model.layers.{layer}."
    return any(f"{at}{module}.bias" in trunk.checkpoint.names for module in SITE_MODULES[site])


# -- layers ---------------------------------------------------------------------------------------------------------


def emit_trunk(graph: Graph, trunk: Trunk, weights: WeightsFile, dialect: Dialect, *, by_row: bool) -> str:
    """Emit inputs, layers and KV outputs of one trunk.

    Args:
        graph, trunk, weights, dialect: what to emit, and where.
        by_row: whether several rows may read one prompt. They run as one up to the first layer with an adapter.

    Returns:
        The final-norm hidden state of each row's last valid token: [R, hidden]; of each prompt's without `by_row`.
    """
    return _Emitter(graph, trunk, weights, dialect).run(by_row=by_row)


def head_bits(trunk: Trunk, storage: Storage) -> int:
    """Bits of a trunk's lm_head: the base's is multiplied by, of any other a step looks up a few rows."""
    return storage.head_bits if trunk.name == contract.BASE_TRUNK else storage.embedding_bits


def head_parameter(trunk: Trunk) -> str:
    """The checkpoint's name of the lm_head's weight: the embedding's, where they are tied."""
    return "model.embed_tokens.weight" if trunk.spec.tied else "lm_head.weight"


def head_weight(trunk: Trunk, stored: Iterable[str]) -> str:
    """Name of the lm_head's weight [vocab, hidden] among those that are stored: the embedding's, without its own."""
    own = f"{trunk.name}/lm_head"
    return own if any(name.startswith(own) for name in stored) else f"{trunk.name}/{contract.EMBEDDING}"


class _Emitter:
    def __init__(self, graph: Graph, trunk: Trunk, weights: WeightsFile, dialect: Dialect) -> None:
        self.graph, self.trunk, self.weights, self.dialect = graph, trunk, weights, dialect
        self.spec = trunk.spec
        self.axis = (
            f"{trunk.prefix}{contract.PROMPTS}"  # what runs at the layer that is being emitted: prompts, later rows
        )
        self.float_type = element_type(dialect.float_type)

    def run(self, *, by_row: bool) -> str:
        g, spec, at = self.graph, self.spec, self.trunk.prefix
        inputs = TrunkInputs(
            prefix=at,
            name=at,
            input_ids=g.input(at + contract.INPUT_IDS, TensorProto.INT64, [self.axis, at + contract.NEW_TOKENS]),
            seqlens_k=g.input(at + contract.SEQLENS_K, TensorProto.INT32, [self.axis]),
            last_token=g.input(at + contract.LAST_TOKEN, TensorProto.INT64, [self.axis, 1]),
            total_length=self.dialect.total_length(at),
            rope_tables=tuple(
                (self._weight(f"{contract.ROPE}{i}.cos"), self._weight(f"{contract.ROPE}{i}.sin"))
                for i in range(len(spec.ropes))
            ),
        )
        rows = f"{at}{contract.ROWS}"
        row_prompt = g.input(at + contract.ROW_PROMPT, TensorProto.INT64, [rows]) if by_row else ""
        self.gates = {
            site: g.input(at + contract.lora_gate(site), self.float_type, [rows, 1, at + contract.rank_axis(site)])
            for site in self.trunk.lora_sites
        }
        self.dialect.begin(inputs)
        x = gather_rows(
            g, self.weights, f"{self.trunk.name}/{contract.EMBEDDING}", inputs.input_ids, name=f"{at}embed"
        )  # [N, s, hidden]
        if spec.embedding_scale != 1.0:
            scale = g.constant(spec.embedding_scale, np.dtype(self.dialect.float_type))
            x = g.op("Mul", x, scale, name=f"{at}embed/scale")
        delta = ""  # what the block before returned and the residual stream has not yet taken in
        for layer in range(spec.num_layers):
            name = f"{at}layers.{layer}"
            x, normed = self._residual(x, delta, f"layers.{layer}.attention_norm", name)
            if by_row and layer == self.trunk.prompt_layers:
                x, normed, inputs = self._part(x, normed, inputs, row_prompt)
                self.axis = rows
            attended = self._attention(normed, layer, inputs)
            x, normed = self._residual(x, attended, f"layers.{layer}.mlp_norm", name)
            delta = self._mlp(normed, layer)
        _, normed = self._residual(x, delta, "norm", f"{at}final")
        hidden = g.op("GatherND", normed, inputs.last_token, name=f"{at}last_hidden", batch_dims=1)
        if by_row and self.axis != rows:
            hidden = g.op("Gather", hidden, row_prompt, name=f"{at}row_hidden", axis=0)
        return hidden

    def _part(self, x: str, normed: str, inputs: TrunkInputs, row_prompt: str) -> tuple[str, str, TrunkInputs]:
        """From here on every row runs by itself: what its prompt has come to, and how long that is."""

        def taken(value: str, name: str) -> str:
            return self.graph.op("Gather", value, row_prompt, name=f"{inputs.name}part/{name}", axis=0)

        by_row = replace(
            inputs,
            name=f"{inputs.name}part/",
            seqlens_k=taken(inputs.seqlens_k, "seqlens_k"),
            last_token=taken(inputs.last_token, "last_token"),
        )
        self.dialect.begin(by_row)
        return taken(x, "x"), taken(normed, "normed"), by_row

    def _residual(self, x: str, delta: str, norm: str, name: str) -> tuple[str, str]:
        """(x + delta, its norm); at the first layer there is no delta yet."""
        weight, name = self._weight(norm), f"{name}/{norm.rpartition('.')[2]}"
        if not delta:
            return x, self.dialect.norm(x, weight, name)
        return self.dialect.add_norm(x, delta, weight, name)

    def _attention(self, x: str, layer: int, inputs: TrunkInputs) -> str:
        g, at, spec = self.graph, self.trunk.prefix, self.spec
        cache = LayerCache(
            past_key=self._cache_input(contract.past_key(layer)),
            past_value=self._cache_input(contract.past_value(layer)),
            present_key=at + contract.present_key(layer),
            present_value=at + contract.present_value(layer),
        )
        norms = None
        if spec.qk_norm:
            norms = (self._weight(f"layers.{layer}.q_norm"), self._weight(f"layers.{layer}.k_norm"))
        qkv = self._linear(x, layer, "qkv")
        out = self.dialect.attention(qkv, norms, layer, inputs, cache, f"{at}layers.{layer}/attention")
        for present in (cache.present_key, cache.present_value):
            g.output(present, self.float_type, self._cache_shape())
        return self._post_norm(self._linear(out, layer, "o"), layer, "attention_post_norm")

    def _mlp(self, x: str, layer: int) -> str:
        g, name = self.graph, f"{self.trunk.prefix}layers.{layer}/mlp"
        half = self.spec.intermediate_size
        gate, up = g.ops(
            "Split",
            self._linear(x, layer, "gate_up"),
            g.constant([half, half], np.int64),
            name=f"{name}/split",
            outputs=[f"{name}/gate", f"{name}/up"],
            axis=-1,
        )
        product = g.op("Mul", self.dialect.activation(gate, f"{name}/activation"), up, name=f"{name}/product")
        return self._post_norm(self._linear(product, layer, "down"), layer, "mlp_post_norm")

    def _post_norm(self, x: str, layer: int, norm: str) -> str:
        if not self.spec.post_norms:
            return x
        return self.dialect.norm(x, self._weight(f"layers.{layer}.{norm}"), f"{self.trunk.prefix}layers.{layer}/{norm}")

    def _linear(self, x: str, layer: int, site: str) -> str:
        """x @ W (+ bias) (+ gate * (x @ A) @ B): the gate is zero on rows that have no adapter, and exact there."""
        g, trunk = self.graph, self.trunk
        name = f"{trunk.prefix}layers.{layer}/{site}"
        stored = f"{trunk.name}/layers.{layer}.{site}"
        bias = f"{stored}.bias" if site_has_bias(trunk, layer, site) else ""
        y = multiply(g, self.weights, f"{stored}.weight", x, name=name, bias=bias)
        if site in self.gates and layer >= trunk.prompt_layers:
            size_in, size_out = trunk.site_sizes(site)
            rank = trunk.prefix + contract.rank_axis(site)
            a = g.input(trunk.prefix + contract.lora_a(layer, site), self.float_type, [size_in, rank])
            b = g.input(trunk.prefix + contract.lora_b(layer, site), self.float_type, [rank, size_out])
            low = g.op("MatMul", x, a, name=f"{name}/lora_a")  # [R, s, rank]
            low = g.op("Mul", low, self.gates[site], name=f"{name}/lora_gate")
            y = g.op("Add", y, g.op("MatMul", low, b, name=f"{name}/lora_b"), name=f"{name}/lora")
        return y

    def _weight(self, name: str) -> str:
        return self.graph.weight(self.weights[f"{self.trunk.name}/{name}"])

    def _cache_input(self, name: str) -> str:
        return self.graph.input(self.trunk.prefix + name, self.float_type, self._cache_shape())

    def _cache_shape(self) -> list[int | str]:
        return [self.axis, self.spec.num_kv_heads, contract.CAPACITY, self.spec.head_dim]
