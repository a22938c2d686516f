"""Two ways to say the same decoder in ONNX.

`OrtDialect` uses ONNX Runtime's fused operators: GroupQueryAttention writes the KV cache in place and reads only the
positions that are filled. `StandardDialect` uses opset 24 alone (RMSNormalization, RotaryEmbedding, TensorScatter,
Attention): what TensorRT parses, and the portable fallback.

Without a KV cache each call's tokens are all that there is, and attention is over their own keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from pad_export.graph.writer import MICROSOFT, GraphWriter, torch_type
from pad_export.read.spec import DecoderSpec
from pad_runtime.bundle import contract


@dataclass(frozen=True)
class TrunkInputs:
    """Value names that layers of one trunk share: those that run by prompt, or those that run by row.

    `name` begins the names of what a dialect derives from these.
    """

    name: str
    input_ids: str  # [N, s]
    seqlens_k: str  # [N or R]
    last_token: str  # [N or R, 1]; "" without a cache
    total_length: str  # []; "" in the standard dialect
    past_key: str  # of the first layer, as the graph takes it in; "" without a cache
    rope_tables: tuple[tuple[str, str], ...]  # (cos, sin), each [max_length, head_dim / 2]


@dataclass(frozen=True)
class Positions:
    """Value names of where the new tokens stand and what they see: `inputs`, and what a dialect derives from them.

    In the ort dialect that is nothing: its attention derives it itself.
    """

    inputs: TrunkInputs
    past: str = ""  # [N or R], tokens in the cache before this call; "" without a cache
    new: str = ""  # [N or R, s], of the new tokens
    masks: Mapping[int, str] = field(default_factory=dict)  # by window, [N or R or 1, 1, s, capacity or s], additive


@dataclass(frozen=True)
class LayerCache:
    """Value names of one layer's KV cache, in and out."""

    past_key: str
    past_value: str
    present_key: str
    present_value: str


class Dialect(ABC):
    """The operators in which the two dialects differ; everything else is plain ONNX."""

    name: str

    def __init__(self, graph: GraphWriter, spec: DecoderSpec, float_type: str) -> None:
        self.graph = graph
        self.spec = spec
        self.float_type = float_type

    def total_length(self, prefix: str) -> str:
        """Declare the length scalar of a trunk, where attention takes one."""
        del prefix
        return ""

    def begin(self, trunk: TrunkInputs) -> Positions:
        """Emit what the layers that share these inputs share too."""
        return Positions(trunk)

    @abstractmethod
    def norm(self, x: str, weight: str, name: str) -> str:
        """RMS norm over the last axis."""

    @abstractmethod
    def add_norm(self, x: str, delta: str, weight: str, name: str) -> tuple[str, str]:
        """Residual add, then RMS norm: (x + delta, norm(x + delta))."""

    @abstractmethod
    def silu(self, x: str, name: str) -> str:
        """x * sigmoid(x)."""

    @abstractmethod
    def attention(
        self,
        qkv: str,
        norms: tuple[str, str] | None,
        layer: int,
        positions: Positions,
        cache: LayerCache | None,
        name: str,
    ) -> str:
        """Causal attention of packed qkv [R, s, q + k + v] over the cache: [R, s, heads x head_dim].

        `norms` are the weights of per-head q and k norms, where the family has them; `positions` are what `begin`
        returned. Without a cache it is over the new tokens alone.
        """

    def activation(self, x: str, name: str) -> str:
        """The MLP's nonlinearity."""
        if self.spec.activation == "silu":
            return self.silu(x, name)
        return self.graph.op("Gelu", x, name=name, approximate="tanh")

    def split(self, qkv: str, name: str) -> list[str]:
        """Unpack qkv into q, k and v, each [R, s, its heads x head_dim]."""
        sizes = self.graph.constant(self.spec.qkv_sizes, np.int64)
        outputs = [f"{name}/{part}" for part in "qkv"]
        return list(self.graph.ops("Split", qkv, sizes, name=f"{name}/split", outputs=outputs, axis=-1))

    def heads(self, x: str, norm: str, name: str) -> str:
        """[R, s, heads x head_dim] -> [R, s, heads, head_dim], each head normed by `norm` where that is not empty."""
        x = self.graph.op(
            "Reshape", x, self.graph.constant([0, 0, -1, self.spec.head_dim], np.int64), name=f"{name}_heads"
        )
        return self.norm(x, norm, f"{name}_norm") if norm else x


