"""Export's comparison of its tokenizer with other readings of the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pad_export.read.gguf.vocabulary import GgufVocabulary
from pad_export.read.tokenizer.check import awkward_texts, check_tokenizer
from pad_export.read.tokenizer.checkpoint_tokenizer import (
    CheckpointTokenizer,
    load_folder_tokenizer,
    load_gguf_tokenizer,
)
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.errors import CheckpointError
from tests.support import tiny_tokenizers
from tests.support.error_checks import refused

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROWS = 1000
NUM_TEXTS = len(awkward_texts())


def split(regex: str, **parts: Any) -> tokenizers.Tokenizer:
    """Llama 3 and Qwen: a regular expression before the bytes."""
    tokenizer = tiny_tokenizers.byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def metaspace(scheme: Any) -> tokenizers.Tokenizer:
    tokenizer = tiny_tokenizers.metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme, split=False)]
    )
    return tokenizer


FORMS: dict[str, tuple[Callable[[], tokenizers.Tokenizer], str]] = {
    "GPT-2": (tiny_tokenizers.byte_level, "GPT2Tokenizer"),
    "Llama 3": (lambda: split(LLAMA3), "PreTrainedTokenizerFast"),
    "Llama 3 distilled": (lambda: split(LLAMA3), "LlamaTokenizerFast"),
    "Qwen 2": (lambda: split(LLAMA3.replace("{1,3}", ""), normalizer=normalizers.NFC()), "Qwen2Tokenizer"),
    "Llama 2": (tiny_tokenizers.llama2, "LlamaTokenizer"),
    "TinyLlama": (tiny_tokenizers.llama2, "LlamaTokenizerFast"),
    "Mistral": (lambda: metaspace("first"), "LlamaTokenizer"),
    "Mistral 0.1": (lambda: metaspace("always"), "LlamaTokenizerFast"),
    "Yi": (lambda: metaspace("never"), "LlamaTokenizer"),
    "Gemma": (tiny_tokenizers.gemma, "GemmaTokenizer"),
    "no class": (tiny_tokenizers.gemma, ""),
    "unknown class": (tiny_tokenizers.gemma, "TokenizerOfItsOwn"),
}
MODEL_TYPES = {"Qwen 2": "qwen2", "Gemma": "gemma3_text", "Mistral": "mistral", "Mistral 0.1": "mistral"}


def make_folder(folder: Path, backend: tokenizers.Tokenizer, model_type: str, tokenizer_class: str) -> Path:
    folder.mkdir()
    backend.add_tokens([AddedToken("<tool>"), AddedToken("caf\u00e9", normalized=False)])
    tiny_tokenizers.save(backend, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    settings |= {"tokenizer_class": tokenizer_class} if tokenizer_class else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_no_form_that_people_have_is_refused(tmp_path: Path, form: str) -> None:
    make, tokenizer_class = FORMS[form]
    folder = make_folder(tmp_path / "m", make(), MODEL_TYPES.get(form, "llama"), tokenizer_class)
    tokenizer = load_folder_tokenizer(folder, ROWS)
    lines = check_tokenizer(tokenizer, folder, ROWS)
    assert lines[-1].startswith(f"tokenizer: {NUM_TEXTS} texts and ")
    assert all(line.startswith("note: ") for line in lines[:-1])
    # The bundle follows the file, whatever a class of transformers makes of it.
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in awkward_texts():
        assert tokenizer.backend.encode(text).ids == plain.encode(text).ids


def test_a_class_that_builds_the_file_anew_is_a_note(tmp_path: Path) -> None:
    """transformers 5 gives LlamaTokenizer a Metaspace of its own, which takes no notice of leading spaces."""
    folder = make_folder(tmp_path / "m", tiny_tokenizers.llama2(), "llama", "LlamaTokenizer")
    note, line = check_tokenizer(load_folder_tokenizer(folder, ROWS), folder, ROWS)
    assert note.startswith("note: ' ' is encoded as [")
    assert "by AutoTokenizer (LlamaTokenizer) as [" in note
    assert note.endswith("the bundle follows tokenizer.json")
    assert "LlamaTokenizer" not in line


@pytest.mark.parametrize(
    ("damage", "given"),
    [
        (
            lambda backend: setattr(backend, "normalizer", normalizers.Lowercase()),
            "'Hello world' is encoded as [",
        ),
        (lambda backend: setattr(backend, "decoder", decoders.Fuse()), " is decoded from ["),
        (lambda backend: backend.add_tokens(["camel"]), "'camelCaseAndPascalCase snake_case' is encoded as ["),
        (lambda backend: backend.add_tokens([AddedToken("<tool>", lstrip=True)]), "' <tool><tool> a<tool>b "),
    ],
)
def test_a_tokenizer_that_differs_is_refused(tmp_path: Path, damage: Any, given: str) -> None:
    folder = make_folder(tmp_path / "m", tiny_tokenizers.byte_level(), "llama", "PreTrainedTokenizerFast")
    tokenizer = load_folder_tokenizer(folder, ROWS)
    damage(tokenizer.backend)
    with refused(CheckpointError, given=given, expected="the same from both", hint="--no-verify"):
        check_tokenizer(tokenizer, folder, ROWS)


def test_what_transformers_cannot_load_is_said(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", tiny_tokenizers.byte_level(), "llama", "PreTrainedTokenizerFast")
    tokenizer = load_folder_tokenizer(folder, ROWS)
    (folder / "tokenizer.json").unlink()
    *notes, line = check_tokenizer(tokenizer, folder, ROWS)
    assert len(notes) == 2
    assert all(note.startswith("note: the tokenizer cannot be read by transformers") for note in notes)
    assert line == "tokenizer: compared with no other reading of its files"


def gguf_vocabulary(pre: str) -> GgufVocabulary:
    """The byte-level vocabulary as a GGUF file has it, with an added token that is no ASCII."""
    tokenizer = tiny_tokenizers.byte_level()
    model = json.loads(tokenizer.to_str())["model"]
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [*sorted(ids, key=ids.__getitem__), "đem"]
    special = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    kinds = {True: 3, False: 4, None: 1}
    types = [kinds[special.get(token)] for token in tokens[:-1]] + [4]
    return GgufVocabulary(
        kind="gpt2", pre=pre, tokens=tuple(tokens), types=tuple(types), scores=(),
        merges=tuple(" ".join(merge) for merge in model["merges"]), bos_id=ids["<s>"], eos_id=ids["</s>"],
        add_bos=None, add_space_prefix=None, chat_template=None,
    )  # fmt: skip


@pytest.mark.parametrize("pre", ["default", "gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-r1-qwen"])
def test_byte_level_gguf_vocabularies(pre: str, tmp_path: Path) -> None:
    vocabulary = gguf_vocabulary(pre)
    tokenizer = load_gguf_tokenizer(Path("m.gguf"), vocabulary)
    (line,) = check_tokenizer(tokenizer, Path("m.gguf"), ROWS)
    assert line.startswith(f"tokenizer: {NUM_TEXTS} texts and 8 added tokens encoded and decoded as by plain Python")
    # Negative control: without the last of the merges.
    other = replace(vocabulary, merges=vocabulary.merges[: len(vocabulary.merges) // 2])
    mixed = CheckpointTokenizer(tokenizer.backend, tokenizer.info, load_gguf_tokenizer(Path("m.gguf"), other).peers)
    with refused(CheckpointError, given="m.gguf: "):
        check_tokenizer(mixed, Path("m.gguf"), ROWS)
    tokenizer.save(tmp_path)
    runtime = Tokenizer(tmp_path / "tokenizer.json", bos_token=None, eos_token=None)
    assert runtime.decode(runtime.encode("a đem b", add_special_tokens=False)) == "a đem b"


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_llama_3_takes_a_part_that_is_a_token_for_that_token(pre: str) -> None:
    """Whatever its merges lead to (ignore_merges); by merges alone " Vi\u1ec7t" is several tokens, as for Qwen."""
    plain = gguf_vocabulary(pre)
    word = "".join(bytes_to_unicode()[byte] for byte in " Vi\u1ec7t".encode())
    vocabulary = replace(plain, tokens=(*plain.tokens, word), types=(*plain.types, 1))
    tokenizer = load_gguf_tokenizer(Path("m.gguf"), vocabulary)
    ids = tokenizer.backend.encode("a Vi\u1ec7t", add_special_tokens=False).ids
    assert (len(plain.tokens) in ids) == (pre == "llama-bpe")
    (peer,) = tokenizer.peers
    assert peer().encode(["a Vi\u1ec7t"]) == [ids]


def test_a_reading_that_fails_is_a_note_and_the_next_one_counts(tmp_path: Path) -> None:
    """Such as mistral-common's, which knows no added tokens."""
    folder = make_folder(tmp_path / "m", tiny_tokenizers.byte_level(), "llama", "PreTrainedTokenizerFast")
    tokenizer = load_folder_tokenizer(folder, ROWS)
    first, *others = tokenizer.peers

    class Failing:
        name = "failing"

        def added(self) -> dict[str, int]:
            raise AttributeError("no attribute 'get_added_vocab'")

    note, line = check_tokenizer(replace(tokenizer, peers=(Failing, first, *others)), folder, ROWS)
    assert note == "note: the tokenizer cannot be read by transformers (no attribute 'get_added_vocab')"
    assert "encoded and decoded as by" in line


def test_the_tokens_of_a_big_vocabulary_are_compared_in_seconds() -> None:
    """Gemma has 6,000 tokens that are matched whole: each stands in two texts, and no text is read twice."""
    backend = models.BPE({chr(97 + i): i for i in range(26)}, [])
    tokenizer = tokenizers.Tokenizer(backend)
    tokenizer.add_tokens([f"<unused{i}>" for i in range(6000)])
    seen: list[str] = []

    class Peer:
        name = "itself"

        def encode(self, texts: Any) -> list[list[int]]:
            seen.extend(texts)
            return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

        def decode(self, ids: Any) -> str:
            return str(tokenizer.decode(ids, skip_special_tokens=False))

        def added(self) -> dict[str, int]:
            return {}

    info = load_gguf_tokenizer(Path("m.gguf"), gguf_vocabulary("gpt-2")).info
    (line,) = check_tokenizer(CheckpointTokenizer(tokenizer, info, (Peer,)), Path("m"), 10_000)
    assert "6000 added tokens" in line
    assert len(seen) == NUM_TEXTS + 2 * 6000
