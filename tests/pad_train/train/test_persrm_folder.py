from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pad_export.read.persrm import PROMPT_TEMPLATE, read_persrm
from pad_runtime.errors import AdapterError
from pad_train.train.persrm_folder import read_reward_model, write_persrm
from pad_train.train.reward_model import RewardModel
from tests.support import tiny_training
from tests.support.error_checks import refused


@pytest.fixture
def model(tmp_path: Path) -> RewardModel:
    model = RewardModel(tiny_training.make_backbone(tmp_path / "base"), ("a", "b"), rank=3, alpha=6.0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def test_what_is_read_is_what_was_written(model: RewardModel, tmp_path: Path) -> None:
    write_persrm(
        tmp_path / "taste", model, name="taste", base_name="someone/base", reads_words=True, record={"seed": 3}
    )
    persrm = read_persrm(tmp_path / "taste")
    assert (persrm.name, persrm.features, persrm.prompt_template) == ("taste", ("a", "b"), PROMPT_TEMPLATE)
    assert persrm.default_weights == tuple(round(value, 4) for value in model.learned_weights.tolist())
    assert persrm.feature_head is not None
    half = {"atol": 1e-3, "rtol": 1e-3}
    torch.testing.assert_close(persrm.feature_head.weight, torch.eye(84) + model.head_change.detach(), **half)
    assert not torch.allclose(persrm.feature_head.weight, model.head_change.detach(), **half)
    torch.testing.assert_close(persrm.feature_head.bias, model.bias.detach(), **half)
    assert json.loads((tmp_path / "taste" / "training.json").read_text()) == {"seed": 3}


@torch.no_grad()
def test_peft_reads_the_adapter(model: RewardModel, tmp_path: Path) -> None:
    write_persrm(
        tmp_path / "taste", model, name="taste", base_name=str(tmp_path / "base"), reads_words=False, record={}
    )
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 40, 7, 20]])
    plain = base(ids).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = PeftModel.from_pretrained(base, tmp_path / "taste").eval()
    assert read_persrm(tmp_path / "taste").prompt_template == "{x}"
    assert wrapped.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    torch.testing.assert_close(wrapped(ids).logits, model.trunk(ids).logits, atol=0.05, rtol=0.01)
    assert (model.trunk(ids).logits - plain).abs().max() > 1


@pytest.mark.parametrize(("modules", "layers"), [("all-linear", 1.0), ("o_proj,down_proj", 0.5)])
def test_a_reward_model_is_read_back(tmp_path: Path, modules: str, layers: float) -> None:
    """Into the same parameters, up to the halves that the folder holds; another folder's are others."""
    backbone = tiny_training.make_backbone(tmp_path / "base")
    written = RewardModel(backbone, ("a", "b"), rank=3, alpha=6.0, modules=modules, layers=layers)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in written.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    write_persrm(tmp_path / "taste", written, name="taste", base_name="base", reads_words=True, record={})
    read = read_reward_model(tmp_path / "taste", tiny_training.load(tmp_path / "base"))
    assert read.features == written.features
    assert read.trainable().keys() == written.trainable().keys()
    for name, parameter in read.trainable().items():
        torch.testing.assert_close(parameter, written.trainable()[name], atol=1e-3, rtol=1e-3)
        assert parameter.abs().max() > 0.05, name
    adapter = read.trunk.peft_config["default"]
    assert adapter.lora_alpha / adapter.r == 2.0


def test_a_folder_without_a_feature_head_is_no_reward_model(model: RewardModel, tmp_path: Path) -> None:
    write_persrm(tmp_path / "taste", model, name="taste", base_name="base", reads_words=True, record={})
    (tmp_path / "taste" / "value_head.safetensors").unlink()
    (tmp_path / "taste" / "pad_persrm.json").unlink()
    with refused(AdapterError, given="has no value_head.safetensors", expected="a PersRM that pad-train wrote"):
        read_reward_model(tmp_path / "taste", model.backbone)
