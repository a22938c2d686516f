"""What became of the rows of a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

_MAX_LISTED = 8  # reasons in a line


@dataclass
class PairReport:
    """Counts of a source's rows and pairs.

    Attributes:
        path: the source.
        num_records: rows read, blank lines aside.
        num_pairs: pairs that the rows gave.
        skipped: by reason, the number of rows and the line number of the first, from 1.
    """

    path: Path
    num_records: int = 0
    num_pairs: int = 0
    skipped: dict[str, tuple[int, int]] = field(default_factory=dict)

    def skip(self, line: int, reason: str) -> None:
        """Count a row that gives no pair."""
        count, first = self.skipped.get(reason, (0, line))
        self.skipped[reason] = (count + 1, min(first, line))

    def lines(self) -> list[str]:
        """The report as a line of text."""
        return [
            f"{self.path}: {counted(self.num_pairs, 'pair')} of {counted(self.num_records, 'row')}{self.told_skips()}"
        ]

    def told_skips(self) -> str:
        """The skipped rows and reasons, as the end of a line; "" if none was skipped."""
        reasons = [
            f"{count:,} with {reason} (first at line {first:,})" for reason, (count, first) in self.skipped.items()
        ]
        if len(reasons) > _MAX_LISTED:
            others = sum(count for count, _ in list(self.skipped.values())[_MAX_LISTED:])
            reasons[_MAX_LISTED:] = [f"{others:,} for other reasons"]
        return f"; skipped {', '.join(reasons)}" if reasons else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
