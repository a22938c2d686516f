"""Generators that have nothing cached of what is measured."""

from __future__ import annotations

from pad_rt import EncodedPrompt, Generator


def forget(generator: Generator) -> None:
    """Have another prompt kept than any before: with `keep_mib=0`, the latest is kept all the same."""
    generator.generate(EncodedPrompt((1, 2, 3)), config={"max_new_tokens": 1})
