"""The step graph and the base's own: every trunk's layers, the candidates, their scores, and the choice of a token.

The candidates are a sequence's top k by the base, and the ends of the turn where they are offered. Controls, readings
and choice have a module each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from pad_export.graph.choice import choose_token
from pad_export.graph.controls import control_logits, count_written
from pad_export.graph.dialect import DIALECTS
from pad_export.graph.matrix import Storage
from pad_export.graph.readings import is_read, mix_readings, read_rows, vocabulary_logits
from pad_export.graph.trunk import emit_trunk
from pad_export.graph.writer import GraphWriter
from pad_export.trunk import Trunk
from pad_export.weights.file import WeightsFile
from pad_runtime.bundle import contract

_FLOAT, _INT64, _INT32 = int(TensorProto.FLOAT), int(TensorProto.INT64), int(TensorProto.INT32)


def build_step_graph(trunks: Sequence[Trunk], weights: WeightsFile, storage: Storage) -> GraphWriter:
    """The guided graph over all trunks, of which `trunks[0]` is the base: any rows, and any readings of them."""
    return _build(GraphWriter(contract.STEP_GRAPH), trunks, weights, storage, guided=True)


def build_base_graph(base: Trunk, weights: WeightsFile, storage: Storage) -> GraphWriter:
    """The base alone over the same weights: no rows but prompts, no readings; the same controls and choice."""
    plain = Trunk(base.name, base.checkpoint, base.spec, base.spec.num_layers)
    return _build(GraphWriter(contract.BASE_GRAPH), [plain], weights, storage, guided=False)


def _build(
    g: GraphWriter, trunks: Sequence[Trunk], weights: WeightsFile, storage: Storage, *, guided: bool
) -> GraphWriter:
    dialect, float_type = DIALECTS[storage.dialect], storage.float_type
    hidden = [
        emit_trunk(g, trunk, weights, dialect(g, trunk.spec, float_type), by_row=guided) for trunk in trunks
    ]  # each [R, hidden]
    logits = _base_logits(g, trunks[0], hidden[0], weights, float_type)
    controlled = control_logits(g, logits, trunks[0].spec.vocab_size)
    max_top_k = g.input(contract.MAX_TOP_K, _INT64, [1])
    order = _offer_ends(g, controlled, trunks[0].checkpoint.eos_token_ids) if guided else controlled
    scores, candidates = g.ops(
        "TopK", order, max_top_k, name="top_k_", outputs=["best", contract.CANDIDATES], axis=-1
    )  # [S, k] each
    if guided:
        own = g.op("GatherElements", logits, candidates, name="base_logits", output=contract.BASE_LOGITS, axis=1)
        best = g.op("GatherElements", controlled, candidates, name="controlled_logits", axis=1)
        read = [
            read_rows(g, trunk, rows, candidates, weights, float_type)
            for trunk, rows in zip(trunks, hidden, strict=True)
            if is_read(trunk, trunks)
        ]
        g.output(candidates, _INT64, [contract.SEQUENCES, contract.K])
        g.output(own, _FLOAT, [contract.SEQUENCES, contract.K])
        scores = mix_readings(g, read, own, best)
    _advance(g, trunks, choose_token(g, scores, candidates, max_top_k))
    return g


def _base_logits(g: GraphWriter, base: Trunk, hidden: str, weights: WeightsFile, float_type: str) -> str:
    """z of each sequence: the base's logits over the vocabulary [S, V] float32."""
    row = g.input(contract.BASE_ROW, _INT64, [contract.SEQUENCES])
    own = g.op("Gather", hidden, row, name="base_hidden", axis=0)  # [S, hidden]
    return vocabulary_logits(g, base, own, weights, float_type)


def _offer_ends(g: GraphWriter, logits: str, ends: Sequence[int]) -> str:
    """The order in which candidates are picked: logits [S, V], the ends of the turn raised by each sequence's bonus."""
    if not ends:
        return logits
    bonus = g.input(contract.END_BONUS, _FLOAT, [contract.SEQUENCES, 1])
    shape = g.op("Shape", logits, name="ends/sequences", start=0, end=1)
    shape = g.op("Concat", shape, g.constant([len(ends)], np.int64), name="ends/shape", axis=0)
    places = g.op("Expand", g.constant([ends], np.int64), shape, name="ends/places")  # [S, ends]
    raised = g.op("GatherElements", logits, places, name="ends/logits", axis=1)
    raised = g.op("Add", raised, bonus, name="ends/raised")
    return g.op("ScatterElements", logits, places, raised, name="ends/order", axis=1)


def _advance(g: GraphWriter, trunks: Sequence[Trunk], chosen: str) -> None:
    """Write the next step's inputs beside this step's, so that running a step twice is harmless."""
    next_ids = g.op("Squeeze", chosen, g.constant([1], np.int64), name="advance/chosen_ids", output=contract.NEXT_IDS)
    g.output(next_ids, _INT64, [contract.SEQUENCES])
    count_written(g, chosen)
    for trunk in trunks:
        at, prompts = trunk.prefix, trunk.prefix + contract.PROMPTS
        sequence = g.input(at + contract.PROMPT_SEQUENCE, _INT64, [prompts, 1])
        ids = g.op("Gather", next_ids, sequence, name=f"{at}advance/ids", output=at + contract.NEXT_INPUT_IDS)
        one = g.constant([1], np.int32)
        lengths = g.op(
            "Add", at + contract.SEQLENS_K, one, name=f"{at}advance/lengths", output=at + contract.NEXT_SEQLENS_K
        )
        g.output(ids, _INT64, [prompts, 1])
        g.output(lengths, _INT32, [prompts])
