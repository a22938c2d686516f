"""Independent readings of a tokenizer's files, to compare the bundle's tokenizer with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging


class Peer(Protocol):
    """An independent reading of a tokenizer.

    Attributes:
        name: name of the reading, for messages.
    """

    name: str

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without BOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""

    def added(self) -> Mapping[str, int]:
        """Return the ids of the tokens that it matches whole."""


class PlainPeer:
    """A tokenizer in plain Python as a peer.

    Args:
        name: name for messages.
        plain: a tokenizer of `pad_export.read.tokenizer.plain_tokenizer`.
    """

    def __init__(self, name: str, plain: Any) -> None:
        self.name = name
        self._plain = plain

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [self._plain.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return str(self._plain.decode(ids))

    def added(self) -> Mapping[str, int]:
        """Return the ids of the tokens that it matches whole."""
        whole: Mapping[str, int] = self._plain.whole
        return whole


class TransformersPeer:
    """The tokenizer that transformers loads from a Hugging Face folder.

    Args:
        folder: holds the tokenizer's files.
        loader: AutoTokenizer, which may choose a class that builds parts of tokenizer.json anew, or
            PreTrainedTokenizerFast, which takes the file as it is.

    Raises:
        Exception: of any kind, where transformers cannot load it.
    """

    def __init__(self, folder: Path, loader: Any) -> None:
        with _quiet():
            self._tokenizer = loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.name = (
            loader.__name__ if loader is not AutoTokenizer else f"AutoTokenizer ({type(self._tokenizer).__name__})"
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        with _quiet():
            return list(self._tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        with _quiet():
            return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def added(self) -> Mapping[str, int]:
        """Return the ids of the tokens that it matches whole."""
        return dict(self._tokenizer.get_added_vocab())


def auto_tokenizer(folder: Path) -> Peer:
    """Return AutoTokenizer's reading, which most users have; raises any exception if it cannot be loaded."""
    return TransformersPeer(folder, AutoTokenizer)


def tokenizer_of_files(folder: Path) -> Peer:
    """Return the reading of the generic fast class; raises any exception if it cannot be loaded."""
    return TransformersPeer(folder, PreTrainedTokenizerFast)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' warnings about lengths and regular expressions, which do not matter here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
