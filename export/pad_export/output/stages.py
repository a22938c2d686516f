"""Progress of long work: a bar on a terminal, elsewhere lines of text."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from pad_runtime.command import Report, silent

_INTERVAL = 15.0  # seconds between two lines of a stage


class Progress:
    """Progress of one stage, shown as `calibrating: 120 of 211 linears, 95 s left`."""

    def __init__(self, stage: str, unit: str, report: Report, *, bar: bool, clock: Callable[[], float]) -> None:
        self._stage, self._unit, self._report, self._clock = stage, unit, report, clock
        self._shows_bar = bar
        self._bar: Any = None
        self._total = self._done = self._before = 0
        self._begun = self._told = 0.0

    def begin(self, total: int, *, done: int = 0) -> None:
        """Begin a stage of `total` units, `done` of them in an earlier run. A stage without units is not shown."""
        self._total, self._done, self._before = total, done, done
        self._begun = self._told = self._clock()
        if total:
            self._report(f"{self._stage}: {total:,} {self._unit}" + (f", {done:,} done before" if done else ""))
            if self._shows_bar:
                self._bar = tqdm(
                    total=total, initial=done, desc=self._stage, unit=f" {self._unit}", leave=False, dynamic_ncols=True
                )

    def __call__(self, count: int = 1, *, note: str = "") -> None:
        """Count `count` more units as done; `note` is shown beside them, such as their loss."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif (now := self._clock()) - self._told >= _INTERVAL:
            self._told = now
            left = (now - self._begun) / (self._done - self._before) * (self._total - self._done)
            parts = [f"{self._done:,} of {self._total:,} {self._unit}", note, f"{_duration(left)} left"]
            self._report(f"{self._stage}: {', '.join(filter(None, parts))}")

    def tell(self, line: str) -> None:
        """Print a line about the stage, above its bar."""
        if self._bar is not None:
            self._bar.clear()
        self._report(f"{self._stage}: {line}")

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


class Stages:
    """Shows the stages of one command.

    Attributes:
        tell: shows a line that is of no stage.
    """

    def __init__(self, report: Report = silent, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Bars go to stderr if that is a terminal; else lines go to `report`, one in 15 seconds; `silent`: neither."""
        self.tell = report
        self._shows_bars = report is not silent and sys.stderr.isatty()
        self._clock = clock

    @contextmanager
    def count(self, stage: str, unit: str) -> Iterator[Progress]:
        """A stage of so many units, whose number `begin` gives."""
        progress = Progress(stage, unit, self.tell, bar=self._shows_bars, clock=self._clock)
        try:
            yield progress
        finally:
            progress.end()


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
