"""What every row is measured with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How long a row is measured, and on how much of the machine.

    Attributes:
        rounds: of each side, taking turns.
        new_tokens: of each round.
        threads: inside one operator; with one, everything stays on one core.
    """

    rounds: int
    new_tokens: int
    threads: int

    @property
    def core(self) -> int | None:
        """The core that everything stays on, or None."""
        if self.threads > 1 or not hasattr(os, "sched_getaffinity"):
            return None
        return max(os.sched_getaffinity(0))


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """This process on one core; None leaves it where it is."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
