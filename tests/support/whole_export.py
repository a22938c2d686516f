"""Exports as a user has them, verification and all, but quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pad_export.export import export_bundle


def run(base: Path, output: Path, *persrms: Path, **options: Any) -> None:
    export_bundle(base, output, persrms=persrms, quiet=True, **options)
