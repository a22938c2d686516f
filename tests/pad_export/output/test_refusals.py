"""What cannot be exported: models and adapters that do not fit, and options that do not go together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pad_runtime.errors import AdapterError, CheckpointError, OptionError, TokenizerMismatchError
from pad_runtime.loaded_bundle import Bundle
from tests.support import tiny_models
from tests.support.error_checks import refused
from tests.support.tiny_models import TinyModels
from tests.support.whole_export import run


def copy(folder: Path, to: Path, **config: Any) -> Path:
    """A copy of a model or adapter folder, with changes to its configuration."""
    shutil.copytree(folder, to)
    name = "adapter_config.json" if (to / "adapter_config.json").exists() else "config.json"
    fields = json.loads((to / name).read_text())
    (to / name).write_text(json.dumps({**fields, **config}))
    return to


def test_adapter_for_a_base_of_other_shapes(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "wide", "llama", seed=3, hidden_size=90)
    tiny_models.make_adapter(tmp_path / "lora", tmp_path / "wide", seed=4)
    adapter = copy(tmp_path / "lora", tmp_path / "other", base_model_name_or_path=str(tiny.base))
    with refused(AdapterError, given="[90, 72] in the adapter and [84, 72] in the base", expected=str(tiny.base)):
        run(tiny.base, target, adapter)


def test_adapter_with_more_layers_than_the_base(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "deep", "llama", seed=3, num_hidden_layers=3)
    tiny_models.make_adapter(tmp_path / "lora", tmp_path / "deep", seed=4)
    with refused(AdapterError, given="model.layers.2.mlp.down_proj is not in the base", hint="trained on"):
        run(tiny.base, target, tmp_path / "lora", topology="shared")


def test_adapter_for_a_base_of_another_name(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    adapter = copy(tiny.adapter, tmp_path / "other", base_model_name_or_path="someone/other-model")
    with refused(AdapterError, given="'someone/other-model'", expected=str(tiny.base), hint="--topology shared"):
        run(tiny.base, target, adapter)


@pytest.mark.parametrize(
    "config", [{"target_modules": 5}, {"target_modules": ["no_such_module"]}, {"lora_dropout": "x"}]
)
def test_an_adapter_that_peft_cannot_load(
    tiny: TinyModels, target: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    """Of settings that the export itself does not need."""
    adapter = copy(tiny.adapter, tmp_path / "lora", **config)
    with refused(AdapterError, given=f"PEFT cannot load {adapter} (", expected="an adapter that PEFT can load"):
        run(tiny.base, target, adapter)


def test_vocabulary_of_another_tokenizer(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    merged = copy(tiny.base, tmp_path / "merged")
    text = (merged / "tokenizer.json").read_text()
    (merged / "tokenizer.json").write_text(text.replace('"plain-added"', '"another-added"'))
    with refused(TokenizerMismatchError, given="in 1 of ", expected="the base's own tokenizer", hint="train"):
        run(tiny.base, target, merged)


def test_a_head_with_fewer_rows_than_the_base(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    size = json.loads((tiny.base / "config.json").read_text())["vocab_size"]
    tiny_models.make_base(tmp_path / "small", "llama", seed=3, vocab_size=size - 2)
    with refused(CheckpointError, given=f"{size - 2} rows", expected=f"{size}", hint="resize_token_embeddings"):
        run(tiny.base, target, tmp_path / "small")


def test_a_value_head_of_another_size(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    adapter = copy(tiny.adapter, tmp_path / "lora")
    tiny_models.make_head(adapter, 60, seed=5)
    with refused(AdapterError, given="hidden size 60", expected="84", hint="trained with this backbone"):
        run(tiny.base, target, adapter)


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        ({"model_type": "gpt2"}, "gpt2", "one of llama (Llama 2"),
        ({"hidden_act": "relu"}, "activation 'relu'", "silu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, "'dynamic'", "yarn"),
        ({"quantization_config": {"bits": 4}}, "is quantised", "full-precision weights"),
    ],
)
def test_a_base_that_is_no_decoder_of_ours(
    tiny: TinyModels, target: Path, tmp_path: Path, config: dict[str, Any], given: str, expected: str
) -> None:
    base = copy(tiny.base, tmp_path / "base", **config)
    with refused(CheckpointError, given=given, expected=expected):
        run(base, target)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_base(tiny: TinyModels, target: Path, tmp_path: Path, share: float) -> None:
    base = copy(tiny.base, tmp_path / "base")
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[: int(len(weights) * share)])
    with refused(CheckpointError, given="model.safetensors", hint="again"):
        run(base, target)


def test_paths_that_hold_something_else(tiny: TinyModels, target: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with refused(CheckpointError, given=f"{absent} does not exist", expected="a model folder", hint="check the path"):
        run(absent, target)
    with refused(CheckpointError, given=f"{absent} does not exist", expected="a model folder", hint="check the path"):
        run(tiny.base, target, absent)
    with refused(CheckpointError, given="no config.json", hint="this is an adapter: give the model it belongs to"):
        run(tiny.adapter, target)
    with refused(CheckpointError, given="no config.json", hint="the folder that the model was saved to"):
        run(tiny.bundle, target)


def test_the_same_persrm_twice(tiny: TinyModels, target: Path) -> None:
    with refused(OptionError, given="two PersRMs are called 'cheerful'", hint="rename the folder"):
        run(tiny.base, target, tiny.adapter, tiny.adapter)


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({"max_length": 257}, "--max-length 257", "2 to 256"),
        ({"max_length": 1}, "--max-length 1", "2 to 256"),
        ({"max_batch": 0}, "--max-batch 0", "1 to 1024"),
        ({"max_top_k": 0}, "--max-top-k 0", "at least 1"),
    ],
)
def test_limits_out_of_range(tiny: TinyModels, target: Path, options: Any, given: str, expected: str) -> None:
    with refused(OptionError, given=given, expected=expected):
        run(tiny.base, target, tiny.adapter, **options)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"topology": "pair"}, "--topology pair without a PersRM"),
        ({"reference": "backbone"}, "--reference backbone without a PersRM"),
        ({"backbone": Path("x")}, "--backbone without a PersRM"),
    ],
)
def test_options_that_need_a_persrm(tiny: TinyModels, target: Path, options: Any, given: str) -> None:
    with refused(OptionError, given=given):
        run(tiny.base, target, **options)


def test_a_merged_persrm_has_no_shared_topology_and_no_backbone(tiny: TinyModels, target: Path) -> None:
    with refused(OptionError, given="--topology shared with the merged checkpoint", hint="--topology pair"):
        run(tiny.base, target, tiny.base, topology="shared")
    with refused(OptionError, given="--reference backbone with the merged", expected="un-tuned", hint="--backbone DIR"):
        run(tiny.base, target, tiny.base, reference="backbone")
    with refused(OptionError, given="2 PersRMs, a merged checkpoint among them", expected="one merged checkpoint"):
        run(tiny.base, target, tiny.base, tiny.adapter)


def test_head_dim_that_the_ort_dialect_cannot_rotate(target: Path, tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "base", "llama", seed=3, head_dim=24)
    with refused(CheckpointError, given="head_dim 24", expected="a multiple of 16", hint="--dialect standard"):
        run(tmp_path / "base", target)


def test_the_standard_dialect_takes_any_head_dim(tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "base", "llama", seed=3, head_dim=24, num_hidden_layers=1)
    run(tmp_path / "base", tmp_path / "bundle", dialect="standard")
    assert Bundle(tmp_path / "bundle").manifest.trunks[0].head_dim == 24
