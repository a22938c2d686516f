"""The model that adapters were trained on: which it is, and what of that is taken on trust."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pad_export.read.adapter import LoraAdapter
from pad_export.read.checkpoint import Checkpoint
from pad_export.read.model_name import is_model_name, path_names, same_name
from pad_export.read.tokenizer.checkpoint_tokenizer import has_tokenizer, load_folder_tokenizer
from pad_export.shared_vocabulary import count_differences, tokens_with_rows
from pad_runtime.errors import AdapterError

_SHOWN = 100  # characters of a name


def find_backbone(
    base: Checkpoint, adapters: Sequence[LoraAdapter], topology: str, backbone: Path | None
) -> Path | None:
    """Where the adapters' backbone is: None for the base itself.

    An adapter names its base and does not hold it. A name that is a folder here is that folder; any other is the given
    base where that is called so (`_is_called`); an adapter that names nothing is of the given base, if it fits it.
    """
    if backbone is not None:
        return None if _same_file(backbone, base.path) else backbone
    if topology == "shared":
        return None
    found = {_resolve(adapter, base) for adapter in adapters}
    if len(found) > 1:
        raise AdapterError("the adapters were trained on different models", expected="adapters on one backbone")
    return found.pop()


def trust_notes(base: Checkpoint, adapters: Sequence[LoraAdapter]) -> tuple[str, ...]:
    """An adapter holds no weights of its base: that the given base is the one it names is taken on trust."""
    notes = []
    for adapter in adapters:
        name = adapter.base_name
        if not name:
            notes.append(f"{adapter.path} does not say what it was trained on; its modules and shapes fit {base.path}")
        elif not _exists(name) or not _same_file(Path(name), base.path):
            notes.append(
                f"taking {base.path}{_called(base)} for '{_one_line(name)}', which {adapter.path} was trained on"
            )
        if adapter.is_bare:
            notes.append(f"{adapter.path} was on a decoder without lm_head; taking it for a LoRA of {base.path}")
    return tuple(dict.fromkeys(notes))


def _resolve(adapter: LoraAdapter, base: Checkpoint) -> Path | None:
    if not adapter.base_name:
        _check_own_tokenizer(adapter, base)
        return None
    if _exists(adapter.base_name):
        return None if _same_file(Path(adapter.base_name), base.path) else Path(adapter.base_name)
    if _is_called(base, adapter.base_name):
        return None
    raise AdapterError(
        f"{adapter.path} was trained on '{_one_line(adapter.base_name)}', and {base.path} is not called so"
        + _called(base),
        expected=f"the base {base.path}",
        hint="pass --topology shared if that is the same model, or --backbone DIR with the one it was trained on",
    )


def _is_called(base: Checkpoint, name: str) -> bool:
    """Whether a checkpoint goes by a name: its path's or, where the path names no model, what it calls itself."""
    own = path_names(base.path)
    return same_name(name, own) or (not any(map(is_model_name, own)) and same_name(name, base.called))


def _called(base: Checkpoint) -> str:
    return f" (it calls itself '{_one_line(base.called[0])}')" if base.called else ""


def _one_line(name: str) -> str:
    """A name out of a file, which can hold anything, as a note may have it."""
    printable = "".join(filter(str.isprintable, " ".join(name.split())))
    return printable if len(printable) <= _SHOWN else f"{printable[:_SHOWN]}..."


def _check_own_tokenizer(adapter: LoraAdapter, base: Checkpoint) -> None:
    """An adapter that does not name its base often brings a tokenizer: the base's, which may have got more tokens."""
    if not has_tokenizer(adapter.path):
        return
    theirs = tokens_with_rows(load_folder_tokenizer(adapter.path, base.config.vocab_size))
    ours = tokens_with_rows(base, base.config.vocab_size)
    different = count_differences(ours, theirs)
    if different:
        raise AdapterError(
            f"{adapter.path} does not say what it was trained on, and its tokenizer differs from that of {base.path} "
            f"in {different} tokens",
            expected=f"an adapter of {base.path}",
            hint="give the base it was trained on",
        )


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.resolve() == other.resolve()


def _exists(name: str) -> bool:
    """Whether a name out of a file is a path here; one that no path can be (too long, a null character) is not."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False
