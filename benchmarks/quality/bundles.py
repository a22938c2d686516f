"""The bundles under test, exported here when missing or stale.

One holds the PersRM that is asked by weights, and a random one; the other the PersRM that reads words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common.kept import kept, stamped
from benchmarks.quality.methods import TOP_K, WIDE_TOP_K
from benchmarks.quality.random_reward import NUM_FEATURES, Scale, calibrate
from demo.smollm2 import find_smollm2
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_rt import Generator
from pad_runtime.bundle.manifest import Precision

MAX_BATCH = 8
RANDOM_SEED = 0  # of the random reward
_PERSRM_FILES = ("adapter_config.json", "adapter_model.safetensors", "pad_persrm.json", "value_head.safetensors")


def fingerprint(persrm: Path, precision: str) -> str:
    """Of everything that decides what the bundle says."""
    digest = hashlib.sha256()
    for path in (find_smollm2(), *(persrm / name for name in _PERSRM_FILES)):
        if not path.is_file():
            raise SystemExit(f"{path} is missing: the benchmark needs a PersRM with a feature head")
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update(
        json.dumps(
            [precision, RANDOM_SEED, NUM_FEATURES, MAX_BATCH, WIDE_TOP_K, version("pad-rt"), version("onnxruntime")]
        ).encode()
    )
    return digest.hexdigest()[:16]


def prompt_template(persrm: Path) -> str:
    """In which a PersRM reads a prompt {x} and a preference in words {p}."""
    settings = json.loads((persrm / "pad_persrm.json").read_text(encoding="utf-8"))
    return str(settings["prompt_template"])


def ensure_bundle(persrms: Sequence[Path], precision: Precision, bundle: Path, mark: str) -> Path:
    """The bundle's folder; exports (and verifies) it unless the one there carries the mark."""

    def export() -> None:
        export_bundle(
            find_smollm2(),
            bundle,
            persrms=persrms,
            options=ExportOptions(precision=precision, max_length=1024, max_batch=MAX_BATCH, max_top_k=WIDE_TOP_K),
            report=lambda line: print(f"   {line}", flush=True),
        )

    return stamped(bundle, mark, export)


def ensure_scales(bundle: Path, prompts: list[str], features: list[str], work: Path, mark: str) -> dict[str, Scale]:
    """The random reward's scale for each feature, measured once."""

    def measure() -> dict[str, Any]:
        scales = calibrate(Generator.load(bundle, num_threads=1), prompts, features, top_k=TOP_K)
        return {feature: asdict(scale) for feature, scale in scales.items()}

    scales = kept(work / "scales.json", [mark, prompts, features], measure)
    return {feature: Scale(**fields) for feature, fields in scales.items()}
