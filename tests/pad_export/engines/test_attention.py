"""Attention in an engine: by a dedicated kernel where TensorRT-RTX has one, and written out, with a note, elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pad_export.engines.add import add_engines
from pad_export.engines.build import EngineBuilder
from pad_export.engines.report import EngineReport
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, read_manifest
from pad_runtime.errors import EngineError
from tests.support import tiny_bundles, tiny_models
from tests.support.engine_models import LIMITS, needs_library
from tests.support.error_checks import refused

NOTE = "no dedicated kernel for the attention of 2 of 2 layers, which is written out: {} kernels a layer ({})"
PROFILES = "prefill and decode"


def export(folder: Path, heads: int, kv_heads: int, head_dim: int, precision: str) -> tuple[Path, Manifest]:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    tiny_models.make_base(folder / "base", "llama", seed=4, hidden_size=96, intermediate_size=128, **sizes)
    options = {"precision": precision, "dialect": "standard", **LIMITS}
    bundle = tiny_bundles.export(folder / "bundle", folder / "base", [], **options)
    return bundle, read_manifest(bundle)


@needs_library
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "precision", "note"),
    [
        (2, 1, 64, "fp16", NOTE.format("3 and 3", PROFILES)),
        (1, 1, 32, "bf16", NOTE.format("5 and 5", PROFILES)),
        (3, 3, 64, "int4", NOTE.format("3 and 3", PROFILES)),
        (4, 1, 64, "fp16", None),
    ],
)
def test_both_graphs_are_built_whatever_the_attention(
    heads: int, kv_heads: int, head_dim: int, precision: str, note: str | None, tmp_path: Path
) -> None:
    """The control builds without the leave to write attention out: the library itself says what has no kernel."""
    bundle, manifest = export(tmp_path, heads, kv_heads, head_dim, precision)
    builder, lines = EngineBuilder("tensorrt-rtx", ["sm89"]), list[str]()
    made = add_engines(bundle, manifest, builder, lines.append)
    assert [info.graph for info in made.engines] == [contract.STEP_GRAPH, contract.BASE_GRAPH]
    notes = [line for line in lines if line.startswith("note: ")]
    assert notes == ([] if note is None else [f"note: {note}"] * 2)
    strict = EngineBuilder("tensorrt-rtx", ["sm89"], dedicated_attention=True)
    for graph in (contract.STEP_GRAPH, contract.BASE_GRAPH):
        if note is None:
            strict.build(bundle, manifest, graph, tmp_path / "engine")
            continue
        with refused(EngineError, given="Attention operation was not supported by a dedicated kernel", hint="try"):
            strict.build(bundle, manifest, graph, tmp_path / "engine")


def test_a_note_is_of_what_is_written_out() -> None:
    report = EngineReport({}, {}, (), {"one": (3, 1), "two": (3, 1)}, {}, frozenset(), {}, size=0, seconds=0.0)
    assert report.note is None
    one_of_two = replace(report, attention={"one": (3, 1), "two": (5, 1)})
    assert one_of_two.note == (
        "no dedicated kernel for the attention of 1 of 2 layers, which is written out: "
        "5 and 1 kernels a layer (prefill and decode)"
    )
    assert replace(report, attention={}).note is None, "TensorRT lists no kernels: nothing is known"
