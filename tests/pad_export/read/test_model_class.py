"""Models whose head cannot weigh tokens are refused, whatever they are called; what is said of their use is true."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from pad_export.export import export_bundle
from pad_export.read import checkpoint, model_class, tensor_names
from pad_export.read.adapter import read_adapter
from pad_export.read.checkpoint import open_checkpoint
from pad_export.read.persrm import read_persrm
from pad_export.verify import verify
from pad_runtime.errors import AdapterError, CheckpointError, OptionError, VerificationError
from pad_train.pairs.scorer import load_scorer
from tests.support import tiny_models, tiny_tokenizers, whole_export
from tests.support.error_checks import refused

SCORER = "a score head cannot weigh tokens, but it can rank replies: "
CAUSAL = "a causal language model (...ForCausalLM)"


def make(folder: Path, kind: str, *, seed: int = 3, **config: Any) -> Any:
    """A tiny llama of any of transformers' classes, with the tiny models' tokenizer."""
    tokenizer = tiny_tokenizers.byte_level()
    sizes = {
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
        "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3, "tie_word_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(transformers.LlamaConfig(**{**sizes, **config})).eval()
    model.save_pretrained(folder)
    tiny_models.save_tokenizer(tokenizer, folder)
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, changes: dict[str, torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    safetensors.torch.save_file({**safetensors.torch.load_file(file), **changes}, file, metadata={"format": "pt"})


# -- what config.json says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_is_refused_and_works_as_the_scorer_that_is_named(tmp_path: Path, tied: bool) -> None:
    """With tied embeddings its decoder alone would make a language model of nothing that the reward was trained for."""
    rewards = tmp_path / "rm"
    model = make(rewards, "LlamaForSequenceClassification", num_labels=1, tie_word_embeddings=tied)
    base = tmp_path / "base"
    make(base, "LlamaForCausalLM")
    for paths in ((base, [rewards]), (rewards, [])):
        with pytest.raises(CheckpointError) as caught:
            export_bundle(paths[0], tmp_path / "bundle", persrms=paths[1])
        assert str(caught.value) == (
            f"{rewards} is a LlamaForSequenceClassification; expected {CAUSAL}; {SCORER}"
            f'"hf:{rewards}" is the scorer of a feature for `pad-train pairs`'
        )
    scores = load_scorer(caught.value.hint.split('"')[1])(["the egg", "the egg"], ["boils", "the cook sits"])
    ids = tiny_tokenizers.byte_level().encode("<s><|user|>the egg<|assistant|>boils", add_special_tokens=False).ids
    model.config.pad_token_id = 1
    assert scores[0] == pytest.approx(model(torch.tensor([ids])).logits.item(), abs=1e-4)
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize(
    ("architecture", "hint"),
    [
        ("LlamaForTokenClassification", f"{SCORER}wrap it in a Python callable"),
        ("GemmaForSequenceClassification", f"{SCORER}wrap it in a Python callable"),  # of two labels, as by default
        ("LlamaForQuestionAnswering", f"{SCORER}wrap it in a Python callable"),
        ("LlamaForRewardModelWithGating", f"{SCORER}wrap it in a Python callable"),
        ("RewardModel", f"{SCORER}wrap it in a Python callable"),
        ("LlamaModelForScore", f"{SCORER}wrap it in a Python callable"),
        ("LLMForSequenceRegression", f"{SCORER}wrap it in a Python callable"),
        ("AutoModelForCausalLMWithValueHead", f"{SCORER}wrap it in a Python callable"),
        ("LlamaModel", "give the causal language model that it was taken from"),
        ("Gemma3TextModel", "give the causal language model that it was taken from"),
        ("BertModel", "give the causal language model that it was taken from"),
        ("BertForMaskedLM", "give a causal language model, or train the PersRM with pad-train"),
        (7, ""),
    ],
)
def test_other_classes_are_refused_by_name(tmp_path: Path, architecture: Any, hint: str) -> None:
    with refused(CheckpointError, given=str(architecture), hint=hint):
        model_class.check_architectures(tmp_path, {"architectures": [architecture]})


@pytest.mark.parametrize(
    "architectures", [None, [], ["LlamaForCausalLM"], "LlamaForCausalLM", ["Gemma3ForConditionalGeneration"]]
)
def test_language_models_go_on(tmp_path: Path, architectures: Any) -> None:
    model_class.check_architectures(tmp_path, {"architectures": architectures})


@pytest.mark.parametrize("architectures", [["LlamaModel"], None, ["LlamaForCausalLM"]])
def test_a_decoder_alone_is_refused(tmp_path: Path, architectures: list[str] | None) -> None:
    """AutoModel saves no lm_head; with tied embeddings its names alone tell it from a language model."""
    make(tmp_path, "LlamaModel")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(bare, tmp_path / "model.safetensors")
    edit_config(tmp_path, architectures=architectures)
    with refused(CheckpointError, given="", expected="a causal language model", hint="that it was taken from"):
        open_checkpoint(tmp_path)


def test_an_untied_model_without_its_head(tmp_path: Path) -> None:
    make(tmp_path, "LlamaForCausalLM")
    edit_config(tmp_path, tie_word_embeddings=False)
    with refused(
        CheckpointError, given="has no lm_head.weight", hint="that it was taken from: loaded as one, it has a"
    ):
        open_checkpoint(tmp_path)


# -- every tensor is used, known, or named --------------------------------------------------------------------------


@pytest.mark.parametrize("architectures", [["LlamaForCausalLM"], None])
def test_a_score_head_that_config_does_not_tell_of(tmp_path: Path, architectures: list[str] | None) -> None:
    make(tmp_path, "LlamaForSequenceClassification", num_labels=1)
    edit_config(tmp_path, architectures=architectures)
    with refused(CheckpointError, given="holds score.weight that nothing reads", hint="it can rank replies"):
        open_checkpoint(tmp_path)
    assert read_refusal(tmp_path).startswith(f"{tmp_path} holds score.weight")


def read_refusal(folder: Path) -> str:
    """What a checkpoint is refused with as a PersRM."""
    with pytest.raises(CheckpointError) as caught:
        read_persrm(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "hint"),
    [
        ("score.bias", "it can rank replies"),
        ("v_head.summary.weight", "save the v_head.* tensors as value_head.safetensors"),
        ("value_head.weight", "it can rank replies"),
        ("lm_head.bias", "with the configuration it was published with"),
        ("model.layers.2.mlp.up_proj.weight", "with the configuration it was published with"),
        ("model.layers.0.self_attn.q_norm.weight", "with the configuration it was published with"),
        ("model.layers.0.self_attn.masked_bias", "it can rank replies"),
        ("vision_tower.patch.weight", "it can rank replies"),  # beside no language_model. there are no towers
        ("stray", "it can rank replies"),
    ],
)
def test_tensors_that_nothing_reads_are_named(tmp_path: Path, tensor: str, hint: str) -> None:
    make(tmp_path, "LlamaForCausalLM")
    edit_tensors(tmp_path, {tensor: torch.ones(32, 32)})
    expected = "the tensors of a llama model of 2 layers with its lm_head"
    with refused(CheckpointError, given=f"holds {tensor} that nothing reads", expected=expected, hint=hint):
        open_checkpoint(tmp_path)


def test_a_scalar_value_head_among_the_weights_is_no_pad_head(tmp_path: Path) -> None:
    """As TRL saves it; splitting it off would lead to a scalar head, which is refused too."""
    make(tmp_path, "LlamaForCausalLM")
    edit_tensors(tmp_path, {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)})
    with refused(CheckpointError, given="and 1 more tensors that nothing reads", hint="it can rank replies"):
        open_checkpoint(tmp_path)


def test_known_leftovers(tmp_path: Path) -> None:
    """Rotary frequencies of old Llama checkpoints, and an lm_head that is the tied embedding once more."""
    model = make(tmp_path, "LlamaForCausalLM")
    before = open_checkpoint(tmp_path).names
    edit_tensors(
        tmp_path,
        {
            **{f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in range(2)},
            "lm_head.weight": model.lm_head.weight.detach().clone(),
        },
    )
    opened = open_checkpoint(tmp_path)
    assert opened.names == before | {"lm_head.weight"}
    assert opened.tied
    assert "verified against torch" in whole_export.run(tmp_path, tmp_path / "bundle")[-1]


def test_towers_of_a_multimodal_model(tmp_path: Path) -> None:
    """What reads images is left out; a score head beside it is not a tower."""
    make(tmp_path, "LlamaForCausalLM")
    file = tmp_path / "model.safetensors"
    text = {f"language_model.{name}": tensor for name, tensor in safetensors.torch.load_file(file).items()}
    towers = {"vision_tower.embed.weight": torch.ones(3), "multi_modal_projector.linear_1.weight": torch.ones(3)}
    safetensors.torch.save_file({**text, **towers}, file)
    assert "model.layers.1.mlp.up_proj.weight" in open_checkpoint(tmp_path).names
    safetensors.torch.save_file({**text, **towers, "score.weight": torch.ones(1, 32)}, file)
    with refused(CheckpointError, given="holds score.weight that nothing reads", hint="it can rank replies"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["Gemma3", "Llava"])
def test_the_text_model_of_a_whole_multimodal_checkpoint(tmp_path: Path, kind: str) -> None:
    """All tensors that transformers saves for it, towers included: each is used, or left out by both sides."""
    tokenizer = tiny_tokenizers.byte_level()
    text = {
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    images: dict[str, Any] = {"mm_tokens_per_image": 4, "boi_token_index": 4, "eoi_token_index": 5}
    if kind == "Llava":
        text, vision, images = {**text, "model_type": "llama"}, {**vision, "model_type": "clip_vision_model"}, {}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, image_token_index=3, **images
    )
    getattr(transformers, f"{kind}ForConditionalGeneration")(config).save_pretrained(tmp_path / "base")
    tiny_models.save_tokenizer(tokenizer, tmp_path / "base")
    assert "verified against torch" in whole_export.run(tmp_path / "base", tmp_path / "bundle")[-1]


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    make(tmp_path, "LlamaForCausalLM")
    edit_tensors(tmp_path, {"language_model.model.norm.weight": torch.ones(32)})
    with refused(CheckpointError, given="model.norm.weight", expected="one of them", hint="download"):
        open_checkpoint(tmp_path)


def test_verification_notices_what_the_reader_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reader's accounts as blind as they were, transformers' own loading still tells of the score head."""
    make(tmp_path / "rm", "LlamaForSequenceClassification", num_labels=1)
    monkeypatch.setattr(checkpoint, "check_architectures", lambda *_: None)
    monkeypatch.setattr(tensor_names, "LEFTOVERS", (*tensor_names.LEFTOVERS, re.compile(r"score\..*")))
    with pytest.raises(VerificationError) as caught:
        export_bundle(tmp_path / "rm", tmp_path / "bundle")
    assert str(caught.value) == (
        f"tensors that the torch model does not read: 1 differences from torch: base: score.weight of {tmp_path / 'rm'}"
    )
    monkeypatch.setattr(verify, "unread_tensors", lambda _: [])  # the control: nothing else would have
    export_bundle(tmp_path / "rm", tmp_path / "bundle")


