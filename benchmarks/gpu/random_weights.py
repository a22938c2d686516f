"""Weights that are nowhere stored: for a while every checkpoint is one of random numbers, made as they are written.

The time of a step does not depend on the values of the weights, and an 8B model takes longer to make, read and convert
than to measure. Parameters are tensors without memory (torch's meta device) until a bundle's file takes them; there
each becomes a stretch of one pool of random numbers, begun at a place of its own. The pool's length is a prime, so that
no two rows of a matrix are alike.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from pad_export.weights.blocks import BLOCK, Blocks
from pad_export.weights.file import WeightsFile

_POOL = 2**24 + 43  # numbers
_SCALE = 0.02  # standard deviation, as transformers initialises


class RandomWeights:
    """`pad_export.read.checkpoint.Weights` of a Llama configuration.

    Attributes:
        shapes: of each parameter.
        nbytes: that they would have on disk in bfloat16.
    """

    def __init__(self, folder: Path) -> None:
        self.shapes = parameter_shapes(folder)
        self.nbytes = sum(self.read(name).nbytes for name in self.shapes)

    def read(self, name: str) -> torch.Tensor:
        """One parameter: norms are ones, all else is yet to be filled."""
        shape = self.shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")


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


@contextmanager
def random_weights() -> Iterator[None]:
    """In this block pad_export reads random weights, and what it would round to blocks is random too."""
    with ExitStack() as stack:
        stack.enter_context(patch("pad_export.read.checkpoint.open_safetensors", RandomWeights))
        stack.enter_context(patch("pad_export.export.calibrate_trunk", lambda *_: {}))
        stack.enter_context(patch("pad_export.weights.stream.quantise", _random_blocks))
        for method in ("write", "write_int4"):
            stack.enter_context(patch.object(WeightsFile, method, _filling(getattr(WeightsFile, method))))
        yield


def _filling(write: Callable[..., Any]) -> Callable[..., Any]:
    """A method of `WeightsFile` that gives memory and numbers to tensors that have none."""

    def fill_and_write(file: WeightsFile, name: str, tensor: torch.Tensor, *shape: Any) -> Any:
        return write(file, name, _random_numbers(name, tensor) if tensor.is_meta else tensor, *shape)

    return fill_and_write


def _random_blocks(weight: torch.Tensor, bits: int, *, symmetric: bool = False) -> Blocks:
    """Blocks of a matrix [out, in] that spread as its numbers would. All are symmetric, which every dialect takes."""
    del symmetric
    rows, columns = weight.shape
    scales = torch.full((rows, columns // BLOCK), _SCALE * 6 / 2**bits)
    codes = torch.empty(rows, columns, dtype=torch.uint8, device="meta")
    return Blocks(bits, codes, scales, torch.full_like(scales, 2 ** (bits - 1), dtype=torch.uint8))


def _random_numbers(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Of a tensor's shape and type."""
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
