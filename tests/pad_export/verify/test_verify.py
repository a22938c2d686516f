"""Verification is worth what it catches: every way in which a bundle can be wrong must make it fail."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import Gemma3TextConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pad_export import export as export_module
from pad_export.graph import step as step_graph
from pad_export.graph.writer import GraphWriter
from pad_export.read.checkpoint import Checkpoint
from pad_export.read.spec import SITE_MODULES, read_spec
from pad_export.trunk import Trunk
from pad_export.verify.float64 import Float64Arithmetic
from pad_export.verify.tolerance import TOLERANCE, allowance
from pad_export.weights import adapter_file
from pad_runtime.decode import batches
from pad_runtime.errors import VerificationError
from tests.support import tiny_models, whole_export


def export(tiny: tiny_models.TinyModels, folder: Path, **options: Any) -> list[str]:
    return whole_export.run(tiny.base, folder, tiny.adapter, **options)


def test_a_right_bundle_is_reported_with_its_worst_differences(tiny: tiny_models.TinyModels, tmp_path: Path) -> None:
    assert "verified against torch: 2 batches x 9 tokens, worst difference" in export(tiny, tmp_path / "b")[-1]


HEADS = "model.layers.0.self_attn.v_proj.weight"
LAYOUT = "other weights, or another layout of them"


def swap_heads(weight: torch.Tensor) -> torch.Tensor:
    """The two KV heads in the other order."""
    return weight.reshape(2, 16, -1).flip(0).reshape(weight.shape)


@pytest.mark.parametrize(
    ("name", "change", "kind"),
    [
        (
            "model.layers.0.self_attn.q_proj.weight",
            1.5,
            f"{LAYOUT}: trunk base differs from layer 1 on, first in keys and",
        ),
        (
            "model.layers.0.self_attn.k_proj.weight",
            1.5,
            f"{LAYOUT}: trunk base differs from layer 0 on, first in keys alone,",
        ),
        (HEADS, 1.5, f"{LAYOUT}: trunk base differs from layer 0 on, first in values alone, in the base's rows too: "),
        (
            HEADS,
            swap_heads,
            f"{LAYOUT}: trunk base differs from layer 0 on, first in values alone, in the base's rows too, "
            "the same numbers in another order: ",
        ),
        (
            "model.embed_tokens.weight",
            1.5,
            f"{LAYOUT}: trunk base differs from layer 1 on, first in keys and values, in",
        ),
        ("model.norm.weight", 1.5, f"{LAYOUT}, after the last layer's KV: all KV tensors agree: "),
        ("model.layers.1.mlp.down_proj.weight", 1.5, f"{LAYOUT}, after the last layer's KV: all KV tensors agree: "),
        ("lm_head.weight", 1.0003, "rounding, by its size (at most "),
    ],
)
def test_a_tensor_read_wrongly_is_caught_and_told_by_its_kind(
    tiny: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Any, kind: str
) -> None:
    """Torch must not read through the reader that it verifies. (The first norm takes a scale off the embedding.)"""
    read = Checkpoint.tensor

    def wrong(self: Checkpoint, wanted: str) -> torch.Tensor:
        tensor = read(self, wanted)
        if wanted != name:
            return tensor
        return change(tensor) if callable(change) else tensor * change

    monkeypatch.setattr(Checkpoint, "tensor", wrong)
    with pytest.raises(VerificationError) as caught:
        export(tiny, tmp_path / "b")
    assert str(caught.value).startswith(kind)
    assert "differences from torch: run 0 (guided, batch 1)" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_score_graph_with_other_inputs_is_caught(
    tiny: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export_module.build_score_graph

    def without_adapter(trunks: Sequence[Trunk], *rest: Any) -> Any:
        return real([replace(trunks[0], lora_sites=())], *rest)

    monkeypatch.setattr(export_module, "build_score_graph", without_adapter)
    with pytest.raises(VerificationError) as caught:
        export(tiny, tmp_path / "b")
    assert str(caught.value).startswith("a graph with other inputs or outputs: ")
    assert "score: the graph has no lora_gate.qkv" in str(caught.value)


def test_a_wrong_adapter_is_told_from_a_wrong_base(
    tiny: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_file, "torch_type", lambda _: torch.float8_e4m3fn)
    monkeypatch.setattr(adapter_file, "save_file", save_float32)
    with pytest.raises(VerificationError) as caught:
        export(tiny, tmp_path / "b")
    expected = f"{LAYOUT}: trunk base differs from layer 0 on, first in keys and values, in reward rows alone: "
    assert str(caught.value).startswith(expected)


def save_float32(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """What float8 leaves of the tensors."""
    safetensors.torch.save_file({name: tensor.float() for name, tensor in tensors.items()}, path)


# -- a very strong adapter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> tiny_models.TinyModels:
    """Twelve layers under an adapter that makes attention so sharp that float32 misses the logits by far."""
    root = tmp_path_factory.mktemp("strong")
    models = tiny_models.TinyModels(root / "base", root / "lora", root / "bundle")
    tiny_models.make_base(models.base, "llama", seed=1, num_hidden_layers=12)
    tiny_models.make_adapter(models.adapter, models.base, seed=2)
    file = models.adapter / "adapter_model.safetensors"
    scales = {"q_proj.lora_B": 20.0, "k_proj.lora_B": 20.0}
    tensors = {
        name: tensor * next((scale for part, scale in scales.items() if part in name), 1.0)
        for name, tensor in safetensors.torch.load_file(file).items()
    }
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    return models


def test_what_float32_itself_misses_is_no_failure(strong: tiny_models.TinyModels, tmp_path: Path) -> None:
    line = export(strong, tmp_path / "b")[-1]
    found = re.search(
        r"tolerance 1e-04 beside 4 times the error of torch's own float32 \((\S+) in base rows, (\S+) in", line
    )
    assert found, line
    base, reward = map(float, found.groups())
    assert base < 1e-4 < reward < 5e-2


@pytest.mark.parametrize("name", ["model.layers.3.self_attn.v_proj.weight", "model.norm.weight"])
def test_a_wrong_graph_fails_under_a_strong_adapter_too(
    strong: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    read = Checkpoint.tensor
    monkeypatch.setattr(
        Checkpoint, "tensor", lambda self, wanted: read(self, wanted) * (1.5 if wanted == name else 1.0)
    )
    with pytest.raises(VerificationError, match=r"^other weights, or another layout of them"):
        export(strong, tmp_path / "b")


def test_the_base_is_held_to_its_own_tolerance_under_a_strong_adapter(
    strong: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that is off by less than the adapter's rows may be."""
    read = Checkpoint.tensor
    monkeypatch.setattr(
        Checkpoint, "tensor", lambda self, wanted: read(self, wanted) * (1.001 if wanted == "lm_head.weight" else 1.0)
    )
    with pytest.raises(VerificationError, match="row logits differ by"):
        export(strong, tmp_path / "b")


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_is_computed_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """With next to no tolerance the graph is judged by torch's own error alone: a few of it are enough, everywhere."""
    monkeypatch.setitem(TOLERANCE, "float32", 1e-9)
    tiny_models.make_base(tmp_path / "base", family, seed=1)
    tiny_models.make_adapter(tmp_path / "lora", tmp_path / "base", seed=2)
    tiny_models.make_head(tmp_path / "lora", 84, seed=3)
    models = tiny_models.TinyModels(tmp_path / "base", tmp_path / "lora", tmp_path / "bundle")
    for topology in ("shared", "pair"):
        line = export(models, tmp_path / topology, topology=topology)[-1]
        found = re.search(r"tolerance 1e-09 beside 4 times .* \((\S+) in base rows, (\S+) in reward rows\)", line)
        assert found, line
        assert all(1e-9 < float(error) < 1e-4 for error in found.groups())


