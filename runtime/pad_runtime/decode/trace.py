"""Traces: candidates, logits and scores of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pad_runtime.bundle import contract
from pad_runtime.rows.batch import Batch

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SequenceTrace:
    """Candidates, logits and scores of one sequence in one step.

    Attributes:
        candidates: token ids [k] int64: offered ends of the turn, then the best base logit first.
        base_logits: of the candidates, without bias and penalties, [k] float32.
        reading_logits: of the candidates, by further reading of the sequence, [readings - 1, k] float32.
        scores: of the candidates, [k] float32.
    """

    candidates: Array
    base_logits: Array
    reading_logits: Array
    scores: Array

    @property
    def row_logits(self) -> Array:
        """Logits of the candidates by reading, the base's first: [readings, k] float32."""
        return np.concatenate([self.base_logits[None], self.reading_logits])


def trace_shapes(batch: Batch) -> dict[str, tuple[tuple[int, ...], npt.DTypeLike]]:
    """Shapes and types of the trace's outputs, by name."""
    chosen = (len(batch.members), batch.max_top_k)
    return {
        contract.CANDIDATES: (chosen, np.int64),
        contract.BASE_LOGITS: (chosen, np.float32),
        contract.READING_LOGITS: ((len(batch.all_readings), batch.max_top_k), np.float32),
        contract.SCORES: (chosen, np.float32),
    }


def split_trace(batch: Batch, values: Mapping[str, Array]) -> list[SequenceTrace]:
    """A trace's outputs by sequence, each with the candidates that are its own."""
    columns = {(part.sequence, part.reading): column for column, part in enumerate(batch.all_readings)}
    traces = []
    for number, member in enumerate(batch.members):
        own = [columns[number, reading] for reading in member.sequence.readings[1:]]
        k = member.sequence.sampling.top_k
        traces.append(
            SequenceTrace(
                candidates=values[contract.CANDIDATES][number, :k],
                base_logits=values[contract.BASE_LOGITS][number, :k],
                reading_logits=values[contract.READING_LOGITS][own, :k],
                scores=values[contract.SCORES][number, :k],
            )
        )
    return traces
