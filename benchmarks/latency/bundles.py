"""Our own bundles for the latency benchmarks, exported under build/latency and kept until the exporter changes."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.common.kept import stamped
from benchmarks.common.process import RowError
from benchmarks.common.records import ROOT, versions
from benchmarks.latency.shapes import BUILD, checkpoint
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_runtime.errors import PadError


@cache
def code_mark() -> str:
    """Of the code and the runtime that decide how fast a bundle is."""
    digest = hashlib.sha256(json.dumps(versions("onnxruntime", "numpy", "torch")).encode())
    for folder in ("export", "runtime"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def bundle(model: str, *, topology: str, precision: str, all_4_bits: bool = False) -> Path:
    """A bundle of a model of `SHAPES` and its adapter, not verified: the tests do that.

    Weights are rounded to the nearest value and not fitted to a text, which takes minutes and no step is faster for.

    Args:
        model, topology, precision: see `export_bundle`.
        all_4_bits: no matrix keeps 8 bits at int4, as none does elsewhere: for a comparison at the same bits.

    Raises:
        RowError: pad-export refuses; says why.
    """
    base, adapter = checkpoint(model)
    folder = BUILD / "bundles" / f"{model}-{topology}-{precision}{'-all' if all_4_bits else ''}"

    def export() -> None:
        print(f"   exporting {folder.name}", flush=True)
        options: dict[str, Any] = {"topology": topology, "precision": precision, "backbone": base}
        plain = ExportOptions(max_length=1024, calibrate=False, all_4_bits=all_4_bits, verify=False, **options)
        try:
            export_bundle(base, folder, persrms=[adapter], options=plain)
        except PadError as error:
            raise RowError(f"pad-export refuses {precision} {topology}: {error}") from None

    return stamped(folder, code_mark(), export)
