"""Readings: how the rows of a trunk become rewards of the candidates.

    logit_c(a) = lm_head(a) . (w_0 h + sum_i w_i (W_i h + b_i))        a among the candidates of the reading's sequence
    score(a)   = c_base z(a) + sum_c c_c logit_c(a) + (z'(a) - z(a))

with h the hidden state of the row that the reading reads, and w its weights of the features (arXiv 2410.04070,
normalisers cancelled). Features mix before the lm_head, which is linear; where the family caps its logits, after the
cap, which is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from pad_export.graph.matrix import gather_rows, multiply_transposed
from pad_export.graph.writer import GraphWriter, element_type
from pad_export.trunk import Trunk
from pad_export.weights.file import WeightsFile
from pad_export.weights.stream import lm_head_weight
from pad_runtime.bundle import contract

_FLOAT, _INT64 = int(TensorProto.FLOAT), int(TensorProto.INT64)


def is_read(trunk: Trunk, trunks: Sequence[Trunk]) -> bool:
    """Whether rewards run on a trunk: beside trunks of their own, the base's has base rows alone."""
    return contract.takes_readings(trunks.index(trunk), len(trunks))


def mix_readings(g: GraphWriter, reading_logits: Sequence[str], base_logits: str, controlled: str) -> str:
    """scores [S, k]: the base's and every reading's logits by their coefficients, and what the controls have changed.

    Args:
        g: where to emit.
        reading_logits: of each trunk, [L, k].
        base_logits, controlled: z and z' of the candidates, [S, k].
    """
    logits = g.op("Concat", *reading_logits, name="mix/readings", output=contract.READING_LOGITS, axis=0)
    g.output(logits, _FLOAT, [contract.TOTAL_READINGS, contract.K])
    coefficients = g.input(contract.COEFFICIENTS, _FLOAT, [contract.SEQUENCES, contract.TOTAL_READINGS])
    own = g.input(contract.BASE_COEFFICIENT, _FLOAT, [contract.SEQUENCES, 1])
    rewards = g.op("MatMul", coefficients, logits, name="mix/rewards")
    mixed = g.op("Add", g.op("Mul", own, base_logits, name="mix/base"), rewards, name="mix")
    change = g.op("Sub", controlled, base_logits, name="mix/change")
    scores = g.op("Add", mixed, change, name="mix/scores", output=contract.SCORES)
    g.output(scores, _FLOAT, [contract.SEQUENCES, contract.K])
    return scores


def read_rows(g: GraphWriter, trunk: Trunk, hidden: str, candidates: str, weights: WeightsFile, float_type: str) -> str:
    """Logits of the candidates by each reading of a trunk, [L, k] in `float_type`.

    Args:
        g, weights: where to emit, and the file of the lm_head.
        trunk: whose rows are read.
        hidden: last hidden state of each of its rows, [R, hidden].
        candidates: of every sequence, [S, k].
        float_type: of activations.
    """
    at, readings = trunk.prefix, trunk.prefix + contract.READINGS
    row = g.input(at + contract.READING_ROW, _INT64, [readings])
    sequence = g.input(at + contract.READING_SEQUENCE, _INT64, [readings])
    read = g.op("Gather", hidden, row, name=f"{at}reading/hidden", axis=0)
    columns = feature_columns(g, trunk, read, float_type)  # [L, hidden, 1 + P]
    mixture = _mixture(g, trunk, float_type) if trunk.has_features else ""  # [L, 1 + P, 1]
    if mixture and not trunk.spec.logit_softcap:
        columns = g.op("MatMul", columns, mixture, name=f"{at}features/mix")  # [L, hidden, 1]
    own = g.op("Gather", candidates, sequence, name=f"{at}reading/candidates", axis=0)  # [L, k]
    logits = candidate_logits(g, trunk, columns, own, weights, float_type)  # [L, k, 1 or 1 + P]
    if mixture and trunk.spec.logit_softcap:
        logits = g.op("MatMul", logits, mixture, name=f"{at}features/mix")  # [L, k, 1]
    logits = g.op("Squeeze", logits, g.constant([2], np.int64), name=f"{at}reading/logits")
    return to_float(g, logits, float_type, f"{at}reading")


