"""Metadata of a GGUF file: what is read, and every value that is refused by the name of its key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as Type
from gguf.gguf_writer import GGUFValue

from pad_export.read.checkpoint import open_checkpoint
from pad_export.read.gguf.config import ARCHITECTURES
from pad_export.read.gguf.metadata import GgufMetadata
from pad_export.read.spec import FAMILIES
from pad_runtime.errors import CheckpointError
from tests.support import tiny_models
from tests.support.error_checks import refused
from tests.support.tiny_gguf import Extend, write_gguf


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model of each family that a GGUF architecture is."""
    folder = tmp_path_factory.mktemp("models")
    return {family: tiny_models.make_base(folder / family, family, seed=1) for family in tiny_models.FAMILIES}


def setting(key: str, value: Any, kind: Type) -> Extend:
    """Put a value in the place of what the writer said."""
    sub_type = Type.INT32 if kind == Type.ARRAY else None
    return lambda writer: writer.kv_data[0].update({key: GGUFValue(value=value, type=kind, sub_type=sub_type)})


def dropping(key: str) -> Extend:
    return lambda writer: writer.kv_data[0].pop(key)


SIZES = (
    "context_length", "block_count", "feed_forward_length", "embedding_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
)  # fmt: skip


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [0, 2**31, 2**63, 2**64 - 1])
def test_no_size_is_believed(models: dict[str, Any], key: str, value: int, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", models["llama"], extend=setting(f"llama.{key}", value, Type.UINT64))
    with refused(CheckpointError, given=f"llama.{key} = {value}"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_count", 3), ("block_count", 2**31 - 1), ("feed_forward_length", 2**31 - 1), ("embedding_length", 60),
     ("attention.head_count", 3 * 2**20), ("attention.key_length", 32)],
)  # fmt: skip
def test_a_size_that_the_tensors_do_not_have(models: dict[str, Any], key: str, value: int, tmp_path: Path) -> None:
    def extend(writer: gguf.GGUFWriter) -> None:
        setting(f"llama.{key}", value, Type.UINT32)(writer)
        if key == "attention.key_length":
            for other in ("attention.value_length", "rope.dimension_count"):
                setting(f"llama.{other}", value, Type.UINT32)(writer)

    with refused(CheckpointError, given="lacks" if key == "block_count" else "of the shape"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", models["llama"], extend=extend))


@pytest.mark.parametrize("key", [*SIZES, "attention.layer_norm_rms_epsilon", "rope.freq_base"])
def test_a_string_or_an_array_is_no_number(models: dict[str, Any], key: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with refused(CheckpointError, given=f"llama.{key} = four"):
        open_checkpoint(
            write_gguf(path, models["llama"], extend=setting(f"llama.{key}", "four", Type.STRING)),
        )
    with refused(CheckpointError, given=f"llama.{key} = array of 2 INT32", expected="one value for all layers"):
        open_checkpoint(write_gguf(path, models["llama"], extend=setting(f"llama.{key}", [2, 2], Type.ARRAY)))
    with refused(CheckpointError, given=f"llama.{key} = "):
        open_checkpoint(write_gguf(path, models["llama"], extend=setting(f"llama.{key}", float("nan"), Type.FLOAT32)))


@pytest.mark.parametrize(
    "key", ["context_length", "block_count", "feed_forward_length", "embedding_length", "attention.head_count",
            "attention.layer_norm_rms_epsilon", "rope.freq_base"]
)  # fmt: skip
def test_what_is_missing_is_named(models: dict[str, Any], key: str, tmp_path: Path) -> None:
    for family, architecture in (("qwen2", "qwen2"), ("gemma3_text", "gemma3")):
        path = write_gguf(tmp_path / "m.gguf", models[family], extend=dropping(f"{architecture}.{key}"))
        with refused(CheckpointError, given=f"lacks {architecture}.{key}", hint="download it again"):
            open_checkpoint(path)


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gemma2"])
def test_the_rotary_base_that_these_converters_do_not_write(
    models: dict[str, Any], architecture: str, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.gguf"
    write_gguf(plain, models[architecture], extend=setting(f"{architecture}.rope.freq_base", 500.0, Type.FLOAT32))
    assert open_checkpoint(plain).config.rope_parameters["rope_theta"] == 500.0
    write_gguf(plain, models[architecture], extend=dropping(f"{architecture}.rope.freq_base"))
    assert open_checkpoint(plain).config.rope_parameters["rope_theta"] == 10000.0


# family, what is written, the refusal
LOST: dict[str, tuple[str, Callable[[gguf.GGUFWriter], None], str]] = {
    "split": ("llama", lambda w: w.add_uint16("split.count", 3), "split.count = 3"),
    "adapter": ("llama", lambda w: w.add_type("adapter"), "general.type = adapter"),
    "projector": ("gemma3_text", lambda w: w.add_type("mmproj"), "general.type = mmproj"),
    "experts": ("llama", lambda w: w.add_expert_count(8), "llama.expert_count = 8"),
    "embedding model": ("qwen3", lambda w: w.add_pooling_type(gguf.PoolingType.LAST), "qwen3.pooling_type = 3"),
    "bidirectional": ("gemma3_text", lambda w: w.add_causal_attention(False), "gemma3.attention.causal = False"),
    "granite's scale": ("llama", lambda w: w.add_attention_scale(0.01), "llama.attention.scale = "),
    "granite's embedding": ("llama", lambda w: w.add_embedding_scale(12.0), "llama.embedding_scale = 12.0"),
    "granite's residual": ("llama", lambda w: w.add_residual_scale(0.2), "llama.residual_scale = "),
    "granite's logits": ("llama", lambda w: w.add_logit_scale(8.0), "llama.logit_scale = 8.0"),
    "part of the head rotated": ("qwen3", lambda w: w.add_rope_dimension_count(8), "qwen3.rope.dimension_count = 8"),
    "values of another width": (
        "gemma", setting("gemma.attention.value_length", 8, Type.UINT32), "gemma.attention.value_length = 8"
    ),
    "window of qwen2": ("qwen2", lambda w: w.add_sliding_window(16), "qwen2.attention.sliding_window = 16"),
    "window of gemma": ("gemma", lambda w: w.add_sliding_window(16), "gemma.attention.sliding_window = 16"),
    "capped scores of gemma3": (
        "gemma3_text", lambda w: w.add_attn_logit_softcapping(50.0), "gemma3.attn_logit_softcapping = 50.0"
    ),
    "local rope of gemma2": (
        "gemma2", lambda w: w.add_float32("gemma2.rope.freq_base_swa", 1e6), "gemma2.rope.freq_base_swa = 1000000.0"
    ),
    "pattern of fewer layers": (
        "gemma3_text", lambda w: w.add_sliding_window_pattern([True]), "sliding_window_pattern = [True]"
    ),
    "pattern of numbers": (
        "gemma3_text", lambda w: w.add_array("gemma3.attention.sliding_window_pattern", [1, 0]), "= array of 2 INT32"
    ),
    "longrope": (
        "llama", lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "rope.scaling.type = longrope"
    ),
    "yarn without a factor": (
        "qwen2", lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "lacks qwen2.rope.scaling.factor"
    ),
    "yarn's attention": (
        "qwen2", lambda w: w.add_float32("qwen2.rope.scaling.yarn_attn_factor", 1.2), "yarn_attn_factor = "
    ),
    "a factor on attention": ("qwen2", lambda w: w.add_rope_scaling_attn_factors(1.2), "rope.scaling.attn_factor = "),
    "factors for qwen2": (
        "qwen2", lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32)), "the tensor rope_freqs.weight"
    ),
    "ollama's local rope": (
        "gemma3_text", lambda w: w.add_float32("gemma3.rope.local.freq_base", 1e4), "gemma3.rope.local.freq_base"
    ),
    "a key that nobody knows": ("llama", lambda w: w.add_string("llama.new_feature", "on"), "llama.new_feature = on"),
    "an unknown tensor": (
        "gemma3_text", lambda w: w.add_tensor("v.blk.0.odd.weight", np.ones(4, np.float32)), "v.blk.0.odd.weight"
    ),
    "a bias on a norm": (
        "llama", lambda w: w.add_tensor("blk.0.attn_norm.bias", np.ones(84, np.float32)), "blk.0.attn_norm.bias"
    ),
    "a bias on gemma's query": (
        "gemma", lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(96, np.float32)), "blk.0.attn_q.bias"
    ),
    "an id that is none": (
        "qwen2", lambda w: w.add_string("tokenizer.ggml.padding_token_id", "x"), "padding_token_id = x"
    ),
    "an end that is none": (
        "qwen2", setting("tokenizer.ggml.eot_token_id", -1, Type.INT32), "eot_token_id = -1"
    ),
    "more tokens than embeddings": (
        "llama",
        lambda w: w.kv_data[0].update(
            {"tokenizer.ggml.tokens": GGUFValue(["a"] * 500, Type.ARRAY, Type.STRING)}
        ),
        "500 tokens and embeddings of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LOST)
def test_what_would_be_lost_is_refused_by_name(models: dict[str, Any], what: str, tmp_path: Path) -> None:
    family, extend, words = LOST[what]
    with refused(CheckpointError, given=words):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", models[family], extend=extend))


HARMLESS: dict[str, Extend] = {
    "no experts": lambda w: w.add_expert_count(0),
    "causal": lambda w: w.add_causal_attention(True),
    "window as long as the context": lambda w: w.add_sliding_window(256),
    "no scaling": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.NONE),
    "a factor of 1": lambda w: w.add_rope_scaling_factor(1.0),
    "a factor that type none switches off": lambda w: (
        w.add_rope_scaling_type(gguf.RopeScalingType.NONE), w.add_rope_scaling_factor(8.0)
    ),
    "what early converters wrote": lambda w: w.add_parallel_residual(True),
    "another size of the vocabulary": setting("llama.vocab_size", 32000, Type.UINT32),
    "Meta's layout": lambda w: w.add_tensor_data_layout("Meta AI original pth"),
    "finetuned": lambda w: w.add_rope_scaling_finetuned(False),
    "one part": lambda w: w.add_uint16("split.count", 1),
    "what is said of a quantisation": lambda w: w.add_string("quantize.imatrix.file", "some.dat"),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS)
def test_what_changes_nothing_passes(models: dict[str, Any], what: str, tmp_path: Path) -> None:
    plain = open_checkpoint(write_gguf(tmp_path / "plain.gguf", models["llama"])).config.to_dict()
    path = write_gguf(tmp_path / "m.gguf", models["llama"], extend=HARMLESS[what])
    assert open_checkpoint(path).config.to_dict() == plain


def test_other_architectures_are_refused_with_the_list(models: dict[str, Any], tmp_path: Path) -> None:
    for name in ("gpt2", "mistral3", "gemma3n", "qwen3moe", "llama4"):
        path = write_gguf(tmp_path / "m.gguf", models["llama"], architecture=name)
        with refused(CheckpointError, given=f"the architecture {name!r}", expected=", ".join(ARCHITECTURES)):
            open_checkpoint(path)


def test_every_family_of_a_folder_is_an_architecture() -> None:
    assert {*ARCHITECTURES.values(), "mistral"} == set(FAMILIES)  # Mistral's files are llama's, with a window or none


def test_a_rope_that_is_not_llama3s_is_refused(models: dict[str, Any], tmp_path: Path) -> None:
    for factors, words in (
        (np.linspace(1, 4, 8, dtype=np.float32), "rope_freqs.weight = "),
        (np.ones(5, np.float32), "attention.key_length = 16"),
        (np.full(8, np.nan, np.float32), "rope_freqs.weight = "),
    ):
        path = write_gguf(
            tmp_path / "m.gguf", models["llama"], extend=lambda w, f=factors: w.add_tensor("rope_freqs.weight", f)
        )
        with refused(CheckpointError, given=words):
            open_checkpoint(path)


@pytest.mark.parametrize("index", [357, 2**31, 2**32 - 1])
def test_an_id_that_no_token_has_is_none(tmp_path: Path, index: int) -> None:
    """As llama.cpp takes it: files without padding have the largest number there."""
    field = SimpleNamespace(count=None, contents=lambda: index)
    metadata = GgufMetadata(tmp_path / "m.gguf", {"tokenizer.ggml.padding_token_id": field}, "")
    assert metadata.token("tokenizer.ggml.padding_token_id", below=357) is None
    assert metadata.token("tokenizer.ggml.eos_token_id", below=357) is None