# -- adapters -------------------------------------------------------------------------------------------------------


def save_lora(folder: Path, model: Any, **config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(r=2, **{"target_modules": ["q_proj"], **config}))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        adapted.save_pretrained(folder)
    return adapted


def edit_adapter(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_classifiers_lora_is_refused_and_works_as_the_hint_says(tmp_path: Path) -> None:
    """Merged into its own classifier it is a scorer, and no PersRM either."""
    model = make(tmp_path / "rm", "LlamaForSequenceClassification", num_labels=1)
    adapted = save_lora(tmp_path / "lora", model, task_type="SEQ_CLS").eval()
    hint = f'merge it into its own AutoModelForSequenceClassification: {SCORER}"hf:DIR" is the scorer of a feature'
    with refused(
        AdapterError,
        given="has the task_type 'SEQ_CLS'",
        expected="a LoRA of a causal language model (CAUSAL_LM)",
        hint=hint,
    ):
        read_adapter(tmp_path / "lora")
    ids = tiny_tokenizers.byte_level().encode("<s><|user|>the egg<|assistant|>boils", add_special_tokens=False).ids
    model.config.pad_token_id = 1
    expected = adapted(torch.tensor([ids])).logits.item()
    own = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    merged = PeftModel.from_pretrained(own, tmp_path / "lora").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tiny_models.save_tokenizer(tiny_tokenizers.byte_level(), tmp_path / "merged")
    scores = load_scorer(f"hf:{tmp_path / 'merged'}")(["the egg", "why?"], ["boils", "because"])
    assert scores[0] == pytest.approx(expected, abs=1e-4)
    assert "is a LlamaForSequenceClassification" in read_refusal(tmp_path / "merged")


def test_the_score_of_a_classifiers_lora_may_be_elsewhere(tmp_path: Path) -> None:
    model = make(tmp_path / "rm", "LlamaForSequenceClassification", num_labels=1)
    save_lora(tmp_path / "lora", model, task_type="SEQ_CLS")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({key: value for key, value in tensors.items() if "score" not in key}, file)
    edit_adapter(tmp_path / "lora", modules_to_save=None)
    with refused(AdapterError, given="has the task_type 'SEQ_CLS'", hint="AutoModelForSequenceClassification"):
        read_adapter(tmp_path / "lora")


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("TOKEN_CLS", "it can rank replies: wrap it in a Python callable"),
        ("QUESTION_ANS", "it can rank replies: wrap it in a Python callable"),
        ("FEATURE_EXTRACTION", "give a causal language model"),
        ("SEQ_2_SEQ_LM", "give a causal language model"),
        ("DIFFUSION", "give a causal language model"),
        (["CAUSAL_LM"], "give a causal language model"),
        (3, "give a causal language model"),
    ],
)
def test_other_tasks_are_refused(tmp_path: Path, task: Any, hint: str) -> None:
    with refused(AdapterError, given=f"has the task_type {task!r}", expected="(CAUSAL_LM)", hint=hint):
        model_class.check_task(tmp_path, {"task_type": task})


