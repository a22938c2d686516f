"""What takes long to make is kept, until whatever decides what it is has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.records import write_record


def made(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made under another name first if it is not there, so that what is there is whole."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished-{path.name}")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)
        make(unfinished)
        unfinished.replace(path)
    return path


def stamped(path: Path, mark: str, make: Callable[[], object]) -> Path:
    """`path`, which `make` makes unless the one that is there was made under the same mark."""
    stamp = path.with_name(f"{path.name}.txt")
    if not (path.exists() and stamp.is_file() and stamp.read_text(encoding="utf-8") == mark):
        path.parent.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        make()
        stamp.write_text(mark, encoding="utf-8")
    return path


def kept(path: Path, mark: Any, measure: Callable[[], Any]) -> Any:
    """What `measure` gives, as JSON has it, kept at a path for its mark; delete the file to measure again."""
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("mark") == mark:
            return record["kept"]
    measured = measure()
    write_record(path, {"mark": mark, "kept": measured})
    return measured
