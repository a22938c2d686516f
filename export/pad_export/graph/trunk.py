"""A trunk in a graph: its inputs, its layers, and the hidden states behind the last one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import TensorProto

from pad_export.graph.dialect import Dialect, LayerCache, Positions, TrunkInputs
from pad_export.graph.matrix import gather_rows, multiply
from pad_export.graph.writer import GraphWriter, element_type
from pad_export.trunk import Trunk
from pad_export.weights.file import WeightsFile
from pad_export.weights.stream import site_has_bias
from pad_runtime.bundle import contract


def emit_trunk(graph: GraphWriter, trunk: Trunk, weights: WeightsFile, dialect: Dialect, *, by_row: bool) -> str:
    """Emit inputs, layers and KV outputs of one trunk.

    Args:
        graph, trunk, weights, dialect: what to emit, and where.
        by_row: whether several rows may read one prompt. They run as one up to the first layer with an adapter.

    Returns:
        The final-norm hidden state of each row's last valid token: [R, hidden]; of each prompt's without `by_row`.
    """
    emitter = _Emitter(graph, trunk, weights, dialect, by_row=by_row, cached=True)
    normed, inputs = emitter.run()
    hidden = graph.op("GatherND", normed, inputs.last_token, name=f"{trunk.prefix}last_hidden", batch_dims=1)
    return emitter.of_rows(hidden)


def emit_trunk_without_cache(graph: GraphWriter, trunk: Trunk, weights: WeightsFile, dialect: Dialect) -> str:
    """Emit inputs and layers of one trunk that reads whole texts, and neither takes nor keeps a KV cache.

    Returns:
        The final-norm hidden states of each row, at all positions: [R, s, hidden]. Those of the padding mean nothing.
    """
    emitter = _Emitter(graph, trunk, weights, dialect, by_row=True, cached=False)
    normed, _ = emitter.run()
    return emitter.of_rows(normed)


class _Emitter:
    def __init__(
        self, graph: GraphWriter, trunk: Trunk, weights: WeightsFile, dialect: Dialect, *, by_row: bool, cached: bool
    ) -> None:
        self.graph, self.trunk, self.weights, self.dialect, self.cached = graph, trunk, weights, dialect, cached
        self.spec = trunk.spec
        at = trunk.prefix
        self.float_type = element_type(dialect.float_type)
        # What runs at the layer that is being emitted: prompts, later rows.
        self.axis = f"{at}{contract.PROMPTS}"
        self.rows = f"{at}{contract.ROWS}"
        self.inputs = TrunkInputs(
            name=at,
            input_ids=graph.input(at + contract.INPUT_IDS, TensorProto.INT64, [self.axis, at + contract.NEW_TOKENS]),
            seqlens_k=graph.input(at + contract.SEQLENS_K, TensorProto.INT32, [self.axis]),
            last_token=graph.input(at + contract.LAST_TOKEN, TensorProto.INT64, [self.axis, 1]) if cached else "",
            total_length=dialect.total_length(at),
            past_key=at + contract.past_key(0) if cached else "",
            rope_tables=tuple(
                (self._weight(f"{contract.ROPE}{i}.cos"), self._weight(f"{contract.ROPE}{i}.sin"))
                for i in range(len(self.spec.ropes))
            ),
        )
        self.row_prompt = graph.input(at + contract.ROW_PROMPT, TensorProto.INT64, [self.rows]) if by_row else ""
        self.gates = {
            site: graph.input(
                at + contract.lora_gate(site), self.float_type, [self.rows, 1, at + contract.rank_axis(site)]
            )
            for site in trunk.lora_sites
        }

    def run(self) -> tuple[str, TrunkInputs]:
        """The final-norm hidden states [N or R, s, hidden], and the inputs that go with them."""
        g, spec, at = self.graph, self.spec, self.trunk.prefix
        positions = self.dialect.begin(self.inputs)
        x = gather_rows(
            g, self.weights, self.trunk.weight(contract.EMBEDDING), self.inputs.input_ids, name=f"{at}embed"
        )  # [N, s, hidden]
        if spec.embedding_scale != 1.0:
            scale = g.constant(spec.embedding_scale, np.dtype(self.dialect.float_type))
            x = g.op("Mul", x, scale, name=f"{at}embed/scale")
        delta = ""  # output of the last attention or MLP, not yet added to the residual stream
        for layer in range(spec.num_layers):
            name = f"{at}layers.{layer}"
            x, normed = self._residual(x, delta, f"layers.{layer}.attention_norm", name)
            if self.row_prompt and layer == self.trunk.prompt_layers:
                x, normed, positions = self._part(x, normed)
            attended = self._attention(normed, layer, positions)
            x, normed = self._residual(x, attended, f"layers.{layer}.mlp_norm", name)
            delta = self._mlp(normed, layer)
        return self._residual(x, delta, "norm", f"{at}final")[1], positions.inputs

    def of_rows(self, hidden: str) -> str:
        """What prompts have come to, [N, ..], for each row, [R, ..]; unless the rows have parted and it is theirs."""
        if not self.row_prompt or self.axis == self.rows:
            return hidden
        return self.graph.op("Gather", hidden, self.row_prompt, name=f"{self.trunk.prefix}row_hidden", axis=0)

    def _part(self, x: str, normed: str) -> tuple[str, str, Positions]:
        """Go on by row: gather the hidden states and lengths of each row's prompt."""
        inputs = self.inputs

        def taken(value: str, name: str) -> str:
            return self.graph.op("Gather", value, self.row_prompt, name=f"{inputs.name}part/{name}", axis=0)

        by_row = replace(
            inputs,
            name=f"{inputs.name}part/",
            seqlens_k=taken(inputs.seqlens_k, "seqlens_k"),
            last_token=taken(inputs.last_token, "last_token") if inputs.last_token else "",
        )
        self.axis = self.rows
        positions = self.dialect.begin(by_row)
        return taken(x, "x"), taken(normed, "normed"), positions

    def _residual(self, x: str, delta: str, norm: str, name: str) -> tuple[str, str]:
        """(x + delta, its norm); at the first layer there is no delta yet."""
        weight, name = self._weight(norm), f"{name}/{norm.rpartition('.')[2]}"
        if not delta:
            return x, self.dialect.norm(x, weight, name)
        return self.dialect.add_norm(x, delta, weight, name)

    def _attention(self, x: str, layer: int, positions: Positions) -> str:
        cache = self._cache(layer) if self.cached else None
        norms = None
        if self.spec.qk_norm:
            norms = (self._weight(f"layers.{layer}.q_norm"), self._weight(f"layers.{layer}.k_norm"))
        qkv = self._linear(x, layer, "qkv")
        name = f"{self.trunk.prefix}layers.{layer}/attention"
        out = self.dialect.attention(qkv, norms, layer, positions, cache, name)
        if cache:
            for present in (cache.present_key, cache.present_value):
                self.graph.output(present, self.float_type, self._cache_shape())
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
        bias = trunk.bias(layer, site) if site_has_bias(trunk, layer, site) else ""
        y = multiply(g, self.weights, trunk.linear(layer, site), x, name=name, bias=bias)
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
        return self.graph.weight(self.weights[self.trunk.weight(name)])

    def _cache(self, layer: int) -> LayerCache:
        g, at = self.graph, self.trunk.prefix
        return LayerCache(
            past_key=g.input(at + contract.past_key(layer), self.float_type, self._cache_shape()),
            past_value=g.input(at + contract.past_value(layer), self.float_type, self._cache_shape()),
            present_key=at + contract.present_key(layer),
            present_value=at + contract.present_value(layer),
        )

    def _cache_shape(self) -> list[int | str]:
        return [self.axis, self.spec.num_kv_heads, contract.CAPACITY, self.spec.head_dim]