@pytest.mark.parametrize("config", [{}, {"task_type": None}, {"task_type": ""}, {"task_type": "CAUSAL_LM"}])
def test_loras_of_language_models_go_on(tmp_path: Path, config: dict[str, Any]) -> None:
    model_class.check_task(tmp_path, config)


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ({"modules_to_save": ["score"]}, "modules trained whole"),
        ({"target_modules": ["q_proj", "score"]}, "adapts score"),
    ],
)
def test_a_classifiers_lora_that_does_not_say_so(tmp_path: Path, config: dict[str, Any], given: str) -> None:
    """No hint leads to a merged model, which would have lost the score."""
    model = make(tmp_path / "rm", "LlamaForSequenceClassification", num_labels=1)
    save_lora(tmp_path / "lora", model, **config)
    with refused(AdapterError, given=given, hint="no language model here has score"):
        read_adapter(tmp_path / "lora")
    edit_adapter(tmp_path / "lora", modules_to_save=None)  # a score in the file is found all the same
    with refused(AdapterError, given="score", hint="it can rank replies"):
        read_adapter(tmp_path / "lora")


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["lm_head", "norm"]])
def test_what_a_merge_keeps_may_be_merged(tmp_path: Path, modules: list[str]) -> None:
    model = make(tmp_path / "base", "LlamaForCausalLM", tie_word_embeddings=False)
    save_lora(tmp_path / "lora", model, modules_to_save=modules)
    with refused(AdapterError, given="modules trained whole", hint="merge_and_unload() into the very weights"):
        read_adapter(tmp_path / "lora")


