from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from pad_export.read import file_patterns
from pad_export.read.adapter import LoraAdapter, check_fits, read_adapter
from pad_export.read.checkpoint import open_checkpoint
from pad_runtime.errors import AdapterError
from tests.support.error_checks import refused

# PEFT still asks for a property that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

QUERY = "model.layers.0.self_attn.q_proj"


def tiny_llama(kind: Any = LlamaForCausalLM, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 32, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "head_dim": 8,
        "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    return kind(LlamaConfig(**{**sizes, **options}))


def save_adapter(folder: Path, model: Any, **options: Any) -> Any:
    """Save a LoRA adapter with random factors; returns PEFT's model."""
    config: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **options}
    adapted = get_peft_model(model, LoraConfig(**config))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return adapted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ordinary adapter that a test may damage."""
    save_adapter(tmp_path / "adapter", tiny_llama())
    return tmp_path / "adapter"


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one projection": {"target_modules": ["down_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layers\.[02]\..*(gate|o)_proj"},
    "one layer": {"layers_to_transform": 1},
    "some layers": {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "rslora": {"use_rslora": True, "r": 3},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 5}},
    "alpha_pattern": {"alpha_pattern": {r".*\.2\..*": 1, "v_proj": 9}},
    "both patterns, rslora": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}, "use_rslora": True},
    "first pattern wins": {"rank_pattern": {r"model.*q_proj": 2, "q_proj": 7}},
    "pattern anchored at the start": {"alpha_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 2}},
    "pattern of part of a component": {"alpha_pattern": {"_proj": 3, "q_proj": 4}},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dropout": {"lora_dropout": 0.5},
    "task type": {"task_type": "CAUSAL_LM"},
}


# PEFT applies these to models with a head only.
NOT_BARE = {"one layer", "some layers", "first pattern wins", "task type"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(kind, options, id=f"{kind.__name__}-{form}")
        for kind in (LlamaForCausalLM, LlamaModel)
        for form, options in FORMS.items()
        if kind is LlamaForCausalLM or form not in NOT_BARE
    ],
)
@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA", "ignore:The following alpha_pattern keys")
def test_delta_is_what_peft_merges(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in tiny_llama(kind).state_dict().items()}
    if kind is LlamaModel and "alpha_pattern" in options:
        options = {
            **options,
            "alpha_pattern": {k.replace(r"^model\.", "^"): v for k, v in options["alpha_pattern"].items()},
        }
    adapted = save_adapter(tmp_path, tiny_llama(kind), **options)
    adapter = read_adapter(tmp_path)
    after = adapted.merge_and_unload().state_dict()
    prefix = "" if kind is LlamaForCausalLM else "model."
    changed = {f"{prefix}{name}" for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{module}.weight" for module in adapter.delta}
    for module, low_rank in adapter.delta.items():
        name = f"{module}.weight".removeprefix(prefix)
        assert low_rank.a.dtype == low_rank.b.dtype == torch.float32
        torch.testing.assert_close(before[name] + low_rank.b @ low_rank.a, after[name], rtol=1e-5, atol=1e-5)


def test_scale_matters(folder: Path) -> None:
    adapter = read_adapter(folder)
    raw = load_file(folder / "adapter_model.safetensors")[f"base_model.model.{QUERY}.lora_B.weight"]
    torch.testing.assert_close(adapter.delta[QUERY].b, raw * 1.5)
    edit_json(folder / "adapter_config.json", use_rslora=True)
    torch.testing.assert_close(read_adapter(folder).delta[QUERY].b, raw * 3.0)


def test_half_precision_and_base_name(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(weights).items()}, weights)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="org/base")
    adapter = read_adapter(folder)
    assert adapter.base_name == "org/base"
    assert adapter.delta[QUERY].a.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_pissa_is_refused_until_it_is_converted(tmp_path: Path) -> None:
    model = tiny_llama()
    before = model.state_dict()[f"{QUERY}.weight"].clone()
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights="pissa")
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "initial")
    adapted.peft_config["default"].init_lora_weights = "pissa"
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1
    adapted.save_pretrained(tmp_path / "pissa")
    with pytest.raises(AdapterError, match=r"pissa.*path_initial_model_for_weight_conversion"):
        read_adapter(tmp_path / "pissa")
    adapted.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    low_rank = read_adapter(tmp_path / "plain").delta[QUERY]
    after = adapted.merge_and_unload().state_dict()[f"{QUERY}.weight"]
    torch.testing.assert_close(before + low_rank.b @ low_rank.a, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"bias": "lora_only"}, "bias"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["embed_tokens"]}, "embedding"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # PEFT warns about what it saves for embeddings
def test_other_forms_are_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_adapter(tmp_path, tiny_llama(), **options)
    with pytest.raises(AdapterError, match=message) as caught:
        read_adapter(tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_other_methods_are_refused_by_name(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"'IA3'.*LORA"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "corda"}, "conversion"),
        ({"init_lora_weights": "pissa_niter_4"}, "conversion"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_something_new": True}, "use_something_new"),
        ({"r": 5}, "rank 5"),
        ({"r": 0}, "positive"),
        ({"r": True}, "positive"),
        ({"lora_alpha": "8"}, "alpha"),
        ({"lora_alpha": float("nan")}, "alpha"),
        ({"lora_alpha": 10**400}, "alpha"),
        ({"rank_pattern": {"(": 2}}, "regular expression"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "org/\ud800"}, "half a character"),
        ({"base_model_name_or_path": "x" * 5000}, "base_model_name_or_path"),
        ({"target_modules": "("}, "target_modules has a pattern that is no regular expression"),
        ({"peft_type": None}, "LORA"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(folder / "adapter_config.json", **changes)
    with pytest.raises(AdapterError, match=message):
        read_adapter(folder)


# Each takes longer than the age of the universe on the name of a module.
ENDLESS = (r"(\w+\.?)+!", r"(a|[a-z_.0-9]*)*!", r"(.*)*(.*)*!", r"(([a-z]+)*[._0-9]*)*!")


@pytest.mark.parametrize("pattern", ENDLESS)
@pytest.mark.parametrize(
    "key", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_pattern"]
)
def test_a_pattern_that_never_ends_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str, pattern: str
) -> None:
    """PEFT matches all of these, so that verification would hang too."""
    monkeypatch.setattr(file_patterns, "SECONDS", 0.3)
    value: Any = {pattern: 4} if key.endswith("_pattern") and key != "layers_pattern" else pattern
    edit_json(folder / "adapter_config.json", **{key: [value] if key == "layers_pattern" else value})
    with refused(
        AdapterError,
        given=f"{key} has a pattern that cannot be matched",
        expected="without repeats of repeats",
        hint="write the modules' names instead",
    ):
        read_adapter(folder)


# As a widely used trainer writes it for models that read images too.
REAL_TARGETS = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:k_proj|v_proj|q_proj|up_proj|down_proj)))"
)


def test_patterns_match_as_re_does(folder: Path) -> None:
    names = [f"model.layers.{i}.self_attn.{module}" for i in (0, 1, 10) for module in ("q_proj", "v_proj")] + ["", "a"]
    patterns = [
        r"(.*\.)?(q_proj)$",
        r"(.*\.)?(layers\.1.*)$",
        r"(.*\.)?(^model.*(q|k)_proj)$",
        REAL_TARGETS,
        "",
        r"\bmodel",
    ]
    expected = [[bool(re.match(pattern, name)) for name in names] for pattern in patterns]
    assert file_patterns.match_all(patterns, names) == expected
    for pattern, row in zip(patterns, expected, strict=True):  # some of them without a process of their own
        assert file_patterns.match_all([pattern], names) == [row]
    edit_json(folder / "adapter_config.json", target_modules=REAL_TARGETS)
    assert len(read_adapter(folder).delta) == 6


def test_unknown_options_that_are_off_are_accepted(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", use_something_new=False, other_config=None)
    assert read_adapter(folder).delta


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


KEY = f"base_model.model.{QUERY}.lora_B.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(KEY), rf"lacks lora_B of {QUERY}"),
        (lambda t: t.pop(KEY.replace("_B", "_A")), "lacks lora_A"),
        (lambda t: t.update({KEY: t[KEY][:, :3].contiguous()}), "rank 4"),
        (lambda t: t.update({KEY: t[KEY].reshape(-1)}), "rank 4"),
        (lambda t: t.update({KEY: t[KEY] * float("nan")}), "not finite"),
        (lambda t: t.update({"stray": t[KEY].clone()}), "stray"),
        (lambda t: t.update({"base_model.model.model.embed_tokens.weight": t[KEY].clone()}), "resized embedding"),
        (lambda t: t.clear(), "no module"),
    ],
)
def test_tensors_that_do_not_belong_are_refused(folder: Path, edit: Any, message: str) -> None:
    edit_tensors(folder, edit)
    with pytest.raises(AdapterError, match=message):
        read_adapter(folder)


def test_missing_and_damaged_files_are_refused(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(AdapterError, match="truncated"):
        read_adapter(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"pickle.*safe_serialization"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_bytes(b"\xff{")
    with pytest.raises(AdapterError, match="not JSON"):
        read_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        read_adapter(folder)


def save_base(folder: Path, **options: Any) -> Path:
    tiny_llama(**options).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_adapter_fits_its_own_base_only(folder: Path, tmp_path: Path) -> None:
    adapter = read_adapter(folder)
    check_fits(adapter, open_checkpoint(save_base(tmp_path / "base")))
    with pytest.raises(AdapterError, match=r"another base.*2 of 6"):
        check_fits(adapter, open_checkpoint(save_base(tmp_path / "shallow", num_hidden_layers=2)))
    with pytest.raises(AdapterError, match=r"another base.*\[24, 24\] in the adapter and \[24, 48\] in the base"):
        check_fits(adapter, open_checkpoint(save_base(tmp_path / "wide", hidden_size=48)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
config_keys = st.sampled_from(
    ["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights",
     "base_model_name_or_path", "use_dora", "modules_to_save", "layers_to_transform", "target_modules", "task_type"]
)  # fmt: skip
patterns = st.dictionaries(st.text(alphabet="q_proj.*()[]{}\\^$+?|1", max_size=8), json_values, max_size=3)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fuzzed")
    save_adapter(folder, tiny_llama())
    return folder, json.loads((folder / "adapter_config.json").read_text())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.dictionaries(config_keys, json_values | patterns, max_size=3))
@example({"rank_pattern": {"a{99999999999}": 4}})
@example({"rank_pattern": {"(" * 2000 + ")" * 2000: 4}})
@example({"bias": ["none"]})
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of odd regular expressions
def test_any_change_of_the_config_gives_an_adapter_or_its_error(
    fuzzed: tuple[Path, dict[str, Any]], changes: dict[str, Any]
) -> None:
    folder, config = fuzzed
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    try:
        assert isinstance(read_adapter(folder), LoraAdapter)
    except AdapterError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


@settings(max_examples=100, deadline=None, derandomize=True)
@given(json_values.map(json.dumps) | st.text())
@example("[" * 100_000)
@example("1" * 10_000)
def test_any_text_as_the_config_gives_its_error(fuzzed: tuple[Path, dict[str, Any]], text: str) -> None:
    folder, _ = fuzzed
    (folder / "adapter_config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(AdapterError):
        read_adapter(folder)
