"""Weights that are nowhere stored: random numbers in the shapes of a Llama configuration, made as they are written.

The time of a step does not depend on the values of the weights, and an 8B model takes longer to make, read and convert
than to measure. Parameters, in blocks too, are tensors without memory (torch's meta device) until a bundle's file takes
them; there each becomes a stretch of one pool of random numbers, begun at a place of its own. The pool's length is a
prime, so that no two rows of a matrix are alike.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import onnx
import torch

from pad_export.weights.blocks import BLOCK_SIZE, Blocks
from pad_export.weights.file import WeightsFile

_POOL = 2**24 + 43  # numbers
_SCALE = 0.02  # standard deviation, as transformers initialises


class RandomWeights:
    """`pad_export.read.checkpoint.Weights` of a Llama configuration, for a `RandomFile`.

    Attributes:
        shapes: of each parameter.
        nbytes: that they would have on disk in bfloat16.
    """

    def __init__(self, folder: Path) -> None:
        self.shapes = parameter_shapes(folder)
        self.nbytes = sum(torch.bfloat16.itemsize * math.prod(shape) for shape in self.shapes.values())

    def read(self, name: str) -> torch.Tensor:
        """One parameter: norms are ones, all else is yet to be filled."""
        shape = self.shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    def read_blocks(self, name: str, bits: int) -> Blocks:
        """Blocks of a matrix [out, in] that spread as its numbers would; all are symmetric, as every dialect takes."""
        rows, columns = self.shapes[name]
        scales = torch.full((rows, columns // BLOCK_SIZE), _SCALE * 6 / 2**bits)
        codes = torch.empty(rows, columns, dtype=torch.uint8, device="meta")
        return Blocks(bits, codes, scales, torch.full_like(scales, 2 ** (bits - 1), dtype=torch.uint8))


class RandomFile(WeightsFile):
    """Gives memory and numbers to tensors that have none."""

    def write(self, name: str, tensor: torch.Tensor) -> onnx.TensorProto:
        return super().write(name, _filled(name, tensor))

    def write_int4(self, name: str, packed: torch.Tensor, shape: Sequence[int]) -> onnx.TensorProto:
        return super().write_int4(name, _filled(name, packed), shape)


def parameter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Parameters of the Llama configuration in a folder, by their names in transformers."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vocabulary, hidden, mlp = config["vocab_size"], config["hidden_size"], config["intermediate_size"]
    attended, cached = (config[count] * config["head_dim"] for count in ("num_attention_heads", "num_key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.self_attn.q_proj.weight": (attended, hidden),
            f"{at}.self_attn.k_proj.weight": (cached, hidden),
            f"{at}.self_attn.v_proj.weight": (cached, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, attended),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.mlp.gate_proj.weight": (mlp, hidden),
            f"{at}.mlp.up_proj.weight": (mlp, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, mlp),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def _filled(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_meta:
        return tensor
    pool, left = _pool(tensor.dtype), tensor.numel()
    parts = [pool[zlib.crc32(name.encode()) % _POOL :][:left]]
    while left := left - len(parts[-1]):
        parts.append(pool[:left])
    return torch.cat(parts).view(tensor.shape)


@cache
def _pool(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.uint8:
        return torch.randint(256, (_POOL,), dtype=dtype, generator=generator)
    return (_SCALE * torch.randn(_POOL, generator=generator)).to(dtype)
