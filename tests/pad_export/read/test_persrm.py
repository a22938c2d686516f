from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from pad_export.read.checkpoint import open_checkpoint
from pad_export.read.persrm import PROMPT_TEMPLATE, PersRM, check_feature_head_fits, read_persrm
from pad_runtime.errors import AdapterError, CheckpointError

# PEFT still asks for a property that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

HIDDEN = 12


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16, hidden_size=HIDDEN, intermediate_size=20, num_hidden_layers=1, head_dim=4,
            num_attention_heads=3, num_key_value_heads=1,
        )
    )  # fmt: skip


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "helpful-v1.2")
    return tmp_path / "helpful-v1.2"


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "merged")
    (tmp_path / "merged" / "tokenizer.json").write_text("{}")
    return tmp_path / "merged"


def save_head(folder: Path, **tensors: torch.Tensor) -> None:
    save_file({name.replace("__", "."): value for name, value in tensors.items()}, folder / "value_head.safetensors")


def save_settings(folder: Path, **settings: object) -> None:
    (folder / "pad_persrm.json").write_text(json.dumps(settings))


def test_adapter_folder_with_nothing_beside_it(adapter: Path) -> None:
    persrm = read_persrm(adapter)
    assert persrm.name == "helpful-v1.2"
    assert persrm.adapter is not None
    assert persrm.checkpoint is None
    assert persrm.feature_head is None
    assert (persrm.features, persrm.default_weights) == (("helpful-v1.2",), (1.0,))
    assert persrm.prompt_template == PROMPT_TEMPLATE
    assert "[Principles] {p} [Instruction] {x}" in PROMPT_TEMPLATE


def test_merged_checkpoint(merged: Path) -> None:
    persrm = read_persrm(merged)
    assert persrm.adapter is None
    assert persrm.checkpoint is not None
    assert persrm.checkpoint.config.hidden_size == HIDDEN


@pytest.mark.parametrize("prefix", ["v_head__summary__", "summary__", ""])
@pytest.mark.parametrize("with_bias", [True, False])
def test_official_head_is_one_feature(merged: Path, prefix: str, with_bias: bool) -> None:
    linear = torch.nn.Linear(HIDDEN, HIDDEN, bias=with_bias)
    save_head(merged, **{f"{prefix}{name}": value for name, value in linear.state_dict().items()})
    head = read_persrm(merged).feature_head
    assert head is not None
    assert (head.weight.shape, head.bias.shape) == ((1, HIDDEN, HIDDEN), (1, HIDDEN))
    hidden = torch.randn(5, HIDDEN)
    torch.testing.assert_close(hidden @ head.weight[0].T + head.bias[0], linear(hidden))
    assert not torch.allclose(hidden @ head.weight[0] + head.bias[0], linear(hidden))


