"""Two ways to say the same decoder in ONNX.

`OrtDialect` uses ONNX Runtime's fused operators: GroupQueryAttention writes the KV cache in place and reads only the
slots that are filled. `StandardDialect` uses opset 24 alone (RMSNormalization, RotaryEmbedding, TensorScatter,
Attention): what TensorRT parses, and the portable fallback.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from pad_export.graph.writer import MICROSOFT, Graph, torch_type
from pad_export.read.spec import DecoderSpec
from pad_runtime.bundle import contract


@dataclass(frozen=True)
class TrunkInputs:
    """Value names that layers of one trunk share: those that run by prompt, or those that run by row.

    `prefix` begins the names of the trunk's inputs, `name` those of what a dialect derives from these.
    """

    prefix: str
    name: str
    input_ids: str  # [N, s]
    seqlens_k: str  # [N or R]
    last_token: str  # [N or R, 1]
    total_length: str  # []; "" in the standard dialect
    rope_tables: tuple[tuple[str, str], ...]  # (cos, sin), each [max_length, head_dim / 2]


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

    def __init__(self, graph: Graph, spec: DecoderSpec, float_type: str) -> None:
        self.graph = graph
        self.spec = spec
        self.float_type = float_type

    def total_length(self, prefix: str) -> str:
        """Declare the length scalar of a trunk, where attention takes one."""
        del prefix
        return ""

    def begin(self, trunk: TrunkInputs) -> None:  # noqa: B027 - not every dialect derives something
        """Emit what the layers after this share."""

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
        self, qkv: str, norms: tuple[str, str] | None, layer: int, trunk: TrunkInputs, cache: LayerCache, name: str
    ) -> str:
        """Causal attention of packed qkv [R, s, q + k + v] over the cache: [R, s, heads x head_dim].

        `norms` are the weights of per-head q and k norms, where the family has them.
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
        """The scalar that GroupQueryAttention tells a first prompt by."""
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
        self, qkv: str, norms: tuple[str, str] | None, layer: int, trunk: TrunkInputs, cache: LayerCache, name: str
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
        cos, sin = trunk.rope_tables[layer_spec.rope]
        return g.ops(
            "GroupQueryAttention",
            *inputs,
            cache.past_key,
            cache.past_value,
            trunk.seqlens_k,
            trunk.total_length,
            cos,
            sin,
            name=name,
            outputs=[f"{name}/out", cache.present_key, cache.present_value],
            domain=MICROSOFT,
            **attributes,
        )[0]


class StandardDialect(Dialect):
    """ONNX opset 24 and nothing else."""

    name = "standard"

    def begin(self, trunk: TrunkInputs) -> None:
        """Positions of the new tokens, and one additive mask per attention window, from each row's own length.

        past = seqlens_k - last_token; position of the i-th new token = past + i; a key slot is seen when it lies at
        or before the query's position, and inside its window. Slots past a row's length are always after it.
        """
        g, at = self.graph, trunk.name
        axis1 = g.constant([1], np.int64)
        seqlens = g.op(
            "Unsqueeze",
            g.op("Cast", trunk.seqlens_k, name=f"{at}positions/seqlens", to=TensorProto.INT64),
            axis1,
            name=f"{at}positions/column",
        )
        past = g.op("Sub", seqlens, trunk.last_token, name=f"{at}positions/past")  # [R, 1]
        self._past = g.op("Squeeze", past, axis1, name=f"{at}positions/past_flat")  # [R]
        self._positions = g.op(
            "Add", past, self._range(trunk.input_ids, 1, f"{at}positions/new"), name=f"{at}positions"
        )
        queries = g.op(
            "Reshape", self._positions, g.constant([0, 1, -1, 1], np.int64), name=f"{at}mask/queries"
        )  # [R, 1, s, 1]
        keys = self._range(f"{trunk.prefix}{contract.past_key(0)}", 2, f"{at}mask/keys")  # [capacity]
        seen = g.op("LessOrEqual", keys, queries, name=f"{at}mask/causal")  # [R, 1, s, capacity]
        self._masks: dict[int, str] = {}
        for window in sorted({layer.window for layer in self.spec.layers}):
            visible = seen
            if window:
                oldest = g.op("Sub", queries, g.constant(window, np.int64), name=f"{at}mask/window{window}/before")
                inside = g.op("Greater", keys, oldest, name=f"{at}mask/window{window}/inside")
                visible = g.op("And", seen, inside, name=f"{at}mask/window{window}/seen")
            dtype, lowest = np.dtype(self.float_type), torch.finfo(torch_type(self.float_type)).min
            self._masks[window] = g.op(
                "Where",
                visible,
                g.constant(0.0, dtype),
                g.constant(lowest, dtype),  # finite: TensorRT's fp16 attention takes no infinity
                name=f"{at}mask/window{window}",
            )

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
        self, qkv: str, norms: tuple[str, str] | None, layer: int, trunk: TrunkInputs, cache: LayerCache, name: str
    ) -> str:
        """RotaryEmbedding on q and k, TensorScatter into the cache, Attention over all slots under the mask."""
        g, spec = self.graph, self.spec
        q, k, v = (
            g.op("Transpose", self.heads(part, norm, f"{name}/{p}"), name=f"{name}/{p}_rows", perm=[0, 2, 1, 3])
            for part, norm, p in zip(self.split(qkv, name), (*(norms or ("", "")), ""), "qkv", strict=True)
        )  # [R, heads, s, head_dim]
        cos, sin = trunk.rope_tables[spec.layers[layer].rope]
        q, k = (
            g.op("RotaryEmbedding", part, cos, sin, self._positions, name=f"{name}/{p}_rotary")
            for part, p in ((q, "q"), (k, "k"))
        )
        g.op("TensorScatter", cache.past_key, k, self._past, name=f"{name}/k_cache", output=cache.present_key, axis=-2)
        g.op(
            "TensorScatter",
            cache.past_value,
            v,
            self._past,
            name=f"{name}/v_cache",
            output=cache.present_value,
            axis=-2,
        )
        attributes: dict[str, Any] = {"scale": spec.attention_scale}
        if spec.attention_softcap:
            attributes["softcap"] = spec.attention_softcap
        mask = self._masks[spec.layers[layer].window]
        out = g.op("Attention", q, cache.present_key, cache.present_value, mask, name=name, **attributes)
        out = g.op("Transpose", out, name=f"{name}/out_rows", perm=[0, 2, 1, 3])
        return g.op("Reshape", out, g.constant([0, 0, -1], np.int64), name=f"{name}/out")

    def _range(self, value: str, axis: int, name: str) -> str:
        """0 .. n-1 where n is the length of one axis of `value`: int64 [n]."""
        g = self.graph
        size = g.op("Shape", value, name=f"{name}/size", start=axis, end=axis + 1)
        stop = g.op("Squeeze", size, name=f"{name}/stop")
        return g.op("Range", g.constant(0, np.int64), stop, g.constant(1, np.int64), name=f"{name}/range")


DIALECTS: dict[str, type[Dialect]] = {"ort": OrtDialect, "standard": StandardDialect}
