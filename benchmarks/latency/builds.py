"""What the latency benchmark makes for itself, under build/latency, and keeps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build" / "latency"
MODELS = BUILD / "models"


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