def feature_columns(g: GraphWriter, trunk: Trunk, hidden: str, float_type: str) -> str:
    """The hidden state h of each reading and every W_i h + b_i, as columns: [L, hidden] -> [L, hidden, 1 + P].

    P is 0 where the trunk has no features.
    """
    if not trunk.has_features:
        return g.op("Unsqueeze", hidden, g.constant([2], np.int64), name=f"{trunk.prefix}reading/column")
    at, size, features = trunk.prefix, trunk.spec.hidden_size, trunk.prefix + contract.FEATURES
    heads = g.input(at + contract.FEATURE_HEADS, element_type(float_type), [features, size, size])
    biases = g.input(at + contract.FEATURE_BIASES, element_type(float_type), [features, 1, size])
    plain = g.op("Unsqueeze", hidden, g.constant([0], np.int64), name=f"{at}features/plain")  # [1, L, hidden]
    phi = g.op("MatMul", plain, heads, name=f"{at}features/heads")  # [P, L, hidden]
    phi = g.op("Add", phi, biases, name=f"{at}features/biases")
    phi = g.op("Concat", plain, phi, name=f"{at}features/all", axis=0)  # [1 + P, L, hidden]
    return g.op("Transpose", phi, name=f"{at}features/columns", perm=[1, 2, 0])


def _mixture(g: GraphWriter, trunk: Trunk, float_type: str) -> str:
    """The weights of each reading over h and the features, as a column: [L, 1 + P, 1]."""
    at = trunk.prefix
    shape = [at + contract.READINGS, at + contract.WEIGHT_COLUMNS]
    weights = g.input(at + contract.READING_WEIGHTS, element_type(float_type), shape)
    return g.op("Unsqueeze", weights, g.constant([2], np.int64), name=f"{at}features/weights")


def candidate_logits(
    g: GraphWriter, trunk: Trunk, columns: str, candidates: str, weights: WeightsFile, float_type: str
) -> str:
    """Logits [L, k, c] of candidates [L, k], by columns [L, hidden, c]: k rows of the lm_head, never the vocabulary."""
    at = trunk.prefix
    rows = gather_rows(
        g, weights, lm_head_weight(trunk, weights), candidates, name=f"{at}reading/head_rows"
    )  # [L, k, hidden]
    logits = g.op("MatMul", rows, columns, name=f"{at}reading/dots")
    return softcap(g, logits, trunk, float_type, f"{at}reading")


def vocabulary_logits(g: GraphWriter, trunk: Trunk, hidden: str, weights: WeightsFile, float_type: str) -> str:
    """Logits over the vocabulary [n, V] float32 of hidden states [n, hidden]."""
    logits = multiply_transposed(g, weights, lm_head_weight(trunk, weights), hidden, name="lm_head")
    return to_float(g, softcap(g, logits, trunk, float_type, "lm_head"), float_type, "lm_head")


def softcap(g: GraphWriter, logits: str, trunk: Trunk, float_type: str, name: str) -> str:
    """cap * tanh(logits / cap), where the family caps its logits."""
    cap = trunk.spec.logit_softcap
    if not cap:
        return logits
    value = g.constant(cap, np.dtype(float_type))
    scaled = g.op("Div", logits, value, name=f"{name}/softcap/scaled")
    return g.op("Mul", g.op("Tanh", scaled, name=f"{name}/softcap/tanh"), value, name=f"{name}/softcap")


def to_float(g: GraphWriter, logits: str, float_type: str, name: str) -> str:
    """Logits in float32: scores are mixed, and candidates picked, in that."""
    return logits if float_type == "float32" else g.op("Cast", logits, name=f"{name}/float", to=_FLOAT)
