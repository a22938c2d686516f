"""Records of what was measured: where they lie, how they are written, what they say of packages, and their tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PLOTS = ROOT / "docs" / "plots"


def versions(*names: str) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def rounded(fields: Mapping[str, float], digits: int) -> dict[str, float]:
    """Each value to so many decimals."""
    return {name: round(value, digits) for name, value in fields.items()}


def write_record(path: Path, record: Any) -> None:
    """As JSON; whole or not at all."""
    replace_text(path, json.dumps(record, indent=1) + "\n")


def write_dense(path: Path, record: Any) -> None:
    """As JSON in which the numbers of a list share a line, and text is as it is read."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    flat = re.sub(r"\[[\s\d.,eE+-]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    replace_text(path, flat + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: what is there survives an end at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))
