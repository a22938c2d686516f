"""An engine that a test holds: between its steps, or in each of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pad_rt import Generator
from pad_runtime.decode.decoder import Decoder

_WAIT_S = 60.0


@contextmanager
def held(generator: Generator) -> Iterator[None]:
    """Keep the engine's thread in a job: nothing is let in meanwhile."""
    let_go, begun = threading.Event(), threading.Event()

    def job(_: Decoder) -> None:
        begun.set()
        let_go.wait(_WAIT_S)

    thread = threading.Thread(target=generator._engine.run, args=(job,))
    thread.start()
    begun.wait(_WAIT_S)
    try:
        yield
    finally:
        let_go.set()
        thread.join()


class Gate:
    """Every step of a decoder waits here until the test lets it end.

    Attributes:
        num_begun: steps that have begun.
    """

    def __init__(self, generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_begun = 0
        self._permits, self._is_open = threading.Semaphore(0), False
        decoder = generator._engine._decoder
        step = decoder.step

        def gated(*args: Any, **options: Any) -> Any:
            self.num_begun += 1
            if not self._is_open:
                assert self._permits.acquire(timeout=_WAIT_S)
            return step(*args, **options)

        monkeypatch.setattr(decoder, "step", gated)

    def let(self, count: int) -> None:
        """Let so many steps end."""
        self._permits.release(count)

    def open(self) -> None:
        """Let all end from now on."""
        self._is_open = True
        self._permits.release(1000)
