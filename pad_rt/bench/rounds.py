"""Taking turns: sides that are compared are timed call by call in one run, in an order that changes each round.

So other work on the machine affects all sides alike, and no side always runs after the same other side.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Quartiles and the 95th percentile of a series, in the unit of the series."""

    p25: float
    p50: float
    p75: float
    p95: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of a series of at least one value."""
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        return cls(low, middle, high, sorted(values)[int(0.95 * len(values))])


def turn(names: Sequence[str], round_: int) -> list[str]:
    """The order of a round: every name once, beginning with another name each round."""
    start = round_ % len(names)
    return [*names[start:], *names[:start]]


def time_turns(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call every side once a round, or `calls` times in a row, and return the seconds of each call, by side."""
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds):
        for name in turn(names, round_):
            for _ in range(calls):
                start = clock()
                sides[name]()
                times[name].append(clock() - start)
    return times


def compare(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """The spread of values[i] / baseline[i], which were measured in the same round."""
    return Spread.of([value / other for value, other in zip(values, baseline, strict=True)])
