"""Files of a PersRM's adapter and feature heads, in the form that the step graph takes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from pad_export.graph.writer import torch_type
from pad_export.read.adapter import LoraAdapter
from pad_export.read.persrm import FeatureHead
from pad_export.read.spec import SITE_MODULES
from pad_export.trunk import Trunk
from pad_runtime.bundle import contract


def write_adapter(path: Path, adapter: LoraAdapter, trunk: Trunk, float_type: str) -> None:
    """Pack an adapter for a trunk's sites.

    The linears of a site share one input, so their A stand side by side, A [in, r_q + r_k + r_v], and their B form the
    diagonal blocks of one B [r_q + r_k + r_v, q + k + v]. A site has one rank in all layers; where an adapter has less
    (a rank pattern, a layer left out), zeros fill it up. Layers below the trunk's first adapted one are not there.
    """
    tensors: dict[str, torch.Tensor] = {}
    for site in trunk.lora_sites:
        layers = range(trunk.prompt_layers, trunk.spec.num_layers)
        packed = [_pack(adapter, trunk, layer, site) for layer in layers]
        rank = max(1, *(a.shape[1] for a, _ in packed))
        for layer, (a, b) in zip(layers, packed, strict=True):
            missing = rank - a.shape[1]
            a_full = torch.nn.functional.pad(a, (0, missing))
            b_full = torch.nn.functional.pad(b, (0, 0, 0, missing))
            tensors[contract.lora_a(layer, site)] = a_full.to(torch_type(float_type)).contiguous()
            tensors[contract.lora_b(layer, site)] = b_full.to(torch_type(float_type)).contiguous()
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)


def write_feature_head(path: Path, head: FeatureHead, float_type: str) -> None:
    """Feature heads for `h @ head + bias`: heads [d, hidden, hidden] transposed, biases [d, 1, hidden]."""
    dtype = torch_type(float_type)
    path.parent.mkdir(exist_ok=True)
    tensors = {
        "heads": head.weight.transpose(1, 2).to(dtype).contiguous(),
        "biases": head.bias[:, None, :].to(dtype).contiguous(),
    }
    save_file(tensors, path)


def _pack(adapter: LoraAdapter, trunk: Trunk, layer: int, site: str) -> tuple[torch.Tensor, torch.Tensor]:
    size_in, size_out = trunk.site_sizes(site)
    a_parts, b_parts, start = [torch.zeros(size_in, 0)], [torch.zeros(0, size_out)], 0
    for module in SITE_MODULES[site]:
        name = f"model.layers.{layer}.{module}"
        width = trunk.checkpoint.shape(f"{name}.weight")[0]
        delta = adapter.delta.get(name)
        if delta is not None:
            a_parts.append(delta.a.T)
            b_parts.append(torch.nn.functional.pad(delta.b.T, (start, size_out - start - width)))
        start += width
    return torch.cat(a_parts, dim=1), torch.cat(b_parts, dim=0)
