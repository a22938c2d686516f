"""Our own bundles for the latency benchmarks, exported under build/latency and kept until the exporter changes."""

from __future__ import annotations

import argparse
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.common.kept import stamped
from benchmarks.common.process import RowError
from benchmarks.common.records import ROOT, versions
from benchmarks.latency.shapes import BUILD, checkpoint
from demo.smollm2 import WEIGHTS_PERSRM, find_smollm2
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_rt.bench.steps import Workload
from pad_runtime.errors import PadError


@cache
def code_mark() -> str:
    """Of the code and the runtime that decide how fast a bundle is."""
    digest = hashlib.sha256(json.dumps(versions("onnxruntime", "numpy", "torch")).encode())
    for folder in ("export", "runtime"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def bundle(model: str, *, topology: str, precision: str, all_4_bits: bool = False, max_length: int = 1024) -> Path:
    """A bundle of a model of `SHAPES` and its adapter, not verified: the tests do that.

    Weights are rounded to the nearest value and not fitted to a text, which takes minutes and no step is faster for.

    Args:
        model: of `SHAPES`.
        topology, precision: see `ExportOptions`.
        all_4_bits: as there; elsewhere no matrix keeps 8 bits: for a comparison at the same bits.
        max_length: most tokens of prompt and reply together.

    Raises:
        RowError: pad-export refuses; says why.
    """
    base, adapter = checkpoint(model)
    length = "" if max_length == 1024 else f"-{max_length}"
    folder = BUILD / "bundles" / f"{model}-{topology}-{precision}{'-all' if all_4_bits else ''}{length}"

    def export() -> None:
        print(f"   exporting {folder.name}", flush=True)
        given: dict[str, Any] = {"topology": topology, "precision": precision, "all_4_bits": all_4_bits}
        options = ExportOptions(backbone=base, max_length=max_length, calibrate=False, verify=False, **given)
        try:
            export_bundle(base, folder, persrms=[adapter], options=options)
        except PadError as error:
            raise RowError(f"pad-export refuses {precision} {topology}: {error}") from None

    return stamped(folder, code_mark(), export)


def demo_bundle(precision: str) -> Path:
    """SmolLM2 with the shipped PersRM, its feature head too, as pad-export makes it but not verified."""
    folder = BUILD / "bundles" / f"demo-{precision}"

    def export() -> None:
        print(f"   exporting {folder.name}", flush=True)
        given: dict[str, Any] = {"precision": precision}
        export_bundle(find_smollm2(), folder, persrms=[WEIGHTS_PERSRM], options=ExportOptions(verify=False, **given))

    return stamped(folder, code_mark(), export)


def read_demo_workload(description: str | None) -> tuple[Path, Workload]:
    """A bundle as `demo_bundle`'s at int4, and what is measured on it, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--bundle", type=Path, help="an int4 bundle of SmolLM2 and the shipped PersRM; exported if not given"
    )
    parser.add_argument("--new-tokens", type=int, default=100, help="steps of each side after a prefill")
    parser.add_argument("--rounds", type=int, default=2, help="prefills of each side")
    options = parser.parse_args()
    workload = Workload(new_tokens=options.new_tokens, rounds=options.rounds)
    return options.bundle or demo_bundle("int4"), workload
