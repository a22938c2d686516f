"""A sequence: the group of rows that one text is decoded by, and how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pad_runtime.rows.row import Reading, Row

# Of readings, bias and temperature: times logits or noise, far less than what a token that is not allowed loses (1e30).
MAX_STRENGTH = 1e25
LEAST_FACTOR = 1e-25  # of a repetition penalty, which divides logits


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen among the candidates.

    Attributes:
        top_k: candidates, offered ends of the turn among them.
        temperature: 0 is greedy.
        top_p: mass of the candidates that are kept; 1 keeps all.
        min_p: least chance of a candidate, as a part of the likeliest one's; 0 keeps all.
        seed: of the noise.
        offer_end: the ends of the turn are candidates at every step.
    """

    top_k: int
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    offer_end: bool = False


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What changes the base's logits before candidates are taken.

    Attributes:
        bias: added to the logits, by token id.
        repetition_penalty: of tokens in the base's prompt or reply; logits above 0 are divided by it, those below 0
            multiplied; 1 is off (CTRL, arXiv 1909.05858).
        presence_penalty: taken off a token that the reply has.
        frequency_penalty: taken off for each time that the reply has a token.
    """

    bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether they depend on the tokens that were written."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True)
class SequenceSpec:
    """What one text is decoded by.

    Attributes:
        rows: the first is the base's.
        readings: the first is of the base's row, without weights.
        sampling: how its tokens are chosen.
        controls: what is done to the base's logits first.
    """

    rows: tuple[Row, ...]
    readings: tuple[Reading, ...]
    sampling: Sampling
    controls: Controls = field(default_factory=Controls)

    @property
    def is_plain(self) -> bool:
        """Whether the base's own graph decodes it: the base's row alone, and no ends of the turn that are offered."""
        return self.rows == (Row(0, 0),) and not self.sampling.offer_end

    @property
    def num_prompts(self) -> int:
        """Prompts that its rows read."""
        return 1 + max(row.prompt for row in self.rows)

    def rows_on(self, trunk: int) -> tuple[int, ...]:
        """Indices of its rows on a trunk."""
        return tuple(index for index, row in enumerate(self.rows) if row.trunk == trunk)

    def prompts_on(self, trunk: int) -> tuple[int, ...]:
        """Prompts that its rows on a trunk read, each once."""
        return tuple(dict.fromkeys(row.prompt for row in self.rows if row.trunk == trunk))
