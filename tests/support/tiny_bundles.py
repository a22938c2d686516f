"""Bundles of tiny models, exported without verification: the tests that use them are the verification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_rt import Generator
from pad_runtime.loaded_bundle import Bundle
from tests.support.error_checks import edit_manifest


def export(output: Path, base: Path, persrms: Sequence[Path], *, eos: Sequence[int] = (), **options: Any) -> Path:
    """Export, and let only the ids of `eos` end a reply: by default none, so that a reply has the length asked for."""
    export_bundle(base, output, persrms=persrms, options=ExportOptions(verify=False, **options))
    return set_eos(output, eos)


def set_eos(bundle: Path, eos: Sequence[int]) -> Path:
    """Change which ids end a reply."""
    edit_manifest(bundle, eos_token_ids=list(eos))
    return bundle


def load(bundle: Path) -> Generator:
    """One thread: the tests share their machine."""
    return Generator.load(bundle, device="cpu", num_threads=1)


def open_bundle(bundle: Path, **options: Any) -> Bundle:
    """The same without text around it."""
    return Bundle(bundle, device="cpu", num_threads=1, **options)


def encode_turn(bundle: Path, content: str) -> tuple[int, ...]:
    """One user turn in the tiny models' chat template, written out by hand."""
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    return tuple(tokenizer.encode(f"<s><|user|>{content}<|assistant|>", add_special_tokens=False).ids)
