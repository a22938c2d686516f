"""Verification is worth what it catches: every way in which a bundle can be wrong must make it fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import Gemma3TextConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import tiny_models
from pad_export import step_graph
from pad_export.checkpoint import Checkpoint
from pad_export.export import export_bundle
from pad_export.spec import SITE_MODULES, read_spec
from pad_runtime.errors import VerificationError


def export(tiny: tiny_models.TinyModels, folder: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    export_bundle(tiny.base, folder, persrms=[tiny.adapter], quiet=True, report=lines.append, **options)
    return lines


def test_a_right_bundle_is_reported_with_its_worst_differences(tiny: tiny_models.TinyModels, tmp_path: Path) -> None:
    assert "verified against torch: 2 batches x 9 tokens, worst difference" in export(tiny, tmp_path / "b")[-1]


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"]
)
def test_a_tensor_read_wrongly_is_caught(
    tiny: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Torch must not read through the reader that it verifies."""
    read = Checkpoint.tensor

    def wrong(self: Checkpoint, wanted: str) -> torch.Tensor:
        return read(self, wanted) * (1.5 if wanted == name else 1.0)

    monkeypatch.setattr(Checkpoint, "tensor", wrong)
    with pytest.raises(VerificationError, match="differences from torch"):
        export(tiny, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_swapped_packing_is_caught(
    tiny: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SITE_MODULES, "gate_up", ("mlp.up_proj", "mlp.gate_proj"))
    with pytest.raises(VerificationError, match="row logits differ"):
        export(tiny, tmp_path / "b")


def test_a_wrong_mix_is_caught(tiny: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = step_graph._StepBuilder._mix

    def reversed_mix(self: Any, grouped: Any, best: str, candidates: str) -> str:
        scores = mix(self, grouped, best, candidates)
        return self.graph.op("Neg", scores, name="wrong")

    monkeypatch.setattr(step_graph._StepBuilder, "_mix", reversed_mix)
    with pytest.raises(VerificationError, match="chose"):
        export(tiny, tmp_path / "b")


@pytest.mark.parametrize("max_length", [2, 3, 8, 9, 10])
def test_the_shortest_bundles_are_verified_too(tiny: tiny_models.TinyModels, tmp_path: Path, max_length: int) -> None:
    assert "verified" in export(tiny, tmp_path / "b", max_length=max_length)[-1]


def test_biases_on_some_projections_only(tiny: tiny_models.TinyModels, tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "base", "llama", seed=5, attention_bias=True)
    file = tmp_path / "base" / "model.safetensors"
    tensors = {
        name: tensor
        for name, tensor in safetensors.torch.load_file(file).items()
        if not name.endswith(("o_proj.bias", "k_proj.bias"))
    }
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    lines: list[str] = []
    export_bundle(tmp_path / "base", tmp_path / "b", quiet=True, report=lines.append)
    assert "verified" in lines[-1]


def test_a_stale_index_beside_a_whole_file_is_not_read(tiny: tiny_models.TinyModels, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny.base, tmp_path / "llama"))
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    lines: list[str] = []
    export_bundle(base, tmp_path / "b", quiet=True, report=lines.append)
    assert "verified" in lines[-1]


def test_every_kind_of_layer_has_its_own_rope() -> None:
    """Gemma 3 with YaRN on its full layers: the formula of that kind, not a linear one."""
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
        },
    }
    config = Gemma3TextConfig(head_dim=16, num_hidden_layers=6, max_position_embeddings=512, rope_parameters=ropes)
    spec = read_spec(config, tied=True)
    expected, scaling = ROPE_INIT_FUNCTIONS["yarn"](config, device="cpu", layer_type="full_attention")
    full = spec.ropes[spec.layers[5].rope]
    np.testing.assert_allclose(full.inv_freq, expected.numpy())
    assert full.scaling == pytest.approx(scaling)
    assert full.inv_freq != tuple(f / 8.0 for f in spec.ropes[spec.layers[0].rope].inv_freq)
