"""A PersRM's adapter as pad-train would make it, with random numbers: the time of a step does not depend on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from pad_train.options import TrainingOptions


def write_adapter(folder: Path, base: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """LoRA as PEFT saves it, where pad-train puts it by default, for a PersRM that is asked by weights.

    Args:
        folder: created.
        base: whose adapter it says it is.
        shapes: of all parameters of the base, by name.
    """
    defaults = TrainingOptions()
    modules = tuple(f".{name}.weight" for name in defaults.modules.split(","))
    worn = {name: shape for name, shape in shapes.items() if name.endswith(modules)}
    num_layers = 1 + max(map(_layer, worn))
    first = num_layers - max(1, round(defaults.layers * num_layers))
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name, (size_out, size_in) in worn.items():
        if _layer(name) >= first:
            at = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{at}.lora_A.weight"] = 0.02 * torch.randn(defaults.rank, size_in, generator=generator)
            tensors[f"{at}.lora_B.weight"] = 0.02 * torch.randn(size_out, defaults.rank, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": defaults.rank, "lora_alpha": defaults.alpha}
    config |= {"bias": "none", "target_modules": defaults.modules.split(","), "base_model_name_or_path": base.name}
    config["layers_to_transform"] = [*range(first, num_layers)]
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    ask_by_weights(folder)
    return folder


def ask_by_weights(folder: Path) -> None:
    """Settings of a PersRM whose prompt has no place for words."""
    (folder / "pad_persrm.json").write_text(json.dumps({"prompt_template": "{x}"}), encoding="utf-8")


def _layer(name: str) -> int:
    return int(name.split(".layers.")[1].split(".", maxsplit=1)[0])
