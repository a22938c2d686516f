"""A trained PersRM as a folder: PEFT's adapter, the head, and the settings that pad-export reads; and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pad_export.output.disk import follow_umask
from pad_export.read.adapter import CONFIG_NAME, WEIGHTS_NAME
from pad_export.read.persrm import FEATURE_HEAD_NAME, PLAIN_TEMPLATE, PROMPT_TEMPLATE, SETTINGS_NAME, read_persrm
from pad_runtime.errors import AdapterError
from pad_train.train.backbone import Backbone
from pad_train.train.reward_model import RewardModel

RECORD_NAME = "training.json"


def write_persrm(
    folder: Path, model: RewardModel, *, name: str, base_name: str, reads_words: bool, record: dict[str, Any]
) -> None:
    """Write adapter, feature heads (fp16; W_i = I + M_i) and settings.

    Args:
        folder: is created; must not exist.
        name: name of the PersRM in a bundle.
        base_name: name of the base in the adapter's configuration.
        reads_words: whether it was trained on preferences in words; otherwise its prompt is the base's.
        record: options and results of the training, written to training.json.
    """
    folder.mkdir(parents=True)
    state = {key: value.half().contiguous() for key, value in get_peft_model_state_dict(model.trunk).items()}
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    config = model.trunk.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base_name, True
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    eye = torch.eye(model.head_change.shape[-1])
    head = {
        "feature_head.weight": (eye + model.head_change.detach()).half(),
        "feature_head.bias": model.bias.detach().half(),
    }
    save_file({key: value.contiguous() for key, value in head.items()}, folder / FEATURE_HEAD_NAME)
    settings = {
        "name": name,
        "features": list(model.features),
        "default_weights": [round(value, 4) for value in model.learned_weights.tolist()],
        "prompt_template": PROMPT_TEMPLATE if reads_words else PLAIN_TEMPLATE,
    }
    (folder / SETTINGS_NAME).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    follow_umask(folder)


def read_reward_model(folder: Path, backbone: Backbone) -> RewardModel:
    """The reward model as `write_persrm` has left it, ready to be asked for phi.

    Args:
        folder: a PersRM that was trained here.
        backbone: its base.

    Raises:
        AdapterError: the folder holds no PersRM, or one without a feature head.
    """
    persrm = read_persrm(folder)
    if persrm.feature_head is None:
        raise AdapterError(f"{folder} has no {FEATURE_HEAD_NAME}", expected="a PersRM that pad-train wrote")
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    layers = config["layers_to_transform"]
    model = RewardModel(
        backbone,
        persrm.features,
        rank=config["r"],
        alpha=config["lora_alpha"],
        modules=",".join(config["target_modules"]),
        layers=len(layers) / backbone.model.config.num_hidden_layers,
    )
    set_peft_model_state_dict(model.trunk, load_file(folder / WEIGHTS_NAME))
    with torch.no_grad():
        model.head_change.copy_(persrm.feature_head.weight - torch.eye(persrm.feature_head.weight.shape[-1]))
        model.bias.copy_(persrm.feature_head.bias)
        model.learned_weights.copy_(torch.tensor(persrm.default_weights))
    return model.eval()
