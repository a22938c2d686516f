"""The vocabulary that a GGUF file stores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_runtime.errors import CheckpointError


@dataclass(frozen=True)
class GgufVocabulary:
    """The tokenizer that a file describes under `tokenizer.*`.

    Attributes:
        kind: `ggml.model`, "gpt2" for byte-level BPE or "llama" for sentencepiece.
        pre: `ggml.pre`, which names how text is split before byte-level BPE.
        tokens: text of each token, in the order of their ids.
        types: type of each token (see `sentencepiece_vocabulary.TokenType`), empty if not given.
        scores: score of each token of a sentencepiece vocabulary, empty if not given.
        merges: "left right" for each merge, best first, empty if not given.
        bos_id, eos_id: None if not given.
        add_bos: whether encoding begins with BOS, None if not given.
        add_space_prefix: whether a sentencepiece vocabulary puts a space before text, None if not given.
        chat_template: None if not given.
    """

    kind: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool | None
    add_space_prefix: bool | None
    chat_template: str | None


def read_vocabulary(path: Path, reader: Any, metadata: dict[str, Any]) -> GgufVocabulary:
    """Read the vocabulary of an open file.

    Args:
        path: the file, for messages.
        reader: gguf's GGUFReader of it.
        metadata: its scalar metadata by key.

    Raises:
        CheckpointError: it has none.
    """

    def array(name: str) -> tuple[Any, ...]:
        field = reader.get_field(f"tokenizer.ggml.{name}")
        return () if field is None else tuple(field.contents())

    def integer(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}")
        return value if isinstance(value, int) else None

    tokens = array("tokens")
    if not metadata.get("tokenizer.ggml.model") or not tokens:
        raise CheckpointError(
            f"{path} has no tokenizer", expected="tokenizer.ggml.* metadata", hint="use a file with a vocabulary"
        )
    return GgufVocabulary(
        kind=metadata["tokenizer.ggml.model"],
        pre=metadata.get("tokenizer.ggml.pre") or "default",
        tokens=tokens,
        types=array("token_type"),
        scores=array("scores"),
        merges=array("merges"),
        bos_id=integer("bos_token_id"),
        eos_id=integer("eos_token_id"),
        add_bos=metadata.get("tokenizer.ggml.add_bos_token"),
        add_space_prefix=metadata.get("tokenizer.ggml.add_space_prefix"),
        chat_template=metadata.get("tokenizer.chat_template"),
    )