class OrtDialect(Dialect):
    """ONNX Runtime's contrib operators."""

    name = "ort"

    def total_length(self, prefix: str) -> str:
        """The scalar by which GroupQueryAttention recognises a prompt without a cache."""
        return self.graph.input(prefix + contract.TOTAL_SEQUENCE_LENGTH, TensorProto.INT32, [])

    def norm(self, x: str, weight: str, name: str) -> str:
        """SimplifiedLayerNormalization."""
        return self.graph.op(
            "SimplifiedLayerNormalization", x, weight, name=name, axis=-1, epsilon=self.spec.norm_epsilon
        )

    def add_norm(self, x: str, delta: str, weight: str, name: str) -> tuple[str, str]:
        """SkipSimplifiedLayerNormalization: both results from one pass over the row."""
        normed, total = f"{name}/normed", f"{name}/sum"
        self.graph.ops(
            "SkipSimplifiedLayerNormalization",
            x,
            delta,
            weight,
            name=name,
            outputs=[normed, "", "", total],
            domain=MICROSOFT,
            epsilon=self.spec.norm_epsilon,
        )
        return total, normed

    def silu(self, x: str, name: str) -> str:
        """QuickGelu with alpha 1 is SiLU in one node."""
        return self.graph.op("QuickGelu", x, name=name, domain=MICROSOFT, alpha=1.0)

    def attention(
        self,
        qkv: str,
        norms: tuple[str, str] | None,
        layer: int,
        positions: Positions,
        cache: LayerCache | None,
        name: str,
    ) -> str:
        """GroupQueryAttention: rotary, cache update and attention in one node, positions from seqlens_k."""
        g, spec = self.graph, self.spec
        layer_spec = spec.layers[layer]
        inputs = (qkv, "", "")
        if norms:
            q, k, v = self.split(qkv, name)
            flat = g.constant([0, 0, -1], np.int64)
            q, k = (
                g.op("Reshape", self.heads(part, norm, f"{name}/{p}"), flat, name=f"{name}/{p}_flat")
                for part, norm, p in zip((q, k), norms, "qk", strict=True)
            )
            inputs = (q, k, v)
        attributes: dict[str, Any] = {
            "num_heads": spec.num_heads,
            "kv_num_heads": spec.num_kv_heads,
            "scale": spec.attention_scale,
            "do_rotary": 1,
        }
        if layer_spec.window:
            attributes["local_window_size"] = layer_spec.window
        if spec.attention_softcap:
            attributes["softcap"] = spec.attention_softcap
        cos, sin = positions.inputs.rope_tables[layer_spec.rope]
        past, present = ["", ""], []
        if cache:
            past, present = [cache.past_key, cache.past_value], [cache.present_key, cache.present_value]
        return g.ops(
            "GroupQueryAttention",
            *inputs,
            *past,
            positions.inputs.seqlens_k,
            positions.inputs.total_length,
            cos,
            sin,
            name=name,
            outputs=[f"{name}/out", *present],
            domain=MICROSOFT,
            **attributes,
        )[0]


