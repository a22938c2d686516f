"""TensorRT-RTX engines of SmolLM2-135M with the shipped PersRM, built for sm89 on a machine that needs no GPU.

Shared topology, fp16 and int4: how long an engine takes, how large it is, and what the builder says is in it. Nothing
runs here. Writes benchmarks/results/engines.json.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common.records import RESULTS, versions, write_record
from demo.smollm2 import WEIGHTS_PERSRM, find_smollm2
from pad_export.engines.build import EngineBuilder
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest

CAPABILITY = "sm89"
MAX_LENGTH, MAX_BATCH = 2048, 4


def build(builder: EngineBuilder, bundle: Path, manifest: Manifest, graph: str) -> dict[str, Any]:
    """One row of the table."""
    engine = bundle / f"{graph}.engine"
    info, report = builder.build(bundle, manifest, graph, engine)
    adapters = [name for name, tensor in report.tensors.items() if tensor.is_input and re.match(r"lora", name)]
    return {
        "precision": manifest.precision,
        "graph": graph,
        "build_s": round(report.seconds, 1),
        "engine_mib": round(report.size / 2**20, 1),
        "network_layers": sum(report.layers.values()),
        "kernels": {name: sum(kinds.values()) for name, kinds in zip(info.profiles, report.kernels, strict=True)},
        "layers_outside_the_compiled_piece": report.outside,
        "caches_in_place": len(report.updates),
        "lora_inputs": len(adapters),
        "host_inputs": [name for name, tensor in report.tensors.items() if tensor.is_input and tensor.on_host],
        "dequantized_matrices": report.layers.get("DEQUANTIZE", 0),
    }


def main() -> None:
    builder = EngineBuilder("tensorrt-rtx", [CAPABILITY])
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("fp16", "int4"):
            bundle = Path(scratch) / precision
            manifest = export_bundle(
                find_smollm2(),
                bundle,
                persrms=[WEIGHTS_PERSRM],
                options=ExportOptions(
                    precision=precision, dialect="standard", max_length=MAX_LENGTH, max_batch=MAX_BATCH, verify=False
                ),
            )
            for graph in (contract.STEP_GRAPH, contract.BASE_GRAPH):
                rows.append(build(builder, bundle, manifest, graph))
                print(rows[-1], flush=True)
    record = {
        "what": f"{builder.target} engines of SmolLM2-135M-Instruct with the shipped PersRM, shared, built with no GPU",
        "compute_capabilities": builder.compute_capabilities,
        "max_length": MAX_LENGTH,
        "max_batch": MAX_BATCH,
        "versions": versions("pad-rt", "tensorrt-rtx", "onnx", "torch"),
        "rows": rows,
    }
    write_record(RESULTS / "engines.json", record)


if __name__ == "__main__":
    main()
