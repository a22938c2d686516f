"""What a library compiled for this machine, kept for the next process (XDG Base Directory specification)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pad_runtime.bundle.whole_file import write_whole


def cache_folder(device: str) -> Path:
    """Where what was compiled for a device is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pad-rt" / device


def load_cache(cache: Any, path: Path) -> None:
    """Fill a runtime cache of TensorRT-RTX from a file, if there is one that it takes."""
    with suppress(OSError):
        cache.deserialize(path.read_bytes())


def save_cache(cache: Any, path: Path) -> None:
    """Keep a runtime cache; a folder that cannot be written to costs the next process its time, and no more."""
    with suppress(OSError):
        content = bytes(memoryview(cache.serialize() or b""))
        if not content or (path.exists() and path.read_bytes() == content):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
