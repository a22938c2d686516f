"""For which shapes of attention TensorRT-RTX has a dedicated kernel: tried by building small engines, with no GPU.

Every case is built twice: as pad-export builds it, where attention may be written out, and without that leave, where
the library refuses what it has no dedicated kernel for. Records the answer, the kernels that a layer's attention takes
in a prompt and in a step, and whether leave changed an engine that needed none. Writes
benchmarks/results/attention_kernels.json (ten minutes on one core).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common.llama_shapes import write_tokenizer
from benchmarks.common.records import RESULTS, markdown, replace_text, versions
from pad_export.engines.build import EngineBuilder
from pad_export.engines.report import EngineReport
from pad_export.export import export_bundle
from pad_export.options import ExportOptions
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import EngineError

HEADS = (
    (1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2), (4, 4), (5, 1), (6, 2), (7, 1), (8, 2), (9, 3), (14, 2),
)  # fmt: skip
HEAD_DIMS = (8, 16, 32, 64, 80, 96, 128, 256)
FEW = ((1, 1), (2, 1), (3, 3), (4, 1), (9, 3))  # heads that are tried in every precision, graph and for every GPU
GPUS = ("sm86", "sm89", "sm120")
REFUSAL = "not supported by a dedicated kernel"

Precision = Literal["fp16", "bf16", "int4", "fp32"]


@dataclass(frozen=True)
class Case:
    """Attention of `heads` over `kv_heads` of `head_dim`, in a graph that is built for one GPU."""

    heads: int
    kv_heads: int
    head_dim: int
    precision: Precision = "fp16"
    graph: str = contract.BASE_GRAPH
    gpu: str = "sm89"


def all_cases() -> list[Case]:
    """All shapes in the base graph at fp16 for one GPU; a few of them in everything else. Without repeats."""
    cases = [Case(*heads, head_dim) for heads in HEADS for head_dim in HEAD_DIMS]
    precisions: tuple[Precision, ...] = ("fp16", "bf16", "int4", "fp32")
    cases += [
        Case(*heads, 64, precision, graph, gpu)
        for heads in FEW
        for precision in precisions
        for graph in (contract.BASE_GRAPH, contract.STEP_GRAPH)
        for gpu in GPUS
    ]
    return list(dict.fromkeys(cases))


def write_base(folder: Path, case: Case) -> Path:
    """A Llama of two layers with that attention."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32 * case.heads,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        head_dim=case.head_dim,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def build(case: Case, bundle: Path, manifest: Manifest, *, leave: bool) -> EngineReport | None:
    """An engine; None where the library has no dedicated kernel and no leave to do without.

    Raises:
        EngineError: it is refused for another reason.
    """
    builder = EngineBuilder("tensorrt-rtx", [case.gpu])
    try:
        if leave:
            return builder.build(bundle, manifest, case.graph, bundle / "engine")[1]
        with patch("pad_export.engines.build.allow_decomposition", lambda *_: None):
            return builder.build(bundle, manifest, case.graph, bundle / "engine")[1]
    except EngineError as error:
        if not leave and REFUSAL in str(error):
            return None
        raise


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """One row of the record."""
    base, bundle = write_base(folder / "base", case), folder / "bundle"
    manifest = export_bundle(
        base,
        bundle,
        persrms=[],
        options=ExportOptions(
            precision=case.precision, dialect="standard", max_length=48, max_batch=3, max_top_k=20, verify=False
        ),
    )
    report, strict = (build(case, bundle, manifest, leave=leave) for leave in (True, False))
    assert report is not None
    kernels = [max(counts) for counts in zip(*report.attention.values(), strict=True)]
    return {
        **asdict(case),
        "dedicated": strict is not None,
        "noted": report.note is not None,
        "attention_kernels": dict(zip(contract.ENGINE_PROFILES, kernels, strict=True)),
        "same_without_leave": None
        if strict is None
        else asdict(replace(strict, seconds=report.seconds)) == asdict(report),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: kernels of a layer's attention in a prompt and a step, at fp16 in the base graph for one GPU."""
    lines = []
    cells = {
        (row["heads"], row["kv_heads"], row["head_dim"]): row
        for row in reversed(rows)
        if (row["precision"], row["graph"], row["gpu"]) == ("fp16", contract.BASE_GRAPH, "sm89")
    }
    for heads in HEADS:
        found = [cells.get((*heads, head_dim)) for head_dim in HEAD_DIMS]
        lines.append(["{} / {}".format(*heads), *("" if row is None else _cell(row) for row in found)])
    return markdown(["heads / KV heads", *map(str, HEAD_DIMS)], lines)


def _cell(row: dict[str, Any]) -> str:
    return "dedicated" if row["dedicated"] else ", ".join(map(str, row["attention_kernels"].values()))


def rows_of(cases: list[Case]) -> Iterator[dict[str, Any]]:
    """Measure one after another."""
    for case in cases:
        with tempfile.TemporaryDirectory() as scratch:
            yield measure(case, Path(scratch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=None, metavar="N", help="only as many cases")
    parser.add_argument("--out", type=Path, default=RESULTS / "attention_kernels.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for row in rows_of(all_cases()[: options.first]):
        rows.append(row)
        print(row, flush=True)
        write(rows, options.out)
    print(table(rows))


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """The record of what was measured so far."""
    record = {
        "what": "attention of Llama layers by TensorRT-RTX, built with no GPU: dedicated kernel or not",
        "versions": versions("tensorrt-rtx", "onnx"),
        "num_cases": len(rows),
        "notes_that_the_library_does_not_confirm": sum(row["noted"] == row["dedicated"] for row in rows),
        "engines_that_leave_changed": sum(row["same_without_leave"] is False for row in rows),
    }
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    text = json.dumps(record, indent=1).removesuffix("\n}")
    replace_text(out, f'{text},\n "rows": [\n  {lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
