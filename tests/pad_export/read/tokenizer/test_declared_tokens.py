"""Tokens that stand beside tokenizer.json, and nowhere in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pad_export.read.tokenizer.check import check_tokenizer
from pad_export.read.tokenizer.checkpoint_tokenizer import load_folder_tokenizer
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.errors import CheckpointError
from tests.support import tiny_tokenizers
from tests.support.error_checks import refused

TOOL = tiny_tokenizers.byte_level().get_vocab_size()  # the next id
ROWS = TOOL + 8
TEXT = "the <tool> egg<tool>"
PLACES: dict[str, dict[str, Any]] = {
    "added_tokens_decoder": {
        "tokenizer_config.json": {"added_tokens_decoder": {str(TOOL): {"content": "<tool>", "special": False}}}
    },
    "special": {"tokenizer_config.json": {"added_tokens_decoder": {str(TOOL): {"content": "<tool>", "special": True}}}},
    "strips": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(TOOL): {"content": "<tool>", "lstrip": True, "rstrip": True}}
        }
    },
    "normalized": {
        "tokenizer_config.json": {"added_tokens_decoder": {str(TOOL): {"content": "<tool>", "normalized": True}}}
    },
    "added_tokens": {"added_tokens.json": {"<tool>": TOOL}},
    "added and special": {
        "added_tokens.json": {"<tool>": TOOL},
        "tokenizer_config.json": {"additional_special_tokens": ["<tool>"]},
    },
    "additional_special_tokens": {"tokenizer_config.json": {"additional_special_tokens": ["<tool>"]}},
    "extra_special_tokens": {"tokenizer_config.json": {"extra_special_tokens": ["<tool>"]}},
    "named extra": {"tokenizer_config.json": {"extra_special_tokens": {"tool_token": "<tool>"}}},
    "named": {"tokenizer_config.json": {"tool_token": "<tool>"}},
    "special_tokens_map": {"special_tokens_map.json": {"additional_special_tokens": ["<tool>"]}},
    "pad": {"special_tokens_map.json": {"pad_token": {"content": "<tool>", "lstrip": True}}},
}  # fmt: skip


def make_folder(folder: Path, files: dict[str, Any], tokenizer: Any = None) -> Path:
    folder.mkdir()
    tiny_tokenizers.save(tokenizer or tiny_tokenizers.byte_level(), folder)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name, values in {"tokenizer_config.json": {}, **files}.items():
        value = settings | values if name == "tokenizer_config.json" else values
        (folder / name).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_they_are_added_as_transformers_adds_them(tmp_path: Path, place: str) -> None:
    folder = make_folder(tmp_path / "m", PLACES[place])
    tokenizer = load_folder_tokenizer(folder, ROWS)
    peer = AutoTokenizer.from_pretrained(folder)
    assert TOOL in peer(TEXT)["input_ids"]
    assert tokenizer.backend.get_added_tokens_decoder()[TOOL].special == peer.added_tokens_decoder[TOOL].special
    tokenizer.save(tmp_path)
    runtime = Tokenizer(tmp_path / "tokenizer.json", bos_token="<s>", eos_token="</s>")
    for text in (TEXT, "a<tool>b", "a <tool> b", "<tool>", "\n<tool>\n<tool>"):
        ids = runtime.encode(text, add_special_tokens=True)
        assert ids == peer(text)["input_ids"], text
        for skip in (True, False):
            assert runtime.decode(ids, skip_special_tokens=skip) == peer.decode(ids, skip_special_tokens=skip)
    (line,) = check_tokenizer(tokenizer, folder, ROWS)
    assert "added tokens encoded and decoded as by AutoTokenizer" in line


def test_flags_of_the_configuration_hold_against_tokenizer_json(tmp_path: Path) -> None:
    backend = tiny_tokenizers.byte_level()
    backend.add_tokens(["<tool>"])
    entry = {"content": "<tool>", "special": True, "lstrip": True, "normalized": False}
    folder = make_folder(
        tmp_path / "m", {"tokenizer_config.json": {"added_tokens_decoder": {str(TOOL): entry}}}, backend
    )
    added = load_folder_tokenizer(folder, ROWS).backend.get_added_tokens_decoder()[TOOL]
    assert added.special
    assert added.lstrip
    assert added.lstrip == AutoTokenizer.from_pretrained(folder).added_tokens_decoder[TOOL].lstrip


def test_a_token_without_a_row_is_none(tmp_path: Path) -> None:
    """Tokenizers are often saved with a padding token that the model was never resized for."""
    for place in ("added_tokens_decoder", "pad"):
        folder = make_folder(tmp_path / place, PLACES[place])
        tokenizer = load_folder_tokenizer(folder, TOOL)
        assert tokenizer.backend.token_to_id("<tool>") is None
        (line,) = check_tokenizer(tokenizer, folder, TOOL)
        assert "AutoTokenizer" in line


@pytest.mark.parametrize(
    ("files", "given"),
    [
        ({"tokenizer_config.json": {"added_tokens_decoder": {str(TOOL + 3): {"content": "<tool>"}}}}, f"{TOOL + 3}"),
        ({"added_tokens.json": {"<tool>": TOOL + 1}}, f"the id {TOOL + 1}, and beside tokenizer.json it gets {TOOL}"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"7": {"content": "<s>"}}}}, "gives '<s>' the id 7"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"-1": {"content": "x"}}}}, "the added token '-1'"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}}, "the added token '999"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"9": "x"}}}, "the added token '9'"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"9": {"content": 3}}}}, "the token {'content': 3}"),
        ({"tokenizer_config.json": {"added_tokens_decoder": [1]}}, "added_tokens_decoder of type list"),
        ({"added_tokens.json": {"<tool>": "9"}}, "the id '9'"),
        ({"added_tokens.json": {"\ud800": TOOL}}, "half a character"),
        ({"tokenizer_config.json": {"additional_special_tokens": ["\udc00"]}}, "half a character"),
        ({"tokenizer_config.json": {"chat_template": "\ud800"}}, "half a character"),
    ],
)
def test_what_cannot_be_added_is_refused(tmp_path: Path, files: dict[str, Any], given: str) -> None:
    with refused(CheckpointError, given=given):
        load_folder_tokenizer(make_folder(tmp_path / "m", files), ROWS)


def test_a_template_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", {})
    (folder / "chat_template.jinja").write_bytes(b"{{ 'caf\xe9' }}")
    with refused(CheckpointError, given="chat_template.jinja is not UTF-8", hint="UTF-8"):
        load_folder_tokenizer(folder, ROWS)
    (folder / "chat_template.jinja").unlink()
    (folder / "added_tokens.json").write_bytes(b'{"caf\xe9": 3}')
    with refused(CheckpointError, given=r"added_tokens.json is not JSON"):
        load_folder_tokenizer(folder, ROWS)
    (folder / "added_tokens.json").unlink()
    damaged = (folder / "tokenizer.json").read_bytes().replace(b"plain-added", b"pl\xe9in-added")
    (folder / "tokenizer.json").write_bytes(damaged)
    with refused(CheckpointError, given="tokenizer.json is not a tokenizer"):
        load_folder_tokenizer(folder, ROWS)
    (folder / "tokenizer.json").write_bytes(damaged.replace(b"\xe9", b"\\ud800"))
    with refused(CheckpointError, given="tokenizer.json is not a tokenizer"):
        load_folder_tokenizer(folder, ROWS)


@pytest.mark.parametrize("index", [2**24, 2**31, 2**32 - 1])
def test_an_id_that_no_model_has_is_refused(tmp_path: Path, index: int) -> None:
    """To write such a vocabulary, tokenizers asks for memory for every id, and aborts the process."""
    folder = make_folder(tmp_path / "m", {})
    load_folder_tokenizer(folder, ROWS)
    file = folder / "tokenizer.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = fields["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = index
    file.write_text(json.dumps(fields), encoding="utf-8")
    with refused(CheckpointError, given=f"the id {index}"):
        load_folder_tokenizer(folder, ROWS)
