"""Exports as a user has them, verification and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pad_export.export import export_bundle
from pad_export.options import ExportOptions


def run(base: Path, output: Path, *persrms: Path, **options: Any) -> list[str]:
    """The lines that it tells."""
    lines: list[str] = []
    export_bundle(base, output, persrms=persrms, options=ExportOptions(**options), report=lines.append)
    return lines
