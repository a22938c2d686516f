"""Names of models compared: the name of an adapter's base, and a checkpoint's names by path and by content."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# Words that quantisers and converters append to a model's name: they say how weights are packed.
_PACKING = re.compile(
    r"unsloth|bnb|gguf|ggml|awq|gptq|exl[23]|mlx|hf|dynamic|ud|i1|imatrix|quantized|"
    r"\d{1,2}bits?|(bf|fp|f|int|nf)\d{1,2}|i?q\d\w*|w\d+a\d+"
)
_SEPARATOR = re.compile(r"[-\s]+|(?<!\d)\.|\.(?!\d)")
_SIZE = re.compile(r"(\d+x)?\d+(\.\d+)?[bm]")
_VENDORS = ("meta",)  # Meta-Llama-3.1-8B and Llama-3.1-8B are one model
_HUB_CACHE = "models--"


def words(name: str) -> tuple[str, ...]:
    """The words of a model's name, without its owner and the words for its packing.

    "unsloth/Qwen2.5-0.5B-Instruct-bnb-4bit", "Qwen2.5-0.5B-Instruct.Q4_K_M" and "Qwen2.5 0.5B Instruct" are all
    ("qwen2.5", "0.5b", "instruct"), and so is ".../models--Qwen--Qwen2.5-0.5B-Instruct/snapshots/1a" of a hub's cache.
    """
    parts = re.split(r"[/\\]", name.rstrip("/\\"))
    last = [*parts, *_cached_names(parts)][-1]
    found = [word for word in _SEPARATOR.split(last.lower()) if word]
    while len(found) > 1 and _PACKING.fullmatch(found[-1]):
        found.pop()
    if len(found) > 1 and found[0] in _VENDORS:
        del found[0]
    return tuple(found)


def path_names(path: Path) -> list[str]:
    """Names that a path gives its model: its last part, the link's target, and a repository in a hub's cache."""
    places = [path, path.resolve()]
    names = [place.stem if place.suffix == ".gguf" else place.name for place in places]
    return names + [name for place in places for name in _cached_names(place.parts)]


def repository_name(path: Path) -> str | None:
    """OWNER/NAME of the repository in whose part of a hub's cache a path leads; None for any other path."""
    cached = [part for part in path.resolve().parts if part.startswith(_HUB_CACHE)]
    return cached[-1].removeprefix(_HUB_CACHE).replace("--", "/") if cached else None


def _cached_names(parts: Iterable[str]) -> list[str]:
    """Names of the repositories in a hub's cache among the parts of a path, "models--OWNER--NAME"."""
    return [part.rpartition("--")[2] for part in parts if part.startswith(_HUB_CACHE)]


def same_name(wanted: str, names: Iterable[str]) -> bool:
    """Whether one of the names means the wanted model."""
    return words(wanted) in {words(name) for name in names}


def is_model_name(name: str) -> bool:
    """Whether a name has a size such as 0.5B and so names a model ("model" and "checkpoint-500" do not)."""
    return any(_SIZE.fullmatch(word) for word in words(name))
