"""What every error must be: one line that names what was given, what was expected, and what to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pad_runtime.bundle.file_info import describe_file
from pad_runtime.bundle.manifest import checksum
from pad_runtime.errors import PadError


@contextmanager
def refused(kind: type[PadError], *, given: str, expected: str = "", hint: str = "") -> Iterator[None]:
    """The block must raise exactly this kind of error, with these words in its three parts."""
    with pytest.raises(PadError) as caught:
        yield
    error = caught.value
    assert type(error) is kind, error
    assert given in error.given
    assert expected in error.expected
    assert hint in error.hint
    assert error.expected or error.hint
    check_line(error)


def check_line(error: PadError) -> None:
    """One line, and short enough to read, whatever was given."""
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 2000


def error_line(stderr: str, command: str) -> str:
    """The error that a command printed, which must be a single line and the last one."""
    lines = stderr.splitlines()
    assert lines[-1].startswith(f"{command}: error: ")
    assert sum(": error: " in line for line in lines) == 1
    assert "Traceback" not in stderr
    return lines[-1]


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below a folder: names, and hashes of files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def edit_manifest(bundle: Path, *, rehash: bool = False, **fields: Any) -> None:
    """Change fields of pad.json and its checksum; `rehash` makes it describe the files as they are now."""
    path = bundle / "pad.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) | fields
    if rehash:
        manifest["files"] = {name: asdict(describe_file(bundle / name)) for name in manifest["files"]}
    write_json(path, manifest)


def write_json(path: Path, manifest: Any) -> None:
    """Write what is to be a manifest, with the checksum that goes with it."""
    if isinstance(manifest, dict):
        manifest = {**manifest, "checksum": checksum(manifest)}
    path.write_text(json.dumps(manifest), encoding="utf-8")
