"""Calibration: what each linear is fitted to, held against transformers' own model with the weights set by hand."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pad_export.graph.matrix import choose_storage
from pad_export.output import stages
from pad_export.plan import make_plan
from pad_export.read.checkpoint import open_checkpoint
from pad_export.trunk import Trunk
from pad_export.weights import calibrate
from pad_export.weights.blocks import Blocks
from pad_export.weights.calibrate import calibrate_trunk, perplexity
from pad_export.weights.gptq import quantise_for, second_moments
from tests.support import tiny_models

SIZES = {"hidden_size": 96, "intermediate_size": 128, "num_attention_heads": 6, "num_hidden_layers": 2}
MAX_TOKENS = 2048


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trunk, Path]:
    """A trunk with an adapter merged into it, and the same as a checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("base", 4), ("backbone", 6)):
        tiny_models.make_base(folder / name, "llama", seed=seed, tied=True, **SIZES)
    tiny_models.make_adapter(folder / "adapter", folder / "backbone", seed=5)
    tiny_models.make_merged(folder / "merged", folder / "backbone", folder / "adapter")
    plan = make_plan(folder / "base", [folder / "adapter"], topology="pair", backbone=folder / "backbone")
    (trunk,) = (trunk for trunk in plan.trunks if trunk.merged)
    return trunk, folder / "merged"


def sample(folder: Path) -> torch.Tensor:
    text = resources.files("pad_export").joinpath("text/calibration.txt").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False).input_ids[:MAX_TOKENS]
    return torch.tensor([[tokenizer.bos_token_id, *ids[at : at + 255]] for at in range(0, len(ids) - 254, 255)])


def read_by(model: Any, module: str, folder: Path, weights: Mapping[str, Blocks]) -> torch.Tensor:
    """What a module reads of the sample text; some linears before it have the given weights."""
    read: list[torch.Tensor] = []
    for name, blocks in weights.items():
        model.get_submodule(name).weight.data = blocks.dequantise()
    hook = model.get_submodule(module).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=sample(folder))
    hook.remove()
    return read[0]


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_a_linear_is_fitted_to_what_it_reads_behind_whole_weights(
    merged: tuple[Trunk, Path], dialect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_MAX_TOKENS", MAX_TOKENS)
    trunk, folder = merged
    monkeypatch.setattr(stages, "_INTERVAL", 0.0)
    lines: list[str] = []
    with stages.Stages(lines.append).count("calibrating", "linears") as progress:
        found = calibrate_trunk(trunk, choose_storage("int4", dialect), progress)
    assert lines[0] == f"calibrating: {len(found)} linears"
    assert lines[-1].startswith(f"calibrating: {len(found)} of {len(found)} linears, ")
    symmetric = dialect == "standard"
    linears = [name for name in found if name.startswith("model.layers.")]
    modules = ("o_proj", "gate_proj", "up_proj", "down_proj", *(("q_proj", "k_proj", "v_proj") if symmetric else ()))
    assert len(linears) == sum(name.endswith(modules) for name in linears) == len(modules) * SIZES["num_hidden_layers"]
    for place, name in enumerate(linears):
        if "layers.1" not in name:
            continue
        agreement = []
        for before in ([], linears[:place]):  # and the control: behind those that are rounded
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            weight = model.get_submodule(name).weight.detach()
            read = read_by(model, name, folder, {other: found[other] for other in before})
            expected = quantise_for(weight, 4, second_moments(read), symmetric=symmetric)
            agreement.append(float((expected.codes == found[name].codes).float().mean()))
        assert agreement[0] > 0.999
        assert agreement[1] < 0.99


def test_the_whole_weights_of_a_merged_trunk_have_the_adapter_in_them(merged: tuple[Trunk, Path]) -> None:
    trunk, folder = merged
    expected = perplexity(make_plan(folder, []).base)
    assert perplexity(trunk) == pytest.approx(expected, rel=1e-4)
    without = Trunk(trunk.name, trunk.checkpoint, trunk.spec, trunk.spec.num_layers)
    assert perplexity(without) != pytest.approx(expected, rel=1e-2)  # the control


def test_a_sequence_begins_with_bos_where_the_tokenizer_begins_texts_with_it(tmp_path: Path) -> None:
    """Gemma makes nothing of a text without: perplexity 54 instead of 15."""
    tiny_models.make_base(tmp_path / "begun", "llama", seed=1)
    shutil.copytree(tmp_path / "begun", tmp_path / "plain")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "plain" / "tokenizer.json"))
    bos = tokenizer.token_to_id("<s>")
    assert tokenizer.encode("").ids == [bos]
    tokenizer.post_processor = tokenizers.processors.ByteLevel()
    tokenizer.save(str(tmp_path / "plain" / "tokenizer.json"))
    begun, plain = (
        calibrate._sample_ids(open_checkpoint(tmp_path / name), "calibration") for name in ("begun", "plain")
    )
    assert begun.shape[1] == plain.shape[1]
    assert begun[:, 0].tolist() == [bos] * len(begun)
    assert bos not in plain
    text = begun[:, 1:].flatten()
    count = min(len(text), plain.numel())
    assert torch.equal(text[:count], plain.flatten()[:count])
