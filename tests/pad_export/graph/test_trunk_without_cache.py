"""A trunk that keeps no KV cache: the hidden states of whole texts, at all positions, against torch's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file

from pad_export.graph.dialect import DIALECTS
from pad_export.graph.matrix import choose_storage
from pad_export.graph.trunk import emit_trunk_without_cache
from pad_export.graph.writer import GraphWriter
from pad_export.plan import make_plan
from pad_export.weights.adapter_file import write_adapter
from pad_export.weights.file import WeightsFile
from pad_export.weights.stream import write_weights
from pad_runtime.bundle import contract
from tests.support import tiny_models
from tests.support.torch_oracle import TorchModel, tolerance

TEXTS = ((5, 17, 300, 41, 8, 3, 9, 77, 250), (9, 8, 7, 6), (*range(20, 33),))
ROWS = ((0, False), (0, True), (1, False), (2, True))  # the text that each row reads, and whether it wears the adapter
MODULES = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
WINDOWED = {"sliding_window": 6, "query_pre_attn_scalar": 20}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": 6}),
    "qwen3": ("qwen3", {}),
    "gemma2": (
        "gemma2",
        {**WINDOWED, "layer_types": ["sliding_attention", "full_attention"], "attn_logit_softcapping": 5.0},
    ),
}


@dataclass(frozen=True)
class Emitted:
    """A trunk's graph, what it was made from, and what it gives."""

    folder: Path
    model: onnx.ModelProto
    states: np.ndarray  # [R, s, hidden]


def emit(folder: Path, family: str, dialect: Any, first_adapted: int) -> Emitted:
    name, config = FAMILIES[family]
    tiny_models.make_base(folder / "base", name, seed=3, **config)
    tiny_models.make_adapter(
        folder / "adapter",
        folder / "base",
        seed=4,
        target_modules=MODULES,
        layers_to_transform=[*range(first_adapted, 2)],
    )
    plan = make_plan(folder / "base", [folder / "adapter"], topology="shared", reference="base", backbone=None)
    trunk, storage, graph = plan.base, choose_storage("fp32", dialect), GraphWriter("states")
    with WeightsFile(folder / "weights.bin") as weights:
        write_weights(trunk, weights, storage=storage, max_length=64, progress=lambda _: None, calibrated={})
    states = emit_trunk_without_cache(graph, trunk, weights, DIALECTS[dialect](graph, trunk.spec, "float32"))
    graph.output(states, onnx.TensorProto.FLOAT, ["R", "s", trunk.spec.hidden_size])
    onnx.save_model(graph.model("0"), folder / "states.onnx")
    assert plan.sources[0].adapter is not None
    write_adapter(folder / "packed" / "a.safetensors", plan.sources[0].adapter, trunk, "float32")
    factors = load_file(folder / "packed" / "a.safetensors")
    width = max(map(len, TEXTS))
    gates = {
        contract.lora_gate(site): np.ones((1, 1, factors[contract.lora_a(1, site)].shape[1]), np.float32)
        * np.array([worn for _, worn in ROWS], np.float32)[:, None, None]
        for site in trunk.lora_sites
    }
    feed = {
        contract.INPUT_IDS: np.array([[*text, *[0] * (width - len(text))] for text in TEXTS], np.int64),
        contract.SEQLENS_K: np.array([len(text) - 1 for text in TEXTS], np.int32),
        contract.ROW_PROMPT: np.array([text for text, _ in ROWS], np.int64),
        contract.TOTAL_SEQUENCE_LENGTH: np.array(width, np.int32),
        **factors,
        **gates,
    }
    session = ort.InferenceSession(folder / "states.onnx", providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return Emitted(
        folder,
        onnx.load(folder / "states.onnx", load_external_data=False),
        session.run(None, {name: value for name, value in feed.items() if name in names})[0],
    )


def expected(emitted: Emitted, text: int, *, worn: bool, **config: Any) -> np.ndarray:
    """Torch's hidden states of one text: [s, hidden]."""
    model = TorchModel(emitted.folder / "base", adapter=emitted.folder / "adapter" if worn else None, **config)
    return np.asarray(model.states(TEXTS[text]))


def worst(emitted: Emitted, **config: Any) -> float:
    """The largest difference from torch over all rows, in units of the largest state."""
    gaps = []
    for row, (text, worn) in enumerate(ROWS):
        theirs = expected(emitted, text, worn=worn, **config)
        gaps.append(np.abs(emitted.states[row, : len(theirs)] - theirs).max() / np.abs(theirs).max())
    return float(max(gaps))


@pytest.mark.parametrize("first_adapted", [0, 1])
@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_torch(tmp_path: Path, family: str, dialect: str, first_adapted: int) -> None:
    emitted = emit(tmp_path, family, dialect, first_adapted)
    assert worst(emitted) < tolerance()
    assert np.abs(emitted.states[0] - emitted.states[1]).max() > 0.1  # the same text, with and without the adapter
    if "sliding_window" in FAMILIES[family][1]:
        assert worst(emitted, sliding_window=7) > 100 * tolerance()


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_nothing_of_a_cache_is_left(tmp_path: Path, dialect: str) -> None:
    model = emit(tmp_path, "llama", dialect, 0).model
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    assert not [name for name in names if "past_key" in name or "present" in name or contract.LAST_TOKEN in name]
    assert "TensorScatter" not in {node.op_type for node in model.graph.node}
