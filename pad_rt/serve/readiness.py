"""Whether a server takes requests: it loads its bundles, serves, and ends once the last reply has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Literal


class Readiness:
    """Loading, then ready (or failed), then draining.

    The app's lifespan starts `load` as a task and has yielded by the time that models open, so that /health answers
    meanwhile.

    Attributes:
        state: what the server is doing.
        num_running: requests that were let in and have not ended.
    """

    def __init__(self) -> None:
        self.state: Literal["loading", "ready", "failed", "draining"] = "loading"
        self.num_running = 0
        self._error: Exception | None = None
        self._opened, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()

    async def load(self, open: Callable[[], Awaitable[object]]) -> None:
        """Open the models; then the server is ready. What opening raises is for `opened`."""
        state: Literal["ready", "failed"] = "ready"
        try:
            await open()
        except Exception as error:
            self._error, state = error, "failed"
        if self.state == "loading":
            self.state = state
        self._opened.set()

    async def opened(self) -> None:
        """Wait until the models are open; raises what opening them raised."""
        await self._opened.wait()
        if self._error is not None:
            raise self._error

    @contextmanager
    def running(self) -> Iterator[None]:
        """A request that was let in, from its whole body to the end of its reply."""
        self.num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_running -= 1
            if not self.num_running:
                self._idle.set()

    def drain(self) -> None:
        """Let no further request in."""
        self.state = "draining"

    async def drained(self) -> None:
        """Wait until no request runs."""
        await self._idle.wait()
