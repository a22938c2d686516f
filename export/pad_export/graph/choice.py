"""The choice of a token from the scores of the candidates: greedy, or a sample by Gumbel noise.

next = argmax(score + temperature * Gumbel)    over a sequence's own top k, inside top_p and min_p
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from pad_export.graph.controls import BANNED
from pad_export.graph.writer import GraphWriter
from pad_runtime.bundle import contract

_FLOAT, _INT64 = int(TensorProto.FLOAT), int(TensorProto.INT64)
_LEAST_TEMPERATURE = 1e-6


def choose_token(g: GraphWriter, scores: str, candidates: str, max_top_k: str) -> str:
    """Next ids [S, 1] from scores and ids of the candidates [S, k]. Temperature 0 leaves the arg max, exactly.

    A sequence's own k first: among its candidates alone the noise falls as it would in a batch of one.
    """
    top_k = g.input(contract.TOP_K, _INT64, [contract.SEQUENCES, 1])
    temperature, top_p, min_p = (
        g.input(name, _FLOAT, [contract.SEQUENCES, 1])
        for name in (contract.TEMPERATURE, contract.TOP_P, contract.MIN_P)
    )
    lowest = g.constant(BANNED, np.float32)
    size = g.op("Shape", scores, name="choose/k", start=1)  # max_top_k itself would be copied to a device for this
    stop = g.op("Squeeze", size, name="choose/num_ranks")
    ranks = g.op("Range", g.constant(0, np.int64), stop, g.constant(1, np.int64), name="choose/ranks")  # [k]
    is_own = g.op("Less", ranks, top_k, name="choose/is_own")
    own = g.op("Where", is_own, scores, lowest, name="choose/own")
    ordered, order = g.ops(
        "TopK", own, max_top_k, name="choose/sort", outputs=["choose/ordered", "choose/order"], axis=-1
    )
    floor = g.op("Max", temperature, g.constant(_LEAST_TEMPERATURE, np.float32), name="choose/temperature")
    chances = g.op("Softmax", g.op("Div", ordered, floor, name="choose/scaled"), name="choose/chances", axis=-1)
    before = g.op("CumSum", chances, g.constant(1, np.int64), name="choose/mass_before", exclusive=1)
    largest = g.op("ReduceMax", chances, g.constant([1], np.int64), name="choose/largest")
    least = g.op("Mul", min_p, largest, name="choose/least")
    inside = g.op(
        "And",
        g.op("Less", before, top_p, name="choose/inside_top_p"),
        g.op("GreaterOrEqual", chances, least, name="choose/inside_min_p"),
        name="choose/inside",
    )
    spread = g.op("Mul", _noise(g), temperature, name="choose/spread")
    shaken = g.op("Add", ordered, spread, name="choose/perturbed")
    kept = g.op("Where", inside, shaken, lowest, name="choose/kept")
    winner = g.op("ArgMax", kept, name="choose/winner", axis=-1, keepdims=1)  # [S, 1]
    place = g.op("GatherElements", order, winner, name="choose/place", axis=1)
    return g.op("GatherElements", candidates, place, name="choose/id", axis=1)


def _noise(g: GraphWriter) -> str:
    """Each sequence's noise at its own step, [S, k]; and the step after it."""
    noise = g.input(contract.NOISE, _FLOAT, [contract.SEQUENCES, contract.NOISE_STEPS, contract.K])
    step = g.input(contract.STEP, _INT64, [contract.SEQUENCES, 1])
    last = g.input(contract.LAST_NOISE, _INT64, [1])
    index = g.op("Min", step, last, name="choose/index")
    g.op("Add", step, g.constant([1], np.int64), name="advance/step", output=contract.NEXT_STEP)
    g.output(contract.NEXT_STEP, _INT64, [contract.SEQUENCES, 1])
    return g.op("GatherND", noise, index, name="choose/gumbel", batch_dims=1)
