"""What each sequence adds to the base's logits before candidates are picked: penalties, a bias, a mask.

    z'(a) = penalised(z(a)) + bias(a) + (0 if a is allowed, else BANNED)
    penalised(z) = (z * r if z < 0, else z / r) - presence * [n > 0] - frequency * n

with r the repetition penalty of a token that is written in prompt or reply, as transformers divides by it, and n how
often the reply has it, as OpenAI counts. What nobody in a batch uses is one number wide and is the exact zero of the
only sum that is as wide as the vocabulary.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from pad_export.graph.writer import GraphWriter
from pad_runtime.bundle import contract

BANNED = -1e30  # beyond any logit and any bonus, and yet finite
_FLOAT, _UINT8 = int(TensorProto.FLOAT), int(TensorProto.UINT8)


def control_logits(g: GraphWriter, logits: str, vocab_size: int) -> str:
    """z' from the base's logits z, [S, V] both."""
    bias = g.input(contract.BIAS, _FLOAT, [contract.BIAS_SEQUENCES, contract.BIAS_WIDTH])
    added = g.op("Sum", bias, _mask(g, vocab_size), _penalties(g, logits), name="controls/added")  # [S, 1 or V]
    return g.op("Add", logits, added, name="controls/logits")


def count_written(g: GraphWriter, chosen: str) -> None:
    """Emit `next_written`: each sequence's counts with the token that it has chosen now, [S, 1]."""
    width = g.op("Squeeze", "controls/width", name="advance/width")
    ids = g.op("Range", g.constant(0, np.int64), width, g.constant(1, np.int64), name="advance/vocabulary")
    found = g.op("Cast", g.op("Equal", ids, chosen, name="advance/is_chosen"), name="advance/chosen", to=_FLOAT)
    g.op("Add", contract.WRITTEN, found, name="advance/written", output=contract.NEXT_WRITTEN)
    g.output(contract.NEXT_WRITTEN, _FLOAT, [contract.SEQUENCES, contract.WRITTEN_WIDTH])


def _mask(g: GraphWriter, vocab_size: int) -> str:
    """0 where a token is allowed and BANNED where not, [1 or S, 1 or V]: a byte looks its eight up in a table."""
    packed = g.input(contract.ALLOWED, _UINT8, [contract.ALLOWED_SEQUENCES, contract.ALLOWED_WIDTH])
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    table = g.constant(np.where(bits, 0.0, BANNED), np.float32, name="controls/bits")  # [256, 8]
    # By way of float32: TensorRT casts bytes to nothing else.
    places = g.op("Cast", packed, name="controls/bytes", to=_FLOAT)
    places = g.op("Cast", places, name="controls/places", to=TensorProto.INT32)
    flat = g.constant([0, -1], np.int64)
    mask = g.op("Reshape", g.op("Gather", table, places, name="controls/eights"), flat, name="controls/mask")
    # A width of w bytes is cut to min(1 + (w - 1) * V, V) bits: the first of a byte alone stands for all tokens.
    width = g.op("Shape", packed, name="controls/mask_bytes", start=1)
    width = g.op("Mul", width, g.constant([vocab_size], np.int64), name="controls/mask_width/times")
    width = g.op("Sub", width, g.constant([vocab_size - 1], np.int64), name="controls/mask_width/more")
    width = g.op("Min", width, g.constant([vocab_size], np.int64), name="controls/mask_width")
    return _first(g, mask, width, "controls/mask_cut")


def _penalties(g: GraphWriter, logits: str) -> str:
    """What the penalties add, [S, 1 or V]: as wide as the counts are."""
    own: tuple[str, str] = (contract.SEQUENCES, contract.WRITTEN_WIDTH)
    written = g.input(contract.WRITTEN, _FLOAT, own)
    repetition, presence, frequency = (
        g.input(name, _FLOAT, [contract.SEQUENCES, 1])
        for name in (contract.REPETITION_PENALTY, contract.PRESENCE_PENALTY, contract.FREQUENCY_PENALTY)
    )
    zero, one = g.constant(0.0, np.float32), g.constant(1.0, np.float32)
    width = g.op("Shape", written, name="controls/width", start=1)
    counted = _first(g, logits, width, "controls/counted")
    is_written = g.op("Greater", written, zero, name="controls/is_written")
    divisor = g.op("Where", is_written, repetition, one, name="controls/divisor")
    penalised = g.op(
        "Where",
        g.op("Less", counted, zero, name="controls/is_negative"),
        g.op("Mul", counted, divisor, name="controls/times"),
        g.op("Div", counted, divisor, name="controls/divided"),
        name="controls/repetition",
    )
    count = g.op("Floor", written, name="controls/count")
    once = g.op("Mul", presence, g.op("Min", count, one, name="controls/once"), name="controls/presence")
    charge = g.op("Add", once, g.op("Mul", frequency, count, name="controls/frequency"), name="controls/charge")
    return g.op("Sub", g.op("Sub", penalised, counted, name="controls/change"), charge, name="controls/penalties")


def _first(g: GraphWriter, values: str, width: str, name: str) -> str:
    """The first `width` columns."""
    return g.op("Slice", values, g.constant([0], np.int64), width, g.constant([1], np.int64), name=name)
