"""A bundle's tokenizer and chat template by themselves."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from pad_rt.text.chat_template import ChatTemplate
from pad_rt.text.prompt import PromptEncoder
from pad_rt.text.tokenizer import Tokenizer
from pad_runtime.bundle.manifest import read_manifest


def read_tokenizer(bundle: Path) -> tokenizers.Tokenizer:
    """As the library has it."""
    return tokenizers.Tokenizer.from_file(str(bundle / read_manifest(bundle).tokenizer.file))


def read_encoder(bundle: Path) -> PromptEncoder:
    """What turns prompts into token ids."""
    info = read_manifest(bundle).tokenizer
    special = {"bos_token": info.bos_token, "eos_token": info.eos_token}
    template = None
    if info.chat_template:
        template = ChatTemplate((bundle / info.chat_template).read_text(encoding="utf-8"), **special)
    return PromptEncoder(Tokenizer(bundle / info.file, **special), template)
