"""What an export is asked for. Imports no torch: `pad-export` reads its options before it loads anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pad_runtime.bundle.contract import EngineTarget
from pad_runtime.bundle.manifest import Activations, DialectName, Precision, Reference, Topology

TopologyChoice: TypeAlias = Literal["auto", Topology]
Target: TypeAlias = Literal["onnx", EngineTarget]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a bundle is made of a base model and its PersRMs.

    Attributes:
        topology, reference, backbone: see `pad_export.plan.make_plan`.
        precision: element type of weights, activations and KV cache; int8 and int4 are of the weights alone, and the
            standard dialect has int4 only.
        activations: element type of activations, KV cache and adapters beside weights of int8 or int4: by default
            float32 in the ort dialect and float16 in the standard one.
        calibrate: fit weights of 4 bits to a sample text. Without, each is rounded to the nearest value: the bundle is
            made in a fraction of the time, as fast, and less like the model.
        all_4_bits: at int4, let no matrix keep 8 bits: by default those do that perplexity hangs on.
        dialect: "ort" for ONNX Runtime's fused operators, "standard" for opset 24 alone; by default what the target
            takes, and that is "ort" for "onnx".
        target: "onnx" for the graphs alone, or a library to build engines of them with.
        compute_capabilities, timing_cache: see `pad_export.engines.build.EngineBuilder`.
        max_length: most tokens of prompt and reply together; by default the model's limit, at most 4096.
        max_batch: most sequences at once.
        max_top_k: most candidates a step.
        verify: compare the graphs with the torch models before the bundle is put in place.
    """

    topology: TopologyChoice = "auto"
    reference: Reference = "base"
    backbone: Path | None = None
    precision: Precision = "fp32"
    activations: Activations | None = None
    calibrate: bool = True
    all_4_bits: bool = False
    dialect: DialectName | None = None
    target: Target = "onnx"
    compute_capabilities: Sequence[str] = ()
    timing_cache: Path | None = None
    max_length: int | None = None
    max_batch: int = 8
    max_top_k: int = 128
    verify: bool = True


DEFAULT_OPTIONS = ExportOptions()
