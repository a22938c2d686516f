"""The content of one run of a graph: new tokens of prompts, and the rows that read them, by trunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pad_runtime.bundle import contract
from pad_runtime.rows.noise import NoiseTape
from pad_runtime.rows.row import Reading, Row
from pad_runtime.rows.sequence import SequenceSpec


@dataclass(frozen=True)
class PromptPart:
    """New tokens of one prompt.

    Attributes:
        sequence: that it is of, as an index into the batch.
        ids: the new tokens.
        past: how many tokens of it are in the cache.
    """

    sequence: int
    ids: Sequence[int]
    past: int


@dataclass(frozen=True)
class RowPart:
    """One row that runs.

    Attributes:
        sequence: that it is of, as an index into the batch.
        index: of the row in its sequence.
        row: what it is.
        prompt: which prompt part of the trunk it reads.
    """

    sequence: int
    index: int
    row: Row
    prompt: int


@dataclass(frozen=True)
class TrunkPart:
    """What runs on one trunk, in the order in which it lies in the KV arena; never empty."""

    prompts: tuple[PromptPart, ...]
    rows: tuple[RowPart, ...]


@dataclass(frozen=True)
class Member:
    """A sequence of a batch, with all that choosing its next token needs.

    Attributes:
        sequence: its rows, sampling and controls.
        step: tokens chosen before this one.
        prompt_ids, chosen_ids: the base's prompt and the tokens chosen since.
        noise: noise of the sequence's seed.
        allowed: packed bits of the tokens that may be chosen, [ceil(V / 8)] uint8, least significant first; None: all.
    """

    sequence: SequenceSpec
    step: int
    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    noise: NoiseTape
    allowed: npt.NDArray[np.uint8] | None = None


_NOTHING = Reading(0, (), 0.0)


@dataclass(frozen=True)
class ReadingPart:
    """One reading that is taken.

    Attributes:
        row: index into the rows of the trunk.
        sequence: the one whose scores it adds to.
        persrm: the one whose feature heads it mixes, if the reading has weights.
        reading: weights and coefficient.
    """

    row: int
    sequence: int
    persrm: int | None
    reading: Reading


@dataclass(frozen=True)
class Batch:
    """One run.

    Attributes:
        members: in the order of the chosen ids.
        trunks: by trunk of the graph.
        scores: whether the readings count; a run that only fills the cache reads none.
    """

    members: tuple[Member, ...]
    trunks: tuple[TrunkPart, ...]
    scores: bool = True

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the PersRMs of its rows, ascending."""
        persrms = (part.row.persrm for trunk in self.trunks for part in trunk.rows)
        return tuple(sorted({persrm for persrm in persrms if persrm is not None}))

    @property
    def max_top_k(self) -> int:
        """Candidates of the sequence with the most."""
        return max(member.sequence.sampling.top_k for member in self.members)

    def reads(self, trunk: int) -> bool:
        """Whether rows of a trunk have readings."""
        return contract.takes_readings(trunk, len(self.trunks))

    def readings(self, trunk: int) -> tuple[ReadingPart, ...]:
        """Readings of the rows on a trunk, the base's own left out; never empty."""
        found = [
            ReadingPart(number, part.sequence, part.row.persrm, reading)
            for number, part in enumerate(self.trunks[trunk].rows)
            for reading in self.members[part.sequence].sequence.readings[1:]
            if self.scores and reading.row == part.index
        ]
        return tuple(found) or (ReadingPart(0, self.trunks[trunk].rows[0].sequence, None, _NOTHING),)

    @property
    def all_readings(self) -> tuple[ReadingPart, ...]:
        """Readings of all trunks that have any, side by side."""
        return tuple(part for trunk in range(len(self.trunks)) if self.reads(trunk) for part in self.readings(trunk))
