"""Whose adapter is it: an adapter names its base, and the given base has a path and calls itself something."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from pad_export.plan import Plan, make_plan
from pad_export.read.checkpoint import Checkpoint
from pad_export.read.gguf.file import _names
from pad_export.read.model_name import is_model_name, path_names, same_name, words
from pad_runtime.errors import AdapterError, CheckpointError
from tests.support import tiny_models
from tests.support.error_checks import refused
from tests.support.tiny_models import TinyModels

INSTRUCT = ("smollm2", "135m", "instruct")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", INSTRUCT),
        ("HuggingFaceTB/SmolLM2-135M-Instruct/", INSTRUCT),
        ("C:\\models\\SmolLM2-135M-Instruct", INSTRUCT),
        ("SmolLM2 135M Instruct", INSTRUCT),
        ("SmolLM2-135M-Instruct.Q4_1", INSTRUCT),
        ("SmolLM2-135M-Instruct-Q4_K_M", INSTRUCT),
        ("SmolLM2-135M-Instruct-UD-IQ2_XXS", INSTRUCT),
        ("smollm2-135m-instruct-f16", INSTRUCT),
        ("SmolLM2-135M-Instruct.BF16", INSTRUCT),
        ("unsloth/SmolLM2-135M-Instruct-bnb-4bit", INSTRUCT),
        ("unsloth/SmolLM2-135M-Instruct-unsloth-bnb-4bit", INSTRUCT),
        ("unsloth/SmolLM2-135M-Instruct-GGUF", INSTRUCT),
        ("someone/SmolLM2-135M-Instruct-4bit", INSTRUCT),
        ("someone/SmolLM2-135M-Instruct-AWQ", INSTRUCT),
        ("someone/SmolLM2-135M-Instruct-GPTQ-Int4", INSTRUCT),
        ("someone/SmolLM2-135M-Instruct-FP8-dynamic", INSTRUCT),
        ("someone/SmolLM2-135M-Instruct-quantized.w4a16", INSTRUCT),
        ("mlx-community/SmolLM2-135M-Instruct-mlx-8bit", INSTRUCT),
        ("HuggingFaceTB/SmolLM2-135M", ("smollm2", "135m")),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", ("smollm2", "360m", "instruct")),
        ("someone/SmolLM2-135M-Instruct-DPO", (*INSTRUCT, "dpo")),
        ("google/gemma-3-270m-it-qat-q4_0", ("gemma", "3", "270m", "it", "qat")),  # other weights than without qat
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", ("llama", "3.1", "8b", "instruct")),
        ("meta-llama/Llama-2-7b-chat-hf", ("llama", "2", "7b", "chat")),
        ("TheBloke/Mistral-7B-Instruct-v0.2-GPTQ", ("mistral", "7b", "instruct", "v0.2")),
        ("Qwen/Qwen2.5-0.5B", ("qwen2.5", "0.5b")),
        ("/home/x/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/12ab", INSTRUCT),
        ("gguf", ("gguf",)),
        ("", ()),
    ],
)
def test_words(name: str, expected: tuple[str, ...]) -> None:
    assert words(name) == expected


def test_endless_names_are_read_at_once() -> None:
    assert words("-q4" * 1_000_000) == ("q4",)
    assert not is_model_name("1" * 1_000_000)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
        ("/data/Qwen2.5-0.5B", "Qwen2.5-0.5B"),  # no suffix of a folder
        ("/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/12fd25f7", "SmolLM2-135M-Instruct"),
    ],
)
def test_path_names(path: str, expected: str) -> None:
    assert expected in path_names(Path(path))
    assert "Qwen2" not in path_names(Path(path))


def test_which_names_tell_models_apart() -> None:
    assert all(map(is_model_name, ("Qwen2.5-0.5B", "SmolLM2-135M-Instruct", "Mixtral-8x7B", "llama-1.1b")))
    assert not any(map(is_model_name, ("model", "checkpoint-500", "12fd25f77366", "my-sft", "")))
    assert not same_name("org/SmolLM2-135M", ["SmolLM2-135M-Instruct", "SmolLM2-360M"])


def test_what_a_gguf_file_calls_itself() -> None:
    parts = {"general.basename": "smollm2", "general.size_label": "135M", "general.finetune": "Instruct"}
    assert _names({"general.name": "Smollm2 135M", **parts}) == ("Smollm2 135M", "smollm2-135M-Instruct")
    assert _names({"general.name": 3, "general.basename": None}) == ()


# -- base and adapter -----------------------------------------------------------------------------------------------


def plan(
    tiny: TinyModels,
    folder: Path,
    base: str,
    named: Any,
    monkeypatch: pytest.MonkeyPatch,
    *,
    called: tuple[str, ...] = (),
    topology: Any = "auto",
) -> Plan:
    """The plan of the tiny base under another name, and of its adapter that names its base in this way."""
    path = folder / base
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(tiny.base)
    real = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: self if self == path else real(self, strict))
    opened = Checkpoint.__init__

    def init(self: Checkpoint, *args: Any, **kwargs: Any) -> None:
        opened(self, *args, **{**kwargs, "called": called})

    monkeypatch.setattr(Checkpoint, "__init__", init)
    return make_plan(path, [rename_base(tiny, folder / "lora", named)], topology=topology)


def one_line(name: str) -> str:
    return f"{name[:100]}..." if len(name) > 100 else name.replace("\n", " ").replace("\0", "").replace("\x1b", "")


def rename_base(tiny: TinyModels, folder: Path, name: Any) -> Path:
    shutil.copytree(tiny.adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}))
    return folder


@pytest.mark.parametrize(
    ("base", "called", "named"),
    [
        ("SmolLM2-135M-Instruct", (), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("SmolLM2-135M-Instruct", ("Smollm2 135M 8k Lc100K",), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("SmolLM2-135M-Instruct", (), "unsloth/SmolLM2-135M-Instruct-bnb-4bit"),
        ("SmolLM2-135M-Instruct", (), "unsloth/SmolLM2-135M-Instruct-unsloth-bnb-4bit"),
        ("SmolLM2-135M-Instruct-GGUF", (), "someone/SmolLM2-135M-Instruct-AWQ"),
        ("models--org--SmolLM2-135M-Instruct/snapshots/12fd", (), "/content/SmolLM2-135M-Instruct"),
        ("model", ("SmolLM2 135M Instruct",), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("12fd25", ("smollm2", "smollm2-135M-Instruct"), "unsloth/SmolLM2-135M-Instruct-bnb-4bit"),
    ],
)
def test_one_model_under_two_names_is_taken_with_a_note(
    tiny: TinyModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    called: tuple[str, ...],
    named: str,
) -> None:
    made = plan(tiny, tmp_path, base, named, monkeypatch, called=called)
    assert made.topology == "shared"
    (note,) = made.notes
    itself = f" (it calls itself '{called[0]}')" if called else ""
    assert note == f"taking {tmp_path / base}{itself} for '{named}', which {tmp_path / 'lora'} was trained on"


@pytest.mark.parametrize(
    ("base", "called", "named"),
    [
        ("SmolLM2-135M", (), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("SmolLM2-135M-Instruct", (), "HuggingFaceTB/SmolLM2-135M"),
        ("SmolLM2-135M-Instruct-DPO", ("SmolLM2-135M-Instruct",), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("zephyr-7b-beta", ("Mistral-7B-v0.1",), "mistralai/Mistral-7B-v0.1"),
        ("model", ("Smollm2 135M 8k",), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("model", (), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("SmolLM2-135M-Instruct", (), "/content/drive/checkpoint-500"),
        ("SmolLM2-135M-Instruct", (), "x" * 900),  # longer than a file's name can be
        ("SmolLM2-135M-Instruct", (), "a\0b"),  # nor this
        ("model", ("two\nlines \x1b[2J",), "or\nthree"),
    ],
)
def test_another_model_of_the_same_shapes_is_refused(
    tiny: TinyModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    called: tuple[str, ...],
    named: str,
) -> None:
    itself = f" (it calls itself '{one_line(called[0])}')" if called else ""
    given = f"{tmp_path / 'lora'} was trained on '{one_line(named)}', and {tmp_path / base} is not called so{itself}"
    with refused(AdapterError, given=given, expected=f"the base {tmp_path / base}", hint="--topology shared"):
        plan(tiny, tmp_path, base, named, monkeypatch, called=called)


def test_the_user_may_say_that_it_is_the_same(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(tiny, tmp_path, "model", "org/other", monkeypatch, topology="shared")
    assert made.notes == (f"taking {tmp_path / 'model'} for 'org/other', which {tmp_path / 'lora'} was trained on",)


@pytest.mark.parametrize("named", [None, ""])
@pytest.mark.parametrize("topology", ["auto", "pair"])
def test_an_adapter_that_names_nothing_is_of_the_base_that_it_fits(
    tiny: TinyModels, tmp_path: Path, named: str | None, topology: Any
) -> None:
    adapter = rename_base(tiny, tmp_path / "lora", named)
    made = make_plan(tiny.base, [adapter], topology=topology)
    assert made.topology == ("shared" if topology == "auto" else "pair")
    assert made.notes == (f"{adapter} does not say what it was trained on; its modules and shapes fit {tiny.base}",)


def test_an_adapter_that_names_nothing_and_does_not_fit(tiny: TinyModels, tmp_path: Path) -> None:
    adapter = rename_base(tiny, tmp_path / "lora", None)
    tiny_models.make_base(tmp_path / "wide", "llama", seed=3, hidden_size=90)
    with refused(
        AdapterError, given="[84, 72] in the adapter and [90, 72] in the base", hint="its model card names it"
    ):
        make_plan(tmp_path / "wide", [adapter])


def test_an_adapter_that_names_nothing_and_brings_its_tokenizer(tiny: TinyModels, tmp_path: Path) -> None:
    adapter = rename_base(tiny, tmp_path / "lora", None)
    tokenizer = Tokenizer.from_file(str(tiny.base / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])  # as trainers do
    tokenizer.save(str(adapter / "tokenizer.json"))
    assert make_plan(tiny.base, [adapter]).topology == "shared"
    text = (adapter / "tokenizer.json").read_text()
    (adapter / "tokenizer.json").write_text(text.replace('"plain-added"', '"another-added"'))
    with refused(AdapterError, given="its tokenizer differs", hint="give the base it was trained on"):
        make_plan(tiny.base, [adapter])


def test_a_base_that_the_adapter_names_by_its_own_path(tiny: TinyModels) -> None:
    assert make_plan(tiny.base, [tiny.adapter]).notes == ()


def test_rows_that_no_token_has_may_be_added_and_no_others(tiny: TinyModels, tmp_path: Path) -> None:
    """resize_token_embeddings makes random rows: harmless where no token is, a wrong PersRM where one is."""
    size = json.loads((tiny.base / "config.json").read_text())["vocab_size"]
    for missing, hint in ((2, "resize_token_embeddings"), (5, "give one that has a row for every token")):
        folder = tmp_path / f"small{missing}"
        tiny_models.make_base(folder, "llama", seed=3, vocab_size=size - missing)
        with refused(CheckpointError, given=f"{size - missing} rows in its head", hint=hint):
            make_plan(tiny.base, [folder])
