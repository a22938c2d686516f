"""A bundle's tokenizer compared with another reading of the same files, on awkward texts and all added tokens."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from tokenizers import Tokenizer

from pad_export.read.tokenizer.checkpoint_tokenizer import CheckpointTokenizer
from pad_export.read.tokenizer.peers import Peer
from pad_runtime.errors import CheckpointError

_CONTEXTS = ("{}", " {}{} a{}b a {} b\n{}\n")  # the token alone, and beside spaces, letters, itself and line feeds
_SHORT = reprlib.Repr()
_SHORT.maxlist, _SHORT.maxstring = 24, 80


def check_tokenizer(tokenizer: CheckpointTokenizer, path: Path, num_rows: int) -> tuple[str, ...]:
    """Compare how texts are encoded and decoded.

    Args:
        tokenizer: the bundle's tokenizer.
        path: the checkpoint, for messages.
        num_rows: rows of the model's embedding; the model does not know tokens with larger ids.

    Returns:
        Notes, and a line that says what was compared.

    Raises:
        CheckpointError: a text that no independent reading encodes, or decodes, in the same way.
    """
    texts = awkward_texts()
    notes: list[str] = []
    difference = None
    for load in tokenizer.peers:
        try:
            peer = load()
            tokens = sorted(token for token, index in _added(tokenizer, peer).items() if index < num_rows)
            difference = _difference(tokenizer, peer, texts, tokens)
        except Exception as error:  # transformers fails in many ways: unknown classes, models with own code
            notes.append(f"note: the tokenizer cannot be read by transformers ({' '.join(str(error).split())[:200]})")
            continue
        if difference is None:
            line = f"tokenizer: {len(texts)} texts and {len(tokens)} added tokens encoded and decoded as by {peer.name}"
            return (*notes, line)
        notes.append(f"note: {difference}; the bundle follows tokenizer.json")
    if difference is None:
        return (*notes, "tokenizer: compared with no other reading of its files")
    raise CheckpointError(
        f"{path}: {difference}",
        expected="the same from both",
        hint="save the tokenizer that the model was trained with into the folder again, or pass --no-verify",
    )


def awkward_texts() -> list[str]:
    """Return the packaged texts: spaces, numbers, scripts, emoji, control characters, code, long runs."""
    data = resources.files("pad_export").joinpath("text/awkward.json").read_text(encoding="utf-8")
    return list(json.loads(data))


def _added(tokenizer: CheckpointTokenizer, peer: Peer) -> dict[str, int]:
    ours = {token.content: index for index, token in tokenizer.backend.get_added_tokens_decoder().items()}
    return {**peer.added(), **ours}


def _difference(tokenizer: CheckpointTokenizer, peer: Peer, texts: Sequence[str], tokens: Sequence[str]) -> str | None:
    """Describe the first text that the two encode or decode differently; None if there is none."""
    backend = tokenizer.backend
    every = [*texts, *(context.replace("{}", token) for token in tokens for context in _CONTEXTS)]
    ours = [encoding.ids for encoding in backend.encode_batch(every, add_special_tokens=False)]
    misread = _misread(backend)
    for text, ids, other in zip(every, ours, peer.encode(every), strict=True):
        if ids != other:
            return f"{_SHORT.repr(text)} is encoded as {_SHORT.repr(ids)}, and by {peer.name} as {_SHORT.repr(other)}"
        if misread.isdisjoint(ids):
            one, two = backend.decode(ids, skip_special_tokens=False), peer.decode(ids)
            if one != two:
                return (
                    f"{_SHORT.repr(text)} is decoded from {_SHORT.repr(ids)} as {_SHORT.repr(one)}, "
                    f"and by {peer.name} as {_SHORT.repr(two)}"
                )
    return None


def _misread(backend: Tokenizer) -> set[int]:
    """Return added tokens that a byte-level decoder decodes wrongly, since it takes their letters for bytes."""
    if backend.decoder is None or b'"ByteLevel"' not in backend.decoder.__getstate__():
        return set()
    return {index for index, token in backend.get_added_tokens_decoder().items() if not token.content.isascii()}