def test_a_lora_of_a_decoder_alone_goes_on_with_a_note(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make(base, "LlamaForCausalLM")
    save_lora(tmp_path / "lora", transformers.LlamaModel.from_pretrained(base))
    lines = whole_export.run(base, tmp_path / "bundle", tmp_path / "lora", verify=False)
    assert f"note: {tmp_path / 'lora'} was on a decoder without lm_head; taking it for a LoRA of {base}" in lines


def test_an_adapter_under_two_names(tmp_path: Path) -> None:
    save_lora(tmp_path / "lora", make(tmp_path / "base", "LlamaForCausalLM"))
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    copies = {key.replace("model.model.", "model."): value.clone() for key, value in tensors.items()}
    safetensors.torch.save_file({**tensors, **copies}, file)
    with refused(AdapterError, given="adapts a module under two names", hint="save it again"):
        read_adapter(tmp_path / "lora")
    default = {key.replace(".weight", ".default.weight"): value.clone() for key, value in tensors.items()}
    safetensors.torch.save_file({**tensors, **default}, file)
    with refused(AdapterError, given="twice", hint="save it again"):
        read_adapter(tmp_path / "lora")


# -- scorers --------------------------------------------------------------------------------------------------------


def test_a_language_model_is_no_scorer(tmp_path: Path) -> None:
    """transformers would give it a random score head."""
    make(tmp_path, "LlamaForCausalLM", num_labels=1)
    with refused(OptionError, given="has no score.weight", expected="a reward model folder, its score head included"):
        load_scorer(f"hf:{tmp_path}")


def test_a_scorer_without_padding(tmp_path: Path) -> None:
    """A padded batch is scored as its replies alone are, with a tokenizer that has a pad token or none at all."""
    model = make(tmp_path / "rm", "LlamaForSequenceClassification", num_labels=1)
    prompts, replies = ["the egg", "why?"], ["boils", "the cheerful cook boils the egg"]
    scores = load_scorer(f"hf:{tmp_path / 'rm'}")(prompts, replies)
    shutil.copytree(tmp_path / "rm", tmp_path / "padded")
    edit_tokenizer(tmp_path / "padded", pad_token="<|user|>")  # the model's config still names none
    padded = load_scorer(f"hf:{tmp_path / 'padded'}")(prompts, replies)
    assert padded == pytest.approx(scores, abs=1e-4)
    edit_tokenizer(tmp_path / "rm", eos_token=None)
    with refused(OptionError, given="a tokenizer without pad and eos token", expected="one of them"):
        load_scorer(f"hf:{tmp_path / 'rm'}")
    assert model.config.num_labels == 1


def edit_tokenizer(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