def test_head_of_several_features(adapter: Path) -> None:
    weight, bias = torch.randn(3, HIDDEN, HIDDEN).half(), torch.randn(3, HIDDEN).half()
    save_head(adapter, feature_head__weight=weight, feature_head__bias=bias)
    with pytest.raises(AdapterError, match=r"3 different names.*pad_persrm\.json"):
        read_persrm(adapter)
    save_settings(
        adapter, name="style", features=["kind", "short", "formal"], default_weights=[1, 0.5, -2],
        prompt_template="{p}: {x}",
    )  # fmt: skip
    persrm = read_persrm(adapter)
    assert persrm.name == "style"
    assert persrm.features == ("kind", "short", "formal")
    assert persrm.default_weights == (1.0, 0.5, -2.0)
    assert persrm.prompt_template == "{p}: {x}"
    assert persrm.feature_head is not None
    assert persrm.feature_head.weight.dtype == torch.float32
    assert torch.equal(persrm.feature_head.bias, bias.float())
    save_head(adapter, feature_head__weight=weight)
    head = read_persrm(adapter).feature_head
    assert head is not None
    assert not head.bias.any()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"v_head__summary__weight": torch.ones(1, HIDDEN)}, "scalar value head"),
        ({"v_head__summary__weight": torch.ones(3, HIDDEN)}, r"\[3, 12\]"),
        ({"feature_head__weight": torch.ones(HIDDEN, HIDDEN)}, r"\[d, hidden, hidden\]"),
        ({"feature_head__weight": torch.ones(0, HIDDEN, HIDDEN)}, r"\[d, hidden, hidden\]"),
        ({"feature_head__weight": torch.ones(1, 3, 3)}, "hidden size 3.*12"),
        ({"weight": torch.eye(HIDDEN), "bias": torch.ones(3)}, r"bias \[1, 3\]"),
        ({"weight": torch.eye(HIDDEN), "bias": torch.tensor(3.0)}, "bias"),
        ({"weight": torch.eye(HIDDEN) * float("inf")}, "not finite"),
        ({"weight": torch.eye(HIDDEN), "lora": torch.ones(1)}, "holds lora"),
        ({"weight": torch.eye(HIDDEN), "summary__weight": torch.eye(HIDDEN)}, "holds weight"),
        ({"bias": torch.ones(3)}, "holds bias"),
        ({}, "holds nothing"),
    ],
)
def test_other_heads_are_refused(merged: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_head(merged, **tensors)
    with pytest.raises(AdapterError, match=message) as caught:
        read_persrm(merged)
    assert "\n" not in str(caught.value)


def test_head_is_checked_against_the_base_of_an_adapter(adapter: Path, merged: Path) -> None:
    base = open_checkpoint(merged)
    check_feature_head_fits(None, base, path=adapter)
    save_head(adapter, weight=torch.eye(HIDDEN))
    check_feature_head_fits(read_persrm(adapter).feature_head, base, path=adapter)
    save_head(adapter, weight=torch.eye(3))
    with pytest.raises(AdapterError, match="hidden size 3"):
        check_feature_head_fits(read_persrm(adapter).feature_head, base, path=adapter)


def test_damaged_and_pickled_heads_are_refused(merged: Path) -> None:
    (merged / "value_head.bin").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"pickle.*save_file"):
        read_persrm(merged)
    (merged / "value_head.safetensors").write_bytes(b"123")
    with pytest.raises(AdapterError, match="truncated"):
        read_persrm(merged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ["a"], "beta": 1}, "unknown key beta"),
        ({"name": "-a"}, "name '-a'"),
        ({"name": 3}, "name 3"),
        ({"name": "a\n"}, "is not a name"),
        ({"features": ["a", "b"]}, "1 different name,"),
        ({"features": []}, "1 different name,"),
        ({"features": "a"}, "a list"),
        ({"features": ["a b"]}, "'a b'"),
        ({"default_weights": [1, 2]}, "default_weights"),
        ({"default_weights": [float("nan")]}, "default_weights"),
        ({"default_weights": [True]}, "default_weights"),
        ({"default_weights": [10**400]}, "default_weights"),
        ({"default_weights": None}, "default_weights"),
        ({"prompt_template": "{p}"}, "{x} once"),
        ({"prompt_template": "{x} {x}"}, "{x} once"),
        ({"prompt_template": "{x} {y}"}, "no other braces"),
        ({"prompt_template": "{{x}}"}, "no other braces"),
        ({"prompt_template": 1}, "prompt_template"),
        ({"prompt_template": "{x} \ud800"}, "half a character"),
        ({"features": [None]}, "features None is not a name"),
        ({"features": None}, "a list"),
        ({"name": None}, "name None"),
    ],
)
def test_settings_that_cannot_be_are_refused(adapter: Path, changes: dict[str, Any], message: str) -> None:
    save_settings(adapter, **changes)
    with pytest.raises(AdapterError, match=message):
        read_persrm(adapter)


@pytest.mark.parametrize("template", ["{x}", "Q: {x}\nA:", "{x} for {p}"])
def test_templates(adapter: Path, template: str) -> None:
    save_settings(adapter, prompt_template=template)
    assert read_persrm(adapter).prompt_template == template


def test_folder_whose_name_is_no_name_must_be_given_one(adapter: Path) -> None:
    folder = adapter.rename(adapter.parent / "my reward")
    with pytest.raises(AdapterError, match=r"'my reward'.*set name"):
        read_persrm(folder)
    save_settings(folder, name="mine")
    assert read_persrm(folder).name == "mine"


def test_path_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_persrm(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_persrm(tmp_path / "empty")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed")
    get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    json_values
    | st.dictionaries(st.sampled_from(["name", "features", "default_weights", "prompt_template"]), json_values)
)
def test_any_settings_give_a_persrm_or_its_error(fuzzed: Path, value: Any) -> None:
    (fuzzed / "pad_persrm.json").write_text(json.dumps(value))
    try:
        assert isinstance(read_persrm(fuzzed), PersRM)
    except AdapterError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
