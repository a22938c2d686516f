"""The spec of a decoder, read from its Hugging Face config: everything but weights that the graph builder needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pad_runtime.errors import CheckpointError

Activation = Literal["silu", "gelu_tanh"]

# model_type of config.json -> names of the models
FAMILIES = {
    "llama": "Llama 2, Llama 3, SmolLM",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
}
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_GEMMAS = ("gemma", "gemma2", "gemma3_text")
_QK_NORMED = ("qwen3", "gemma3_text")
_POST_NORMED = ("gemma2", "gemma3_text")

_LAYER = re.compile(r"model\.layers\.(?P<index>0|[1-9][0-9]{0,5})\.(?P<module>.+)")

# site -> the checkpoint's linears that are packed into it, side by side
SITE_MODULES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


_HINT = "download the model's configuration again"
_WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
MAX_LAYERS = 1024  # far more than any model has
_MOST = {"num_hidden_layers": MAX_LAYERS, "max_position_embeddings": 2**24, **dict.fromkeys(_WIDTHS, 2**24)}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer: `inv_freq` [head_dim / 2], and the factor on its cos and sin."""

    inv_freq: tuple[float, ...]
    scaling: float

    def tables(self, max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cos and sin of every position, each [max_length, head_dim / 2] float32."""
        angles = torch.outer(torch.arange(max_length).float(), torch.tensor(self.inv_freq))
        return angles.cos() * self.scaling, angles.sin() * self.scaling


@dataclass(frozen=True)
class LayerSpec:
    """What differs from layer to layer: the attention window in tokens (0: no window) and the index of the rope."""

    window: int
    rope: int


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer with rotary positions, RMS norms and a gated MLP."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_epsilon: float
    norm_offset: float  # Gemma multiplies by 1 + weight
    activation: Activation
    attention_scale: float
    embedding_scale: float
    qk_norm: bool
    post_norms: bool  # Gemma 2 and 3 also norm the outputs of attention and MLP
    attention_softcap: float  # 0: none
    logit_softcap: float  # 0: none
    tied: bool
    max_positions: int
    layers: tuple[LayerSpec, ...]
    ropes: tuple[Rope, ...]

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Widths of q, k and v in the packed projection."""
        return (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim, self.num_kv_heads * self.head_dim)


def read_spec(config: Any, *, tied: bool) -> DecoderSpec:
    """Read a spec from a transformers config.

    Args:
        config: the text model's config.
        tied: whether the lm_head is the embedding.

    Raises:
        CheckpointError: the exporter cannot write this family, activation or rotary scaling.
    """
    family = config.model_type
    if family not in FAMILIES:
        works = ", ".join(f"{key} ({label})" for key, label in FAMILIES.items())
        raise CheckpointError(f"model_type '{family}'", expected=f"one of {works}")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if family == "gemma":
        activation = "gelu_pytorch_tanh"  # old Gemma configs say 'gelu' and mean this
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{family} with activation '{activation}'", expected=" or ".join(_ACTIVATIONS))
    if getattr(config, "use_bidirectional_attention", None):
        raise CheckpointError(f"{family} with bidirectional attention", expected="a causal decoder")
    _check_counts(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    gemma = family in _GEMMAS
    scalar = getattr(config, "query_pre_attn_scalar", None) or head_dim
    try:
        layers, ropes = _layers(config, head_dim)
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as error:  # torch's and transformers' own
        raise CheckpointError(f"layers or rotary parameters that no model has ({error})", hint=_HINT) from None
    return DecoderSpec(
        model_type=family,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim,
        norm_epsilon=config.rms_norm_eps,
        norm_offset=1.0 if gemma else 0.0,
        activation=_ACTIVATIONS[activation],
        attention_scale=scalar**-0.5,
        embedding_scale=config.hidden_size**0.5 if gemma else 1.0,
        qk_norm=family in _QK_NORMED,
        post_norms=family in _POST_NORMED,
        attention_softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        logit_softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        tied=tied,
        max_positions=config.max_position_embeddings,
        layers=layers,
        ropes=ropes,
    )


def norm_modules(family: str) -> dict[str, str]:
    """Norms of a layer: name in the graph -> name in the checkpoint."""
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if family in _POST_NORMED:
        norms = {
            "attention_norm": "input_layernorm",
            "attention_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        }
    if family in _QK_NORMED:
        norms |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    return norms


def is_used(name: str, config: Any) -> bool:
    """Whether a graph of this config uses a tensor of that name: a module's weight, or a linear's bias.

    Args:
        name: as a causal language model has it.
        config: the text model's config.
    """
    module, _, kind = name.rpartition(".")
    if module in ("model.embed_tokens", "model.norm", "lm_head"):
        return kind == "weight"
    layer = _LAYER.fullmatch(module)
    if layer is None or int(layer["index"]) >= config.num_hidden_layers:
        return False
    if any(layer["module"] in modules for modules in SITE_MODULES.values()):
        return kind in ("weight", "bias")
    return layer["module"] in norm_modules(config.model_type).values() and kind == "weight"


def _layers(config: Any, head_dim: int) -> tuple[tuple[LayerSpec, ...], tuple[Rope, ...]]:
    """Windows and ropes of all layers. In Gemma 3 each kind of layer has its own rope; other families have one."""
    window = getattr(config, "sliding_window", None) or 0
    default_kind = "sliding_attention" if config.model_type == "mistral" and window else "full_attention"
    kinds = getattr(config, "layer_types", None) or [default_kind] * config.num_hidden_layers
    parameters = config.rope_parameters
    per_kind = "rope_type" not in parameters
    rope_kinds = sorted(set(kinds)) if per_kind else ["full_attention"]
    ropes = tuple(_rope(config, head_dim, kind if per_kind else None) for kind in rope_kinds)
    layers = []
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise CheckpointError(f"a layer of type '{kind}'", expected="full_attention or sliding_attention")
        layers.append(
            LayerSpec(
                window=window if kind == "sliding_attention" else 0, rope=rope_kinds.index(kind) if per_kind else 0
            )
        )
    return tuple(layers), ropes


def _check_counts(config: Any) -> None:
    """Refuse numbers that no model has, before anything is sized by them."""
    for name, most in _MOST.items():
        value = getattr(config, name, None)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise CheckpointError(f"{name} {value!r:.40}", expected=f"1 to {most:,}", hint=_HINT)


def _rope(config: Any, head_dim: int, layer_kind: str | None) -> Rope:
    """Inverse frequencies by transformers' formulas, for kinds of rope that do not depend on the prompt."""
    parameters = config.rope_parameters if layer_kind is None else config.rope_parameters[layer_kind]
    kind = parameters["rope_type"]
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError("a rotary embedding over part of the head", expected="one over the whole head")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2).float() / head_dim
        return Rope(tuple((1.0 / parameters["rope_theta"] ** exponents).tolist()), 1.0)
    if kind not in ("linear", "llama3", "yarn"):
        raise CheckpointError(f"rope_type '{kind}'", expected="default, linear, llama3 or yarn")
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](config, device="cpu", layer_type=layer_kind)
    return Rope(tuple(inv_freq.tolist()), float(scaling))