@torch.no_grad()
def test_float64_is_float64_throughout() -> None:
    """transformers' norm casts to float32 whatever its input is in."""
    norm, x = LlamaRMSNorm(64).double(), torch.randn(5, 64, dtype=torch.float64, generator=torch.manual_seed(0))
    expected = x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    assert float((norm(x) - expected).abs().max()) > 1e-9
    with Float64Arithmetic():
        assert float((norm(x) - expected).abs().max()) < 1e-14
        assert torch.softmax(x, -1, dtype=torch.float32).dtype == x.float().dtype == torch.float64
    assert x.float().dtype == torch.float32


def test_how_far_a_graph_may_be_from_float64() -> None:
    assert allowance(1e-4, 0.0) == 1e-4
    assert allowance(1e-4, 1e-3) == pytest.approx(4.1e-3)
    assert allowance(1e-4, 1.0) == 5e-2  # however wrong torch itself is
    assert allowance(1e-1, 1.0) == 1e-1


def test_swapped_packing_is_caught(
    tiny: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SITE_MODULES, "gate_up", ("mlp.up_proj", "mlp.gate_proj"))
    with pytest.raises(VerificationError, match="row logits differ"):
        export(tiny, tmp_path / "b")


def test_a_wrong_mix_is_caught(tiny: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = step_graph.mix_readings

    def reversed_mix(g: GraphWriter, *arguments: Any) -> str:
        return g.op("Neg", mix(g, *arguments), name="wrong")

    monkeypatch.setattr(step_graph, "mix_readings", reversed_mix)
    with pytest.raises(VerificationError, match=r"^another choice: KV tensors and row logits agree, .*chose"):
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
    assert "verified" in whole_export.run(tmp_path / "base", tmp_path / "b")[-1]


def test_a_stale_index_beside_a_whole_file_is_not_read(tiny: tiny_models.TinyModels, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny.base, tmp_path / "llama"))
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "verified" in whole_export.run(base, tmp_path / "b")[-1]


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


@pytest.mark.parametrize("max_batch", [1, 8])
def test_reading_behind_a_cache_is_verified_with_any_max_batch(
    tiny: tiny_models.TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_batch: int
) -> None:
    real = batches.PromptPart

    def wrong(sequence: int, ids: Sequence[int], past: int) -> batches.PromptPart:
        """Several tokens behind a cache lie a place too low."""
        return real(sequence, ids, past - 1 if past and len(ids) > 1 else past)

    monkeypatch.setattr(batches, "PromptPart", wrong)
    with pytest.raises(VerificationError):
        export(tiny, tmp_path / "b", max_batch=max_batch)
