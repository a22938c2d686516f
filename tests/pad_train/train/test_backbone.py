from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from pad_export.read.checkpoint import open_checkpoint
from pad_export.read.persrm import PROMPT_TEMPLATE
from pad_rt.text.chat_template import ChatTemplate
from pad_rt.text.prompt import PromptEncoder
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.errors import CheckpointError, DataError
from pad_train.train.backbone import DTYPES, Backbone, load_backbone, native_dtype
from tests.support import tiny_models, tiny_tokenizers
from tests.support.error_checks import refused

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "the egg"},
    {"role": "assistant", "content": "boils"},
    {"role": "user", "content": "why? {x} {p} { }"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "base"
    tiny_models.make_base(folder, "llama", seed=1)
    return folder


def load(folder: Path) -> Backbone:
    return load_backbone(open_checkpoint(folder), dtype=torch.float32)


def runtime_encoder(folder: Path, *, chat: bool) -> PromptEncoder:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = Tokenizer(folder / "tokenizer.json", **special)
    return PromptEncoder(tokenizer, ChatTemplate(tiny_models.CHAT_TEMPLATE, **special) if chat else None)


@pytest.mark.parametrize("preference", [None, "kind, {x} or {p}"])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("make_tokenizer", [tiny_tokenizers.byte_level, tiny_tokenizers.llama2])
def test_prompts_are_encoded_as_the_runtime_does(
    base: Path, tmp_path: Path, make_tokenizer: type, chat: bool, preference: str | None
) -> None:
    tokenizer: tokenizers.Tokenizer = make_tokenizer()
    tiny_models.save_tokenizer(tokenizer, tmp_path, chat_template=tiny_models.CHAT_TEMPLATE if chat else None)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    backbone = load(tmp_path)
    encoder = runtime_encoder(tmp_path, chat=chat)
    texts = ["the egg, naïve café 東京", "a {x} b {p} c", " two  spaces "]
    for messages in [[{"role": "user", "content": text}] for text in texts] + ([CHAT] if chat else []):
        prompt = messages if chat else messages[0]["content"]
        expected = encoder.encode_reward(prompt, preference, PROMPT_TEMPLATE)
        assert backbone.encode_prompt(messages, preference) == expected
        assert (expected == encoder.encode(prompt)) == (preference is None)
        assert expected.count(backbone.tokenizer.bos_token_id) == 1


def test_a_prompt_is_not_changed_by_its_encoding(base: Path) -> None:
    backbone = load(base)
    messages = [dict(CHAT[1])]
    assert "kind" in backbone.tokenizer.decode(backbone.encode_prompt(messages, "kind"))
    assert messages == CHAT[1:2]


def test_turns_that_the_chat_template_refuses(base: Path) -> None:
    backbone = load(base)
    backbone.tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with refused(DataError, given="the chat template refuses (Roles must alternate)", expected="a chat"):
        backbone.encode_prompt(CHAT)


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("gemma2", None)])
@torch.no_grad()
def test_the_model_and_the_candidates_logits(tmp_path: Path, family: str, tied: bool | None) -> None:
    original = tiny_models.make_base(tmp_path / "base", family, seed=1, tied=tied)
    backbone = load(tmp_path / "base")
    ids = torch.tensor([[5, 6, 40, 7]])
    expected = original(ids).logits
    hidden = backbone.model.model(ids).last_hidden_state
    torch.testing.assert_close(backbone.logits(hidden), expected)
    candidates = torch.tensor([[[3, 5], [0, 1], [9, 9], [30, 2]]])
    torch.testing.assert_close(backbone.candidate_logits(hidden, candidates), expected.gather(-1, candidates))
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    if family == "gemma2":
        assert not torch.allclose(backbone.model.lm_head(hidden), expected)  # its logits are capped


def test_an_lm_head_that_the_configuration_calls_tied(base: Path, tmp_path: Path) -> None:
    tiny_models.make_base(tmp_path / "base", "llama", seed=1, tied=False)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    stored = load_file(tmp_path / "base" / "model.safetensors")
    model = load(tmp_path / "base").model
    assert torch.equal(model.lm_head.weight, stored["lm_head.weight"])
    assert torch.equal(model.model.embed_tokens.weight, stored["model.embed_tokens.weight"])


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_tensors_that_are_not_as_configured(base: Path, tmp_path: Path, change: str) -> None:
    for path in base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "shape":
        tensors[name] = tensors[name][1:].clone()
    else:
        value = tensors.pop(name)
        if change == "unexpected":
            tensors |= {name: value, "model.layers.1.mlp.up_proj.bias": value[:, 0].clone()}
            name = "model.layers.1.mlp.up_proj.bias"
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with refused(CheckpointError, given=f"tensor {name} is not as", hint="download"):
        load(tmp_path)


def test_a_base_whose_replies_never_end(base: Path, tmp_path: Path) -> None:
    for path in base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (tmp_path / name).exists():
            fields = json.loads((tmp_path / name).read_text())
            fields.pop("eos_token", None)
            (tmp_path / name).write_text(json.dumps({**fields, "eos_token_id": None} if "config" in name else fields))
    with refused(CheckpointError, given="names no token that ends a reply", hint="config.json"):
        load(tmp_path)


def test_bf16(base: Path) -> None:
    backbone = load_backbone(open_checkpoint(base), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.bfloat16}
    assert (
        backbone.logits(torch.zeros(1, backbone.model.config.hidden_size, dtype=torch.bfloat16)).dtype == torch.float32
    )


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"avx2": True, "avx512_bf16": True}, "bf16"),
        ({"num_sockets": 1, "bf16": True}, "bf16"),
    ],
)
def test_the_type_that_the_machine_multiplies(
    base: Path, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], expected: str
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert native_dtype() == expected
    assert load_backbone(open_checkpoint(base)).model.dtype == DTYPES[expected]


def test_a_gpu_multiplies_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": False})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert native_dtype() == "bf16"