class StandardDialect(Dialect):
    """ONNX opset 24 and nothing else."""

    name = "standard"

    def begin(self, trunk: TrunkInputs) -> Positions:
        """Positions of the new tokens, and one additive mask per attention window.

        A key slot is seen when it lies at or before the query's position, and inside its window. Slots past a row's
        length are always after it.
        """
        g, at = self.graph, trunk.name
        past, new = self._standing(trunk)
        queries = g.op("Reshape", new, g.constant([0, 1, -1, 1], np.int64), name=f"{at}mask/queries")  # [R, 1, s, 1]
        if trunk.past_key:
            keys = self._range(trunk.past_key, 2, f"{at}mask/keys")  # [capacity]
        else:
            keys = self._range(trunk.input_ids, 1, f"{at}mask/keys")  # [s]
        seen = g.op("LessOrEqual", keys, queries, name=f"{at}mask/causal")  # [R, 1, s, keys]
        masks: dict[int, str] = {}
        for window in sorted({layer.window for layer in self.spec.layers}):
            visible = seen
            if window:
                oldest = g.op("Sub", queries, g.constant(window, np.int64), name=f"{at}mask/window{window}/before")
                inside = g.op("Greater", keys, oldest, name=f"{at}mask/window{window}/inside")
                visible = g.op("And", seen, inside, name=f"{at}mask/window{window}/seen")
            dtype, lowest = np.dtype(self.float_type), torch.finfo(torch_type(self.float_type)).min
            masks[window] = g.op(
                "Where",
                visible,
                g.constant(0.0, dtype),
                g.constant(lowest, dtype),  # finite: TensorRT's fp16 attention takes no infinity
                name=f"{at}mask/window{window}",
            )
        return Positions(trunk, past, new, masks)

    def _standing(self, trunk: TrunkInputs) -> tuple[str, str]:
        """How many tokens each row has in the cache [R], and the positions of its new ones [R, s].

        past = seqlens_k - last_token; position of the i-th new token = past + i. Without a cache: i.
        """
        g, at = self.graph, trunk.name
        axis1 = g.constant([1], np.int64)
        index = self._range(trunk.input_ids, 1, f"{at}positions/new")  # [s]
        if not trunk.last_token:
            sizes = [
                g.op("Shape", value, name=f"{at}positions/{name}", start=axis, end=axis + 1)
                for value, axis, name in ((trunk.seqlens_k, 0, "rows"), (trunk.input_ids, 1, "length"))
            ]
            shape = g.op("Concat", *sizes, name=f"{at}positions/shape", axis=0)
            return "", g.op("Expand", index, shape, name=f"{at}positions")
        seqlens = g.op("Cast", trunk.seqlens_k, name=f"{at}positions/seqlens", to=TensorProto.INT64)
        column = g.op("Unsqueeze", seqlens, axis1, name=f"{at}positions/column")
        past = g.op("Sub", column, trunk.last_token, name=f"{at}positions/past")  # [R, 1]
        flat = g.op("Squeeze", past, axis1, name=f"{at}positions/past_flat")
        return flat, g.op("Add", past, index, name=f"{at}positions")

    def norm(self, x: str, weight: str, name: str) -> str:
        """RMSNormalization."""
        return self.graph.op("RMSNormalization", x, weight, name=name, axis=-1, epsilon=self.spec.norm_epsilon)

    def add_norm(self, x: str, delta: str, weight: str, name: str) -> tuple[str, str]:
        """Add, then RMSNormalization."""
        total = self.graph.op("Add", x, delta, name=f"{name}/sum")
        return total, self.norm(total, weight, f"{name}/normed")

    def silu(self, x: str, name: str) -> str:
        """Sigmoid and Mul."""
        return self.graph.op("Mul", x, self.graph.op("Sigmoid", x, name=f"{name}/sigmoid"), name=name)

    def attention(
        self,
        qkv: str,
        norms: tuple[str, str] | None,
        layer: int,
        positions: Positions,
        cache: LayerCache | None,
        name: str,
    ) -> str:
        """RotaryEmbedding on q and k, TensorScatter into the cache, Attention over all positions under the mask."""
        g, spec = self.graph, self.spec
        q, k, v = (
            g.op("Transpose", self.heads(part, norm, f"{name}/{p}"), name=f"{name}/{p}_rows", perm=[0, 2, 1, 3])
            for part, norm, p in zip(self.split(qkv, name), (*(norms or ("", "")), ""), "qkv", strict=True)
        )  # [R, heads, s, head_dim]
        cos, sin = positions.inputs.rope_tables[spec.layers[layer].rope]
        q, k = (
            g.op("RotaryEmbedding", part, cos, sin, positions.new, name=f"{name}/{p}_rotary")
            for part, p in ((q, "q"), (k, "k"))
        )
        if cache:
            k, v = (
                g.op("TensorScatter", past, new, positions.past, name=f"{name}/{p}_cache", output=present, axis=-2)
                for past, new, present, p in (
                    (cache.past_key, k, cache.present_key, "k"),
                    (cache.past_value, v, cache.present_value, "v"),
                )
            )
        attributes: dict[str, Any] = {"scale": spec.attention_scale}
        if spec.attention_softcap:
            attributes["softcap"] = spec.attention_softcap
        mask = positions.masks[spec.layers[layer].window]
        out = g.op("Attention", q, k, v, mask, name=name, **attributes)
        out = g.op("Transpose", out, name=f"{name}/out_rows", perm=[0, 2, 1, 3])
        return g.op("Reshape", out, g.constant([0, 0, -1], np.int64), name=f"{name}/out")

    def _range(self, value: str, axis: int, name: str) -> str:
        """0 .. n-1 where n is the length of one axis of `value`: int64 [n]."""
        g = self.graph
        size = g.op("Shape", value, name=f"{name}/size", start=axis, end=axis + 1)
        stop = g.op("Squeeze", size, name=f"{name}/stop")
        return g.op("Range", g.constant(0, np.int64), stop, g.constant(1, np.int64), name=f"{name}/range")


DIALECTS: dict[str, type[Dialect]] = {"ort": OrtDialect, "standard": StandardDialect}
