from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from pad_export.plan import make_plan
from pad_export.read.checkpoint import open_checkpoint
from pad_export.read.tokenizer.check import awkward_texts, check_tokenizer
from pad_export.read.tokenizer.plain_tokenizer import PlainSentencePiece
from pad_export.read.tokenizer.sentencepiece_vocabulary import SentencePieceVocabulary
from pad_runtime.errors import CheckpointError, TokenizerMismatchError
from tests.support import tiny_sentencepiece
from tests.support.error_checks import refused
from tests.support.tiny_sentencepiece import SCORES, TOKENS, ids

texts = st.text(
    st.one_of(st.sampled_from("▁  thegaacfINST[]\n.é東"), st.characters(exclude_categories=["Cs"])), max_size=40
)

# By hand: always the pair whose token has the best score, and that is the one named first in tiny_sentencepiece.
WITH_PREFIX = {
    "the": ["▁the"],
    " the": ["▁", "▁the"],
    "  the": ["▁▁", "▁the"],
    "    the": ["▁▁▁▁", "▁the"],
    "the egg": ["▁the", "▁", "egg"],
    " ": ["▁▁"],
    "a": ["▁", "a"],
    "\n": ["▁", "<0x0A>"],
    "aaaa": ["▁", "aa", "aa"],
    "<s>the": ["<s>", "▁the"],
    "<s>[INST] the [/INST]": ["<s>", "▁[", "INST", "]", "▁the", "▁[", "/", "INST", "]"],
    "the</s> the": ["▁the", "</s>", "▁", "▁the"],
    "caf\u00e9": ["▁caf", "é"],
    "🙂": ["▁", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"],
}  # fmt: skip
WITHOUT_PREFIX = {
    "the": ["t", "he"],
    " the": ["▁the"],
    "  the": ["▁", "▁the"],
    "<s>the": ["<s>", "t", "he"],
    "</s> the": ["</s>", "▁the"],
}


def make_gguf(path: Path, **options: Any) -> Path:
    """A llama file with this vocabulary and next to no model."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_block_count(1)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(16)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    tiny_sentencepiece.add_to_gguf(writer, **options)
    sizes = {
        "vocab_size": len(TOKENS), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": True,
    }  # fmt: skip
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, value in LlamaForCausalLM(LlamaConfig(**sizes)).state_dict().items():
        if name != "lm_head.weight":
            stem, _, suffix = name.rpartition(".")
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_folder(folder: Path, **options: Any) -> Path:
    """A Hugging Face folder that has tokenizer.model alone."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS) + 8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "legacy": false}')
    tiny_sentencepiece.write_model_file(folder / "tokenizer.model", **options)
    return folder


def encode(backend: Any, text: str) -> list[int]:
    return list(backend.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(("prefix", "cases"), [(None, WITH_PREFIX), (True, WITH_PREFIX), (False, WITHOUT_PREFIX)])
def test_a_gguf_vocabulary_is_read_as_llama_cpp_reads_it(
    tmp_path: Path, prefix: bool | None, cases: dict[str, list[str]]
) -> None:
    checkpoint = open_checkpoint(make_gguf(tmp_path / "m.gguf", add_space_prefix=prefix))
    backend = checkpoint.tokenizer.backend
    for text, tokens in cases.items():
        assert encode(backend, text) == ids(*tokens), text
    assert backend.encode("the").ids[0] == 1  # BOS, which such files do not ask for in so many words
    for text in awkward_texts():
        assert backend.decode(encode(backend, text)) == text.replace("▁", " ")
    (line,) = check_tokenizer(checkpoint.tokenizer, checkpoint.path, len(TOKENS))
    assert re.fullmatch(r"tokenizer: \d+ texts and 3 added tokens encoded and decoded as by plain Python .*", line)


@settings(deadline=None)
@given(text=texts, prefix=st.booleans())
def test_the_fast_tokenizer_and_the_plain_one_agree(text: str, prefix: bool) -> None:
    backend, plain = BUILT[prefix]
    found = encode(backend, text)
    assert found == plain.encode(text)
    assert backend.decode(found, skip_special_tokens=False) == plain.decode(found)


def test_with_scores_turned_round_they_differ() -> None:
    """Negative control: the order of the scores is what decides."""
    turned = replace(tiny_sentencepiece.vocabulary(add_space_prefix=True), scores=tuple(-score for score in SCORES))
    assert PlainSentencePiece(turned).encode("aaaa") == ids("▁", "aaa", "a") != encode(BUILT[True][0], "aaaa")


@pytest.mark.parametrize("prefix", [True, False])
def test_a_folder_with_tokenizer_model_alone(tmp_path: Path, prefix: bool) -> None:
    folder = make_folder(tmp_path / "m", add_dummy_prefix=prefix)
    (folder / "added_tokens.json").write_text(f'{{"<tool>": {len(TOKENS)}}}')
    checkpoint = open_checkpoint(folder)
    backend = checkpoint.tokenizer.backend
    for text, tokens in (WITH_PREFIX if prefix else WITHOUT_PREFIX).items():
        assert encode(backend, text) == ids(*tokens), text
    assert backend.encode("the").ids[0] == 1
    assert encode(backend, "a<tool> the")[-2 - prefix] == len(TOKENS)
    (line,) = check_tokenizer(checkpoint.tokenizer, folder, checkpoint.config.vocab_size)
    assert line.endswith("4 added tokens encoded and decoded as by plain Python from tokenizer.model")


def test_user_defined_pieces_are_matched_whole(tmp_path: Path) -> None:
    """As sentencepiece does: the longest first, runs of spaces among them, and nothing is joined to one."""
    pieces = ("▁▁▁", "▁▁▁▁▁", "<tool>", "\n\n")
    folder = make_folder(tmp_path / "m", add_dummy_prefix=False, user_defined=pieces)
    checkpoint = open_checkpoint(folder)
    three, five, tool, newlines = range(len(TOKENS), len(TOKENS) + 4)
    for text, expected in {
        "   the": [three, *ids("t", "he")],
        "      the": [five, *ids("▁the")],
        "a<tool> the\n\n\n": [*ids("a"), tool, *ids("▁the"), newlines, *ids("<0x0A>")],
    }.items():
        assert encode(checkpoint.tokenizer.backend, text) == expected
        assert checkpoint.tokenizer.backend.decode(expected) == text
    (line,) = check_tokenizer(checkpoint.tokenizer, folder, checkpoint.config.vocab_size)
    assert "7 added tokens" in line


def test_spaces_in_tokens_do_not_set_two_models_apart(tmp_path: Path) -> None:
    """GGUF and tokenizer.model give "   " where a tokenizer.json of the same model has "▁▁▁"."""
    base = make_folder(tmp_path / "base", add_dummy_prefix=False, user_defined=("▁▁▁",))
    written = open_checkpoint(base).tokenizer.backend.to_str()
    other = Path(shutil.copytree(base, tmp_path / "other"))
    (other / "tokenizer.model").unlink()
    (other / "tokenizer.json").write_text(written.replace('"   "', '"▁▁▁"'), encoding="utf-8")
    assert make_plan(base, [other], topology="pair").topology == "pair"
    (other / "tokenizer.json").write_text(written.replace('"   "', '"▁▁▁▁▁▁▁"'), encoding="utf-8")
    with refused(TokenizerMismatchError, given="in 1 of "):
        make_plan(base, [other], topology="pair")


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"user_defined": ("<tool>",)}, "user-defined pieces that puts a space before text"),
        ({"model_type": 1}, "does not join byte pairs"),
        ({"charsmap": b"nmt"}, "normalises text"),
        ({"remove_spaces": True}, "normalises text"),
    ],
)
def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path: Path, options: dict[str, Any], given: str) -> None:
    checkpoint = open_checkpoint(make_folder(tmp_path / "m", **options))
    with refused(CheckpointError, given=given, expected="tokenizer.json", hint="pip install sentencepiece protobuf"):
        checkpoint.vocabulary()


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x0a\xff", b"IQ== 0\nIg== 1\n", b"\x0a\x03abc", b"\xff" * 40])
def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path, data: bytes) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "tokenizer.model").write_bytes(data)
    with refused(CheckpointError, given="is no sentencepiece model", expected="tokenizer.json", hint="pip install"):
        open_checkpoint(folder).vocabulary()


def _built(prefix: bool) -> tuple[Any, PlainSentencePiece]:
    vocabulary: SentencePieceVocabulary = tiny_sentencepiece.vocabulary(add_space_prefix=prefix)
    return vocabulary.build(), PlainSentencePiece(vocabulary)


BUILT = {prefix: _built(prefix) for prefix in (True, False)}
