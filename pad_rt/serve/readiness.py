"""What state a server is in: it loads its bundles, serves, and ends once the last reply has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal


class Readiness:
    """Loading, then ready, then draining.

    Attributes:
        state: what the server is doing.
        num_running: requests that were let in and have not ended.
    """

    def __init__(self) -> None:
        self.state: Literal["loading", "ready", "draining"] = "loading"
        self.num_running = 0
        self._loaded: asyncio.Future[None] | None = None

    async def load(self, open: Callable[[], Awaitable[None]]) -> None:
        """Open the models; then the server is ready. What that raises is for `loaded`."""
        raise NotImplementedError

    async def loaded(self) -> None:
        """Wait until the models are open. Raises: what opening them raised."""
        raise NotImplementedError

    def drain(self) -> None:
        """Let no further request in."""
        self.state = "draining"
