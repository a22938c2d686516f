"""The bundles under test, one for each PersRM, exported here when missing or stale; the first has the random reward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common.kept import kept, stamped
from benchmarks.quality.methods import TOP_K, WIDE_TOP_K
from benchmarks.quality.random_reward import NUM_FEATURES, Scale, calibrate
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_rt import Generator
from pad_runtime.bundle.manifest import Precision

MAX_BATCH = 16
RANDOM_SEED = 0  # of the random reward
_PERSRM_FILES = ("adapter_config.json", "adapter_model.safetensors", "pad_persrm.json", "value_head.safetensors")


def base_mark(base: Path, precision: str, ask: str) -> str:
    """Fingerprint of what decides the base's replies.

    Args:
        base: a GGUF file, or a checkpoint's folder.
        ask: text that a question is put in.
    """
    files = sorted(path for path in base.iterdir() if path.is_file()) if base.is_dir() else [base]
    return _mark(files, precision, ask, MAX_BATCH, WIDE_TOP_K, version("pad-rt"), version("onnxruntime"))


def persrm_mark(persrm: Path, base: str) -> str:
    """Fingerprint of what decides the guided replies.

    Args:
        base: its base's mark.
    """
    return _mark([persrm / name for name in _PERSRM_FILES], base, RANDOM_SEED, NUM_FEATURES)


def _mark(files: Iterable[Path], *settings: Any) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    for path in files:
        if not path.is_file():
            raise SystemExit(f"{path} is missing: the benchmark needs a base and PersRMs with a feature head")
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def ensure_bundle(base: Path, persrms: Sequence[Path], precision: Precision, bundle: Path, mark: str) -> Path:
    """The bundle's folder; exports (and verifies) it unless the one there carries the mark."""

    def export() -> None:
        export_bundle(
            base,
            bundle,
            persrms=persrms,
            options=ExportOptions(precision=precision, max_length=1024, max_batch=MAX_BATCH, max_top_k=WIDE_TOP_K),
            report=lambda line: print(f"   {line}", flush=True),
        )

    return stamped(bundle, mark, export)


def ensure_scales(bundle: Path, prompts: list[str], features: list[str], path: Path, mark: str) -> dict[str, Scale]:
    """The random reward's scale for each feature, measured once and kept at a path."""

    def measure() -> dict[str, Any]:
        scales = calibrate(Generator.load(bundle, num_threads=1), prompts, features, top_k=TOP_K)
        return {feature: asdict(scale) for feature, scale in scales.items()}

    scales = kept(path, [mark, prompts, features], measure)
    return {feature: Scale(**fields) for feature, fields in scales.items()}
