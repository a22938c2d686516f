"""The token with which a chat template closes the assistant's turn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_export.read.checkpoint import open_checkpoint
from pad_export.read.tokenizer.turn_end import find_turn_end
from pad_runtime.errors import CheckpointError
from tests.support import tiny_models, tiny_tokenizers
from tests.support.error_checks import refused

LOOP = "{% for m in messages %}"
END = "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
CHATML = LOOP + "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n" + END + PROMPT
WITH_SYSTEM = "<|start|>system\nBe brief.<|end|>\n" + CHATML
LLAMA2 = (
    LOOP + "{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}" + END
)
ZEPHYR = LOOP + "<|{{ m.role }}|>\n{{ m.content | trim }}{{ eos_token }}\n" + END
LAST_ONLY = LOOP + "<|{{ m.role }}|>{{ m.content }}{% if loop.last %}<|end|>{% endif %}" + END
BETWEEN = LOOP + "{% if not loop.first %}<|end|>\n{% endif %}<|start|>{{ m.role }}\n{{ m.content }}" + END
NONE = LOOP + "<|{{ m.role }}|>{{ m.content }}" + END + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
BOS_EACH = (
    LOOP + "{% if m.role == 'user' %}{{ bos_token }}<|user|>{{ m.content }}<|assistant|>"
    "{% else %}{{ m.content }}{% endif %}" + END
)
WORDS = LOOP + "{{ m.role }}: {{ m.content }}\n" + END + "{% if add_generation_prompt %}assistant:{% endif %}"
THINKS = CHATML.replace("{{ m.content }}", "{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}")
REFUSES = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML
FAILS = "{{ messages[0].no.such }}" + CHATML
SHOUTS = CHATML.replace("{{ m.content }}", "{{ m.content | upper }}")


def tokenizer() -> Tokenizer:
    """<|user|> and <|assistant|> are special, <|start|> and <|end|> added; "<|eot|>" is a word like others."""
    backend = tiny_tokenizers.byte_level()
    backend.add_tokens(["<|start|>", "<|end|>", "\n\n", "<|eot|>", "amen"])
    return backend


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|end|>"),
        (WITH_SYSTEM, "<|end|>"),
        (LLAMA2, "</s>"),
        (ZEPHYR, "</s>"),
        (LAST_ONLY, "<|end|>"),
        (BETWEEN, "<|end|>"),
        (BETWEEN + "{% if add_generation_prompt %}<|end|>\n<|start|>assistant\n{% endif %}", "<|end|>"),
        (THINKS, "<|end|>"),
        (CHATML.replace("<|end|>", "<|eot|>"), "<|eot|>"),
        (CHATML.replace("<|end|>", "\n\n \n<|end|>"), "<|end|>"),
        (NONE, None),
        (BOS_EACH, None),
        (WORDS, None),
        (REFUSES, None),
        (FAILS, None),
        (SHOUTS, None),
        (CHATML.replace("<|end|>", "\n\n"), None),
        (CHATML.replace("<|end|>", ". the end"), None),
        ("{{ messages }}", None),
        ("", None),
    ],
)
def test_it_is_what_stands_behind_the_reply(template: str, end: str | None) -> None:
    backend = tokenizer()
    found = find_turn_end(template, backend, {"bos_token": "<s>", "eos_token": "</s>"})
    assert found == (None if end is None else backend.token_to_id(end))


def test_a_tag_that_the_vocabulary_holds_as_one_token_counts() -> None:
    """GGUF files mark some of them as ordinary."""
    backend = tiny_tokenizers.byte_level()
    state = json.loads(backend.to_str())
    state["pre_tokenizer"] = None
    state["model"]["vocab"] |= {"<|e": len(state["model"]["vocab"]), "nd|>": len(state["model"]["vocab"]) + 1}
    parts = [("<", "|"), ("<|", "e"), ("n", "d"), ("|", ">"), ("nd", "|>"), ("<|e", "nd|>")]
    for left, right in parts:
        state["model"]["vocab"].setdefault(left + right, max(state["model"]["vocab"].values()) + 1)
    state["model"]["merges"] = [list(part) for part in parts]
    state["added_tokens"] = []
    found = Tokenizer.from_str(json.dumps(state))
    assert find_turn_end(CHATML, found, {}) == found.token_to_id("<|end|>")


@pytest.mark.parametrize(
    ("template", "given"),
    [
        ("{% for m in messages %}", "the chat template is not valid"),
        ("{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}", "the chat template is not valid"),
        (CHATML + "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "was stopped"),
        ("{% macro m(n) %}{{ m(n ~ n) }}{% endmacro %}{{ m('no end') }}", "was stopped"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused(template: str, given: str) -> None:
    with refused(CheckpointError, given=given, hint="correct the chat_template"):
        find_turn_end(template, tokenizer(), {})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template closes turns with <|assistant|>, of all tokens, which no configuration names."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_models.make_base(folder, "llama", seed=3)
    (folder / "chat_template.jinja").write_text(
        LOOP + "<|{{ m.role | replace('assistant', 'system') }}|>{{ m.content }}<|assistant|>" + END
    )
    return folder


def test_export_adds_it_with_a_note_and_says_what_it_compared(base: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    manifest = export_bundle(base, tmp_path / "bundle", report=lines.append)
    backend = open_checkpoint(base).tokenizer.backend
    eos, end = backend.token_to_id("</s>"), backend.token_to_id("<|assistant|>")
    assert manifest.eos_token_ids == [eos, end]
    note = (
        f"note: the chat template closes a reply with '<|assistant|>' ({end}), which no configuration names as an end"
    )
    assert [line for line in lines if line.startswith(note)]
    assert [line for line in lines if line.startswith("tokenizer: ") and "as by AutoTokenizer" in line]


def test_export_says_nothing_of_an_end_that_is_named_and_compares_nothing_when_told_so(
    base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(base, tmp_path / "model"))
    end = open_checkpoint(base).tokenizer.backend.token_to_id("<|assistant|>")
    config = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [end]}))
    lines: list[str] = []
    manifest = export_bundle(base, tmp_path / "bundle", options=ExportOptions(verify=False), report=lines.append)
    assert sorted(manifest.eos_token_ids) == sorted(open_checkpoint(base).eos_token_ids)
    assert end in manifest.eos_token_ids
    assert not [line for line in lines if "note: the chat template" in line or line.startswith("tokenizer: ")]
