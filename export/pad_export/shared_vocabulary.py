"""Whether two models mean the same tokens by the same ids."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pad_export.read.checkpoint import Checkpoint
from pad_export.read.tokenizer.checkpoint_tokenizer import CheckpointTokenizer
from pad_export.read.tokenizer.sentencepiece_vocabulary import SPACE
from pad_export.trunk import Trunk
from pad_runtime.errors import CheckpointError, TokenizerMismatchError


def check_vocabulary(base: Trunk, other: Checkpoint) -> None:
    """A candidate id must mean the same token to both models, and have a row in both heads."""
    ours = tokens_with_rows(base.checkpoint, base.spec.vocab_size)
    theirs = tokens_with_rows(other)
    different = count_differences(ours, theirs)
    if different:
        raise TokenizerMismatchError(
            f"{other.path} differs from the base's tokenizer in {different} of {len(ours)} tokens",
            expected="a PersRM with the base's own tokenizer",
            hint="candidates are compared by token id, so train the PersRM on a model with that tokenizer",
        )
    if other.config.vocab_size < base.spec.vocab_size:
        named = max(ours.values(), default=-1) >= other.config.vocab_size  # new rows would be random ones
        raise CheckpointError(
            f"{other.path} has {other.config.vocab_size} rows in its head",
            expected=f"at least the base's {base.spec.vocab_size}",
            hint="give one that has a row for every token"
            if named
            else "resize its embeddings with resize_token_embeddings: the rows that it lacks are of no token",
        )


def tokens_with_rows(tokenizer: Checkpoint | CheckpointTokenizer, num_rows: float = math.inf) -> dict[str, int]:
    """Ids of the tokens that have a row. GGUF files write the spaces of some sentencepiece tokens as spaces."""
    return {token.replace(" ", SPACE): index for token, index in tokenizer.vocabulary().items() if index < num_rows}


def count_differences(ours: Mapping[str, int], theirs: Mapping[str, int]) -> int:
    """How many of our tokens are not theirs, or have another id there."""
    return sum(theirs.get(token) != index for token, index in ours.items())
