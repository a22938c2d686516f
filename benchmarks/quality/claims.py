"""What a feature must do to be shipped, and which directions do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SOUND_TO_BASE, SOUND_TO_PROMPTED = 0.70, 0.60  # least sound wins by each judge
MORE_REPEATS, PERPLEXITY = 0.03, 1.6  # most repetition above the base's, and perplexity over the base's


@dataclass(frozen=True)
class Claim:
    """Of one direction of a feature.

    Attributes:
        to_base, to_prompted: sound wins by the judge that gives fewer: value, and the ends of its interval.
        more_repeats: share of replies that repeat themselves, above the base's, by the measure that gives more.
        perplexity: over the base's.
    """

    to_base: Sequence[float]
    to_prompted: Sequence[float]
    more_repeats: float
    perplexity: float | None

    @property
    def holds(self) -> bool:
        return (
            self.to_base[0] >= SOUND_TO_BASE
            and self.to_prompted[0] >= SOUND_TO_PROMPTED
            and self.more_repeats <= MORE_REPEATS
            and (self.perplexity is None or self.perplexity <= PERPLEXITY)
        )


def claim(row: Mapping[str, Any]) -> Claim:
    """Of a row of the main part."""
    judges = row["judges"].values()
    return Claim(
        to_base=min(judge["to_base"]["sound"] for judge in judges),
        to_prompted=min(judge["to_prompted"]["sound"] for judge in judges),
        more_repeats=max(row["repeats"][name][0] - row["base_repeats"][name][0] for name in row["repeats"]),
        perplexity=row["perplexity_ratio"][0],
    )


def claims(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float], Claim]:
    """Of PAD's rows, by feature and weight."""
    return {(row["feature"], row["weight"]): claim(row) for row in rows if row["method"] == "pad"}
