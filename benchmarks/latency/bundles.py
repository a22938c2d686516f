"""Our own bundles for the latency benchmarks, exported under build/latency and kept until the exporter changes."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from builds import BUILD
from pad_export.export import export_bundle
from pad_export.graph.matrix import Storage
from pad_runtime.errors import PadError
from peer_process import PeerError

ROOT = Path(__file__).resolve().parents[2]


@cache
def code_mark() -> str:
    """Of the code and the runtime that decide how fast a bundle is."""
    digest = hashlib.sha256(json.dumps([version(name) for name in ("onnxruntime", "numpy", "torch")]).encode())
    for folder in ("export", "runtime"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def bundle(
    name: str,
    base: Path,
    adapter: Path,
    *,
    topology: str,
    precision: str,
    all_4_bits: bool = False,
) -> Path:
    """A bundle of a base and an adapter, not verified: the tests do that.

    Weights are rounded to the nearest value and not fitted to a text, which takes minutes and no step is faster for.

    Args:
        name: of the model.
        base, adapter, topology, precision: as `export_bundle` takes them.
        all_4_bits: no matrix keeps 8 bits at int4, as none does elsewhere: for a comparison at the same bits.

    Raises:
        PeerError: pad-export refuses; says why.
    """
    folder = BUILD / "bundles" / f"{name}-{topology}-{precision}{'-all' if all_4_bits else ''}"
    stamp = folder.with_name(f"{folder.name}.txt")
    if not (folder.is_dir() and stamp.is_file() and stamp.read_text(encoding="utf-8") == code_mark()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"   exporting {folder.name}", flush=True)
        options: dict[str, Any] = {"topology": topology, "precision": precision, "backbone": base}
        try:
            with ExitStack() as patches:
                patches.enter_context(patch("pad_export.export.calibrate_trunk", lambda *_: {}))
                if all_4_bits:
                    patches.enter_context(patch.object(Storage, "bits", lambda *_: 4))
                    patches.enter_context(patch.object(Storage, "embedding_bits", 4))
                export_bundle(base, folder, persrms=[adapter], max_length=1024, verify=False, quiet=True, **options)
        except PadError as error:
            raise PeerError(f"pad-export refuses {precision} {topology}: {error}") from None
        stamp.write_text(code_mark(), encoding="utf-8")
    return folder
