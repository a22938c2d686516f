"""The score graph: every token of given replies at once, over whole texts and with no KV cache.

    token_log_prob(a) = log softmax(z_base)(a)       over the vocabulary
    log_prob_c(a)     = log softmax_T(z_c)(a)        over T = (a, the k - 1 other tokens that the base finds likeliest)

of the base and of every column c of each reading: the hidden state itself, and every feature. phi is the difference of
two of these, as decoding mixes it and as training made it large (arXiv 2410.04070).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from pad_export.graph.dialect import DIALECTS
from pad_export.graph.matrix import Storage
from pad_export.graph.readings import candidate_logits, feature_columns, is_read, to_float, vocabulary_logits
from pad_export.graph.trunk import emit_trunk_without_cache
from pad_export.graph.writer import GraphWriter
from pad_export.trunk import Trunk
from pad_export.weights.file import WeightsFile
from pad_runtime.bundle import contract

_FLOAT, _INT64, _BOOL = int(TensorProto.FLOAT), int(TensorProto.INT64), int(TensorProto.BOOL)
_PLACE = 2  # a row and a position


def build_score_graph(trunks: Sequence[Trunk], weights: WeightsFile, storage: Storage) -> GraphWriter:
    """The graph over all trunks, of which `trunks[0]` is the base: any rows, and any positions of them."""
    g, dialect, float_type = GraphWriter(contract.SCORE_GRAPH), DIALECTS[storage.dialect], storage.float_type
    states = [
        emit_trunk_without_cache(g, trunk, weights, dialect(g, trunk.spec, float_type)) for trunk in trunks
    ]  # each [R, s, hidden]
    tokens = g.input(contract.SCORED_TOKENS, _INT64, [contract.TOKENS])
    axis1 = g.constant([1], np.int64)
    own = g.op("Unsqueeze", tokens, axis1, name="own")  # [M, 1]
    place = g.input(contract.BASE_PLACE, _INT64, [contract.TOKENS, _PLACE])
    hidden = g.op("GatherND", states[0], place, name="base_hidden")  # [M, hidden]
    logits = vocabulary_logits(g, trunks[0], hidden, weights, float_type)  # [M, V]
    # Another [M, V]; on ONNX Runtime's CPU ReduceLogSumExp, which needs none, is ten times less exact.
    everywhere = g.op("LogSoftmax", logits, name="own/all_log_probs", axis=1)
    log_prob = g.op("GatherElements", everywhere, own, name="own/log_prob", axis=1)
    g.op("Squeeze", log_prob, axis1, name="own/log_probs", output=contract.TOKEN_LOG_PROBS)
    g.output(contract.TOKEN_LOG_PROBS, _FLOAT, [contract.TOKENS])
    candidates = _candidates(g, logits, own)
    among = g.op("GatherElements", logits, candidates, name="base/logits", axis=1)  # [M, k]
    _first_log_probs(g, among, name="base", output=contract.BASE_LOG_PROBS)
    g.output(contract.BASE_LOG_PROBS, _FLOAT, [contract.TOKENS])
    for trunk, hidden in zip(trunks, states, strict=True):
        if is_read(trunk, trunks):
            _read(g, trunk, hidden, candidates, weights, float_type)
    return g


def _candidates(g: GraphWriter, logits: str, own: str) -> str:
    """The token itself, then the k - 1 others that are likeliest: [M, k].

    Of the top k, those behind the token's own place move up by one; where it has none, the last one is left out.
    """
    top_k = g.input(contract.MAX_TOP_K, _INT64, [1])
    _, best = g.ops("TopK", logits, top_k, name="top_k_", outputs=["best/logits", "best"], axis=-1)  # [M, k]
    is_own = g.op("Cast", g.op("Equal", best, own, name="best/is_own"), name="best/own", to=_INT64)
    passed = g.op("CumSum", is_own, g.constant(1, np.int64), name="best/passed")  # 1 from the token's own place on
    start, end = g.constant([0], np.int64), g.constant([np.iinfo(np.int64).max], np.int64)
    second, last, axis = g.constant([1], np.int64), g.constant([-1], np.int64), g.constant([1], np.int64)
    before = g.op("Slice", best, start, last, axis, name="others/before")
    behind = g.op("Slice", best, second, end, axis, name="others/behind")
    moves = g.op("Cast", g.op("Slice", passed, start, last, axis, name="others/passed"), name="others/move", to=_BOOL)
    others = g.op("Where", moves, behind, before, name="others")  # [M, k - 1]
    return g.op("Concat", own, others, name="candidates", axis=1)


def _read(g: GraphWriter, trunk: Trunk, states: str, candidates: str, weights: WeightsFile, float_type: str) -> None:
    """The log-probabilities of the scored tokens by each reading of a trunk and each of its columns."""
    at, readings = trunk.prefix, trunk.prefix + contract.READINGS
    place = g.input(at + contract.READING_PLACE, _INT64, [readings, _PLACE])
    token = g.input(at + contract.READING_TOKEN, _INT64, [readings])
    hidden = g.op("GatherND", states, place, name=f"{at}reading/hidden")  # [L, hidden]
    columns = feature_columns(g, trunk, hidden, float_type)  # [L, hidden, 1 + P]
    read = g.op("Gather", candidates, token, name=f"{at}reading/candidates", axis=0)  # [L, k]
    logits = candidate_logits(g, trunk, columns, read, weights, float_type)  # [L, k, 1 + P]
    logits = to_float(g, logits, float_type, f"{at}reading")
    _first_log_probs(g, logits, name=f"{at}reading", output=at + contract.READING_LOG_PROBS)
    g.output(at + contract.READING_LOG_PROBS, _FLOAT, [readings, at + contract.WEIGHT_COLUMNS])


def _first_log_probs(g: GraphWriter, logits: str, *, name: str, output: str) -> None:
    """Log-probabilities of the first of k candidates: [n, k, ..] -> [n, ..]."""
    log_probs = g.op("LogSoftmax", logits, name=f"{name}/log_probs", axis=1)
    g.op("Gather", log_probs, g.constant(0, np.int64), name=f"{name}/first", output=output, axis=1)
